"""Distances between two sets of observations as distributions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from cfm._arguments import ABOVE_0, Range, checks_arguments

Array = NDArray[np.float64]

#: Distances that are held at a time (16 MiB).
_BLOCK_VALUES = 2_000_000


@checks_arguments()
def e_distance(x: ArrayLike, y: ArrayLike, *, unbiased: bool = True) -> float:
    r"""Return the energy distance between two sets of observations.

    .. math:: 2 \, E \lVert X - Y \rVert - E \lVert X - X' \rVert - E \lVert Y - Y' \rVert

    with Euclidean distances. It is 0 if, and only if, the distributions are the same, and sees
    differences in spread and shape. (With squared distances, which scPerturb takes, it would be
    twice the squared distance of the means, and blind to all else.)

    Parameters
    ----------
    x, y
        ``(n, d)`` and ``(m, d)`` observations, for single cells usually their principal components.
    unbiased
        Take the means within a set over pairs of different observations (U statistic). The
        expectation is then the distance of the distributions whatever the numbers, and values
        scatter around 0 for equal distributions; copies of one set are slightly below. ``False``
        takes all pairs (V statistic): never negative, 0 for copies of one set, and larger the
        smaller the sets.

    Returns
    -------
    In the units of ``x``. NaN if ``unbiased`` and a set has one observation.

    Raises
    ------
    ValueError
        If shapes do not fit, a set is empty, or a value is not finite.

    References
    ----------
    Székely, Rizzo. Energy statistics: a class of statistics based on distances. Journal of
    Statistical Planning and Inference 143, 1249-1272 (2013).

    Examples
    --------
    >>> from cfm.metrics import e_distance
    >>> e_distance([[0.0], [1.0]], [[2.0], [3.0]])
    2.0
    >>> e_distance([[0.0], [1.0]], [[0.0], [1.0]], unbiased=False)
    0.0
    """
    a, b = _sets(x, y)
    across, within_a, within_b = _means(a, b, cdist, unbiased)
    return 2 * across - within_a - within_b


@checks_arguments(multiplier=Range(1, exclusive="low"), sigma=ABOVE_0)
def mmd(
    x: ArrayLike,
    y: ArrayLike,
    *,
    n_kernels: int = 5,
    multiplier: float = 2.0,
    sigma: float | None = None,
    unbiased: bool = True,
) -> float:
    r"""Return the squared maximum mean discrepancy between two sets, for Gaussian kernels.

    .. math:: k(u, v) = \sum_{s=0}^{S-1} \exp(-\lVert u - v \rVert^2 / \sigma_s), \qquad
        \sigma_s = \sigma \, m^{\, s - \lfloor S/2 \rfloor}

    and :math:`E\,k(X, X') + E\,k(Y, Y') - 2\,E\,k(X, Y)`. The sum over kernels, and these widths
    around the mean squared distance, are what papers on generated cells use.

    Parameters
    ----------
    x, y
        ``(n, d)`` and ``(m, d)`` observations, for single cells usually their principal components.
    n_kernels
        :math:`S`.
    multiplier
        :math:`m`, above 1.
    sigma
        :math:`\sigma`; by default the mean squared distance between different observations of both
        sets together (:func:`mean_squared_distance`). Give one that does not depend on ``y`` to
        compare several ``y``.
    unbiased
        As for :func:`e_distance`.

    Returns
    -------
    About 0 for equal distributions, at most ``2 * n_kernels``.

    Raises
    ------
    ValueError
        As for :func:`e_distance`, or if kernels or widths cannot be used.

    References
    ----------
    Gretton et al. A kernel two-sample test. Journal of Machine Learning Research 13, 723-773
    (2012).

    Examples
    --------
    >>> from cfm.metrics import mmd
    >>> mmd([[0.0], [1.0]], [[0.0], [1.0]], unbiased=False)
    0.0
    >>> mmd([[0.0], [1.0]], [[8.0], [9.0]]) > 1
    True
    """
    a, b = _sets(x, y)
    width = mean_squared_distance(np.vstack([a, b])) if sigma is None else float(sigma)
    if not width > 0:  # all observations are the same
        return 0.0
    widths = width * float(multiplier) ** (np.arange(n_kernels) - n_kernels // 2)

    def kernel(u: Array, v: Array) -> Array:
        squared = cdist(u, v, "sqeuclidean")
        return np.sum([np.exp(-squared / w) for w in widths], axis=0)

    across, within_a, within_b = _means(a, b, kernel, unbiased)
    return within_a + within_b - 2 * across


def mean_squared_distance(x: ArrayLike) -> float:
    """Return the mean squared distance between different observations of a set.

    Parameters
    ----------
    x
        ``(n, d)`` observations, at least two.

    Returns
    -------
    Twice the sum of the variances of the columns.

    Raises
    ------
    ValueError
        If there are fewer than two observations, or a value is not finite.

    Examples
    --------
    >>> from cfm.metrics import mean_squared_distance
    >>> mean_squared_distance([[0.0, 0.0], [3.0, 4.0]])
    25.0
    """
    array = np.asarray(x, dtype=np.float64)
    if array.ndim != 2 or len(array) < 2 or not np.isfinite(array).all():
        raise ValueError(
            f"x has shape {array.shape}; expected at least two observations by dimensions, finite."
        )
    return 2.0 * float(array.var(axis=0, ddof=1).sum())


def _sets(x: ArrayLike, y: ArrayLike) -> tuple[Array, Array]:
    a, b = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    if a.ndim != 2 or b.ndim != 2 or a.shape[1:] != b.shape[1:] or not a.size or not b.size:
        raise ValueError(
            f"x has shape {a.shape} and y {b.shape}; expected (n, d) and (m, d), with at least one "
            "observation each and the same d."
        )
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("x or y holds NaN or infinite values; drop those observations.")
    return a, b


def _means(
    a: Array, b: Array, function: Callable[[Array, Array], Array], unbiased: bool
) -> tuple[float, float, float]:
    """Return the mean of a function of pairs across two sets, within the first, and the second."""
    across = _total(a, b, function) / (len(a) * len(b))
    within_a, within_b = (_within(one, function, unbiased) for one in (a, b))
    return across, within_a, within_b


def _within(a: Array, function: Callable[[Array, Array], Array], unbiased: bool) -> float:
    total, n = _total(a, a, function), len(a)
    if not unbiased:
        return total / n**2
    itself = float(function(a[:1], a[:1])[0, 0])  # the same for all observations
    return (total - n * itself) / (n * (n - 1)) if n > 1 else float("nan")


def _total(a: Array, b: Array, function: Callable[[Array, Array], Array]) -> float:
    step = max(1, _BLOCK_VALUES // len(b))
    return float(sum(function(a[i : i + step], b).sum() for i in range(0, len(a), step)))
