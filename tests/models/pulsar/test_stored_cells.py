"""Cells of donors that stay in a file: read when asked for, and the same as in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import dask.array as da
import h5py
import numpy as np
import pytest
import zarr

from cfm.data import open_files
from cfm.data._row_stack import DenseRowStack
from cfm.models import Pulsar
from cfm.models.pulsar import _data
from cfm.models.pulsar._data import StoredCells, read_cells, read_donors
from tests._pulsar import donors

KINDS = ["opened_h5ad", "opened_zarr", "h5py", "zarr", "dask", "view"]


def _stored(adata: ad.AnnData, kind: str, folder: Path) -> ad.AnnData:
    path = folder / ("cells.zarr" if "zarr" in kind else "cells.h5ad")
    adata.write_zarr(path) if path.suffix == ".zarr" else adata.write_h5ad(path)
    if kind == "view":
        adata[::-1].copy().write_h5ad(folder / "reversed.h5ad")
        return open_files(folder / "reversed.h5ad")[::-1]
    opened = open_files(path)
    if kind == "h5py":
        opened.obsm["X_uce"] = h5py.File(path)["obsm/X_uce"]
    elif kind == "zarr":
        opened.obsm["X_uce"] = zarr.open_group(path, mode="r")["obsm/X_uce"]
    elif kind == "dask":
        opened.obsm["X_uce"] = da.from_array(adata.obsm["X_uce"], chunks=(17, -1))
    return opened


@pytest.mark.parametrize("kind", KINDS)
def test_stored_cells_are_the_same(kind: str, tmp_path: Path) -> None:
    adata = donors()
    expected = adata.obsm["X_uce"]
    cells = read_cells(_stored(adata, kind, tmp_path), "X_uce", 48)
    assert isinstance(cells, StoredCells)
    assert (cells.shape, len(cells), cells.dtype) == (expected.shape, len(expected), np.float32)
    rows = np.random.default_rng(0).integers(0, len(expected), 40)
    mask = rows[0] < np.arange(len(expected))
    indices: list[Any] = [rows, rows - len(expected), mask, slice(3, 9), 5, -1, rows[:0]]
    for index in indices:
        np.testing.assert_array_equal(cells[index], expected[index])
        assert cells[index].dtype == np.float32
    np.testing.assert_array_equal(np.asarray(cells), expected)


@pytest.mark.parametrize("kind", ["opened_h5ad", "zarr"])
def test_a_model_of_stored_cells_is_that_of_cells_in_memory(kind: str, tmp_path: Path) -> None:
    adata = donors()
    stored = _stored(adata, kind, tmp_path)
    found = []
    for cells in (adata, stored):
        Pulsar.setup_anndata(cells, use_rep="X_uce", labels_key="disease")
        model = Pulsar(cells, dim=32, encoder_layers=1, encoder_ff=64, decoder_ff=64)
        model.train(2, n_cells=10, enable_progress_bar=False)
        found.append(model.get_donor_embeddings(n_cells=12, n_draws=2, precision="float32"))
    np.testing.assert_array_equal(found[1].embedding, found[0].embedding)
    np.testing.assert_array_equal(found[1].spread, found[0].spread)


def test_only_rows_that_are_drawn_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = _stored(donors(), "opened_h5ad", tmp_path)
    read = read_donors(stored, "donor_id", "X_uce", None)
    n_read: list[int] = []
    plain = DenseRowStack.__getitem__

    def counting(self: DenseRowStack, index: Any) -> Any:
        block = plain(self, index)
        n_read.append(len(block))
        return block

    monkeypatch.setattr(DenseRowStack, "__getitem__", counting)
    draws = [rows for _, rows in read.draws(7, 1, 0)]
    model = Pulsar(size="mini", input_dim=48)
    model.module.embed_draws(read.cells, draws)
    assert n_read == [7] * 6


def test_bad_cells_are_found_in_files_and_looked_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adata = donors()
    stored = _stored(adata, "opened_zarr", tmp_path)
    passes = []
    plain = StoredCells.blocks

    def counting(self: StoredCells) -> Any:
        passes.append(self)
        yield from plain(self)

    monkeypatch.setattr(_data.StoredCells, "blocks", counting)
    for _ in range(3):
        read_cells(stored, "X_uce", None)
    assert len(passes) == 1
    with pytest.raises(ValueError, match="has 48 columns; the model reads 5"):
        read_cells(stored, "X_uce", 5)
    adata.obsm["X_uce"][3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN or infinite in 1 of 175 cells"):
        read_cells(_stored(adata, "opened_h5ad", tmp_path), "X_uce", None)
