"""Tools of one AnnData on a MuData: which modality, where results go, and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.data._modality import on_modality, quiet_mudata
from tests._mudata import mudata

#: These read a MuData by themselves: they make new observations.
BY_THEMSELVES = {"pp.contrasts", "tl.embed_donors"}
#: Changes genes, which a MuData does not follow.
OF_ANNDATA = {"pp.map_genes"}
TOOLS = {
    f"{room.__name__[4:]}.{n}": getattr(room, n) for room in (cfm.tl, cfm.pp) for n in room.__all__
}


def _mudata(**modalities: ad.AnnData) -> md.MuData:
    return mudata(modalities)


def _adata(names: str = "abcd", n: int = 4) -> ad.AnnData:
    obs = pd.DataFrame({"kind": list("xyxy")[:n]}, index=[f"cell{i}" for i in range(n)])
    return ad.AnnData(
        np.arange(n * len(names), dtype=np.float32).reshape(n, -1),
        obs=obs,
        var=pd.DataFrame(index=list(names)),
    )


@on_modality(columns=("groupby",), also=("other",))
def marks(adata, other=None, *, groupby=None, modality=None, copy=False):
    """Stand for a tool."""
    if copy:
        adata = adata.copy()
    adata.obs["mark"] = 1
    adata.uns["marks"] = {"modality": modality, "groupby": groupby, "other": other}
    return adata if copy else None


@pytest.mark.parametrize("name", sorted(TOOLS.keys() - OF_ANNDATA))
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
        cfm.pp.tpm({}, modality="rna")
    assert "mark" not in both["rna"].obs


def test_a_column_of_the_mudata_alone_is_an_error_that_says_how() -> None:
    both = _mudata(rna=_adata(), prot=_adata("pq"))
    both.obs["group"] = list("uuvv")
    with pytest.raises(KeyError, match=r"groupby='group' .* mdata.push_obs\(\['group'\], mods="):
        marks(both, groupby="group", modality="rna")
    with pytest.raises(KeyError, match="push_obs"):
        marks(both, groupby=["kind", "group"], modality="rna")
    assert "mark" not in both["rna"].obs
    with quiet_mudata():
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


def test_tools_that_change_genes_ask_for_a_modality() -> None:
    rna = cfm.datasets.toy_bulk_cohort()[:3].copy()
    rna.var_names = [*rna.var_names[:-1], "no gene"]
    both = mudata({"rna": rna, "prot": rna[:, :0].copy()})
    with pytest.raises(TypeError, match=r"mdata\['rna'\]"):
        cfm.pp.map_genes(both)
    with pytest.raises(ValueError, match="call tpm on mdata\\['rna'\\] with copy=True"):
        cfm.pp.tpm(both, missing_length="drop", modality="rna")
    assert "log_tpm" not in both["rna"].layers
    with pytest.warns(UserWarning, match="no gene"):
        made = cfm.pp.tpm(both["rna"], missing_length="drop", copy=True)
    assert made.n_vars == both["rna"].n_vars - 1


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
    with quiet_mudata():
        both = md.read_h5mu(tmp_path / "x.h5mu", backed=True)
    marks(both, modality="rna")
    assert "mark" in both["rna"].obs
    with pytest.raises(ValueError, match="copy=True would read all modalities of"):
        marks(both, modality="rna", copy=True)
