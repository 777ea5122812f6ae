"""The same data in every kind of storage."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import anndata as ad
import dask.array as da
import numpy as np
from scipy import sparse

from cfm.data import open_files

#: Rows of a dask block; few, so that small data have several.
_CHUNK = 7


def _with(adata: ad.AnnData, change: Callable) -> ad.AnnData:
    """A copy with ``change`` applied to X and all layers."""
    out = adata.copy()
    if adata.X is not None:
        out.X = change(adata.X)
    for name in adata.layers:
        out.layers[name] = change(adata.layers[name])
    return out


def _dense(x) -> np.ndarray:
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


def _dask(x):
    blocks = da.from_array(_dense(x), chunks=(_CHUNK, x.shape[1]))
    return blocks.map_blocks(sparse.csr_matrix) if sparse.issparse(x) else blocks


def _written(adata: ad.AnnData, path: Path) -> Path:
    if path.suffix == ".zarr":
        adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    return path


def _csr(adata: ad.AnnData) -> ad.AnnData:
    return _with(adata, sparse.csr_matrix)


def _csc(adata: ad.AnnData) -> ad.AnnData:
    return _with(adata, sparse.csc_matrix)


def _array(adata: ad.AnnData) -> ad.AnnData:
    return _with(adata, _dense)


def _backed(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    return ad.read_h5ad(_written(adata, folder / "backed.h5ad"), backed="r")


def _lazy(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    return ad.experimental.read_lazy(_written(adata, folder / "lazy.zarr"))


def _opened(adata: ad.AnnData, path: Path) -> ad.AnnData:
    return open_files(_written(adata, path))


def _opened_list(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    """Three files, the second a zarr store, the last with its genes in another order."""
    folder.mkdir(exist_ok=True)
    cuts = [0, adata.n_obs // 3, adata.n_obs // 2, adata.n_obs]
    paths = []
    for i, suffix in enumerate((".h5ad", ".zarr", ".h5ad")):
        part = adata[cuts[i] : cuts[i + 1]].copy()
        if i == 2:
            part = part[:, ::-1].copy()
        paths.append(_written(part, folder / f"part{i}{suffix}"))
    return open_files(paths)


def _view(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    """A view of more rows, in reverse in the data that it is a view of."""
    return adata[::-1].copy()[::-1]


STORAGES: dict[str, Callable[[ad.AnnData, Path], ad.AnnData]] = {
    "csr": lambda adata, folder: _csr(adata),
    "csc": lambda adata, folder: _csc(adata),
    "dense": lambda adata, folder: _array(adata),
    "view": _view,
    "view_of_disk": lambda adata, folder: _opened(adata[::-1].copy(), folder / "view.h5ad")[::-1],
    "dask": lambda adata, folder: _with(adata, _dask),
    "backed_csr": lambda adata, folder: _backed(_csr(adata), folder),
    "backed_csc": lambda adata, folder: _backed(_csc(adata), folder),
    "backed_dense": lambda adata, folder: _backed(_array(adata), folder),
    "lazy": lambda adata, folder: _lazy(adata, folder),
    "opened_h5ad": lambda adata, folder: _opened(_csr(adata), folder / "opened.h5ad"),
    "opened_dense": lambda adata, folder: _opened(_array(adata), folder / "dense.h5ad"),
    "opened_zarr": lambda adata, folder: _opened(_csr(adata), folder / "opened.zarr"),
    "opened_zarr_dense": lambda adata, folder: _opened(_array(adata), folder / "dense.zarr"),
    "opened_list": lambda adata, folder: _opened_list(adata, folder / "list"),
}
#: Those that stay on disk and are read by rows.
ON_DISK = [name for name in STORAGES if name.startswith(("backed", "lazy", "opened"))]


def stored(adata: ad.AnnData, kind: str, folder: Path) -> ad.AnnData:
    """Return ``adata`` in another storage, of which files lie in ``folder``.

    Parameters
    ----------
    adata
        In memory; is not changed. ``obs_names`` and ``var_names`` are to be unique.
    kind
        One of :data:`STORAGES`.
    folder
        Of the test.
    """
    return STORAGES[kind](adata, folder)
