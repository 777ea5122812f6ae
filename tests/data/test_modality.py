"""Tools of one AnnData on a MuData: which modality, where results go, and what is refused."""

from __future__ import annotations

import inspect
import warnings
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.data._modality import on_modality

#: These read a MuData by themselves: they make new observations.
BY_THEMSELVES = {"pp.contrasts", "tl.embed_donors"}
TOOLS = {
    f"{room.__name__[4:]}.{n}": getattr(room, n) for room in (cfm.tl, cfm.pp) for n in room.__all__
}


def _mudata(**modalities: ad.AnnData) -> md.MuData:
    with md.set_options(pull_on_update=False):
        return md.MuData(modalities)


def _adata(names: str = "abcd", n: int = 4) -> ad.AnnData:
    obs = pd.DataFrame({"kind": list("xyxy")[:n]}, index=[f"cell{i}" for i in range(n)])
    return ad.AnnData(
        np.arange(n * len(names), dtype=np.float32).reshape(n, -1),
        obs=obs,
        var=pd.DataFrame(index=list(names)),
    )


@on_modality(
    columns=("groupby",), also=("other",), changes_genes=lambda given: bool(given.get("drop"))
)
def marks(adata, other=None, *, groupby=None, drop=None, modality=None, copy=False):
    """Stand for a tool."""
    if copy:
        adata = adata.copy()
    adata.obs["mark"] = 1
    adata.uns["marks"] = {"modality": modality, "groupby": groupby, "other": other}
    if drop:
        adata._inplace_subset_var([0, 2])
        if drop == "renamed":
            adata.var_names = ["G1", "G2"]
        elif drop == "one renamed":
            adata.var_names = ["a", "G2"]
    return adata if copy else None


@pytest.mark.parametrize("name", TOOLS)
def test_every_tool_takes_a_modality_by_keyword(name: str) -> None:
    parameters = inspect.signature(TOOLS[name]).parameters
    assert parameters["modality"].kind is inspect.Parameter.KEYWORD_ONLY
    assert parameters["modality"].default is None
    if name not in BY_THEMSELVES:
        assert hasattr(TOOLS[name], "__wrapped__")


def test_the_named_modality_is_worked_on() -> None:
    both = _mudata(rna=_adata(), prot=_adata("pq"))
    assert marks(both, modality="prot") is None
    assert both["prot"].uns["marks"]["modality"] == "prot"
    assert "mark" not in both["rna"].obs
    one = _mudata(rna=_adata())
    marks(one)
    assert one["rna"].uns["marks"]["modality"] == "rna"


def test_a_modality_is_taken_by_position_or_keyword_of_the_data() -> None:
    one = _mudata(rna=_adata())
    marks(adata=one)
    assert "mark" in one["rna"].obs


def test_what_cannot_be_chosen_is_refused() -> None:
    both = _mudata(rna=_adata(), prot=_adata("pq"))
    with pytest.raises(
        ValueError, match=r"modalities \['rna', 'prot'\]; choose one with modality="
    ):
        marks(both)
    with pytest.raises(KeyError, match="no modality 'atac'"):
        marks(both, modality="atac")
    with pytest.raises(ValueError, match="'rna' was given for an AnnData, which has none"):
        marks(_adata(), modality="rna")
    with pytest.raises(ValueError, match="goes with a MuData; files hold an AnnData"):
        marks(["a.h5ad"], modality="rna")
    with pytest.raises(TypeError, match="Found a dict"):
        cfm.pp.map_genes({}, modality="rna")
    assert "mark" not in both["rna"].obs


def test_a_column_of_the_mudata_alone_is_an_error_that_says_how() -> None:
    both = _mudata(rna=_adata(), prot=_adata("pq"))
    both.obs["group"] = list("uuvv")
    with pytest.raises(KeyError, match=r"groupby='group' .* mdata.push_obs\(\['group'\], mods="):
        marks(both, groupby="group", modality="rna")
    with pytest.raises(KeyError, match="push_obs"):
        marks(both, groupby=["kind", "group"], modality="rna")
    assert "mark" not in both["rna"].obs
    with md.set_options(pull_on_update=False):
        both.push_obs(["group"], mods=["rna"])
    marks(both, groupby="group", modality="rna")
    assert both["rna"].obs["group"].tolist() == list("uuvv")
    marks(both, groupby="nowhere", modality="rna")  # for the tool to refuse


def test_a_copy_is_a_mudata() -> None:
    both = _mudata(rna=_adata(), prot=_adata("pq"))
    both.obs["group"] = list("uuvv")
    both.obsm["X_joint"] = np.ones((4, 2))
    made = marks(both, modality="rna", copy=True)
    assert isinstance(made, md.MuData)
    assert list(made.mod) == ["rna", "prot"]
    assert "mark" in made["rna"].obs
    assert made.obs["group"].tolist() == list("uuvv")
    assert "X_joint" in made.obsm
    assert "mark" not in both["rna"].obs
    made["prot"].X[:] = -1
    made["rna"].X[:] = -1
    assert both["prot"].X.min() == both["rna"].X.min() == 0


