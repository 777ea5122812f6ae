"""Matrices in files: opened in each process on its own, and read in stretches of rows."""

from __future__ import annotations

import os
from collections import deque
from contextlib import contextmanager
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from weakref import ref

import h5py
import numpy as np
from anndata._io.specs.registry import IORegistryError
from scipy import sparse

from cfm._adata import index_problem, pointer_problem

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Values that are read over rather than skipped: a new call costs more than to read so many.
_GAP_VALUES = 8192
#: A stretch is cut where it would exceed this many values (32 MiB in float32).
_STRETCH_VALUES = 8_000_000
#: Elements that are open at a time; systems allow a process 256 files or more.
_MOST_OPEN = 64
_OPENED: deque[ref[Element]] = deque()
#: What h5py, zarr, their codecs and anndata raise where a file is damaged.
READ_ERRORS = (
    *(OSError, RuntimeError, ValueError, TypeError, LookupError, ArithmeticError),
    *(AttributeError, AssertionError, IORegistryError),
)
#: What to do then.
REMEDY = "the file is damaged or was not written to its end: copy or download it again"


@contextmanager
def reading(path: Path, key: str) -> Iterator[None]:
    """Name the file and the element in errors of the libraries that read them.

    Raises
    ------
    OSError, ValueError
        In place of the error: an ``OSError`` of one, a ``ValueError`` of all others.
    """
    try:
        yield
    except READ_ERRORS as error:
        kind = OSError if isinstance(error, OSError) else ValueError
        raise kind(f"{path}: {key} cannot be read ({error}); {REMEDY}.") from error


class Element:
    """A group or array of an ``.h5ad`` file or a zarr store.

    It opens the file anew in a process that was forked or that it was sent to, for handles of
    HDF5 are of no use in another process.

    Parameters
    ----------
    path
        The file, or the folder of the store.
    key
        Name within.
    """

    backend: Literal["hdf5", "zarr"]

    def __init__(self, path: str | Path, key: str) -> None:
        self.path = Path(path).absolute()
        self.key = key
        self.backend = "zarr" if self.path.is_dir() else "hdf5"
        self._opened: tuple[int, Any] | None = None

    def open(self) -> Any:
        """Return the HDF5 or zarr object."""
        opened = self._opened
        closed = self.backend == "hdf5" and opened is not None and not opened[1]
        if opened is None or opened[0] != os.getpid() or closed:
            opened = self._opened = os.getpid(), open_store(self.path)[self.key]
            _OPENED.append(ref(self))
            while len(_OPENED) > _MOST_OPEN:
                oldest = _OPENED.popleft()()
                if oldest is not None:
                    # HDF5 closes the file when nobody uses it any more
                    oldest._opened = None
        return opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_opened": None}


class OpenElement(Element):
    """The same of an object that somebody opened.

    Parameters
    ----------
    stored
        HDF5 or zarr group or array.
    """

    def __init__(self, stored: Any) -> None:
        if isinstance(stored, h5py.HLObject):
            super().__init__(stored.file.filename, stored.name)
            self._opened = os.getpid(), stored
        else:
            self.path, self.key, self.backend = Path(str(stored.store)), stored.name, "zarr"
            self._zarr = stored

    def open(self) -> Any:
        """Return the HDF5 or zarr object."""
        # those of zarr open their files themselves
        return self._zarr if self.backend == "zarr" else super().open()


def open_store(path: Path) -> Any:
    """Open an ``.h5ad`` file or zarr store for reading."""
    if path.is_dir():
        import zarr

        return zarr.open_group(path, mode="r")
    return h5py.File(path, mode="r")


def stretches(start: np.ndarray, end: np.ndarray, chunk: int = 1) -> list[tuple[int, int]]:
    """Cut ascending pieces of storage into stretches that are read in one call.

    Parameters
    ----------
    start, end
        ``(n,)`` first value of each piece and the one after its last; ascending, no overlap.
    chunk
        Values that are stored, and read, together.

    Returns
    -------
    First piece of each stretch and the one after its last.
    """
    if not len(start):
        return []
    # a chunk of which two stretches had a part would be read twice
    apart = start[1:] // chunk > np.maximum(end[:-1] - 1, 0) // chunk
    far = apart & (start[1:] - end[:-1] > _GAP_VALUES)
    bounds = [0]
    for cut in [*(np.flatnonzero(far) + 1).tolist(), len(start)]:
        while int(end[cut - 1]) - int(start[bounds[-1]]) > _STRETCH_VALUES:
            first = bounds[-1]
            limit = int(start[first]) + _STRETCH_VALUES
            most = int(np.searchsorted(end[first:cut], limit, "right"))
            if first + max(most, 1) >= cut:
                break
            bounds.append(first + max(most, 1))
        bounds.append(cut)
    return list(pairwise(bounds))


def _chunk(array: Any) -> int:
    """Return how many entries of the first axis lie in a chunk."""
    return array.chunks[0] if array.chunks else 1


