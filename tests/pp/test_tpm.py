"""Log TPM of counts in any storage, with gene lengths shipped or given."""

from __future__ import annotations

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from cfm.pp import tpm
from tests._same import assert_unchanged

GENES = ["ISG15", "MX1", "ENSG00000185745.12", "GAPDH"]
LENGTHS = {"ISG15": 500.0, "MX1": 2000.0, "ENSG00000185745": 4000.0, "GAPDH": 1000.0}
COUNTS = np.array([[10, 0, 40, 5], [0, 8, 0, 1], [100, 300, 20, 7]], dtype=np.float32)


def expected(counts: np.ndarray, kilobases: np.ndarray) -> np.ndarray:
    rate = counts / kilobases
    return np.log1p(1e6 * rate / rate.sum(axis=1, keepdims=True))


EXPECTED = expected(COUNTS, np.array([0.5, 2, 4, 1]))


def make(x=COUNTS, genes=GENES) -> ad.AnnData:
    obs = pd.DataFrame(index=[f"s{i}" for i in range(x.shape[0])])
    return ad.AnnData(x.copy(), obs=obs, var=pd.DataFrame(index=genes))


def dense(x):
    x = x.compute() if hasattr(x, "compute") else x
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


@pytest.mark.parametrize(
    "wrap",
    [
        np.asfortranarray,
        lambda x: x.astype(np.int16),
        sparse.csr_matrix,
        sparse.csc_matrix,
        sparse.csr_array,
        lambda x: da.from_array(x, chunks=(2, 3)),
        lambda x: da.from_array(x, chunks=(2, 4)).map_blocks(sparse.csr_matrix),
    ],
)
def test_formula_in_every_storage(wrap):
    adata = make(wrap(COUNTS))
    tpm(adata, gene_lengths=LENGTHS)
    layer = adata.layers["log_tpm"]
    np.testing.assert_allclose(dense(layer), EXPECTED, rtol=1e-6)
    assert type(layer) is type(adata.X)
    assert layer.dtype == dense(layer).dtype == np.float32
    assert getattr(layer, "format", None) == getattr(adata.X, "format", None)
    np.testing.assert_array_equal(dense(adata.X), COUNTS)


@given(
    hnp.arrays(np.int64, (4, 5), elements=st.integers(0, 10**6)).filter(
        lambda x: (x.sum(axis=1) > 0).all()
    ),
    hnp.arrays(np.float64, 5, elements=st.floats(60, 1e5)),
)
def test_every_sample_sums_to_a_million_whatever_its_company(counts, lengths):
    genes = [f"g{i}" for i in range(5)]
    given_lengths = pd.Series(lengths, index=genes)
    whole = tpm(make(counts, genes), gene_lengths=given_lengths, copy=True).layers["log_tpm"]
    np.testing.assert_allclose(np.expm1(whole.astype(float)).sum(axis=1), 1e6, rtol=1e-4)
    alone = tpm(make(counts[2:3], genes), gene_lengths=given_lengths, copy=True).layers["log_tpm"]
    np.testing.assert_array_equal(whole[2:3], alone)


def test_shipped_lengths_by_symbol_previous_symbol_and_ensembl_id():
    # RIGI by its current and previous symbol, Ensembl id, and id with a version
    genes = ["RIGI", "DDX58", "ENSG00000107201", "ENSG00000107201.13"]
    adata = make(COUNTS, genes)
    tpm(adata)
    assert adata.var["gene_length"].nunique() == 1
    assert 1_000 < adata.var["gene_length"].iloc[0] < 20_000
    assert adata.uns["log_tpm"]["params"]["gene_lengths"] == "shipped"
    assert adata.uns["log_tpm"]["n_without_length"] == 0


def test_unknown_length_is_one_kilobase_and_recorded():
    adata = make(genes=[*GENES[:3], "my gene"])
    with pytest.warns(UserWarning, match=r"1 of 4 genes have no known length \('my gene', …\)"):
        tpm(adata, gene_lengths=LENGTHS)
    np.testing.assert_allclose(adata.layers["log_tpm"], EXPECTED, rtol=1e-6)
    record = adata.uns["log_tpm"]
    assert (record["n_without_length"], record["without_length"].tolist()) == (1, ["my gene"])
    assert np.isnan(adata.var["gene_length"].iloc[3])


