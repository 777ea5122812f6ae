"""Every model embeds and learns the same, whatever the data are stored in."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import mkdtemp

import anndata as ad
import numpy as np
import pytest
import torch
from scipy import sparse

import cfm
from cfm.data import GeneVocabulary, _matrix, _row_buffer
from cfm.data._row_stack import RowStack
from cfm.models import UCE, CellPulse, CellVQ
from cfm.models.bulkformer import _data as bulk_data
from tests import _bulk, _lingshu, _planted_codes, _pulsar, _toy, _uce
from tests._small import TRAINED
from tests._storages import STORAGES, stored

#: Files that cfm opens; all other storages: ``tests/matrix``.
OPENED = [kind for kind in STORAGES if kind.startswith("opened")] + ["view_of_disk"]
#: All those that are read in ways of their own.
LEARNED = [
    "csc",
    "view_of_disk",
    "dask",
    "backed_csr",
    "backed_dense",
    "lazy",
    "opened_h5ad",
    "opened_zarr_dense",
    "opened_list",
]


@cache
def cellvq() -> tuple[CellVQ, ad.AnnData]:
    """The bundled model and cells that express some of its genes."""
    model = CellVQ.from_pretrained("cellvq-mini")
    genes = list(model.vocabulary.genes)[:700][::-1]
    rng = np.random.default_rng(0)
    counts = rng.poisson(rng.gamma(0.3, 3.0, size=(25, len(genes))))
    adata = ad.AnnData(sparse.csr_matrix(counts.astype(np.float32)))
    adata.var_names = genes
    adata.obs_names = [f"cell{i}" for i in range(25)]
    return model, adata


@cache
def cellpulse() -> tuple[CellPulse, ad.AnnData]:
    return CellPulse.from_pretrained("cellpulse-mini"), _toy.toy_contrasts()[:20].copy()


@cache
def uce() -> tuple[UCE, ad.AnnData]:
    folder = _uce.published(Path(mkdtemp()) / "released")
    return UCE.from_pretrained(folder, n_heads=_uce.N_HEADS), _uce.cells()


EMBEDDED: dict[str, Callable[[], tuple[object, ad.AnnData]]] = {
    "cellpulse-mini": cellpulse,
    "cellvq-mini": cellvq,
    "bulkformer": lambda: (_bulk.toy_bulkformer(), _bulk.toy_log_tpm(n=24)),
    "uce": uce,
}


@cache
def embedding(name: str) -> np.ndarray:
    model, adata = EMBEDDED[name]()
    return embedded(adata.copy(), model)


def embedded(adata: ad.AnnData, model: object) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Only .* of the model's")
        made = cfm.tl.embed(adata, model, key_added="found", copy=True)
    return np.asarray(made.obsm["found"])


@pytest.mark.parametrize("kind", OPENED)
@pytest.mark.parametrize("name", EMBEDDED)
def test_embeddings(name: str, kind: str, tmp_path: Path) -> None:
    model, adata = EMBEDDED[name]()
    found = embedded(stored(adata, kind, tmp_path), model)
    np.testing.assert_allclose(found, embedding(name), rtol=0, atol=1e-6)


#: Data of some size, and settings beside those of ``tests/_small.py``.
DATA: dict[str, tuple[Callable[[], ad.AnnData], dict[str, object]]] = {
    "CellPulse": (_toy.toy_contrasts, {"n_linear_steps": 1}),
    "CellVQ": (lambda: _planted_codes.planted_cells(60), {"code_label_weight": 0.0}),
    "LingshuCell": (lambda: _lingshu.toy_counts(n=120), {"batch_size": 32, "count_term": False}),
    "BulkFormer": (lambda: _bulk.toy_log_tpm(n=48), {"batch_size": 8}),
    "Pulsar": (_pulsar.donors, {"n_cells": 12}),
}


def train(name: str, adata: ad.AnnData) -> dict[str, torch.Tensor]:
    """Return the weights after three steps."""
    # scvi-tools registers no views; a copy of one of files leaves the matrices there
    adata, small = adata.copy() if adata.is_view else adata, TRAINED[name]
    if name == "CellVQ":  # heads of labels read all cells at once
        small = small._replace(setup={})
    model = small.make(adata)
    small.train(model, max_steps=3, **DATA[name][1])
    weights: dict[str, torch.Tensor] = model.module.state_dict()
    return weights


@cache
def weights(name: str) -> dict[str, torch.Tensor]:
    return train(name, DATA[name][0]())


@pytest.mark.parametrize("kind", LEARNED)
@pytest.mark.parametrize("name", DATA)
def test_training(name: str, kind: str, tmp_path: Path) -> None:
    found = train(name, stored(DATA[name][0](), kind, tmp_path))
    for key, value in weights(name).items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=1e-6, msg=key, equal_nan=True)


@pytest.fixture
def rows_read(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each call read of files, where little may be held."""
    monkeypatch.setattr(_matrix, "_BLOCK_VALUES", 200)
    monkeypatch.setattr(_row_buffer, "_MOST_BYTES", 0)
    monkeypatch.setattr(_row_buffer, "_LEAST_ROWS", 7)
    read: list[int] = []
    original = RowStack.read

    def spy(self: RowStack, rows: np.ndarray) -> object:
        read.append(len(rows))
        return original(self, rows)

    monkeypatch.setattr(RowStack, "read", spy)
    return read


LARGE: dict[str, Callable[[], ad.AnnData]] = {
    "CellVQ": lambda: _planted_codes.planted_cells(6000),
    "LingshuCell": lambda: _lingshu.toy_counts(n=6000),
    "BulkFormer": lambda: _bulk.toy_log_tpm(n=600),
}


@pytest.mark.parametrize("kind", ["opened_h5ad", "view_of_disk"])
@pytest.mark.parametrize("name", LARGE)
def test_training_never_holds_all(
    name: str, kind: str, tmp_path: Path, rows_read: list[int]
) -> None:
    adata = stored(LARGE[name](), kind, tmp_path)
    train(name, adata)
    assert sum(rows_read) > adata.n_obs
    assert max(rows_read) < adata.n_obs / 2


@pytest.mark.parametrize("name", ["cellvq-mini", "bulkformer"])
def test_embedding_never_holds_all(
    name: str, tmp_path: Path, rows_read: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cfm.settings, "chunk_size", 16)
    model, adata = EMBEDDED[name]()
    many = ad.concat([adata] * 4, index_unique="-")
    opened = stored(many, "opened_h5ad", tmp_path)
    cfm.tl.embed(opened, model, key_added="found", batch_size=16)
    assert max(rows_read) < many.n_obs / 2


def test_the_graph_of_many_samples_is_made_of_some(monkeypatch: pytest.MonkeyPatch) -> None:
    adata = _bulk.toy_log_tpm(n=96)
    monkeypatch.setattr(bulk_data, "_MOST_SAMPLES", 40)
    rows = np.linspace(0, 95, 40).astype(int)
    vocabulary = GeneVocabulary(adata.var_names)
    found, expected = (
        bulk_data.graph_of_data(bulk_data.ExpressionReader(some, vocabulary))
        for some in (adata, adata[rows].copy())
    )
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
