"""A matrix in one file or several, read by rows, that an AnnData takes as ``X`` or layer."""

from __future__ import annotations

from functools import cache
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import h5py
import numpy as np
import zarr
from anndata._core.file_backing import to_memory
from anndata._core.index import _subset
from anndata._core.views import as_view
from anndata._io.specs.registry import _REGISTRY, IOSpec
from anndata.abc import CSRDataset
from anndata.io import sparse_dataset
from scipy import sparse

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfm.data._disk_parts import Part


#: Rows of a block when a whole matrix is written elsewhere.
_WRITE_ROWS = 4096


class RowStack(CSRDataset):
    """Matrices in files, one above the other, that are read by rows.

    An AnnData takes it as ``X``, as a layer or in ``obsm``. Rows are taken by a number, a slice,
    an array of numbers or a mask, in any order, and come as a CSR matrix. The columns of each
    file may be put in another order. It can be pickled and used in a forked process: the files
    are opened anew there.

    Parameters
    ----------
    parts
        Matrices of the files.
    columns
        For each of them, which of its columns are taken, in order; ``None`` for all as they are.
    rows
        Which of all rows are taken, in order; ``None`` for all.

    Attributes
    ----------
    shape
        Rows of all files, and columns.
    dtype
        The type that holds the values of all files.
    """

    ndim = 2

    def __init__(
        self,
        parts: Sequence[Part],
        columns: Sequence[np.ndarray | None] | None = None,
        rows: np.ndarray | None = None,
    ) -> None:
        self.parts = list(parts)
        self._rows = rows
        self._columns = [None] * len(self.parts) if columns is None else list(columns)
        widths = {
            part.shape[1] if own is None else len(own)
            for part, own in zip(self.parts, self._columns, strict=True)
        }
        if len(widths) != 1:
            raise ValueError(f"matrices of {sorted(widths)} columns do not lie above each other.")
        self._ends = np.cumsum([part.shape[0] for part in self.parts])
        n_rows = int(self._ends[-1]) if rows is None else len(rows)
        self.shape: tuple[int, int] = (n_rows, widths.pop())
        self.dtype = np.result_type(*(part.dtype for part in self.parts))

    @property
    def backend(self) -> Literal["zarr", "hdf5"]:  # type: ignore[override]
        """What the first file is."""
        element = getattr(self.parts[0], "element", None)
        return "hdf5" if element is None else element.backend

    @property
    def values_per_row(self) -> float:
        """Mean number of values that a row takes in memory."""
        total = sum(part.values_per_row * part.shape[0] for part in self.parts)
        return total / max(1, int(self._ends[-1]))

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        n_files = len(self.parts)
        return (
            f"{type(self).__name__}: {self.shape[0]} × {self.shape[1]} {self.dtype} in "
            f"{n_files} {'file' if n_files == 1 else 'files'}, read by rows"
        )

    def __getitem__(self, index: Any) -> Any:
        row, column = _row_and_column(index)
        if isinstance(row, int | np.integer):
            return self._row(self.read(np.array([_checked(int(row), self.shape[0])])), column)
        block = self.read(_numbers(row, self.shape[0]))
        return block if column is None else block[:, column]

    def select(self, row: Any, column: Any = None) -> RowStack:
        """Return some rows and columns without reading them, as a view of an AnnData does."""
        rows: np.ndarray | None = self._rows
        if not (isinstance(row, slice) and row == slice(None)):
            numbers = _numbers(np.atleast_1d(row) if np.isscalar(row) else row, self.shape[0])
            rows = numbers if rows is None else rows[numbers]
        columns = self._columns
        if column is not None and not (isinstance(column, slice) and column == slice(None)):
            taken = np.arange(self.shape[1])[column]
            columns = [taken if own is None else own[taken] for own in columns]
        return type(self)(self.parts, columns, rows)

    def read(self, rows: np.ndarray) -> Any:
        """Return rows by their numbers, in the order given; a number may come more than once."""
        if not len(rows):
            return self._joined([])
        if self._rows is not None:
            rows = self._rows[rows]
        if (np.diff(rows) > 0).all():
            return self._read_ascending(rows)
        unique, inverse = np.unique(rows, return_inverse=True)
        return self._read_ascending(unique)[inverse]

    def _read_ascending(self, rows: np.ndarray) -> Any:
        cuts = np.searchsorted(rows, self._ends)
        starts = [0, *cuts[:-1]]
        blocks = []
        for i, (first, last) in enumerate(zip(starts, cuts, strict=True)):
            if first < last:
                offset = self._ends[i] - self.parts[i].shape[0]
                blocks.append(self._arranged(i, self.parts[i].read(rows[first:last] - offset)))
        return blocks[0] if len(blocks) == 1 else self._joined(blocks)

    def _arranged(self, i: int, block: Any) -> Any:
        """Put the columns of a block of part ``i`` in order."""
        columns = self._columns[i]
        if columns is not None:
            block = block[:, columns]
            if sparse.issparse(block):
                block.sort_indices()
        return self._kind(block.astype(self.dtype, copy=False))

    def _kind(self, block: Any) -> Any:
        """Return a block as all blocks are returned."""
        return block if sparse.issparse(block) else sparse.csr_matrix(block)

    def _joined(self, blocks: list[Any]) -> Any:
        """Put blocks one above the other."""
        if not blocks:
            return sparse.csr_matrix((0, self.shape[1]), dtype=self.dtype)
        return sparse.vstack(blocks, format="csr")

    def _row(self, block: Any, column: Any) -> Any:
        """Return one row, as a matrix in memory does."""
        if column is None:
            return block
        return block[0, column] if isinstance(column, int | np.integer) else block[:, column]

    def blocks(self) -> Iterator[Any]:
        """Go through all rows, some at a time; there is a block if there is no row."""
        for start in range(0, max(self.shape[0], 1), _WRITE_ROWS):
            yield self[start : start + _WRITE_ROWS]

    def to_memory(self) -> Any:
        """Load everything."""
        return self[:]

    def copy(self) -> RowStack:
        """Return itself: it cannot be changed."""
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> RowStack:
        return self


