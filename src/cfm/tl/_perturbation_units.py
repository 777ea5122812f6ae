"""Shifts of log expression, for data that hold counts as well as for data that hold logarithms."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cfm._units import LIBRARY, decide_units
from cfm.models import PretrainedModel

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cfm._units import KnownUnits

    Array = NDArray[np.float64]


def units_of_model(model: Any, x: Any, uns: Any) -> KnownUnits | None:
    """Return the units of what a model returned, ``None`` for a user's model if both may be."""
    if isinstance(model, PretrainedModel):  # each returns whole counts, or logarithms
        values = x.data if sparse.issparse(x) else x
        return "counts" if (values == np.rint(values)).all() else "log"
    try:  # it returns the units that it read
        return decide_units([x], where="X", uns=uns)
    except ValueError:
        return None


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
