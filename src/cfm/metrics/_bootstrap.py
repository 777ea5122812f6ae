"""Paired bootstrap of the difference between two methods."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cfm._arguments import PART, checks_arguments


@checks_arguments(confidence=PART)
def paired_bootstrap(
    score_a: ArrayLike,
    score_b: ArrayLike,
    units: ArrayLike,
    n_boot: int = 10_000,
    seed: int = 0,
    *,
    confidence: float = 0.95,
) -> dict[str, float]:
    r"""Bootstrap the mean difference ``score_a - score_b`` over units.

    Differences are averaged within a unit first; units are then drawn with replacement, so that
    samples of one study never count as independent evidence. The interval is the percentile
    interval; the two-sided p value is
    :math:`2 \min(P(d^* \le 0), P(d^* \ge 0))`, at most 1, each probability with one draw added
    (Efron & Tibshirani 1993, ch. 13 and 16).

    Parameters
    ----------
    score_a, score_b
        ``(n,)`` scores of the two methods on the same samples, for instance 1 where right.
    units
        ``(n,)`` unit of every sample, such as the study or ``"virus|study"``.
    n_boot
        Number of draws.
    seed
        Seed of the draws; the same seed gives the same answer.
    confidence
        Confidence level of the interval.

    Returns
    -------
    dict with ``diff`` (mean over units), ``low`` and ``high`` (the interval), ``p`` and
    ``n_units``. With a single unit nothing can be said about the spread: ``low``, ``high`` and
    ``p`` are NaN.

    Raises
    ------
    ValueError
        If lengths differ, there are no samples, or a score is not finite.

    Examples
    --------
    >>> from cfm.metrics import paired_bootstrap
    >>> ours, theirs = [1, 1, 0, 1, 1, 0], [1, 0, 0, 1, 0, 0]
    >>> found = paired_bootstrap(ours, theirs, units=["a", "a", "b", "b", "c", "c"], n_boot=2000)
    >>> round(found["diff"], 3), round(found["low"], 3), round(found["high"], 3)
    (0.333, 0.0, 0.5)
    """
    a = np.asarray(score_a, dtype=np.float64)
    b = np.asarray(score_b, dtype=np.float64)
    unit_names = np.asarray(units)
    if a.ndim != 1 or a.shape != b.shape or unit_names.shape != a.shape:
        raise ValueError(
            f"score_a {a.shape}, score_b {b.shape} and units {unit_names.shape} must be "
            "one-dimensional and equally long."
        )
    if not len(a):
        raise ValueError("Got no samples; a bootstrap needs at least one.")
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        raise ValueError("Scores hold NaN or infinite values; drop those samples from both.")
    unit = np.unique(unit_names, return_inverse=True)[1].ravel()
    delta = np.bincount(unit, weights=a - b) / np.bincount(unit)
    n_units = len(delta)
    result = {"diff": float(delta.mean()), "n_units": float(n_units)}
    if n_units == 1:
        return result | {"low": float("nan"), "high": float("nan"), "p": float("nan")}
    rng = np.random.default_rng(seed)
    # Multinomial counts instead of indices: n_boot × n_units numbers, no gather.
    counts = rng.multinomial(n_units, np.full(n_units, 1.0 / n_units), size=n_boot)
    means = counts @ delta / n_units
    tail = (1.0 - confidence) / 2.0
    low, high = np.quantile(means, [tail, 1.0 - tail])
    # Equal scores make exact zeros; rounding must not turn them into a preference.
    noise = 1e-12 * max(1.0, float(np.abs(delta).max()))
    below = (1 + int((means <= noise).sum())) / (n_boot + 1)
    above = (1 + int((means >= -noise).sum())) / (n_boot + 1)
    p = min(1.0, 2.0 * min(below, above))
    return result | {"low": float(low), "high": float(high), "p": p}
