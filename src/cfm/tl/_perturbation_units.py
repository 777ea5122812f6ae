"""Shifts of log expression, for data that hold counts as well as for data that hold logarithms."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from scipy import sparse

from cfm.data._matrix import LOG2_LIMIT, check_counts, row_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

Units = Literal["auto", "counts", "log"]
#: Counts are brought to this library size before the logarithm, as is usual for single cells.
LIBRARY = 1e4


def hold_counts(matrix: Any, units: Units) -> bool:
    """Decide whether a matrix holds counts: as told, or if all values are whole and not negative.

    Parameters
    ----------
    matrix
        Of the observations to start from; nothing else has a say.
    units
        What the user says.

    Raises
    ------
    ValueError
        If ``units`` is unknown, or says counts and the values are none.
    """
    if units not in get_args(Units):
        raise ValueError(f"units={units!r} is not known; choose one of {get_args(Units)}.")
    if units == "counts":
        check_counts(matrix, where="The matrix to start from")
    if units != "auto":
        return units == "counts"
    for _, block in row_blocks(matrix):
        values = block.data if sparse.issparse(block) else block.ravel()
        if values.dtype.kind == "f" and not (
            np.isfinite(values).all() and (values == np.rint(values)).all()
        ):
            return _hold_logs(values)
        if values.size and values.min() < 0:
            return _hold_logs(values)
    return True


def _hold_logs(values: np.ndarray) -> bool:
    """Return that these are no counts, unless they can be no logarithms either."""
    if not np.isfinite(values).all():
        return False  # which is refused where logarithms are taken
    largest = float(np.abs(values).max())
    if largest > LOG2_LIMIT:
        raise ValueError(
            f"The matrix holds negative or fractional values, so these are not counts, and values "
            f"up to {largest:.4g}, which no logarithm reaches; pass counts or logarithms with "
            "layer=, or say with units= what these are."
        )
    return False


def to_log(values: Array, *, counts: bool) -> Array:
    """Return log expression: as it is, or log1p of counts per 10,000.

    Raises
    ------
    ValueError
        If a value is not finite, or a count is negative.
    """
    if not np.isfinite(values).all():
        raise ValueError(
            "The matrix holds NaN or infinite values, and means of expression cannot be formed; "
            "drop those genes or observations."
        )
    if not counts:
        return values
    if (values < 0).any():
        raise ValueError("The matrix holds negative values, so these are not counts.")
    total = values.sum(axis=1, keepdims=True)
    return np.log1p(values * (LIBRARY / np.where(total > 0, total, 1.0)))


def shifted(values: Array, shift: Array, names: Sequence[str], *, counts: bool, seed: int) -> Array:
    """Move the expression of observations.

    Parameters
    ----------
    values
        ``(n, genes)`` counts or log expression.
    shift
        ``(genes,)`` or ``(n, genes)`` change of log expression.
    names
        ``(n,)`` names of the new observations, with ``seed`` the source of what is random.
    counts
        Whether they are counts. Then log1p of counts per 10,000 is moved and turned back into a
        library of the same size, rounded up or down at random so that the mean stays. Log
        expression of an observation without negative values does not fall below 0.
    seed
        See above.
    """
    moved = to_log(values, counts=counts) + shift
    if not counts:
        signed = (values < 0).any(axis=1, keepdims=True)
        return np.where(signed, moved, np.maximum(moved, 0.0))
    expected = np.expm1(np.maximum(moved, 0.0))
    total = expected.sum(axis=1, keepdims=True)
    expected *= values.sum(axis=1, keepdims=True) / np.where(total > 0, total, 1.0)
    whole = np.floor(expected)
    draw = np.stack(
        [
            np.random.default_rng([seed, zlib.crc32(name.encode())]).random(values.shape[1])
            for name in names
        ]
    )
    return whole + (draw < expected - whole)