class DenseRowStack(RowStack):
    """The same of dense matrices: its rows come as numpy arrays.

    It is a :class:`anndata.abc.CSRDataset` in name only, for AnnData takes no other kind.
    """

    format = "dense"  # type: ignore[assignment]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        if copy is False:
            raise ValueError("what lies on disk cannot be an array without being loaded.")
        return np.asarray(self.to_memory(), dtype=dtype)

    def _kind(self, block: Any) -> Any:
        return block

    def _joined(self, blocks: list[Any]) -> Any:
        if not blocks:
            return np.zeros((0, self.shape[1]), dtype=self.dtype)
        return np.concatenate(blocks)

    def _row(self, block: Any, column: Any) -> Any:
        return block[0] if column is None else block[0, column]


def stack_rows(
    parts: Sequence[Part], columns: Sequence[np.ndarray | None] | None = None
) -> RowStack:
    """Return a stack of the right kind; see :class:`RowStack`."""
    dense = all(part.format == "dense" for part in parts)
    return (DenseRowStack if dense else RowStack)(parts, columns)


def _row_and_column(index: Any) -> tuple[Any, Any]:
    """Split an index; the column is None for all columns."""
    if not isinstance(index, tuple):
        index = (index,)
    index = tuple(slice(None) if i is Ellipsis else i for i in index)
    if len(index) > 2:
        raise IndexError(f"{len(index)} indices for a matrix of rows and columns.")
    row = index[0] if index else slice(None)
    column = index[1] if len(index) == 2 else None
    if isinstance(column, slice) and column == slice(None):
        column = None
    if column is not None and not isinstance(column, slice | int | np.integer):
        column = np.asarray(column).ravel()
    return row, column


def _numbers(row: Any, n_rows: int) -> np.ndarray:
    """Return row numbers from a slice, mask or array of numbers."""
    if isinstance(row, slice):
        return np.arange(n_rows)[row] if row.step not in (None, 1) else _range(row, n_rows)
    row = np.asarray(row).ravel()
    if row.dtype == bool:
        if len(row) != n_rows:
            raise IndexError(f"a mask of {len(row)} for {n_rows} rows.")
        return np.flatnonzero(row)
    if not len(row):
        return np.zeros(0, dtype=np.int64)
    if row.dtype.kind not in "iu":
        raise IndexError(f"rows are taken by number, slice or mask, not by {row.dtype} values.")
    row = row.astype(np.int64)
    low, high = int(row.min()), int(row.max())
    if low < -n_rows or high >= n_rows:
        raise IndexError(f"row {high if high >= n_rows else low} of a matrix of {n_rows} rows.")
    return np.where(row < 0, row + n_rows, row) if low < 0 else row


def _range(row: slice, n_rows: int) -> np.ndarray:
    start, stop, _ = row.indices(n_rows)
    return np.arange(start, max(start, stop))


def _checked(row: int, n_rows: int) -> int:
    if not -n_rows <= row < n_rows:
        raise IndexError(f"row {row} of a matrix of {n_rows} rows.")
    return row % n_rows


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
