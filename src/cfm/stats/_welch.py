"""Welch's t-test from sums, so that the values are read once and in blocks."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.stats import ttest_ind_from_stats

#: A variance below this share of the squared mean is what rounding leaves of none.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Sums:
    """Sums over groups of cells.

    Attributes
    ----------
    n
        ``(n_groups, 1)`` cells.
    total, squares, positive
        ``(n_groups, n_genes)`` float64 sums of the values, of their squares, and number of values
        above 0.
    """

    n: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    positive: np.ndarray

    def of(self, groups: slice) -> Sums:
        """Return the sums of some groups."""
        return Sums(*(part[groups] for part in vars(self).values()))

    def all(self) -> Sums:
        """Return the sums over all groups together."""
        return Sums(*(part.sum(axis=0, keepdims=True) for part in vars(self).values()))

    def minus(self, other: Sums) -> Sums:
        """Return the sums without the cells of ``other``."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Sums(*(a - b for a, b in pairs))

    @property
    def mean(self) -> np.ndarray:
        """``(n_groups, n_genes)`` mean of the values."""
        return self.total / self.n

    @property
    def deviation(self) -> np.ndarray:
        """``(n_groups, n_genes)`` standard deviation, of one cell ``NaN``."""
        mean = self.mean
        variance = (self.squares - self.n * mean**2) / (self.n - 1.0)
        variance[variance < _ROUNDING * mean**2] = 0.0
        return np.sqrt(variance)


def welch_greater(inside: Sums, outside: Sums) -> tuple[np.ndarray, np.ndarray]:
    r"""Test by Welch's t-test that values are larger inside than outside.

    .. math:: t = \frac{\bar x - \bar y}{\sqrt{s_x^2 / n_x + s_y^2 / n_y}}

    Where the values do not vary at all, t is ∞ and p is 0 if the mean inside is larger; else t is
    0 and p is 1. Groups of one cell are not tested: t is ``NaN`` and p is 1.

    Parameters
    ----------
    inside, outside
        Sums over groups of cells.

    Returns
    -------
    t, p_value
        ``(n_groups, n_genes)`` float64; the p-value is one-sided.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        mean, other, spread, other_spread = (
            inside.mean, outside.mean, inside.deviation, outside.deviation
        )  # fmt: skip
        t, p_value = ttest_ind_from_stats(
            mean, spread, inside.n, other, other_spread, outside.n,
            equal_var=False, alternative="greater",
        )  # fmt: skip
    flat, larger = (spread == 0) & (other_spread == 0), mean > other
    t = np.where(flat, np.where(larger, np.inf, 0.0), t)
    p_value = np.where(flat, np.where(larger, 0.0, 1.0), p_value)
    return t, np.where(np.isnan(p_value), 1.0, p_value)
