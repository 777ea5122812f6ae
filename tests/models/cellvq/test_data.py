"""Cells as sentences: what is in them, whatever the storage, the units and the panel."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

from cfm.data import GeneVocabulary
from cfm.models.cellvq import _data
from cfm.models.cellvq._data import CellReader, Tokens

GENES = [f"G{i}" for i in range(20)]
VOCABULARY = GeneVocabulary(GENES)


def cells(n: int = 7, genes: list[str] | None = None, seed: int = 0) -> ad.AnnData:
    """Cells by all genes of the vocabulary and three that it lacks, in an order of their own."""
    rng = np.random.default_rng(seed)
    names = [*GENES, "X1", "X2", "X3"] if genes is None else genes
    counts = rng.poisson(1.0, size=(n, len(names))) * rng.integers(1, 20, size=(n, len(names)))
    counts[:, 0] += 1
    adata = ad.AnnData(counts.astype(np.float32))
    adata.var_names = names
    adata.obs_names = [f"c{i}" for i in range(n)]
    return adata[:, rng.permutation(len(names))].copy()


def read(adata: ad.AnnData, **kwargs: Any) -> Tokens:
    return CellReader(adata, VOCABULARY, **kwargs).tokens(np.arange(adata.n_obs))


def sentence(tokens: Tokens, i: int) -> dict[int, float]:
    """One cell: values by place."""
    real = ~tokens.padding[i]
    ids = tokens.gene_ids[i][real].tolist()
    assert ids == sorted(set(ids))
    assert not real[len(ids) :].any()  # padding comes last
    assert (tokens.gene_ids[i][~real] == len(GENES) + 2).all()
    assert (tokens.values[i][~real] == 0).all()
    return dict(zip(ids, tokens.values[i][real].tolist(), strict=True))


def assert_equal(found: Tokens, expected: Tokens) -> None:
    assert [t.dtype for t in found] == [torch.float32, torch.int64, torch.bool]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)


def log_cp10k(adata: ad.AnnData) -> ad.AnnData:
    """The same cells as analysts hold them; totals are over the vocabulary."""
    out = adata[:, adata.var_names.isin(GENES)].copy()
    out.obs["total"] = out.X.sum(axis=1)
    out.X = np.log1p(out.X / out.X.sum(axis=1, keepdims=True) * 1e4)
    return out


def test_a_sentence_by_hand() -> None:
    counts = [0, 30, 10, 60, 1000, *[0] * 7]
    adata = ad.AnnData(np.array([counts], dtype=np.int64))
    adata.var_names = ["G3", "G5", "G1", "G19", "X1", *GENES[6:13]]
    reader = CellReader(adata, VOCABULARY)
    said = sentence(reader.tokens(np.array([0])), 0)
    expected = {1: np.log1p(1e3), 5: np.log1p(3e3), 19: np.log1p(6e3), 20: 4.0, 21: 2.0}
    assert list(said) == list(expected)
    assert said == pytest.approx(expected)
    assert reader.measured.nonzero()[0].tolist() == [1, 3, 5, *range(6, 13), 19]
    assert reader.counts(np.array([0])).toarray()[0, [1, 3, 5, 19]].tolist() == [10, 0, 30, 60]


def test_what_is_stored_twice_is_summed_and_stored_zeros_are_none() -> None:
    adata = cells(1)
    x = sparse.csr_matrix(
        (np.array([2.0, 3.0, 0.0, 5.0]), np.array([4, 4, 1, 0]), np.array([0, 4])), shape=(1, 23)
    )
    adata.X = x
    dense = adata.copy()
    dense.X = x.toarray()
    assert_equal(read(adata), read(dense))
    assert x.nnz == 4


def test_counts_come_back_from_log_values() -> None:
    adata, rows = cells(), np.arange(7)
    counts = CellReader(adata, VOCABULARY).counts(rows)
    assert counts.shape == (7, 20)
    np.testing.assert_array_equal(counts.toarray(), adata[:, GENES].X)
    reader = CellReader(log_cp10k(adata), VOCABULARY, units="log1p_cp10k", total_counts="total")
    np.testing.assert_allclose(reader.counts(rows).toarray(), counts.toarray(), rtol=1e-4)
    reader = CellReader(log_cp10k(adata), VOCABULARY, units="log1p_cp10k")
    np.testing.assert_allclose(reader.counts(rows).sum(axis=1), 1e4, rtol=1e-4)


@pytest.mark.parametrize("most_tokens", [None, 25, 60])
@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_batches_hold_each_cell_once(
    monkeypatch: pytest.MonkeyPatch, batch_size: int, most_tokens: int | None
) -> None:
    monkeypatch.setattr(_data, "_CHUNK", 8)
    adata = cells(20)
    adata.X[[3, 11]] = 0
    adata.X[3, adata.var_names.get_loc("X1")] = 5  # not a gene of the model
    reader = CellReader(adata, VOCABULARY)
    seen: list[int] = []
    with pytest.warns(UserWarning, match="2 of 20 cells express none of the model's genes"):
        for rows, part in reader.batches(batch_size, most_tokens=most_tokens):
            tokens = part.tokens()
            assert len(rows) <= batch_size
            if most_tokens is not None and len(rows) > 1:
                assert tokens.values.numel() <= most_tokens
            assert (np.diff(part.n_expressed) >= 0).all()
            for i, row in enumerate(rows):
                assert sentence(tokens, i) == sentence(reader.tokens(np.array([row])), 0)
            seen += rows.tolist()
    assert sorted(seen) == [i for i in range(20) if i not in (3, 11)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x - 1, "negative values"),
        (lambda x: np.where(x == x.max(), np.nan, x), "NaN or infinite"),
        (lambda x: np.log1p(x), r"not whole .* declare units='log1p_cp10k'"),
        (lambda x: x / x.sum(axis=1, keepdims=True) * 1e4, "not whole"),
    ],
)
def test_what_are_no_counts_is_refused(change: Any, message: str) -> None:
    adata = cells()
    adata.X = change(adata.X)
    with pytest.raises(ValueError, match=message):
        read(adata)
    adata.X = sparse.csr_matrix(adata.X)
    with pytest.raises(ValueError, match=r"adata\.X"):
        read(adata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda x: x, "values up to .* which no log1p of counts per 10,000"),
        (lambda x: np.minimum(x, 9), "whole numbers only"),
        (lambda x: np.log1p(x / x.sum(axis=1, keepdims=True) * 2e4), "another logarithm"),
        (lambda x: np.log1p(x) - 1, "negative values"),
        (lambda x: np.where(x == x.max(), np.inf, 0), "NaN or infinite"),
    ],
)
def test_what_is_no_log1p_of_cp10k_is_refused(change: Any, message: str) -> None:
    adata = cells()
    adata.X = change(adata.X)
    with pytest.raises(ValueError, match=message):
        read(adata, units="log1p_cp10k")


def test_total_counts_are_checked() -> None:
    adata = log_cp10k(cells())
    adata.obs["log_total"] = np.log10(adata.obs["total"]) - 3
    adata.obs["kind"] = pd.Categorical(["a"] * 7)
    log = {"units": "log1p_cp10k"}
    with pytest.raises(ValueError, match="not its logarithm"):
        read(adata, total_counts="log_total", **log)
    with pytest.raises(ValueError, match="category values; expected the number of counts"):
        read(adata, total_counts="kind", **log)
    adata.obs.loc["c2", "total"] = np.nan
    with pytest.raises(ValueError, match="nan for the cell 'c2'"):
        read(adata, total_counts="total", **log)
