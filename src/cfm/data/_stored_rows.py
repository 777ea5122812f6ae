"""What an AnnData has to know of a :class:`~cfm.data._row_stack.RowStack` to load and write it."""

from __future__ import annotations

from functools import cache
from types import MappingProxyType
from typing import Any

import h5py
import numpy as np
import zarr
from anndata._core.file_backing import to_memory
from anndata._core.index import _subset
from anndata._core.views import as_view
from anndata._io.specs.registry import _REGISTRY, IOSpec
from anndata.io import sparse_dataset

from cfm.data._row_stack import DenseRowStack, RowStack

_NONE: Any = MappingProxyType({})


@cache
def register_anndata_types() -> None:
    """Let views, ``AnnData.to_memory``, ``write_h5ad`` and ``write_zarr`` take a RowStack.

    In a view it stays unread, as dask arrays do. anndata has no public way to add a kind of
    matrix; these are the functions that its own kinds are added by.
    """
    to_memory.register(RowStack, _load)
    _subset.register(RowStack, _select)
    as_view.register(RowStack, _same)
    for store in (h5py.Group, zarr.Group):
        _REGISTRY.register_write(store, RowStack, IOSpec("csr_matrix", "0.1.0"))(_write_sparse)
        _REGISTRY.register_write(store, DenseRowStack, IOSpec("array", "0.2.0"))(_write_dense)


def _load(matrix: RowStack, *, copy: bool = False) -> Any:
    return matrix.to_memory()


def _select(matrix: RowStack, index: tuple[Any, ...]) -> RowStack:
    return matrix.select(*index)


def _same(matrix: RowStack, view_args: Any) -> RowStack:
    return matrix


def _write_sparse(
    store: Any, key: str, matrix: RowStack, *, _writer: Any, dataset_kwargs: Any = _NONE
) -> None:
    """Write block by block, never holding more than one."""
    blocks = matrix.blocks()
    first = next(blocks)
    # so that what is appended can exceed what 32 bits count
    first.indptr = first.indptr.astype(np.int64)
    _writer.write_elem(store, key, first, dataset_kwargs=dataset_kwargs)
    written: Any = sparse_dataset(store[key])
    for block in blocks:
        written.append(block)


def _write_dense(
    store: Any, key: str, matrix: DenseRowStack, *, _writer: Any, dataset_kwargs: Any = _NONE
) -> None:
    """Write block by block, never holding more than one."""
    create = store.create_array if isinstance(store, zarr.Group) else store.create_dataset
    array = create(key, shape=matrix.shape, dtype=matrix.dtype, **dataset_kwargs)
    start = 0
    for block in matrix.blocks():
        array[start : start + len(block)] = block
        start += len(block)