@pytest.mark.parametrize("pull", [None, True, False])
@pytest.mark.parametrize("copy", [False, True])
@pytest.mark.parametrize("drop", [True, "renamed"])
@pytest.mark.parametrize("single", [False, True])
def test_a_mudata_follows_the_genes(pull, copy, drop, single, tmp_path: Path) -> None:
    mods = {"rna": _adata()} if single else {"rna": _adata(), "prot": _adata("pq")}
    both = _mudata(**mods)
    both.obs["group"] = list("uuvv")
    both.var["weight"] = np.arange(both.n_vars)
    both.varm["loading"] = np.arange(both.n_vars, dtype=float)[:, None]
    held = both["rna"]
    with md.set_options(pull_on_update=pull), warnings.catch_warnings():
        warnings.simplefilter("error")
        made = marks(both, drop=drop, modality="rna", copy=copy) or both
    names = ["G1", "G2"] if drop == "renamed" else ["a", "c"]
    assert list(made.mod) == list(mods)
    assert sorted(made.var_names) == sorted([*names, *([] if single else "pq")])
    assert made.obs["group"].tolist() == list("uuvv")
    for gene, weight in {"p": 4, "q": 5, "c": 2}.items():
        if gene in made.var_names:
            assert made.var.loc[gene, "weight"] == weight
            assert made.varm["loading"][list(made.var_names).index(gene), 0] == weight
    made.write_h5mu(tmp_path / "x.h5mu")
    assert md.read_h5mu(tmp_path / "x.h5mu")["rna"].var_names.tolist() == names
    assert both["rna"] is held
    if copy:
        assert both["rna"].n_vars == 4


def _with_tables() -> md.MuData:
    both = _mudata(rna=_adata(), prot=_adata("pq"))
    both.var["weight"] = np.arange(6)
    both.varm["places"] = np.arange(6)[:, None]
    both.varm["frame"] = pd.DataFrame({"x": np.arange(6.0)}, index=both.var_names)
    both.varp["pairs"] = np.arange(36).reshape(6, 6)
    return both


def test_what_a_mudata_says_of_genes_stays_with_them() -> None:
    both = _with_tables()
    marks(both, drop=True, modality="rna")
    place = [list("abcdpq").index(gene) for gene in both.var_names]
    assert both.var["weight"].tolist() == place
    assert both.varm["places"].ravel().tolist() == both.varm["frame"]["x"].tolist() == place
    assert (both.varp["pairs"] == np.arange(36).reshape(6, 6)[np.ix_(place, place)]).all()
    both = _with_tables()
    with pytest.warns(UserWarning, match=r"varp\['pairs'\] of the MuData .* are removed"):
        marks(both, drop="renamed", modality="rna")
    left = dict(zip(both.var_names, both.varm["places"].ravel(), strict=True))
    assert (left["p"], left["q"]) == (4, 5)
    assert both.var.loc[["p", "q"], "weight"].tolist() == [4, 5]
    assert np.isnan([left["G1"], left["G2"]]).all()
    assert not both.varp
    both = _with_tables()
    both.var["weight"] += 10
    with pytest.warns(UserWarning, match="are removed"):
        marks(both, drop="one renamed", modality="rna")
    assert both.var.loc[["a", "p"], "weight"].tolist() == [10, 14]


def test_genes_that_a_mudata_cannot_follow_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    both = _with_tables()

    real = md.MuData.update

    def cannot(mdata: md.MuData) -> None:
        if "G1" in mdata["rna"].var_names:
            raise NotImplementedError("renamed and filtered")
        real(mdata)

    monkeypatch.setattr(md.MuData, "update", cannot)
    with pytest.raises(ValueError, match=r"cannot follow .* 'rna' \(renamed and filtered\)"):
        marks(both, drop="renamed", modality="rna")
    assert "".join(both["rna"].var_names) == "abcd"
    assert "mark" not in both["rna"].obs
    assert list(both.varp) == ["pairs"]


def test_genes_of_a_view_are_not_changed_in_place() -> None:
    part = _with_tables()[:2]
    with pytest.raises(ValueError, match="genes of a view of a MuData"):
        marks(part, drop=True, modality="rna")
    assert part["rna"].shape == (2, 4)
    assert marks(part, drop=True, modality="rna", copy=True)["rna"].shape == (2, 2)


def test_a_modality_of_nothing_is_the_error_of_the_tool() -> None:
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        marks(modality="rna")


def test_other_arguments_that_are_mudata_give_the_same_modality() -> None:
    both = _mudata(rna=_adata(), prot=_adata("pq"))
    alone = _adata()
    marks(alone, both, modality="prot")
    assert alone.uns["marks"]["other"] is both["prot"]
    assert alone.uns["marks"]["modality"] == "prot"
    marks(both, other={"a": both, "b": alone}, modality="rna")
    assert both["rna"].uns["marks"]["other"] == {"a": both["rna"], "b": alone}
    marks(both, alone, modality="rna")
    assert both["rna"].uns["marks"]["other"] is alone


def test_a_view_of_a_mudata_is_written_to() -> None:
    part = _mudata(rna=_adata(), prot=_adata("pq"))[:2]
    with pytest.warns(ad.ImplicitModificationWarning):
        marks(part, modality="rna")
    assert "mark" in part["rna"].obs


def test_a_backed_mudata(tmp_path: Path) -> None:
    _mudata(rna=_adata(), prot=_adata("pq")).write_h5mu(tmp_path / "x.h5mu")
    with md.set_options(pull_on_update=False):
        both = md.read_h5mu(tmp_path / "x.h5mu", backed=True)
    marks(both, modality="rna")
    assert "mark" in both["rna"].obs
    with pytest.raises(ValueError, match="copy=True would read all modalities of"):
        marks(both, modality="rna", copy=True)
