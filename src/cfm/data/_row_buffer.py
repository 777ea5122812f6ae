"""Rows ahead of use: read-ahead in a known order, and a cache of rows."""

from __future__ import annotations

import os
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cfm.data._matrix import by_rows, read_rows
from cfm.data._row_order import BUFFER_ROWS
from cfm.data._row_stack import RowStack

if TYPE_CHECKING:
    from collections.abc import Callable

#: A buffer takes no more memory than this, but for wide rows; there are two.
_MOST_BYTES = 2**27
#: Rows of a buffer at least.
_LEAST_ROWS = 64
#: Orders that are remembered: of training, and of the validation that comes between.
_MOST_ORDERS = 2


class RowBuffer:
    """Rows of a matrix, of which the next are read while the present ones are used.

    The order in which rows will be read is given to :meth:`prefetch`, where it is known. They are
    then read many at a time, in the order of storage, in a thread: two buffers are in memory, the
    one in use and the next. Rows that were not expected are read at once. What is returned never
    depends on what was expected. Two orders are remembered, so that validation may come in the
    middle of an epoch.

    A matrix in memory is only passed on.

    Parameters
    ----------
    matrix
        What :func:`cfm.models.base.get_matrix` returned.
    n_rows
        Rows of a buffer; fewer where they would take more than 128 MiB.

    Attributes
    ----------
    matrix
        The matrix, in a form of which rows are read fast.
    """

    def __init__(self, matrix: Any, n_rows: int = BUFFER_ROWS) -> None:
        self.matrix = by_rows(matrix)
        fitting = int(_MOST_BYTES // max(1.0, bytes_per_row(self.matrix)))
        self.n_rows = max(1, min(n_rows, max(_LEAST_ROWS, fitting)))
        self._on_disk = not (isinstance(self.matrix, np.ndarray) or sparse.issparse(self.matrix))
        self._forget()

    def _forget(self) -> None:
        self._process = os.getpid()
        self._orders: list[_Order] = []
        # one thread, so that one buffer is read at a time; it ends with this object
        self._reader = ThreadPoolExecutor(1, "cfm-read-ahead")

    def __getstate__(self) -> dict[str, Any]:
        return {key: vars(self)[key] for key in ("matrix", "n_rows", "_on_disk")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._forget()

    @property
    def shape(self) -> tuple[int, int]:
        """Of the matrix."""
        return self.matrix.shape

    def prefetch(self, rows: np.ndarray) -> None:
        """Read the first of these rows ahead; all will be read in this order."""
        if not self._on_disk or not len(rows):
            return
        if self._process != os.getpid():
            self._forget()
        for order in self._orders:
            order.rest()
        left = [order for order in self._orders if not order.is_over(rows)]
        new = _Order(self.matrix, rows, self.n_rows, self._reader)
        self._orders = [new, *left[: _MOST_ORDERS - 1]]
        new.read_ahead()

    def __getitem__(self, rows: np.ndarray) -> Any:
        rows = np.asarray(rows, dtype=np.int64)
        # threads do not live on in a forked process
        orders = self._orders if self._process == os.getpid() else []
        for order in orders:
            last = order.find(rows)
            if last is not None:
                for other in orders:
                    if other is not order:
                        other.rest()
                return order.take(rows, last)
        return read_rows(self.matrix, rows)


class _Order:
    """Rows in the order of use, cut into buffers; the present buffer and the next are held."""

    def __init__(
        self, matrix: Any, rows: np.ndarray, n_rows: int, reader: ThreadPoolExecutor
    ) -> None:
        self._matrix = matrix
        self._rows = rows
        self._n_rows = n_rows
        self._reader = reader
        self._n_buffers = -(-len(rows) // n_rows)
        self._present = 0
        self._n_taken = 0
        self._numbers: dict[int, np.ndarray] = {}
        self._buffers: dict[int, Future[Any]] = {}

    def numbers(self, i: int) -> np.ndarray:
        """Return the rows of a buffer, ascending and each once."""
        if i not in self._numbers:
            self._numbers[i] = np.unique(self._rows[i * self._n_rows : (i + 1) * self._n_rows])
        return self._numbers[i]

    def read_ahead(self) -> None:
        """Begin to read the present buffer and the next."""
        for i in range(self._present, min(self._present + 2, self._n_buffers)):
            if i not in self._buffers:
                self._buffers[i] = self._reader.submit(read_rows, self._matrix, self.numbers(i))

    def is_over(self, rows: np.ndarray) -> bool:
        """Return whether all rows were read, or will be read anew."""
        return self._n_taken >= len(self._rows) or np.array_equal(self._rows, rows)

    def rest(self) -> None:
        """Free what was read ahead; it is read again when it is needed."""
        for buffer in self._buffers.values():
            buffer.cancel()
        self._buffers = {}

    def find(self, rows: np.ndarray) -> int | None:
        """Return the last of the buffers, from the present one, that these rows lie in."""
        # as many as so many rows may lie in, when they come in the order of prefetch
        most = min(self._present + 2 + len(rows) // self._n_rows, self._n_buffers)
        left = rows
        for i in range(self._present, most):
            left = left[_place(self.numbers(i), left) < 0]
            if not len(left):
                return i
        return None

    def take(self, rows: np.ndarray, last: int) -> Any:
        """Return rows that lie in the buffers from the present one to ``last``."""
        self._n_taken += len(rows)
        blocks: list[Any] = []
        taken = []
        place = np.full(len(rows), -1)
        for i in range(self._present, last + 1):
            self._present = i
            self.read_ahead()
            found = np.where(place < 0, _place(self.numbers(i), rows), -1)
            here = np.flatnonzero(found >= 0)
            if len(here):
                blocks.append(self._content(i)[found[here]])
                taken.append(here)
                place[here] = 0
            if i < last:
                self._buffers.pop(i).cancel()
                self._numbers.pop(i)
        if len(blocks) == 1:
            return blocks[0]
        back = np.argsort(np.concatenate(taken))
        if sparse.issparse(blocks[0]):
            return sparse.vstack(blocks, format="csr")[back]
        return np.concatenate(blocks)[back]

    def _content(self, i: int) -> Any:
        buffer = self._buffers[i]
        if buffer.exception() is not None:
            # so that it is read again
            self.rest()
        return buffer.result()


def _place(numbers: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Return where rows lie among ascending numbers; −1 = not among them."""
    place = np.minimum(np.searchsorted(numbers, rows), len(numbers) - 1)
    return np.where(numbers[place] == rows, place, -1)


def bytes_per_row(matrix: Any) -> float:
    """Return how much memory a row takes, about."""
    item = np.dtype(matrix.dtype).itemsize
    if isinstance(matrix, RowStack):
        # an index of a column takes as much as a value, about
        return item * matrix.values_per_row
    return float(item * matrix.shape[1])


#: Rows that are read at once, so that what a reader makes on the way stays small.
_AT_ONCE = 128


class RowCache:
    """Rows of a float32 matrix that is read on demand, in bounded memory.

    The least recently used rows make room for new ones. Memory is taken as it is filled.

    Parameters
    ----------
    read
        Returns ``(n, n_columns)`` float32 for ``(n,)`` sorted row numbers without repeats.
    shape
        Rows and columns of the matrix.
    max_bytes
        What the rows that are kept may take; at least two rows are.
    """

    def __init__(
        self, read: Callable[[np.ndarray], np.ndarray], shape: tuple[int, int], *, max_bytes: int
    ) -> None:
        self.shape = shape
        n_rows, n_columns = shape
        self.n_kept = int(max(min(2, n_rows), min(n_rows, max_bytes // max(1, 4 * n_columns))))
        self._read = read
        self._rows = np.empty((self.n_kept, n_columns), dtype=np.float32)
        self._place = np.full(n_rows, -1, dtype=np.int64)  # of each row of the matrix, -1 = none
        self._holds = np.full(self.n_kept, -1, dtype=np.int64)  # the row at each place
        self._used = np.zeros(self.n_kept, dtype=np.int64)  # when it was used last
        self._clock = 0

    def __len__(self) -> int:
        return self.shape[0]

    def get(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return an array and where in it the rows are.

        Parameters
        ----------
        rows
            ``(n,)`` row numbers, of which at most ``n_kept`` differ.

        Returns
        -------
        ``held`` and ``(n,)`` places: ``held[places]`` are the rows, until the next call.
        """
        wanted = np.unique(rows)
        if len(wanted) > self.n_kept:
            raise ValueError(
                f"Found {len(wanted)} different rows; expected at most {self.n_kept} in a call."
            )
        self._clock += 1
        known = self._place[wanted]
        self._used[known[known >= 0]] = self._clock
        missing = wanted[known < 0]
        for start in range(0, len(missing), _AT_ONCE):
            self._fetch(missing[start : start + _AT_ONCE])
        return self._rows, self._place[rows]

    def _fetch(self, rows: np.ndarray) -> None:
        """Read rows into the places of the least recently used ones."""
        values = self._read(rows)  # if this fails, everything is as it was
        places = np.argpartition(self._used, len(rows) - 1)[: len(rows)]
        out = self._holds[places]
        self._place[out[out >= 0]] = -1
        self._rows[places] = values
        self._holds[places] = rows
        self._place[rows] = places
        self._used[places] = self._clock
