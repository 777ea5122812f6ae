"""Negative binomial counts of cells from random numbers, and the random numbers of known counts."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
from scipy.stats import nbinom

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Least tail probability that is told from 0.
_LEAST = 1e-290


def generator_of(name: str, seed: int) -> np.random.Generator:
    """Return the random numbers of a cell, which depend on its name and the seed alone."""
    text = name.encode()
    return np.random.default_rng([seed, zlib.crc32(text), zlib.adler32(text)])


def uniform_numbers(names: Sequence[str], n_genes: int, seed: int) -> Array:
    """Return numbers from 0 to 1 for the genes of cells, ``(b, n_genes)``."""
    return np.stack([generator_of(name, seed).random(n_genes) for name in names])


def perturbed_counts(
    counts: NDArray[np.int64],
    uniform: Array,
    after: Array,
    dispersion: Array,
    before: Array | None = None,
) -> NDArray[np.int64]:
    """Return counts of cells under a perturbation, ``(b, n_genes)``.

    Parameters
    ----------
    counts
        ``(b, n_genes)`` of the unperturbed cells; −1 where a gene is not measured.
    uniform
        ``(b, n_genes)`` from 0 to 1.
    after
        ``(b, n_genes)`` mean counts under the perturbation.
    dispersion
        ``(n_genes,)``.
    before
        Mean counts of the cells as they are: each count keeps its quantile. Without it, and where
        a gene is not measured, counts are drawn.
    """
    measured = counts >= 0
    tails = uniform, 1.0 - uniform
    if before is not None:
        lower, upper = tails_of_counts(np.maximum(counts, 0), before, dispersion, uniform)
        tails = np.where(measured, lower, tails[0]), np.where(measured, upper, tails[1])
    # no count is larger than a library, however improbable the cell is as a control
    depth = np.maximum(np.where(measured, counts, 0).sum(axis=1), np.ceil(after.sum(axis=1)))
    return np.minimum(counts_at(tails, after, dispersion), depth.astype(np.int64)[:, None])


def tails_of_counts(
    counts: NDArray[np.int64], mean: Array, dispersion: Array, uniform: Array
) -> tuple[Array, Array]:
    r"""Return the tail probabilities at which counts that exist would have been drawn.

    Between :math:`P(X < x)` and :math:`P(X \le x)` the place is random. Both tails are returned,
    as the upper one is lost to rounding where the lower one is nearly 1.

    Parameters
    ----------
    counts
        ``(b, n_genes)`` of at least 0.
    mean, dispersion
        ``(b, n_genes)`` and ``(n_genes,)`` of the distributions.
    uniform
        ``(b, n_genes)`` from 0 to 1.
    """
    size, share, zero = _parameters(mean, dispersion)
    lower = uniform * np.exp(zero)
    upper = 1.0 - lower
    some = counts > 0  # most counts of single cells are 0, and these functions take long
    x, draw, law = counts[some], uniform[some], (size[some], share[some])
    for tail, function in ((lower, nbinom.cdf), (upper, nbinom.sf)):
        below = function(x - 1, *law)
        tail[some] = below + draw * (function(x, *law) - below)
    return lower, upper


def counts_at(tails: tuple[Array, Array], mean: Array, dispersion: Array) -> NDArray[np.int64]:
    """Return the counts at tail probabilities: quantiles, ``(b, n_genes)``.

    Parameters
    ----------
    tails
        Lower and upper ones, as :func:`tails_of_counts` returns them.
    mean, dispersion
        ``(b, n_genes)`` and ``(n_genes,)`` of the distributions.
    """
    lower, upper = tails
    size, share, zero = _parameters(mean, dispersion)
    out = np.zeros(mean.shape, dtype=np.int64)
    some = upper < -np.expm1(zero)
    low, high = some & (lower < 0.5), some & (lower >= 0.5)
    out[low] = nbinom.ppf(lower[low], size[low], share[low])
    out[high] = nbinom.isf(np.maximum(upper[high], _LEAST), size[high], share[high])
    return out


def _parameters(mean: Array, dispersion: Array) -> tuple[Array, Array, Array]:
    """Return the size and success probability of SciPy's law, and the log-probability of 0."""
    size = np.broadcast_to(1.0 / dispersion, mean.shape)
    share = size / (size + mean)
    return size, share, size * np.log(share)
