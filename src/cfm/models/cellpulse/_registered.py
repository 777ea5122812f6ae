"""Registered contrasts that are too many for memory: read when they are drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cfm.data._matrix import by_rows, read_rows, to_dense
from cfm.models.cellpulse._effects import check_effects

if TYPE_CHECKING:
    from cfm.data import GeneAlignment

#: Contrasts whose effects take more than this (1 GiB) are read when they are drawn.
MAX_HELD_BYTES = 2**30


class StoredEffects:
    """Effects of contrasts on a vocabulary; rows are read, and checked, when asked for.

    Parameters
    ----------
    matrix
        Log2 fold changes, in memory or on disk.
    alignment
        Where its columns lie in the vocabulary.
    rows
        Row numbers of the matrix, if not all.
    """

    def __init__(
        self, matrix: Any, alignment: GeneAlignment, rows: np.ndarray | None = None
    ) -> None:
        self._matrix = by_rows(matrix)
        self._alignment = alignment
        self._rows = np.arange(matrix.shape[0]) if rows is None else rows

    @property
    def shape(self) -> tuple[int, int]:
        """Number of contrasts and of genes."""
        return len(self._rows), self._alignment.n_vocabulary

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return ``(n, n_vocabulary)`` float32 with ``NaN`` = not measured."""
        effects = to_dense(read_rows(self._matrix, self._rows[rows]), np.float32)
        check_effects(effects)
        return self._alignment.apply(effects)

    def only(self, rows: np.ndarray) -> StoredEffects:
        """Return some of the contrasts, by number or mask, without reading them."""
        return StoredEffects(self._matrix, self._alignment, self._rows[rows])
