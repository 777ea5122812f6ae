"""Rows of a matrix that is too large for memory: read when asked for, the latest ones kept."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable

#: Rows that are read at once, so that what a reader makes on the way stays small.
_AT_ONCE = 128


class RowCache:
    """Rows of a float32 matrix that is read on demand, in bounded memory.

    Rows that were asked for longest ago make room for new ones. Memory is taken as it is filled.

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
        self._asked = np.zeros(self.n_kept, dtype=np.int64)  # when it was asked for last
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
            raise ValueError(f"{len(wanted)} rows were asked for; {self.n_kept} can be kept.")
        self._clock += 1
        known = self._place[wanted]
        self._asked[known[known >= 0]] = self._clock
        missing = wanted[known < 0]
        for start in range(0, len(missing), _AT_ONCE):
            self._fetch(missing[start : start + _AT_ONCE])
        return self._rows, self._place[rows]

    def _fetch(self, rows: np.ndarray) -> None:
        """Read rows that are not held in the places of those asked for longest ago."""
        values = self._read(rows)  # if this fails, everything is as it was
        places = np.argpartition(self._asked, len(rows) - 1)[: len(rows)]
        out = self._holds[places]
        self._place[out[out >= 0]] = -1
        self._rows[places] = values
        self._holds[places] = rows
        self._place[rows] = places
        self._asked[places] = self._clock