def test_unknown_length_dropped_or_refused():
    adata = make(genes=[*GENES[:3], "my gene"])
    before = adata.copy()
    with pytest.raises(ValueError, match=r"1 of 4 genes .* missing_length='drop'"):
        tpm(adata, gene_lengths=LENGTHS, missing_length="error")
    assert_unchanged(adata, before)
    with pytest.warns(UserWarning, match="are left out"):
        tpm(adata, gene_lengths=LENGTHS, missing_length="drop")
    assert adata.var_names.tolist() == GENES[:3]
    only = expected(COUNTS[:, :3], np.array([0.5, 2, 4]))
    np.testing.assert_allclose(adata.layers["log_tpm"], only, rtol=1e-6)


def test_sample_with_counts_only_in_dropped_genes_is_refused():
    adata = make(np.array([[0, 0, 0, 5], [1, 2, 3, 4]]), genes=[*GENES[:3], "my gene"])
    with (
        pytest.raises(ValueError, match="have no counts at all"),
        pytest.warns(UserWarning, match="are left out"),
    ):
        tpm(adata, gene_lengths=LENGTHS, missing_length="drop")


def test_lengths_from_a_var_column_and_counts_from_a_layer():
    adata = make(np.log1p(COUNTS))
    adata.layers["counts"] = COUNTS
    adata.var["bp"] = list(LENGTHS.values())
    tpm(adata, gene_lengths="bp", layer="counts", key_added="expression")
    np.testing.assert_allclose(adata.layers["expression"], EXPECTED, rtol=1e-6)
    assert adata.uns["expression"]["params"]["layer"] == "counts"


def test_a_file_that_is_open_keeps_its_genes(tmp_path):
    make(sparse.csr_matrix(COUNTS)).write_h5ad(tmp_path / "a.h5ad")
    backed = ad.read_h5ad(tmp_path / "a.h5ad", backed="r")
    result = tpm(backed, gene_lengths=LENGTHS, copy=True)
    assert "log_tpm" not in backed.layers
    assert not result.isbacked
    with pytest.raises(ValueError, match="copy=True"):
        tpm(backed, gene_lengths=LENGTHS, missing_length="drop")


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (-COUNTS, "negative values"),
        (np.log1p(COUNTS), "log-transformed"),
        (np.where(COUNTS == 5, np.nan, COUNTS), "1 NaN"),
        (1e6 * (COUNTS + 0.1) / (COUNTS + 0.1).sum(axis=1, keepdims=True), "normalised"),
        (COUNTS * [[1], [0], [1]], r"1 samples .* no counts at all \('s1'\)"),
    ],
)
def test_what_is_no_count_is_refused(x, message):
    adata = make(x)
    before = adata.copy()
    with pytest.raises(ValueError, match=message):
        tpm(adata, gene_lengths=LENGTHS)
    assert_unchanged(adata, before)


def test_stated_units_are_believed():
    adata = make(COUNTS + 30.5)
    adata.uns["units"] = "TPM"
    with pytest.raises(ValueError, match=r"is 'TPM', but TPM"):
        tpm(adata, gene_lengths=LENGTHS)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"gene_lengths": 3}, TypeError, "gene_lengths is a int"),
        ({"gene_lengths": {"other": 5.0}}, ValueError, "none of the 4 genes"),
        ({"gene_lengths": LENGTHS | {"MX1": 0.0}}, ValueError, "1 gene lengths are not above 0"),
        ({"gene_lengths": pd.Series([1, 2], index=["MX1", "MX1"])}, ValueError, "more than one"),
    ],
)
def test_bad_arguments(arguments, error, message):
    adata = make()
    before = adata.copy()
    with pytest.raises(error, match=message):
        tpm(adata, **arguments)
    assert_unchanged(adata, before)


def test_mouse_needs_lengths_of_its_own():
    adata = make(genes=["Isg15", "Mx1", "Ifit1", "Gapdh"])
    with pytest.raises(ValueError, match="look like those of the mouse"):
        tpm(adata)


def test_kilobases_are_pointed_out():
    with pytest.warns(UserWarning, match="looks like kilobases"):
        tpm(make(), gene_lengths={k: v / 1000 for k, v in LENGTHS.items()})
