"""Codes of cells, and the book that they come from."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class CellCodes:
    """The code of each cell, and what it was read off.

    Attributes
    ----------
    code
        ``(n_cells,)`` int64, number of the nearest code, 0 to ``n_codes`` - 1.
    embedding
        ``(n_cells, 4 * dim)`` float32, the cell embedding: the two count tokens, the largest and
        the mean value over the tokens of a cell.
    latent
        ``(n_cells, code_dim)`` float32 of unit length: where a cell lies among the codes.
    similarity
        ``(n_cells,)`` float32, cosine of a cell to its code, -1 to 1.
    margin
        ``(n_cells,)`` float32, how much closer its code is than the second closest, 0 to 2.
    """

    code: np.ndarray
    embedding: np.ndarray
    latent: np.ndarray
    similarity: np.ndarray
    margin: np.ndarray


@dataclass(frozen=True)
class Codebook:
    """All codes that a model can give.

    Attributes
    ----------
    vectors
        ``(n_codes, code_dim)`` float32 of unit length.
    bits
        ``(n_codes, n_bits)`` int8 of 0 and 1: the binary number of each code.
    """

    vectors: np.ndarray
    bits: np.ndarray
