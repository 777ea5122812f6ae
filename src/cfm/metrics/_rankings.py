"""Rankings of known positives, and intervals: against chance, and between two methods."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import average_precision_score

from cfm._arguments import PART, Range, checks_arguments

if TYPE_CHECKING:
    from collections.abc import Callable


def average_precision(scores: ArrayLike, positives: ArrayLike) -> float:
    """Area under the precision-recall curve, as average precision.

    Parameters
    ----------
    scores
        ``(n,)`` finite, larger = ranked higher; equal scores are one threshold.
    positives
        ``(n,)`` bool.

    Returns
    -------
    A number in [0, 1]; a random ranking has the share of positives.

    Raises
    ------
    ValueError
        If lengths differ, a score is not finite, or all or none are positive.

    Examples
    --------
    >>> from cfm.metrics import average_precision
    >>> round(average_precision([0.9, 0.8, 0.3, 0.1], [True, False, True, False]), 3)
    0.833
    """
    values, hits = _checked(scores, positives)
    return float(average_precision_score(hits, values))


@checks_arguments()
def hits_at(scores: ArrayLike, positives: ArrayLike, k: int) -> float:
    """Count the positives among the ``k`` largest scores; ties at the edge count by their share.

    Parameters
    ----------
    scores, positives
        See :func:`average_precision`.
    k
        Length of the list, 1 to ``n``.

    Returns
    -------
    The expected number under a random order of equal scores.

    Examples
    --------
    >>> from cfm.metrics import hits_at
    >>> hits_at([0.9, 0.8, 0.3, 0.1], [True, False, True, False], k=2)
    1.0
    """
    values, hits = _checked(scores, positives)
    if not 1 <= k <= len(values):
        raise ValueError(f"k is {k}; expected 1 to {len(values)}, the number of scores.")
    edge = np.partition(values, len(values) - k)[len(values) - k]
    above, tied = values > edge, values == edge
    return float(hits[above].sum() + hits[tied].mean() * (k - above.sum()))


@checks_arguments()
def odds_ratio_at(scores: ArrayLike, positives: ArrayLike, k: int) -> float:
    """Odds of a positive among the ``k`` largest scores, relative to the rest.

    Half a count is added to each cell (Haldane and Anscombe), so that empty cells stay finite.

    Parameters
    ----------
    scores, positives, k
        See :func:`hits_at`.

    Returns
    -------
    The odds ratio; about 1 for a random ranking.

    Examples
    --------
    >>> from cfm.metrics import odds_ratio_at
    >>> odds_ratio_at([0.9, 0.8, 0.3, 0.1], [True, True, False, False], k=2)
    25.0
    """
    inside = hits_at(scores, positives, k)
    hits = np.asarray(positives, dtype=bool)
    outside = hits.sum() - inside
    rest = len(hits) - k - outside
    return float((inside + 0.5) * (rest + 0.5) / ((k - inside + 0.5) * (outside + 0.5)))


@checks_arguments(share=Range(0, 1, "low"))
def enrichment_factor(scores: ArrayLike, positives: ArrayLike, share: float = 0.01) -> float:
    """Positives in the first ``share`` of a ranking, as a multiple of what chance puts there.

    Parameters
    ----------
    scores, positives
        See :func:`average_precision`.
    share
        Of the list, above 0 and at most 1; at least one entry is looked at.

    Returns
    -------
    The enrichment factor; 1 for a random ranking.

    Examples
    --------
    >>> from cfm.metrics import enrichment_factor
    >>> enrichment_factor([0.9, 0.8, 0.3, 0.1], [True, False, False, False], share=0.25)
    4.0
    """
    hits = np.asarray(positives, dtype=bool)
    k = max(1, round(share * len(hits)))
    return hits_at(scores, positives, k) / k / float(hits.mean())


@checks_arguments()
def permutation_interval(
    score: Callable[[NDArray[np.float64], NDArray[np.bool_]], float],
    scores: ArrayLike,
    positives: ArrayLike,
    *,
    n_permutations: int = 1000,
    seed: int = 0,
) -> dict[str, float]:
    """Compare a ranking score with what it is when the positives are drawn at random.

    Parameters
    ----------
    score
        Function of scores and positives, such as :func:`average_precision`.
    scores, positives
        See :func:`average_precision`.
    n_permutations
        Number of random draws of equally many positives.
    seed
        Seed of the draws.

    Returns
    -------
    ``value``, ``expected`` (mean of the draws), ``low`` and ``high`` (their central 95 %), and
    ``p``, the one-sided share of draws that reach the value, ``(1 + hits) / (1 + draws)``.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.metrics import average_precision, permutation_interval
    >>> found = permutation_interval(average_precision, np.arange(50), np.arange(50) >= 45)
    >>> round(found["value"], 2), round(found["p"], 3), found["expected"] < found["high"]
    (1.0, 0.001, True)
    """
    values, hits = _checked(scores, positives)
    rng = np.random.default_rng(seed)
    value = score(values, hits)
    null = np.array([score(values, rng.permutation(hits)) for _ in range(n_permutations)])
    low, high = np.quantile(null, [0.025, 0.975])
    return {
        "value": value,
        "expected": float(null.mean()),
        "low": float(low),
        "high": float(high),
        "p": float((1 + (null >= value - 1e-12).sum()) / (1 + n_permutations)),
    }


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


def _checked(
    scores: ArrayLike, positives: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    values = np.asarray(scores, dtype=np.float64)
    hits = np.asarray(positives, dtype=bool)
    if values.ndim != 1 or hits.shape != values.shape:
        raise ValueError(
            f"scores has shape {values.shape} and positives {hits.shape}; expected the same length."
        )
    if not np.isfinite(values).all():
        raise ValueError("scores holds NaN or infinite values; drop or fill them.")
    if hits.all() or not hits.any():
        raise ValueError(f"{hits.sum()} of {len(hits)} are positive; expected some, but not all.")
    return values, hits
