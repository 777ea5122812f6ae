"""Counts as tokens: exact below 100, two digits above, one token for what is larger still."""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np

from cfm._arguments import check_choice

Dequantise = Literal["lower", "midpoint", "uniform"]

#: Counts below this have a token each.
_EXACT = 100
#: The largest count with a token of its own.
LARGEST = 9_999
#: Token of larger counts.
OVERFLOW = 280
#: Number of value tokens.
N_VALUES = 281


def _edges() -> tuple[np.ndarray, np.ndarray]:
    lower, width = [np.arange(_EXACT)], [np.ones(_EXACT, dtype=np.int64)]
    step = _EXACT // 10
    while step * 100 <= LARGEST + 1:
        lower.append(step * np.arange(10, 100))
        width.append(np.full(90, step))
        step *= 10
    lower.append(np.array([LARGEST + 1]))
    width.append(np.array([1]))
    return np.concatenate(lower), np.concatenate(width)


_LOWER, _WIDTH = _edges()
_TOKEN = np.zeros(LARGEST + 2, dtype=np.int16)
_TOKEN[_LOWER[1:]] = 1
_TOKEN = np.cumsum(_TOKEN, dtype=np.int16)


def quantise(counts: np.ndarray) -> np.ndarray:
    r"""Turn counts into tokens (Lingshu-Cell, eq. 3 to 6).

    A count :math:`x < 100` is its own token. From 100 to 9,999 it is
    :math:`100 + 90 (k - 2) + r` with :math:`k = \lfloor \log_{10} x \rfloor` and
    :math:`r = \lfloor (x - 10^k) / 10^{k - 1} \rfloor`, so that two digits are kept. Larger
    counts share token 280.

    Parameters
    ----------
    counts
        Whole numbers of at least 0, any shape and dtype.

    Returns
    -------
    int16 of the same shape.

    Examples
    --------
    >>> quantise(np.array([0, 99, 100, 109, 110, 999, 1000, 9999, 10000])).tolist()
    [0, 99, 100, 100, 101, 189, 190, 279, 280]
    """
    return _TOKEN[np.minimum(counts, LARGEST + 1).astype(np.int64)]


def dequantise(
    tokens: np.ndarray, method: Dequantise = "lower", *, uniform: np.ndarray | None = None
) -> np.ndarray:
    """Turn tokens into counts; exact below 100.

    Parameters
    ----------
    tokens
        0 to 280, any shape.
    method
        ``"lower"`` edge of the bin, its ``"midpoint"`` (rounded down), or ``"uniform"`` in it.
        Token 280 is 10,000 in any case.
    uniform
        Numbers from 0 to below 1 of the same shape, for ``"uniform"``.

    Returns
    -------
    int32 of the same shape.

    Raises
    ------
    ValueError
        If the method is unknown, or ``uniform`` is missing.

    Examples
    --------
    >>> dequantise(np.array([7, 101, 190]), "midpoint").tolist()
    [7, 114, 1049]
    """
    check_choice("dequantise", method, get_args(Dequantise))
    counts = _LOWER[tokens]
    if method == "midpoint":
        counts = counts + (_WIDTH[tokens] - 1) // 2
    elif method == "uniform":
        if uniform is None:
            raise ValueError("method='uniform' needs uniform=, a random number per token.")
        counts = counts + (uniform * _WIDTH[tokens]).astype(np.int64)
    return counts.astype(np.int32)


def representatives() -> np.ndarray:
    """Return the lower edge of each token's bin, ``(281,)`` int64."""
    return _LOWER.copy()


def bin_widths() -> np.ndarray:
    """Return how many counts share each token, ``(281,)`` int64; 1 for the last, which is open."""
    return _WIDTH.copy()
