"""Reading of random batches from one file: ours, and of scvi-tools, scDataset and annbatch."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
import zarr
from scipy import sparse
from scvi import REGISTRY_KEYS
from scvi.data import AnnDataManager
from scvi.data.fields import LayerField
from scvi.dataloaders import AnnDataLoader

from cfm.data import open_files
from cfm.data._matrix import get_matrix
from cfm.data._row_buffer import RowBuffer
from cfm.data._row_order import BLOCK_SIZE, BUFFER_ROWS
from cfm.models._streams import Drawn, RowStream, StreamLoader

_ROUNDS = 3


class ExpressionStream(RowStream):
    """Batches of expression, as the models' streams read them."""

    def __init__(self, matrix: Any, **kwargs: Any) -> None:
        self.buffer = RowBuffer(matrix)
        rows = np.arange(self.buffer.shape[0])
        super().__init__(rows, prefetch=self.buffer.prefetch, **kwargs)

    def batch(self, drawn: Drawn, generator: torch.Generator) -> torch.Tensor:
        return _tensor(self.buffer[drawn.own])


def _tensor(block: Any) -> torch.Tensor:
    dense = block.toarray() if sparse.issparse(block) else block
    return torch.from_numpy(np.asarray(dense, dtype=np.float32))


def backed(path: Path) -> ad.AnnData:
    """Open a file as anndata does, ``X`` on disk."""
    if path.suffix == ".h5ad":
        return ad.read_h5ad(path, backed="r")
    root = zarr.open_group(str(path), mode="r")
    table = {name: ad.io.read_elem(root[name]) for name in ("obs", "var")}
    return ad.AnnData(ad.io.sparse_dataset(root["X"]), **table)


def ours(path: Path, batch_size: int, seed: int) -> Iterable[Any]:
    """What ``train`` reads with."""
    stream = ExpressionStream(get_matrix(open_files(path)), batch_size=batch_size, seed=seed)
    return StreamLoader(stream)


def of_scvi(path: Path, batch_size: int, seed: int) -> Iterable[Any]:
    """What a model of scvi-tools reads with."""
    torch.manual_seed(seed)
    adata = backed(path)
    manager = AnnDataManager(fields=[LayerField(REGISTRY_KEYS.X_KEY, None, is_count_data=False)])
    manager.register_fields(adata)
    return AnnDataLoader(manager, batch_size=batch_size, shuffle=True)


def of_scdataset(open_matrix: Callable[[Path], Any]) -> Callable[..., Iterable[Any]]:
    """scDataset with blocks and buffers as large as ours."""

    def make(path: Path, batch_size: int, seed: int) -> Iterable[Any]:
        from scdataset import BlockShuffling, scDataset

        data = scDataset(
            open_matrix(path),
            BlockShuffling(block_size=BLOCK_SIZE),
            batch_size,
            fetch_factor=BUFFER_ROWS // batch_size,
            batch_transform=_tensor,
            seed=seed,
        )
        return torch.utils.data.DataLoader(data, batch_size=None)

    return make


class _Rows:
    """``X`` of a file as anndata opens it; scDataset asks for its length, which that lacks."""

    def __init__(self, path: Path) -> None:
        self.x = backed(path).X

    def __len__(self) -> int:
        return self.x.shape[0]

    def __getitem__(self, rows: Any) -> Any:
        return self.x[rows]


def of_annbatch(path: Path, batch_size: int, seed: int) -> Iterable[Any]:
    """A loader of annbatch, for zarr, with blocks and buffers as large as ours."""
    from annbatch import Loader

    loader = Loader(
        batch_size=batch_size,
        chunk_size=BLOCK_SIZE,
        preload_nchunks=BUFFER_ROWS // BLOCK_SIZE,
        shuffle=True,
        rng=np.random.default_rng(seed),
        to="torch",
    )
    return (batch["X"].to_dense() for batch in loader.add_dataset(backed(path).X))


def loaders(path: Path) -> dict[str, Callable[..., Iterable[Any]]]:
    """All that can be compared here; scDataset and annbatch are optional."""
    out: dict[str, Callable[..., Iterable[Any]]] = {"cfm": ours, "AnnDataLoader": of_scvi}
    if importlib.util.find_spec("scdataset") is not None:
        out["scDataset"] = of_scdataset(_Rows)
        out["scDataset on cfm.data.open_files"] = of_scdataset(lambda path: open_files(path).X)
    if importlib.util.find_spec("annbatch") is not None and path.suffix == ".zarr":
        out["annbatch"] = of_annbatch
    return out


def _seconds(batches: Iterator[Any], batch_size: int, n_genes: int) -> tuple[float, int]:
    """Go through batches; returns the time and how many rows there were."""
    began, n_rows = time.perf_counter(), 0
    for batch in batches:
        x = batch[REGISTRY_KEYS.X_KEY] if isinstance(batch, dict) else batch
        if x.shape[1] != n_genes or len(x) > batch_size or x.dtype != torch.float32:
            raise ValueError(f"a batch of {tuple(x.shape)} {x.dtype} is not what was asked for.")
        n_rows += len(x)
    return time.perf_counter() - began, n_rows


def compare(path: Path, n_batches: int = 200, batch_size: int = 128) -> pd.DataFrame:
    """Measure how fast random batches come, as dense float32 tensors.

    Time counts from the first batch that is asked for, opening left out. Loaders take turns, and
    the system holds the file in its cache for all.

    Parameters
    ----------
    path
        ``.h5ad`` or ``.zarr`` with a sparse ``X``.
    n_batches, batch_size
        Batches that are read, and their rows.

    Returns
    -------
    A row per loader: median rows per second, the slowest and fastest of three rounds, and how
    many times as fast as ``AnnDataLoader`` it is.
    """
    path = Path(path)
    makers = loaders(path)
    found: dict[str, list[float]] = {name: [] for name in makers}
    n_genes = open_files(path).n_vars
    for turn in range(_ROUNDS):
        for name, make in makers.items():
            batches = islice(iter(make(path, batch_size, turn)), n_batches)
            seconds, n_rows = _seconds(batches, batch_size, n_genes)
            found[name].append(n_rows / seconds)
    table = pd.DataFrame(
        {
            "loader": list(found),
            "rows_per_second": [float(np.median(rates)) for rates in found.values()],
            "slowest": [min(rates) for rates in found.values()],
            "fastest": [max(rates) for rates in found.values()],
        }
    )
    reference = table.loc[table["loader"] == "AnnDataLoader", "rows_per_second"].item()
    return table.assign(times_anndataloader=table["rows_per_second"] / reference)
