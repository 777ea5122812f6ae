"""``cfm.tl.cell_codes``: what it writes, what it finds, and what it leaves alone."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cfm
from tests._codes import GENES, N_OWN, TYPES, NearestCode, typed_cells
from tests._same import assert_unchanged

BOTH = ["cell_type", "donor"]


@pytest.fixture
def model() -> NearestCode:
    return NearestCode()


@pytest.fixture
def adata() -> ad.AnnData:
    return typed_cells()


def test_what_is_written(adata: ad.AnnData, model: NearestCode) -> None:
    before = adata.copy()
    assert cfm.tl.cell_codes(adata, model, groupby=BOTH) is None
    found = model.get_cell_codes(before)
    code = adata.obs["cell_code"]
    assert code.astype(str).astype(int).tolist() == found.code.tolist()
    assert [int(c) for c in code.cat.categories] == sorted(set(found.code))
    for name, values in (("similarity", found.similarity), ("margin", found.margin)):
        assert adata.obs[f"cell_code_{name}"].dtype == np.float32
        np.testing.assert_array_equal(adata.obs[f"cell_code_{name}"], values)
    stored = adata.uns["cell_code"]
    assert set(stored) == {
        "params", "codes", "annotations", "markers", "neighbours", "vectors",
    }  # fmt: skip
    used = sorted(set(found.code))
    np.testing.assert_array_equal(stored["vectors"], model.get_codebook().vectors[used])
    codes = stored["codes"]
    assert codes.index.tolist() == stored["vectors"].index.tolist() == [str(c) for c in used]
    assert codes["bits"].tolist() == [f"{c:06b}" for c in used]
    assert codes["n_cells"].tolist() == np.bincount(found.code)[used].tolist()
    expected = {"groupby": BOTH, "min_cells": 10, "n_codes": 64, "n_used": len(used)}
    expected |= {"units": "counts", "model": "NearestCode", "sha256": "", "n_unread": 0}
    assert stored["params"].items() >= expected.items()
    assert len(stored["params"]["fingerprint"]) == 64
    for name in ("cell_code", "cell_code_similarity", "cell_code_margin"):
        del adata.obs[name]
    del adata.uns["cell_code"]
    assert_unchanged(adata, before)


def test_planted_types_and_their_genes_are_found(adata: ad.AnnData, model: NearestCode) -> None:
    cfm.tl.cell_codes(adata, model, groupby=BOTH)
    stored = adata.uns["cell_code"]
    large = stored["codes"][stored["codes"]["n_cells"] >= 10]
    assert large["cell_type_majority"].tolist() == list(TYPES)
    assert (large["cell_type_purity"] == 1.0).all()
    assert (large["cell_type_entropy"] == 0.0).all()
    assert (large["cell_type_enrichment"] == 4.0).all()
    assert (large["donor_purity"] < 0.8).all()
    agreement = stored["annotations"]
    assert agreement.loc["cell_type", "ari"] > 0.7
    assert abs(agreement.loc["donor", "ami"]) < 0.05
    for kind, code in enumerate(large.index):
        own = stored["markers"][stored["markers"]["code"] == code].head(N_OWN)
        assert set(own["gene"]) == set(GENES[N_OWN * kind : N_OWN * (kind + 1)])
        assert own["rank"].tolist() == list(range(1, N_OWN + 1))
        assert (own["fdr"] < 1e-3).all()
        assert (own["log_fold_change"] > 1).all()
    assert set(stored["markers"]["code"]) == set(large.index)  # no others have ten cells


def test_markers_are_those_of_scanpy(adata: ad.AnnData, model: NearestCode) -> None:
    import scanpy as sc

    cfm.tl.cell_codes(adata, model)
    plain = adata.copy()
    plain.X = plain.X.astype(np.float64)
    sc.pp.normalize_total(plain, target_sum=1e4)
    sc.pp.log1p(plain)
    codes = adata.uns["cell_code"]["markers"]["code"].unique()[:2]
    sc.tl.rank_genes_groups(plain, "cell_code", groups=list(codes), method="t-test")
    for code in codes:
        theirs = sc.get.rank_genes_groups_df(plain, group=code).set_index("names")
        own = adata.uns["cell_code"]["markers"].query("code == @code").set_index("gene")
        theirs = theirs.loc[own.index]
        np.testing.assert_allclose(own["score"], theirs["scores"], rtol=1e-4)
        np.testing.assert_allclose(own["p_value"], theirs["pvals"] / 2, rtol=1e-3, atol=1e-300)


def test_normalised_values_give_the_same_as_counts(adata: ad.AnnData, model: NearestCode) -> None:
    import scanpy as sc

    logged = adata.copy()
    sc.pp.normalize_total(logged, target_sum=1e4)
    sc.pp.log1p(logged)
    logged.layers["log"], logged.X = logged.X, sparse.csr_matrix(logged.shape)
    cfm.tl.cell_codes(adata, model)
    cfm.tl.cell_codes(logged, model, layer="log", units="log1p_cp10k")
    ours, theirs = (x.uns["cell_code"]["markers"] for x in (adata, logged))
    pd.testing.assert_frame_equal(ours, theirs, rtol=1e-4, atol=1e-6)
    assert logged.uns["cell_code"]["params"]["layer"] == "log"


def test_the_order_of_cells_decides_nothing(adata: ad.AnnData, model: NearestCode) -> None:
    order = np.random.default_rng(1).permutation(adata.n_obs)
    other = adata[order].copy()
    for cells in (adata, other):
        cfm.tl.cell_codes(cells, model, groupby=BOTH)
    pd.testing.assert_frame_equal(other.obs, adata.obs.iloc[order], rtol=1e-6)
    for name in ("codes", "annotations", "markers", "neighbours", "vectors"):
        pd.testing.assert_frame_equal(
            other.uns["cell_code"][name], adata.uns["cell_code"][name], rtol=1e-6
        )


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_a_reference_is_as_good_from_a_file(
    adata: ad.AnnData, model: NearestCode, tmp_path: Path, kind: str
) -> None:
    cfm.tl.cell_codes(adata, model, groupby=BOTH, key_added="code")
    query = typed_cells(10, seed=2)
    cfm.tl.cell_codes(query, model, reference=adata, key_added="code")
    getattr(adata, f"write_{kind}")(tmp_path / "x")
    back = getattr(ad, f"read_{kind}")(tmp_path / "x")
    again = typed_cells(10, seed=2)
    cfm.tl.cell_codes(again, model, reference=back, key_added="code")
    pd.testing.assert_frame_equal(again.obs, query.obs)
