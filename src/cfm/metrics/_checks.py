"""Checks of arguments that several scores share."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def as_weights(sample_weight: ArrayLike | None, n: int) -> NDArray[np.float64]:
    """Return ``(n,)`` weights with sum 1, uniform for ``None``."""
    if not n:
        raise ValueError("Got no samples; a score needs at least one.")
    if sample_weight is None:
        return np.full(n, 1.0 / n)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n,):
        raise ValueError(f"sample_weight has shape {weight.shape}, expected ({n},).")
    if not np.isfinite(weight).all() or (weight < 0).any() or weight.sum() <= 0:
        raise ValueError("sample_weight must be finite, not negative and have a positive sum.")
    return weight / weight.sum()


def as_labels(values: ArrayLike, name: str, n: int | None = None) -> NDArray[np.generic]:
    """Return a one-dimensional array of labels of the expected length."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, expected one dimension.")
    if n is not None and len(array) != n:
        raise ValueError(f"{name} has {len(array)} entries, expected {n}.")
    return array


def as_probabilities(
    proba: ArrayLike, classes: ArrayLike, n: int
) -> tuple[NDArray[np.float64], NDArray[np.generic]]:
    """Return ``(n, classes)`` finite scores and the names of their columns."""
    names = as_labels(classes, "classes")
    array = np.asarray(proba, dtype=np.float64)
    if array.shape != (n, len(names)):
        raise ValueError(f"proba has shape {array.shape}, expected ({n}, {len(names)}).")
    if not np.isfinite(array).all():
        raise ValueError("proba holds NaN or infinite values; give one finite value per class.")
    if len(np.unique(names)) != len(names):
        raise ValueError("classes holds a name twice; name each column of proba once.")
    return array, names
