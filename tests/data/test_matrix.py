"""Matrices of any storage read the same, and what is not counts is refused."""

import anndata as ad
import dask.array as da
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import sparse

from cfm.data._matrix import (
    by_rows,
    check_counts,
    check_log_values,
    check_unique_names,
    get_matrix,
    read_rows,
    row_blocks,
    to_dense,
)

VALUES = np.random.default_rng(0).poisson(2.0, size=(13, 7)).astype(np.float32)


def backed(path, values):
    ad.AnnData(values).write_h5ad(path)
    return ad.read_h5ad(path, backed="r").X


STORAGE = {
    "dense": lambda path: VALUES,
    "int64": lambda path: VALUES.astype(np.int64),
    "fortran": lambda path: np.asfortranarray(VALUES),
    "csr": lambda path: sparse.csr_matrix(VALUES),
    "csr_array": lambda path: sparse.csr_array(VALUES),
    "csc": lambda path: sparse.csc_matrix(VALUES),
    "dask": lambda path: da.from_array(VALUES, chunks=(5, 3)),
    "dask_csr": lambda path: da.from_array(VALUES, chunks=(5, 7)).map_blocks(sparse.csr_matrix),
    "backed": lambda path: backed(path, VALUES),
    "backed_csr": lambda path: backed(path, sparse.csr_matrix(VALUES)),
    "backed_csc": lambda path: backed(path, sparse.csc_matrix(VALUES)),
}


@pytest.fixture(params=STORAGE)
def stored(request, tmp_path):
    return STORAGE[request.param](tmp_path / "a.h5ad")


def test_every_storage_reads_the_same(stored):
    blocks = [(rows, to_dense(block)) for rows, block in row_blocks(stored, 4)]
    assert [rows.start for rows, _ in blocks] == [0, 4, 8, 12]
    assert np.array_equal(np.concatenate([block for _, block in blocks]), VALUES)
    rows = np.array([5, 2, 2, 11])
    assert np.array_equal(to_dense(read_rows(stored, rows)), VALUES[rows])
    assert np.array_equal(to_dense(read_rows(by_rows(stored), np.arange(13))), VALUES)
    summary = check_counts(stored)
    assert np.array_equal(summary.library_size, VALUES.sum(axis=1))
    assert (summary.fractional, summary.maximum) == (False, VALUES.max())


def test_get_matrix_where_there_is_none():
    with pytest.raises(ValueError, match=r"X is None; a matrix .* is expected, and there is no"):
        get_matrix(ad.AnnData(obs=pd.DataFrame(index=["a"])))


def test_get_matrix():
    adata = ad.AnnData(VALUES, layers={"two": 2 * VALUES})
    assert get_matrix(adata) is adata.X
    assert np.array_equal(get_matrix(adata, layer="two"), 2 * VALUES)
    assert np.array_equal(get_matrix(adata[3:5], layer="two"), 2 * VALUES[3:5])
    adata.raw = adata.copy()
    adata.X = None
    assert np.array_equal(get_matrix(adata, use_raw=True), VALUES)
    with pytest.raises(ValueError, match=r"X is None; choose one of the layers \['two'\]"):
        get_matrix(adata)
    with pytest.raises(KeyError, match="no layer 'three'"):
        get_matrix(adata, layer="three")
    with pytest.raises(ValueError, match="exclude each other"):
        get_matrix(adata, layer="two", use_raw=True)
    with pytest.raises(ValueError, match=r"raw is None"):
        get_matrix(ad.AnnData(VALUES), use_raw=True)
    with pytest.raises(ValueError, match="empty: 0 × 7"):
        get_matrix(ad.AnnData(VALUES)[:0])


@pytest.mark.parametrize("wrap", [np.asarray, sparse.csr_matrix, sparse.csc_matrix])
@pytest.mark.parametrize(
    ("bad", "message"),
    [(-1.0, "negative values"), (np.nan, "1 NaN and 0 infinite"), (np.inf, "0 NaN and 1 infinite")],
)
def test_values_that_are_no_counts(wrap, bad, message):
    values = VALUES.copy()
    values[2, 3] = bad
    with pytest.raises(ValueError, match=message):
        check_counts(wrap(values), where="adata.X")


def test_fractional_counts():
    rng = np.random.default_rng(0)
    expected = rng.gamma(0.5, 200.0, size=(4, 50))
    assert check_counts(expected).fractional
    with pytest.raises(ValueError, match="look log-transformed"):
        check_counts(np.log1p(expected))
    with pytest.raises(ValueError, match="look log-transformed"):
        check_counts(np.log2(1e6 * expected / expected.sum(axis=1, keepdims=True) + 1))
    for total in (1e4, 1e6):
        scaled = total * expected / expected.sum(axis=1, keepdims=True)
        with pytest.raises(ValueError, match="normalised"):
            check_counts(scaled)
    with pytest.raises(ValueError, match="normalised"):
        check_counts(1e6 * expected[:1] / expected[0].sum())


def test_small_whole_numbers_are_counts():
    assert not check_counts(np.array([[0.0, 1.0], [0.0, 0.0]])).fractional
    assert check_counts(np.array([[True, False]])).library_size.tolist() == [1.0]
    with pytest.raises(TypeError, match="numbers are expected"):
        check_counts(np.array([["a"]]))


@given(
    hnp.arrays(np.int64, hnp.array_shapes(min_dims=2, max_dims=2), elements=st.integers(0, 10**6))
)
def test_whole_numbers_pass_in_any_dtype(values):
    for stored in (values, values.astype(np.float32), sparse.csr_matrix(values)):
        summary = check_counts(stored)
        assert not summary.fractional
        assert np.array_equal(summary.library_size, values.sum(axis=1))


def test_log_values():
    check_log_values(np.log2(VALUES + 0.5))
    with pytest.raises(ValueError, match="not log2 expression"):
        check_log_values(100 * VALUES)
    with pytest.raises(ValueError, match="NaN"):
        check_log_values(np.full((2, 2), np.nan))


def test_names():
    check_unique_names(pd.Index(["a", "b"]), axis="var")
    with pytest.raises(ValueError, match=r"1 var_names occur more than once \('a'\); merge them"):
        check_unique_names(pd.Index(["a", "b", "a", "a"]), axis="var")
    with pytest.raises(ValueError, match="obs_names_make_unique"):
        check_unique_names(pd.Index(["a", "a"]), axis="obs")
    with pytest.raises(ValueError, match="empty"):
        check_unique_names(pd.Index(["a", " "]), axis="var")
