"""P-values of many scores against permuted ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def pooled_p_values(
    observed: NDArray[np.floating], null: NDArray[np.floating]
) -> NDArray[np.float64]:
    r"""One-sided p-values of scores against permutations of the same scores.

    The scores as observed count as one more permutation, number 0. Each gene's scores are
    standardised by their mean and standard deviation over all of them, and pooled over genes:

    .. math:: p_j = \frac{1}{(B + 1) G} \sum_{b=0}^{B} \sum_{k=1}^{G} [z_{bk} \ge z_{0j}]

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

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.metrics import pooled_p_values
    >>> null = np.random.default_rng(0).normal(size=(100, 3))
    >>> pooled_p_values(np.array([5.0, 0.0, -1.0]), null).round(3).tolist()
    [0.003, 0.482, 0.845]
    """
    if null.ndim != 2 or null.shape[1:] != observed.shape or len(null) < 2:
        raise ValueError(
            f"observed has shape {observed.shape} and null {null.shape}; expected (n,) and "
            "(permutations, n) with at least two permutations."
        )
    scores = np.vstack([observed, null]).astype(np.float64)
    mean, spread = scores.mean(axis=0), scores.std(axis=0)
    # Rounding leaves a spread where there is none.
    varies = spread > 1e-9 * np.abs(scores).max(axis=0)
    z = np.where(varies, (scores - mean) / np.where(varies, spread, 1.0), -np.inf)
    pool = np.sort(z.ravel())
    # A hair below: a permutation that rearranges nothing has the observed score exactly.
    edge = z[0] - 1e-9 * (1.0 + np.abs(z[0]))
    reached = len(pool) - np.searchsorted(pool, edge, side="left")
    return np.where(varies, reached / len(pool), 1.0)