class CompressedPart:
    """A CSR matrix in a file; only where its rows begin is held in memory.

    A CSC matrix is read as the CSR matrix that it is of its transpose; see :func:`load_by_columns`.

    Parameters
    ----------
    element
        Group with ``data``, ``indices`` and ``indptr``.
    kind
        ``"csr"`` or ``"csc"``.

    Raises
    ------
    OSError, ValueError
        If they cannot be read or do not fit each other.
    """

    format = "csr"

    def __init__(self, element: Element, kind: str = "csr") -> None:
        self.element = element
        self._kind = kind
        with self._reading():
            group = element.open()
            rows, columns = map(int, group.attrs["shape"])
            self.shape = (rows, columns) if kind == "csr" else (columns, rows)
            n_starts, n_values, n_indices = (
                int(group[name].shape[0]) for name in ("indptr", "data", "indices")
            )
            self.dtype: np.dtype[Any] = group["data"].dtype
        problem = None
        if self.dtype.kind not in "biuf":
            problem = f"its values are {self.dtype}; numbers are expected"
        elif n_starts - 1 != self.shape[0] or n_values != n_indices:
            problem = (
                f"it has shape {(rows, columns)} and {n_starts} values in indptr, {n_values} in "
                f"data and {n_indices} in indices, which do not fit each other"
            )
        self._check(problem)
        self._n_values = n_values
        if self._starts[-1] != n_values:
            self._check(f"indptr ends with {self._starts[-1]} for {n_values} values")

    def _reading(self) -> Any:
        return reading(self.element.path, self.element.key)

    def _check(self, problem: str | None) -> None:
        if problem is not None:
            raise ValueError(f"{self.element.path}: {self.element.key}: {problem}; {REMEDY}.")

    @cached_property
    def _starts(self) -> np.ndarray:
        with self._reading():
            starts = self.element.open()["indptr"][...]
        self._check(pointer_problem(starts, self.shape[0], self._n_values, self._kind))
        return starts

    @property
    def values_per_row(self) -> float:
        """Mean number of values that a row takes, counting a column index as one."""
        return 2.0 * self._n_values / max(1, self.shape[0])

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "_starts"}

    def read(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return some rows, ascending and each once; their column indices are checked."""
        start, end = self._starts[rows], self._starts[rows + 1]
        length = end - start
        indptr = np.zeros(len(rows) + 1, dtype=self._starts.dtype)
        np.cumsum(length, out=indptr[1:])
        with self._reading():
            group = self.element.open()
            source = [group["data"], group["indices"]]
            values = [np.empty(int(indptr[-1]), dtype=s.dtype) for s in source]
            parts = list(stretches(start, end, _chunk(group["data"])))
            if self.element.backend == "zarr" and len(parts) > 1:
                # all at once, so that zarr reads and unpacks its chunks side by side
                place = np.repeat(start - indptr[:-1], length) + np.arange(int(indptr[-1]))
                values, parts = [stored.oindex[place] for stored in source], []
            for first, last in parts:
                low, high = int(start[first]), int(end[last - 1])
                begin, stop = int(indptr[first]), int(indptr[last])
                whole = high - low == stop - begin
                if not whole:
                    shift = start[first:last] - low - (indptr[first:last] - begin)
                    take = np.repeat(shift, length[first:last]) + np.arange(stop - begin)
                for stored, out in zip(source, values, strict=True):
                    block = stored[low:high]
                    out[begin:stop] = block if whole else block[take]
        self._check(index_problem(values[1], indptr, self.shape[1], self._kind, rows))
        return sparse.csr_matrix((*values, indptr), shape=(len(rows), self.shape[1]))


def load_by_columns(element: Element) -> sparse.csr_matrix:
    """Return a CSC matrix in a file as CSR, in memory."""
    part = CompressedPart(element, "csc")
    return part.read(np.arange(part.shape[0])).T.tocsr()


class DensePart:
    """A dense matrix in a file.

    Parameters
    ----------
    element
        The array, ``(n, d)``.
    """

    format = "dense"

    def __init__(self, element: Element) -> None:
        self.element = element
        with reading(element.path, element.key):
            array = element.open()
            self.shape: tuple[int, int] = array.shape
            self.dtype: np.dtype[Any] = array.dtype

    @property
    def values_per_row(self) -> float:
        """Values that a row takes."""
        return float(self.shape[1])

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Return some rows, ascending and each once."""
        width = self.shape[1]
        with reading(self.element.path, self.element.key):
            array = self.element.open()
            out = np.empty((len(rows), width), dtype=self.dtype)
            for first, last in stretches(rows * width, (rows + 1) * width, _chunk(array) * width):
                low, high = int(rows[first]), int(rows[last - 1]) + 1
                block = array[low:high]
                whole = high - low == last - first
                out[first:last] = block if whole else block[rows[first:last] - low]
        return out


class MemoryPart:
    """A matrix that had to be loaded, for its storage cannot be read by rows.

    Parameters
    ----------
    matrix
        CSR matrix.
    path
        The file that it comes from.
    """

    format = "csr"

    def __init__(self, matrix: Any, path: Path) -> None:
        self.matrix = matrix
        self.path = path
        self.shape: tuple[int, int] = matrix.shape
        self.dtype: np.dtype[Any] = matrix.dtype

    @property
    def values_per_row(self) -> float:
        """Mean number of values that a row takes, counting a column index as one."""
        return 2.0 * self.matrix.nnz / max(1, self.shape[0])

    def read(self, rows: np.ndarray) -> Any:
        """Return some rows."""
        return self.matrix[rows]


Part = CompressedPart | DensePart | MemoryPart


def encoding(stored: Any) -> str:
    """Return the encoding of a group or array of an AnnData file."""
    return str(stored.attrs.get("encoding-type", ""))
