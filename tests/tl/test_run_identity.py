"""A stopped run goes on with the same data and weights only; a refused one is not in the way."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import h5py
import numpy as np
import pytest
import zarr
from scipy import sparse

import cfm
from cfm.data import open_files
from cfm.tl._run import Rows
from tests._cellvq import counted_cells, small_model
from tests._storages import stored
from tests.tl.test_chunks import Counting, _counting

N, ROW = 80, 42  # a row that no evenly spaced sample of 32 has


@pytest.fixture(autouse=True)
def chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cfm.settings, "chunk_size", 16)


@pytest.fixture
def counting() -> Counting:
    return _counting()


@pytest.fixture
def cells() -> ad.AnnData:
    return counted_cells(N)


def _stopped(data: Any, model: Counting, out: Path) -> None:
    model.stop = 2, KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        cfm.tl.embed(data, model, output=out)
    model.stop = None


def _written(cells: ad.AnnData, path: Path, layout: Callable[..., Any]) -> Path:
    cells = cells.copy()
    cells.X = layout(cells.X)
    if path.suffix == ".zarr":
        cells.write_zarr(path, chunks=(20, cells.n_vars) if layout is np.asarray else None)
    else:
        cells.write_h5ad(path)
    return path


LAYOUTS = {"csr": sparse.csr_matrix, "dense": np.asarray}


@pytest.mark.parametrize("kind", ["csr", "csc", "dense", "view", "dask"])
def test_one_value_in_memory(
    kind: str, counting: Counting, cells: ad.AnnData, tmp_path: Path
) -> None:
    out = tmp_path / "out.h5ad"
    _stopped(stored(cells, kind, tmp_path), counting, out)
    changed = cells.copy()
    changed.X[ROW, 5] += 1
    with pytest.raises(ValueError, match=r"2 finished chunks of another run .*\(X changed\)"):
        cfm.tl.embed(stored(changed, kind, tmp_path), counting, output=out)
    cfm.tl.embed(stored(cells, kind, tmp_path), counting, output=out)
    assert counting.seen == [16] * 5


@pytest.mark.parametrize(
    ("opened", "suffix", "layout"),
    [
        (str, ".h5ad", "csr"),
        (str, ".zarr", "dense"),
        (open_files, ".h5ad", "dense"),
        (open_files, ".zarr", "csr"),
        (ad.experimental.read_lazy, ".h5ad", "csr"),
        (ad.experimental.read_lazy, ".zarr", "dense"),
    ],
)
def test_one_value_in_a_file(
    opened: Callable[[Path], Any],
    suffix: str,
    layout: str,
    counting: Counting,
    cells: ad.AnnData,
    tmp_path: Path,
) -> None:
    source, out = tmp_path / f"in{suffix}", tmp_path / "out.zarr"
    _written(cells, source, LAYOUTS[layout])
    _stopped(opened(source), counting, out)
    root = zarr.open_group(source, mode="r+") if suffix == ".zarr" else h5py.File(source, "r+")
    key, at = ("X", (ROW, 5)) if layout == "dense" else ("X/data", 840)
    root[key][at] += 1
    if suffix == ".h5ad":
        root.close()
    with pytest.raises(ValueError, match=r"\((X changed|input 1 \(in\.\w+\) was '\d+ files?, )"):
        cfm.tl.embed(opened(source), counting, output=out)
    counting.seen = []
    found = cfm.tl.embed(opened(source), counting, output=out, overwrite=True)
    assert counting.seen == [16] * 5
    expected = small_model().get_latent_representation(open_files(source).to_memory())
    np.testing.assert_allclose(found.obsm["X_cellvq"][:], expected, rtol=1e-5, atol=1e-6)


def test_a_file_of_zarr_that_was_replaced(
    counting: Counting, cells: ad.AnnData, tmp_path: Path
) -> None:
    """Of the same size and time, as ``cp -p`` and ``rsync`` leave it."""
    source, out = _written(cells, tmp_path / "in.zarr", np.asarray), tmp_path / "out.zarr"
    _stopped(source, counting, out)
    chunk = sorted(p for p in (source / "X").rglob("*") if p.is_file() and p.name[0] != ".")[3]
    shutil.copy2(chunk, tmp_path / "copy")
    os.replace(tmp_path / "copy", chunk)
    with pytest.raises(ValueError, match=r"input 1 \(in\.zarr\) was"):
        cfm.tl.embed(source, counting, output=out)


def test_a_file_that_nothing_happened_to(
    counting: Counting, cells: ad.AnnData, tmp_path: Path
) -> None:
    for i, suffix in enumerate((".h5ad", ".zarr")):
        source, out = _written(cells, tmp_path / f"in{suffix}", np.asarray), tmp_path / "out.zarr"
        counting.seen = []
        _stopped(source, counting, out)
        (tmp_path / f"linked{i}").mkdir()
        linked = tmp_path / f"linked{i}" / source.name
        linked.symlink_to(source)
        cfm.tl.embed(linked, counting, output=out)
        assert counting.seen == [16] * 5
        shutil.rmtree(out)


def test_what_the_data_are_told_from_others_by(cells: ad.AnnData) -> None:
    cells.obs["n_counts"] = 1.0
    cells.obs["donor"] = "a"
    cells.layers["log"] = np.log1p(cells.X)

    def identity() -> dict[str, str]:
        arguments = {"layer": None, "total_counts": "n_counts", "batch_size": 4}
        return Rows(cells).identity([None, "log"], arguments)

    before = identity()
    assert identity() == before
    cells.obs["donor"] = "b"  # which no argument names
    assert identity() == before

    def changed() -> list[str]:
        nonlocal before
        earlier, before = before, identity()
        return [name for name in before if before[name] != earlier[name]]

    cells.obs["n_counts"] = [2.0] + [1.0] * (N - 1)
    assert changed() == ["obs['n_counts']"]
    cells.layers["log"][ROW, 5] += 1e-6
    assert changed() == ["layers['log']"]
    cells.X[ROW, 5] += 1
    assert changed() == ["X"]
    cells.obs_names = [f"x{i}" for i in range(N)]
    assert changed() == ["obs_names"]
    cells.var_names = cells.var_names[::-1]
    assert changed() == ["var_names"]


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_an_output_that_appears_during_the_run_stays(
    suffix: str, counting: Counting, cells: ad.AnnData, tmp_path: Path
) -> None:
    out = tmp_path / f"out{suffix}"
    plain = counting.get_latent_representation

    def meanwhile(adata: Any, **kwargs: Any) -> np.ndarray:
        if len(counting.seen) == 3:
            out.write_text("theirs") if suffix == ".h5ad" else out.mkdir()
            if suffix == ".zarr":
                (out / "theirs").write_text("theirs")
        return plain(adata, **kwargs)

    counting.get_latent_representation = meanwhile  # type: ignore[method-assign]
    with pytest.raises(FileExistsError, match=r"appeared during the run .*overwrite=True"):
        cfm.tl.embed(cells, counting, output=out)
    assert (out if suffix == ".h5ad" else out / "theirs").read_text() == "theirs"
    found = cfm.tl.embed(cells, counting, output=out, overwrite=True)
    assert counting.seen == [16] * 5
    assert found.obsm["X_cellvq"].shape[0] == N
    assert [p.name for p in tmp_path.iterdir()] == [out.name]


def test_a_refused_call_is_not_in_the_way(
    counting: Counting, cells: ad.AnnData, tmp_path: Path
) -> None:
    cells.layers["log"] = np.log1p(cells.X)
    cells.write_h5ad(tmp_path / "in.h5ad")
    out = tmp_path / "out.h5ad"
    for data in (cells, tmp_path / "in.h5ad"):
        for wrong in ({"layer": "log"}, {"layer": "none"}, {"representation": "no such"}):
            with pytest.raises((ValueError, KeyError)):
                cfm.tl.embed(data, counting, output=out, **wrong)
            assert [p.name for p in tmp_path.iterdir()] == ["in.h5ad"]
        assert cfm.tl.embed(data, counting, output=out).n_obs == N
        out.unlink()


def test_a_call_that_is_refused_later_says_what_is_there(
    counting: Counting, cells: ad.AnnData, tmp_path: Path
) -> None:
    cells.layers["late"] = cells.X.copy()
    cells.layers["late"][60, 3] = 0.5
    out = tmp_path / "out.h5ad"
    with pytest.raises(ValueError, match="not whole"):
        cfm.tl.embed(cells, counting, layer="late", output=out)
    with pytest.raises(
        ValueError, match=r"3 finished chunks .*layer was 'late' and is now None.*overwrite=True"
    ):
        cfm.tl.embed(cells, counting, output=out)
    assert cfm.tl.embed(cells, counting, output=out, overwrite=True).n_obs == N


def test_no_rows(counting: Counting, cells: ad.AnnData, tmp_path: Path) -> None:
    none = cells[:0].copy()
    none.write_h5ad(tmp_path / "none.h5ad")
    none.write_zarr(tmp_path / "none.zarr")
    before = sorted(tmp_path.iterdir())
    for data in (none, tmp_path / "none.h5ad", tmp_path / "none.zarr"):
        with pytest.raises(ValueError, match="no observations"):
            cfm.tl.embed(data, counting, output=tmp_path / "out.zarr")
    with pytest.raises(ValueError, match="no observations"):
        cfm.tl.embed(tmp_path / "none.h5ad", counting)
    assert sorted(tmp_path.iterdir()) == before
