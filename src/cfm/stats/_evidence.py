"""Evidence against a null: permutation p-values, means of random sets, and sums of evidence."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import genpareto, rankdata


def rank_shares(scores: ArrayLike) -> np.ndarray:
    """Return the place of each score among all, from 0 (smallest) to 1; equal ones share theirs.

    Parameters
    ----------
    scores
        ``(n,)`` finite numbers.

    Returns
    -------
    ``(n,)`` float64, mean rank minus one half, divided by ``n``.
    """
    values = np.asarray(scores, dtype=np.float64)
    return (rankdata(values) - 0.5) / max(1, len(values))


def random_set_means(values: ArrayLike, size: int, n: int, seed: int = 0) -> np.ndarray:
    """Return the means of random sets of every size up to ``size``.

    Parameters
    ----------
    values
        ``(m,)`` numbers to draw from, without replacement.
    size
        Largest size; at most ``m``.
    n
        Number of draws.
    seed
        Seed of the draws.

    Returns
    -------
    ``(n, size)`` float64; column ``k - 1`` holds the means of sets of ``k``. The sets of one row
    lie in each other.
    """
    pool = np.asarray(values, dtype=np.float64)
    if not 1 <= size <= len(pool):
        raise ValueError(f"size={size}, expected 1 to {len(pool)} (the number of values).")
    rng = np.random.default_rng(seed)
    drawn = np.stack([pool[rng.choice(len(pool), size, replace=False)] for _ in range(n)])
    return np.cumsum(drawn, axis=1) / np.arange(1, size + 1)


def standardize(observed: ArrayLike, null: ArrayLike) -> np.ndarray:
    """Return how many standard deviations of its null a number lies above the null's mean.

    Parameters
    ----------
    observed
        Numbers; NaN stays NaN.
    null
        ``(n,)`` finite numbers.

    Returns
    -------
    float64 of the shape of ``observed``; 0 where the null does not vary.
    """
    values = np.asarray(observed, dtype=np.float64)
    reference = np.asarray(null, dtype=np.float64)
    spread = reference.std()
    # A null whose spread is rounding gives no scale.
    if spread <= 1e-12 * max(1.0, float(np.abs(reference).max())):
        return np.where(np.isnan(values), np.nan, 0.0)
    return (values - reference.mean()) / spread


def upper_p_values(observed: ArrayLike, null: ArrayLike) -> np.ndarray:
    r"""Return one-sided permutation p-values.

    .. math:: p = \frac{1 + \#\{\text{null} \ge \text{observed}\}}{1 + n}

    (Phipson & Smyth 2010, eq. 2): never 0, and 1 where nothing varies.

    Parameters
    ----------
    observed
        Numbers; NaN stays NaN.
    null
        ``(n,)`` finite numbers.
    """
    values = np.asarray(observed, dtype=np.float64)
    ordered = np.sort(np.asarray(null, dtype=np.float64))
    # Equal up to rounding counts as equal.
    slack = 1e-9 * max(1.0, float(np.abs(ordered).max(initial=0.0)))
    reached = len(ordered) - np.searchsorted(ordered, values - slack, side="left")
    return np.where(np.isnan(values), np.nan, (1 + reached) / (1 + len(ordered)))


def tail_p_values(observed: ArrayLike, null: ArrayLike) -> np.ndarray:
    r"""Return one-sided p-values below the resolution of a permutation null.

    As :func:`upper_p_values`; but beyond the tenth largest of the null the tail is a generalised
    Pareto distribution, fitted to its upper tenth by probability-weighted moments (Hosking &
    Wallis 1987; used for permutation tests by Knijnenburg et al. 2009), an exponential at the
    lightest. Without that, among thousands of tests nothing could ever pass a false discovery
    rate. The tail is read to a hundredth of the resolution, :math:`0.01 / (1 + n)`, and no further.

    Parameters
    ----------
    observed
        Numbers; NaN stays NaN.
    null
        ``(n,)`` finite numbers; fewer than 200 have no tail to fit, and are counted only.
    """
    values = np.asarray(observed, dtype=np.float64)
    counted = upper_p_values(values, null)
    ordered = np.sort(np.asarray(null, dtype=np.float64))
    n = len(ordered)
    if n < 200 or ordered[-1] <= ordered[n - n // 10 - 1]:
        return counted
    threshold = ordered[n - n // 10 - 1]
    excess = ordered[n - n // 10 :] - threshold
    m = len(excess)
    first = excess.mean()
    second = (excess * (m - 1 - np.arange(m)) / (m - 1)).mean()
    curvature = first - 2 * second
    if curvature <= 1e-9 * first:  # equal values have no tail
        return counted
    beyond = np.maximum(values - threshold, 0.0)
    # A shape below 0 is a tail with an end; the exponential in its place errs to the safe side.
    shape = 2 - first / curvature
    scale = 2 * first * second / curvature if shape > 0 else first
    share = genpareto.sf(beyond, max(shape, 0.0), scale=scale)
    extended = np.clip(share * m / n, 0.01 / (1 + n), counted)
    return np.where(counted * (1 + n) > 11, counted, extended)


def sum_of_correlated(scores: ArrayLike, correlation: ArrayLike) -> np.ndarray:
    r"""Return :math:`\sum_i z_i / \sqrt{\sum_{ij} \rho_{ij}}`: correlated standard scores as one.

    Stouffer's sum with the variance that the correlations give it (Strube 1985). A negative
    correlation counts as none, so that agreement of readings is never rewarded twice.

    Parameters
    ----------
    scores
        ``(k, …)`` standard scores of ``k`` readings; one that is NaN is left out of the sum and of
        its variance.
    correlation
        ``(k, k)`` their correlations under the null.

    Returns
    -------
    ``(…)`` float64; NaN where there is no reading.
    """
    z = np.asarray(scores, dtype=np.float64)
    rho = np.clip(np.asarray(correlation, dtype=np.float64), 0.0, 1.0)
    if rho.shape != (len(z), len(z)):
        raise ValueError(f"correlation has shape {rho.shape}, expected {(len(z), len(z))}.")
    np.fill_diagonal(rho, 1.0)
    known = np.isfinite(z).astype(np.float64)
    variance = np.einsum("i...,ij,j...->...", known, rho, known)
    total = np.nan_to_num(z).sum(axis=0)
    return np.where(variance > 0, total / np.sqrt(np.maximum(variance, 1.0)), np.nan)


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
    >>> from cfm.stats._evidence import pooled_p_values
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


def inflation(z: np.ndarray, nulls: Sequence[np.ndarray], min_scores: int) -> float:
    r"""Return how much wider standard scores lie than those of a null.

    .. math:: \max\left(1, \frac{q_{0.9}(z) - q_{0.1}(z)}{q_{0.9}(z^0) - q_{0.1}(z^0)}\right)

    Random signatures hold genes that have nothing to do with each other; those of compounds hold
    genes that move together, and hit or miss a profile together. Most compounds of a library do
    nothing for the profile, so the spread of their middle shows what such signatures reach by
    chance (the empirical null of Efron 2004; as genomic control, it never narrows).

    Parameters
    ----------
    z
        ``(c,)`` standard scores, NaN = none.
    nulls
        Standard scores of the null, in parts.
    min_scores
        Scores that it takes to measure the spread; fewer may have been chosen for the profile.

    Returns
    -------
    The ratio; 1 without any score, and ``NaN`` for fewer than ``min_scores``.
    """
    known = z[~np.isnan(z)]
    if not len(known):
        return 1.0
    if len(known) < min_scores:
        return float("nan")
    ranges = [np.quantile(x, 0.9) - np.quantile(x, 0.1) for x in (known, np.concatenate(nulls))]
    return max(1.0, float(ranges[0] / ranges[1])) if ranges[1] > 0 else 1.0
