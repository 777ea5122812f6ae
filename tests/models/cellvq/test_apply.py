"""Embeddings, codes, attention and genes: what they are, and what they do not depend on."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfm.models import CellVQ
from cfm.models.cellvq import _model
from tests._cellvq import GENES, SIZES, counted_cells, small_model
from tests._same import assert_unchanged

EXACT: dict[str, Any] = {"precision": "float32"}


@pytest.fixture(scope="module")
def model() -> CellVQ:
    return small_model()


def everything(model: CellVQ, *args: Any, **kwargs: Any) -> SimpleNamespace:
    """Codes, and the embedding beside them."""
    codes = model.get_cell_codes(*args, **kwargs)
    embedding = model.get_latent_representation(*args, **kwargs)
    return SimpleNamespace(embedding=embedding, **vars(codes))


def assert_same_codes(found: Any, expected: Any, rows: Any = slice(None)) -> None:
    np.testing.assert_array_equal(found.code, expected.code[rows])
    for name in ("embedding", "latent", "similarity", "margin"):
        value = getattr(found, name)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, getattr(expected, name)[rows], atol=1e-5)


def test_codes_say_what_they_were_read_off(model: CellVQ) -> None:
    cells = counted_cells()
    found = model.get_cell_codes(cells)
    book = model.get_codebook()
    assert book.vectors.shape == (64, 8)
    assert book.bits.shape == (64, 6)
    assert book.bits.dtype == np.int8
    np.testing.assert_array_equal(book.bits @ (2 ** np.arange(5, -1, -1)), np.arange(64))
    np.testing.assert_allclose(np.linalg.norm(book.vectors, axis=1), 1.0, atol=1e-5)
    cosine = np.sort(found.latent @ book.vectors.T, axis=1)
    np.testing.assert_array_equal((found.latent @ book.vectors.T).argmax(axis=1), found.code)
    np.testing.assert_allclose(found.similarity, cosine[:, -1], atol=1e-5)
    np.testing.assert_allclose(found.margin, cosine[:, -1] - cosine[:, -2], atol=1e-5)
    assert found.code.dtype == np.int64
    assert len(set(found.code)) > 2
    for representation, width in (("cell", 4 * model.size.dim), ("code", 8)):
        latent = model.get_latent_representation(
            cells, representation=representation, precision="float32"
        )
        assert latent.dtype == np.float32
        assert latent.shape == (len(cells), width)
    np.testing.assert_array_equal(latent, found.latent)


@given(
    order=st.permutations(range(12)),
    keep=st.integers(1, 12),
    batch_size=st.integers(1, 15),
    genes=st.permutations(range(42)),
)
def test_other_cells_and_the_order_of_anything_are_no_matter(
    order: list[int], keep: int, batch_size: int, genes: list[int]
) -> None:
    cells = counted_cells()
    expected = everything(SHARED, cells, **EXACT)
    rows = order[:keep]
    part = cells[rows, genes].copy()
    assert_same_codes(everything(SHARED, part, batch_size=batch_size, **EXACT), expected, rows)


def test_few_tokens_at_a_time_give_the_same(model: CellVQ, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = counted_cells()
    expected = everything(model, cells, **EXACT)
    genes = [x for _, x in model.get_gene_embeddings(cells, **EXACT)]
    monkeypatch.setattr(_model, "_ON_CPU", 40)
    monkeypatch.setattr(_model, "_EMBEDDED_AT_ONCE", 40 * 16 * 5)
    assert_same_codes(everything(model, cells, **EXACT), expected)
    again = list(model.get_gene_embeddings(cells, **EXACT))
    assert [(rows.start, rows.stop) for rows, _ in again] == [(0, 5), (5, 10), (10, 12)]
    np.testing.assert_allclose(np.concatenate([x for _, x in again]), genes[0], atol=1e-5)


@given(drop=st.sets(st.integers(0, 39), max_size=25))
def test_absent_genes_and_unexpressed_genes_are_one(drop: set[int]) -> None:
    cells = counted_cells(4)
    kept = [i for i in range(42) if i not in drop]
    silent = cells.copy()
    silent.X[:, sorted(drop)] = 0
    expected = everything(SHARED, silent, **EXACT)
    assert_same_codes(everything(SHARED, cells[:, kept].copy(), **EXACT), expected)


def test_log_values_give_the_same(model: CellVQ) -> None:
    cells = counted_cells()
    expected = everything(model, cells, **EXACT)
    log = cells[:, GENES].copy()
    log.obs["n_counts"] = log.X.sum(axis=1)
    log.X = np.log1p(log.X / log.X.sum(axis=1, keepdims=True) * 1e4)
    arguments: dict[str, Any] = {"units": "log1p_cp10k", "total_counts": "n_counts"}
    assert_same_codes(everything(model, log, **arguments, **EXACT), expected)
    with pytest.raises(ValueError, match="not whole"):
        everything(model, log)
    with pytest.raises(ValueError, match="values up to"):
        everything(model, cells, units="log1p_cp10k")


def test_cells_without_genes_are_missing(model: CellVQ) -> None:
    cells = counted_cells()
    expected = everything(model, cells, **EXACT)
    cells.X[[2, 7]] = 0
    cells.X[7, 41] = 3  # not a gene of the model
    with pytest.warns(UserWarning, match="2 of 12 cells express none of the model's genes"):
        found = everything(model, cells, **EXACT)
    assert (found.code[[2, 7]] == -1).all()
    for name in ("embedding", "latent", "similarity", "margin"):
        assert np.isnan(getattr(found, name)[[2, 7]]).all()
    others = np.setdiff1d(np.arange(12), [2, 7])
    for name in ("code", "latent"):
        np.testing.assert_allclose(
            getattr(found, name)[others], getattr(expected, name)[others], atol=1e-5
        )
    with pytest.warns(UserWarning, match="express none"):
        latent = model.get_latent_representation(cells)
    assert np.isnan(latent).any(axis=1).nonzero()[0].tolist() == [2, 7]


def test_attention_is_that_of_the_network(model: CellVQ) -> None:
    cells = counted_cells(3)
    cells.X[1] = 0
    before = cells.copy()
    mean = list(model.get_attention(cells, reduce="mean"))
    for i, (tokens, weights) in enumerate(model.get_attention(cells)):
        expressed = [g for g in GENES if cells[i, g].X.sum() > 0]
        assert tokens.tolist() == ["<summary>", *expressed]
        n = len(tokens)
        assert weights.shape == (2, 2, n, n)
        assert weights.dtype == np.float32
        np.testing.assert_allclose(weights.sum(-1), 1.0, atol=1e-5)
        assert mean[i][0].equals(tokens)
        np.testing.assert_allclose(mean[i][1], weights.mean(axis=(0, 1)), atol=1e-6)
        # By hand: genes attend to the summary as much as to both count tokens.
        reader = model._reader(cells, None, "counts", None)
        sentence = reader.tokens(np.array([i]))
        raw = np.stack([w[0].numpy() for w in model.module.attention(*sentence)])
        np.testing.assert_allclose(weights[..., 1:, 1:], raw[..., :-2, :-2], atol=1e-6)
        np.testing.assert_allclose(weights[..., 1:, 0], raw[..., :-2, -2:].sum(-1), atol=1e-6)
        np.testing.assert_allclose(weights[..., 0, 1:], raw[..., -2:, :-2].mean(-2), atol=1e-6)
    assert_unchanged(cells, before)


def test_own_data_are_read_as_they_were_registered() -> None:
    cells = counted_cells()
    log = cells[:, GENES].copy()
    log.obs["depth"] = log.X.sum(axis=1)
    log.layers["log"] = np.log1p(log.X / log.X.sum(axis=1, keepdims=True) * 1e4)
    log.X = None
    CellVQ.setup_anndata(log, layer="log", units="log1p_cp10k", total_counts="depth")
    own = CellVQ(log, **SIZES)
    found = everything(own, **EXACT)
    arguments: dict[str, Any] = {"units": "log1p_cp10k", "total_counts": "depth", "layer": "log"}
    assert_same_codes(found, everything(own, log, **arguments, **EXACT))


SHARED = small_model()
