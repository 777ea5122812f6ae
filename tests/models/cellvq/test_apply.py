"""Embeddings, codes, attention and genes: what they are, and what they do not depend on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from scipy import sparse

import cfm
from cfm.models import AttentionModel, CellVQ, CodeModel, GeneEmbeddingModel
from cfm.models.cellvq import _model
from tests._cellvq import GENES, SIZES, counted_cells, small_model
from tests._same import assert_unchanged
from tests._storages import stored

GOLDEN = Path(__file__).parents[2] / "golden" / "cellvq"
EXACT: dict[str, Any] = {"precision": "float32"}


@pytest.fixture(scope="module")
def model() -> CellVQ:
    return small_model()


def assert_same_codes(found: Any, expected: Any, rows: Any = slice(None)) -> None:
    np.testing.assert_array_equal(found.code, expected.code[rows])
    for name in ("embedding", "latent", "similarity", "margin"):
        value = getattr(found, name)
        assert value.dtype == np.float32
        np.testing.assert_allclose(value, getattr(expected, name)[rows], atol=1e-5)


def test_golden_cells_through_anndata() -> None:
    """The authors' weights and counts, as an AnnData with its genes in another order."""
    io = load_file(GOLDEN / "io.safetensors")
    genes = [f"g{i}" for i in range(90)]
    golden = CellVQ.from_pretrained(GOLDEN / "models.ckpt", genes=genes)
    cells = ad.AnnData(sparse.csr_matrix(io["counts"].astype(np.float32)))
    cells.var_names = genes
    found = golden.get_cell_codes(cells[:, ::-1].copy(), batch_size=4, **EXACT)
    np.testing.assert_array_equal(found.code, io["cell_code"])
    np.testing.assert_allclose(found.embedding, io["cell_embedding"], atol=1e-5)
    proba = golden.predict_properties(cells, **EXACT)
    assert list(proba) == ["cell_type", "tissue", "disease", "sex", "age"]
    for name, table in proba.items():
        logits = torch.from_numpy(io[name])
        np.testing.assert_allclose(table, torch.softmax(logits, dim=-1), atol=1e-5)
    embedded = np.concatenate([x for _, x in golden.get_gene_embeddings(cells, **EXACT)])
    for i in range(6):
        ids = io[f"cell{i}_gene_ids"][0]
        np.testing.assert_allclose(embedded[i, ids[:-2]], io[f"cell{i}_encoded"][0, :-2], atol=1e-5)
        assert np.isnan(np.delete(embedded[i], ids[:-2], axis=0)).all()


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
    for representation, expected in (("cell", found.embedding), ("code", found.latent)):
        latent = model.get_latent_representation(
            cells, representation=representation, precision="float32"
        )
        assert latent.dtype == np.float32
        np.testing.assert_allclose(latent, expected, atol=1e-6)


@pytest.mark.parametrize("kind", ["csc", "backed_csr", "lazy"])
def test_storage_is_no_matter(model: CellVQ, tmp_path: Path, kind: str) -> None:
    cells = counted_cells()
    expected = model.get_cell_codes(cells, **EXACT)
    assert_same_codes(model.get_cell_codes(stored(cells, kind, tmp_path), **EXACT), expected)
    cells.layers["counts"], cells.X = cells.X.astype(np.int32), None
    assert_same_codes(model.get_cell_codes(cells, layer="counts", **EXACT), expected)


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
    expected = SHARED.get_cell_codes(cells, **EXACT)
    rows = order[:keep]
    part = cells[rows, genes].copy()
    assert_same_codes(SHARED.get_cell_codes(part, batch_size=batch_size, **EXACT), expected, rows)


def test_few_tokens_at_a_time_give_the_same(model: CellVQ, monkeypatch: pytest.MonkeyPatch) -> None:
    cells = counted_cells()
    expected = model.get_cell_codes(cells, **EXACT)
    genes = [x for _, x in model.get_gene_embeddings(cells, **EXACT)]
    monkeypatch.setattr(_model, "_ON_CPU", 40)
    monkeypatch.setattr(_model, "_EMBEDDED_AT_ONCE", 40 * 16 * 5)
    assert_same_codes(model.get_cell_codes(cells, **EXACT), expected)
    again = list(model.get_gene_embeddings(cells, **EXACT))
    assert [(rows.start, rows.stop) for rows, _ in again] == [(0, 5), (5, 10), (10, 12)]
    np.testing.assert_allclose(np.concatenate([x for _, x in again]), genes[0], atol=1e-5)


@given(drop=st.sets(st.integers(0, 39), max_size=25))
def test_absent_genes_and_unexpressed_genes_are_one(drop: set[int]) -> None:
    cells = counted_cells(4)
    kept = [i for i in range(42) if i not in drop]
    silent = cells.copy()
    silent.X[:, sorted(drop)] = 0
    expected = SHARED.get_cell_codes(silent, **EXACT)
    assert_same_codes(SHARED.get_cell_codes(cells[:, kept].copy(), **EXACT), expected)


