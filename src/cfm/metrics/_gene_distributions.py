"""Generated against real observations, gene by gene."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata, wasserstein_distance

from cfm.metrics._effect_scores import delta_pearson


def gene_mean_correlation(x: ArrayLike, y: ArrayLike) -> dict[str, float]:
    """Correlate the mean expression of genes between two sets of observations.

    Parameters
    ----------
    x, y
        ``(n, genes)`` and ``(m, genes)`` log expression of real and generated observations.

    Returns
    -------
    dict with ``pearson`` and ``spearman``, NaN where the means of a set do not differ.

    Raises
    ------
    ValueError
        If shapes do not fit, a set is empty, or a value is not finite.

    Examples
    --------
    >>> from cfm.metrics import gene_mean_correlation
    >>> round(gene_mean_correlation([[0.0, 1.0, 3.0]], [[0.0, 2.0, 6.0]])["spearman"], 6)
    1.0
    """
    a, b = _sets(x, y)
    means = a.mean(axis=0), b.mean(axis=0)
    return {
        "pearson": _correlation(*means),
        "spearman": _correlation(rankdata(means[0]), rankdata(means[1])),
    }


def gene_wasserstein(x: ArrayLike, y: ArrayLike) -> NDArray[np.float64]:
    """Return the 1-Wasserstein distance of each gene's distribution between two sets.

    Parameters
    ----------
    x, y
        As for :func:`gene_mean_correlation`.

    Returns
    -------
    ``(genes,)`` float64 in the units of ``x``; their mean is what papers on generated cells report.

    Raises
    ------
    ValueError
        As for :func:`gene_mean_correlation`.

    Examples
    --------
    >>> from cfm.metrics import gene_wasserstein
    >>> gene_wasserstein([[0.0, 1.0], [2.0, 1.0]], [[1.0, 1.0], [3.0, 4.0]]).tolist()
    [1.0, 1.5]
    """
    a, b = _sets(x, y)
    if len(a) == len(b):  # the sorted values are coupled one to one
        return np.abs(np.sort(a, axis=0) - np.sort(b, axis=0)).mean(axis=0)
    columns = range(a.shape[1])
    return np.array([wasserstein_distance(a[:, g], b[:, g]) for g in columns])


def _sets(x: ArrayLike, y: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:] or not a.size or not b.size:
        raise ValueError(
            f"x has shape {a.shape} and y {b.shape}; expected (n, genes) and (m, genes), the same "
            "genes, at least one observation each."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("x or y holds NaN or infinite values; drop those observations or genes.")
    return a, b


def _correlation(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    # equal values have means that differ by rounding
    constant = any(np.ptp(v) <= 1e-12 * np.abs(v).max() for v in (a, b))
    return float("nan") if constant else delta_pearson(a, b)
