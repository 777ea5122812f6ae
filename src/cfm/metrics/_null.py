"""P-values of many scores against permuted ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pooled_p_values(
    observed: NDArray[np.floating], null: NDArray[np.floating]
) -> NDArray[np.float64]:
    r"""One-sided p-values of scores against permutations of the same scores.

    Each score is standardised by the mean and standard deviation that it has over the
    permutations, and the standardised permuted scores of all genes are pooled:

    .. math:: p_j = \frac{1 + \sum_{b,k} [z^*_{bk} \ge z_j]}{1 + BG}

    so that a few permutations resolve small p-values (the pooled null of Storey & Tibshirani
    2003). A score that does not vary over the permutations has nothing to be standardised by; its
    p-value is 1.

    Parameters
    ----------
    observed
        ``(n_genes,)`` scores, larger = more extreme.
    null
        ``(n_permutations, n_genes)`` scores of the permuted data, at least two permutations.

    Returns
    -------
    ``(n_genes,)`` p-values in (0, 1].

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    if null.ndim != 2 or null.shape[1:] != observed.shape or len(null) < 2:
        raise ValueError(
            f"observed has shape {observed.shape} and null {null.shape}; expected (n,) and "
            "(permutations, n) with at least two permutations."
        )
    mean = null.mean(axis=0, dtype=np.float64)
    spread = null.std(axis=0, dtype=np.float64)
    # Rounding leaves a spread where there is none.
    varies = spread > 1e-9 * (np.abs(mean) + np.abs(observed)) + 1e-300
    safe = np.where(varies, spread, 1.0)
    # A gene without spread is never extreme, and enters the pool as such.
    z = np.where(varies, (observed - mean) / safe, -np.inf)
    pool = np.where(varies, (null - mean) / safe, -np.inf)
    pool = np.sort(pool.ravel())
    # A hair below: a permutation that rearranges nothing has the observed score exactly.
    reached = len(pool) - np.searchsorted(pool, z - 1e-9 * (1.0 + np.abs(z)), side="left")
    p = (1.0 + reached) / (1.0 + len(pool))
    return np.where(varies, np.minimum(p, 1.0), 1.0)
