"""``cfm.tl.gene_programs``: bad input is refused, odd input has a documented result."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import cfm
from cfm.data._genes import _tables
from tests._block_model import BLOCK, BlockModel, SilentModel, block_data
from tests._same import assert_unchanged

QUICK: dict[str, Any] = {"n_permutations": 2}


@pytest.fixture(autouse=True)
def _few_bootstraps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfm.tl._gene_programs._find.N_BOOTSTRAPS", 3)


@pytest.fixture
def adata() -> ad.AnnData:
    return block_data()[0]


@pytest.fixture
def attending() -> BlockModel:
    _, block, genes = block_data()
    return BlockModel(genes, block)


def test_one_profile_has_programs_without_stability(
    adata: ad.AnnData, attending: BlockModel
) -> None:
    one = adata[:1].copy()
    cfm.tl.gene_programs(one, attending, **QUICK)
    programs = one.uns["gene_programs"]["programs"]
    assert len(programs) == 4
    assert programs["stability"].isna().all()
    assert (programs["coherence"] == 1.0).all()
    assert programs[["cohesion", "p_value", "fdr"]].notna().all(axis=None)


def test_without_permutations_there_are_no_p_values(
    adata: ad.AnnData, attending: BlockModel
) -> None:
    cfm.tl.gene_programs(adata, attending, n_permutations=0)
    programs = adata.uns["gene_programs"]["programs"]
    assert programs[["p_value", "fdr"]].isna().all(axis=None)


def test_silent_rows_and_genes_not_measured(adata: ad.AnnData, attending: BlockModel) -> None:
    plain = adata.copy()
    cfm.tl.gene_programs(plain, attending, **QUICK)
    silent = ad.concat([adata, adata[:1]], index_unique="-")
    silent.X[-1] = 0.0
    silent.X[1, :BLOCK] = np.nan
    cfm.tl.gene_programs(silent, attending, **QUICK)
    left, right = (
        x.uns["gene_programs"]["genes"].groupby("program")["gene"].agg(set) for x in (plain, silent)
    )
    assert sorted(map(sorted, left)) == sorted(map(sorted, right))
    activity = silent.obsm["X_gene_programs"].to_numpy()
    np.testing.assert_array_equal(activity[-1], 0.0)
    assert np.isnan(activity[1]).sum() == 1  # the program that is not measured there
    assert np.isfinite(activity[[0, 2, 3]]).all()


def test_groups_with_a_slash_and_rows_without_a_group(
    adata: ad.AnnData, attending: BlockModel, tmp_path: Path
) -> None:
    adata.obs.loc[adata.obs_names[:2], "virus"] = np.nan
    cfm.tl.gene_programs(adata, attending, groupby="virus", **QUICK)
    programs = adata.uns["gene_programs"]["programs"]
    assert programs["group"].unique().tolist() == ["A", "B/x"]
    assert programs.index[-1].startswith("B|x:P")
    assert adata.obsm["X_gene_programs"].notna().all(axis=None)  # of all rows
    adata.write_h5ad(tmp_path / "x.h5ad")
    back = ad.read_h5ad(tmp_path / "x.h5ad")
    assert back.obsm["X_gene_programs"].columns.tolist() == programs.index.tolist()


def test_ensembl_ids_keep_their_names_and_sets_may_use_either(
    contrasts: ad.AnnData, model: Any
) -> None:
    numbers = {symbol: number for number, symbol in _tables().ensembl.items()}
    names = contrasts.var_names
    ids = pd.Series([f"ENSG{numbers[g]:011d}" if g in numbers else g for g in names])
    other = contrasts.copy()
    other.var_names = ids.tolist()
    symbols = {"head": contrasts.var_names[:60].tolist()}
    cfm.tl.gene_programs(contrasts, model, gene_sets=symbols, **QUICK)
    cfm.tl.gene_programs(other, model, gene_sets=symbols, **QUICK)
    found, expected = other.uns["gene_programs"], contrasts.uns["gene_programs"]
    assert found["genes"]["gene"].str.startswith("ENSG").mean() > 0.9
    pd.testing.assert_frame_equal(found["programs"], expected["programs"])
    assert contrasts.n_obs > 12  # the bootstrap draws blocks of them
    pd.testing.assert_frame_equal(found["enrichment"], expected["enrichment"])
    cfm.tl.gene_programs(other, model, gene_sets={"head": ids[:60].tolist()}, **QUICK)
    by_id = other.uns["gene_programs"]["enrichment"]
    np.testing.assert_allclose(by_id["p_value"], expected["enrichment"]["p_value"])


def test_what_the_model_warns_of_is_said_once(contrasts: ad.AnnData, model: Any) -> None:
    few = contrasts[:, :150].copy()
    with pytest.warns(UserWarning) as caught:
        cfm.tl.gene_programs(few, model, groupby="label", source="attention", **QUICK)
    assert [str(w.message)[:8] for w in caught if w.category is UserWarning] == ["Only 19%"]


def test_a_group_without_a_program_is_named(attending: BlockModel) -> None:
    adata, block, _ = block_data()
    rows = (adata.obs["virus"] == "A").to_numpy()
    few = np.concatenate([np.flatnonzero(block == b)[:3] for b in np.unique(block)])
    others = np.setdiff1d(np.arange(len(block)), few)
    adata.X[np.ix_(rows, others)] = 0.0  # twelve genes move, no more than three together
    with pytest.warns(UserWarning, match=r"Groups \['A'\] have no module of 10 genes"):
        cfm.tl.gene_programs(adata, attending, groupby="virus", **QUICK)
    assert set(adata.uns["gene_programs"]["programs"]["group"]) == {"B/x"}


def failing() -> dict[str, tuple[dict[str, Any], type, str]]:
    """Calls that fail, by what is wrong: arguments, error, words of its message."""
    _, block, genes = block_data()
    attending = BlockModel(genes, block)
    return {
        "no attention": ({"model": SilentModel()}, TypeError, "SilentModel has no attention"),
        "no factors": ({"source": "interaction"}, TypeError, "needs a linear gene-gene term"),
        "combined": ({"source": "combined"}, TypeError, "use source='attention'"),
        "n_genes": ({"n_genes": 9}, ValueError, "n_genes=9; expected .* at least 10"),
        "resolution": (
            {"resolution": 0.0},
            ValueError,
            "resolution=0.0; expected",
        ),
        "empty sets": ({"gene_sets": {"a": []}}, ValueError, "holds 1 sets and none with a gene"),
        "text": ({"gene_sets": {"a": "MX1"}}, TypeError, r"gene_sets\['a'\] is a text"),
        "no file": ({"gene_sets": "no.gmt"}, FileNotFoundError, "'no.gmt' is no file"),
        "sets": ({"gene_sets": 5}, TypeError, "gene_sets is a int"),
        "other genes": (
            {"gene_sets": {"a": ["MX1", "MX2"]}},
            ValueError,
            r"None of the 2 genes of gene_sets \(such as MX1, MX2\) .* \(such as G00",
        ),
        "no module": ({"resolution": 1e4}, ValueError, "No module has at least 10"),
    } | {"_": (({"model": attending}), ValueError, "")}


@pytest.mark.parametrize("case", [case for case in failing() if case != "_"])
def test_calls_that_fail_leave_the_data_alone(adata: ad.AnnData, case: str) -> None:
    arguments, error, words = failing()[case]
    model = failing()["_"][0]["model"]
    before = adata.copy()
    with pytest.raises(error, match=words):
        cfm.tl.gene_programs(adata, **({"model": model} | QUICK | arguments))
    assert_unchanged(adata, before)


def test_a_group_in_which_nothing_moves_is_refused(
    adata: ad.AnnData, attending: BlockModel
) -> None:
    adata.X[(adata.obs["virus"] == "A").to_numpy()] = 0.0
    before = adata.copy()
    with pytest.raises(ValueError, match=r"Group 'A' \(4 observations\) has 0 genes that move"):
        cfm.tl.gene_programs(adata, attending, groupby="virus", **QUICK)
    assert_unchanged(adata, before)


def test_groups_that_cannot_be_told_apart(adata: ad.AnnData, attending: BlockModel) -> None:
    adata.obs["virus"] = np.where(np.arange(adata.n_obs) % 2, "B/x", "B|x")
    with pytest.raises(ValueError, match="the same name once"):
        cfm.tl.gene_programs(adata, attending, groupby="virus", **QUICK)


def test_gene_sets_of_a_dictionary_and_of_a_file(
    adata: ad.AnnData, attending: BlockModel, tmp_path: Path
) -> None:
    path = tmp_path / "sets.gmt"
    path.write_text("one\tabout one\tG00\tG01\tG00\ntwo\t\tG20\n\nnone\twithout genes\n")
    found = []
    for sets in (path, str(path), {"one": ("G00", "G01", "G00"), "two": {"G20"}, "none": []}):
        cfm.tl.gene_programs(adata, attending, n_permutations=0, gene_sets=sets)
        found.append(adata.uns["gene_programs"]["enrichment"])
        assert adata.uns["gene_programs"]["params"]["n_gene_sets"] == 2
    assert sorted(found[0]["term"]) == ["one", "two"]
    for other in found[1:]:
        pd.testing.assert_frame_equal(other, found[0])


def test_the_threads_of_torch_stay(adata: ad.AnnData, attending: BlockModel) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        cfm.tl.gene_programs(adata, attending, n_permutations=0)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)