def test_log_values_give_the_same(model: CellVQ) -> None:
    cells = counted_cells()
    expected = model.get_cell_codes(cells, **EXACT)
    log = cells[:, GENES].copy()
    log.obs["n_counts"] = log.X.sum(axis=1)
    log.X = np.log1p(log.X / log.X.sum(axis=1, keepdims=True) * 1e4)
    arguments: dict[str, Any] = {"units": "log1p_cp10k", "total_counts": "n_counts"}
    assert_same_codes(model.get_cell_codes(log, **arguments, **EXACT), expected)
    with pytest.raises(ValueError, match="not whole"):
        model.get_cell_codes(log)
    with pytest.raises(ValueError, match="values up to"):
        model.get_cell_codes(cells, units="log1p_cp10k")


def test_cells_without_genes_are_missing(model: CellVQ) -> None:
    cells = counted_cells()
    expected = model.get_cell_codes(cells, **EXACT)
    cells.X[[2, 7]] = 0
    cells.X[7, 41] = 3  # not a gene of the model
    with pytest.warns(UserWarning, match="2 of 12 cells express none of the model's genes"):
        found = model.get_cell_codes(cells, **EXACT)
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


def test_bfloat16_is_near_and_the_default_depends_on_the_weights_alone(
    model: CellVQ, monkeypatch: pytest.MonkeyPatch
) -> None:
    cells = counted_cells()
    exact = model.get_latent_representation(cells, **EXACT)
    rough = model.get_latent_representation(cells, precision="bfloat16")
    assert not np.array_equal(rough, exact)
    np.testing.assert_allclose(rough, exact, atol=0.1)
    with pytest.raises(ValueError, match="precision='half'"):
        model.get_latent_representation(cells, precision="half")
    monkeypatch.setattr("cfm.models._base.fast_bfloat16", lambda device: True)
    monkeypatch.setattr(model.module, "bfloat16_agreement", lambda: 0.5)
    with pytest.warns(UserWarning, match="so float32 is used"):
        found = model.get_latent_representation(cells)
    np.testing.assert_array_equal(found, exact)


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


def test_it_is_what_tools_ask_for(model: CellVQ) -> None:
    for protocol in (AttentionModel, CodeModel, GeneEmbeddingModel, cfm.models.PerturbationModel):
        assert isinstance(model, protocol)


def test_own_data_are_read_as_they_were_registered() -> None:
    cells = counted_cells()
    log = cells[:, GENES].copy()
    log.obs["depth"] = log.X.sum(axis=1)
    log.layers["log"] = np.log1p(log.X / log.X.sum(axis=1, keepdims=True) * 1e4)
    log.X = None
    CellVQ.setup_anndata(log, layer="log", units="log1p_cp10k", total_counts="depth")
    own = CellVQ(log, **SIZES)
    found = own.get_cell_codes(**EXACT)
    arguments: dict[str, Any] = {"units": "log1p_cp10k", "total_counts": "depth", "layer": "log"}
    assert_same_codes(found, own.get_cell_codes(log, **arguments, **EXACT))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"representation": "gene"}, ValueError, "representation='gene'"),
        ({"batch_size": 0}, ValueError, "batch_size="),
        ({"layer": "nothing"}, KeyError, "no layer 'nothing'"),
        ({"units": "tpm"}, ValueError, "units='tpm'"),
        ({"total_counts": "n"}, ValueError, "only goes with"),
        ({"units": "log1p_cp10k", "total_counts": "n"}, KeyError, "no column 'n'"),
    ],
)
def test_wrong_arguments(
    model: CellVQ, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        model.get_latent_representation(counted_cells(), **arguments)


def test_wrong_input(model: CellVQ) -> None:
    cells = counted_cells()
    with pytest.raises(ValueError, match="has no data of its own"):
        model.get_cell_codes()
    with pytest.raises(TypeError, match="expected an AnnData"):
        model.get_cell_codes(cells.X)
    with pytest.raises(ValueError, match="reduce='max'"):
        next(model.get_attention(cells, reduce="max"))
    with pytest.raises(ValueError, match="batch_size="):
        next(model.get_gene_embeddings(cells, batch_size=0))
    cells.var_names = [f"Z{i}" for i in range(cells.n_vars)]
    with pytest.raises(ValueError, match="Found 0 of the model's 40 genes"):
        model.get_cell_codes(cells)
    golden = CellVQ.from_pretrained(GOLDEN / "models.ckpt")
    with pytest.raises(ValueError, match="without the names of their genes"):
        golden.get_cell_codes(cells)


SHARED = small_model()
