"""Cosine of a profile and signed gene sets, without what a whole library of sets has in common."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

#: Effects are clipped at this quantile of the sizes of those that are not 0; the largest always is.
CLIP_QUANTILE = 0.999
#: A remainder shorter than this share of the profile is rounding.
_ROUNDING = 1e-6
#: Squared length of a mean signature that has cancelled out but for rounding.
_NOTHING = 1e-20


def clean_profile(values: ArrayLike, common: ArrayLike | None = None) -> np.ndarray:
    r"""Return a profile ready for :func:`signed_cosines`.

    The strongest effects, a thousandth of them, are clipped, so that no single gene decides; the
    mean is taken off, so that a set with more genes up than down does not gain from a profile that
    goes up as a whole; and what is left along ``common`` is projected out,
    :math:`x - h (h^\top x) / (h^\top h)` with :math:`h` the centred ``common``. Projection matters
    where taking the mean off the sets would not: it changes the order of the sets, not only their
    level.

    Parameters
    ----------
    values
        ``(n,)`` finite effects.
    common
        ``(n,)`` direction to remove, such as the mean signature of a library; ``None`` = none.

    Returns
    -------
    ``(n,)`` float64 of length 1; 0 where nothing is left.
    """
    x = np.asarray(values, dtype=np.float64)
    if x.ndim != 1 or not len(x):
        raise ValueError(f"values has shape {x.shape}, expected one dimension and at least a gene.")
    if not np.isfinite(x).all():
        raise ValueError("values holds NaN or infinite values; drop genes that are not measured.")
    size = np.abs(x)
    moved = size[size > 0]
    if not len(moved):
        return np.zeros_like(x)
    limit = np.quantile(moved, CLIP_QUANTILE, method="lower")
    x = np.clip(x, -limit, limit)
    whole = np.linalg.norm(x)
    x = x - x.mean()
    if common is not None:
        h = np.asarray(common, dtype=np.float64)
        if h.shape != x.shape:
            raise ValueError(f"common has shape {h.shape} and values {x.shape}; expected the same.")
        h = h - h.mean()
        length = h @ h
        if length > _NOTHING:
            x = x - h * (h @ x / length)
    left = np.linalg.norm(x)
    return x / left if left > _ROUNDING * whole else np.zeros_like(x)


def mean_signature(up: ArrayLike, down: ArrayLike, groups: ArrayLike, n_genes: int) -> np.ndarray:
    """Return the mean of signed sets, every group of sets counted once.

    Parameters
    ----------
    up, down
        ``(m, k)`` positions of the genes of each set, −1 = no gene.
    groups
        ``(m,)`` group of each set (its compound), ids from 0.
    n_genes
        Length of the result.

    Returns
    -------
    ``(n_genes,)`` float64 from −1 to 1.
    """
    group = np.asarray(groups, dtype=np.int64)
    counts = np.bincount(group)
    share = 1.0 / (counts[group] * np.count_nonzero(counts))
    out = np.zeros(n_genes)
    for side, sign in ((up, 1.0), (down, -1.0)):
        index = np.asarray(side, dtype=np.int64)
        row, column = np.nonzero(index >= 0)
        out += sign * np.bincount(index[row, column], weights=share[row], minlength=n_genes)
    return out


def signed_cosines(profile: np.ndarray, up: ArrayLike, down: ArrayLike) -> np.ndarray:
    """Return the cosine of a profile and of signed sets: 1 up, −1 down, 0 elsewhere.

    Parameters
    ----------
    profile
        ``(n,)`` from :func:`clean_profile`.
    up, down
        ``(m, k)`` positions in the profile, −1 = no gene.

    Returns
    -------
    ``(m,)`` float64 from −1 to 1; NaN of a set without any gene.
    """
    padded = np.append(profile, 0.0)  # position −1
    total = np.zeros(len(np.asarray(up)))
    size = np.zeros(len(total))
    for side, sign in ((up, 1.0), (down, -1.0)):
        index = np.asarray(side, dtype=np.int64)
        total += sign * padded[index].sum(axis=1)
        size += (index >= 0).sum(axis=1)
    return np.where(size > 0, total / np.sqrt(np.maximum(size, 1)), np.nan)
