"""Scores of predicted directions and sizes of effects."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from cfm.metrics._scores import auroc


def _pairs(a: ArrayLike, b: ArrayLike, keep: ArrayLike | None) -> tuple[NDArray, NDArray]:
    left = np.asarray(a, dtype=np.float64).ravel()
    right = np.asarray(b, dtype=np.float64).ravel()
    if left.shape != right.shape:
        raise ValueError(f"Got {left.size} true and {right.size} predicted effects.")
    use = np.isfinite(left)
    if keep is not None:
        mask = np.asarray(keep, dtype=bool).ravel()
        if mask.shape != left.shape:
            raise ValueError(f"hidden has {mask.size} entries, expected {left.size}.")
        use &= mask
    if not np.isfinite(right[use]).all():
        raise ValueError("Predictions hold NaN or infinite values where an effect was hidden.")
    return left[use], right[use]


def direction_scores(
    effects: ArrayLike, direction_score: ArrayLike, hidden: ArrayLike | None = None
) -> dict[str, float]:
    """Score the predicted direction of hidden effects of one profile.

    Parameters
    ----------
    effects
        ``(genes,)`` true log2 fold changes; NaN and 0 have no direction and are left out.
    direction_score
        ``(genes,)`` scores, above 0 = up. A score of exactly 0 is worth half a right answer.
    hidden
        ``(genes,)`` bool, genes to score; all by default.

    Returns
    -------
    dict with ``accuracy``; ``balanced_accuracy``, the mean of the accuracies on up and on down
    genes; ``auroc`` of up against down. The last two are NaN if all effects point one way, all
    three if there is nothing to score.

    Examples
    --------
    >>> from cfm.metrics import direction_scores
    >>> direction_scores([1.5, 0.5, -2.0, -1.0], [0.8, -0.1, -0.7, 0.0])
    {'accuracy': 0.625, 'balanced_accuracy': 0.625, 'auroc': 0.75}
    """
    truth, score = _pairs(effects, direction_score, hidden)
    truth, score = truth[truth != 0], score[truth != 0]
    up = truth > 0
    if not len(truth):
        return dict.fromkeys(("accuracy", "balanced_accuracy", "auroc"), float("nan"))
    right = np.where(score == 0, 0.5, (score > 0) == up)
    two = up.any() and not up.all()
    balanced = (right[up].mean() + right[~up].mean()) / 2 if two else np.nan
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(balanced),
        "auroc": auroc(up, score) if two else float("nan"),
    }


def size_scores(
    effects: ArrayLike, size: ArrayLike, hidden: ArrayLike | None = None
) -> dict[str, float]:
    r"""Score the predicted size :math:`|x|` of hidden effects of one profile.

    Parameters
    ----------
    effects
        ``(genes,)`` true log2 fold changes; NaN is left out.
    size
        ``(genes,)`` predicted absolute log2 fold changes, 0 or more.
    hidden
        ``(genes,)`` bool, genes to score; all by default.

    Returns
    -------
    dict with ``mae``, the mean absolute error in log2 units, and ``spearman``, the rank
    correlation (NaN if either side is constant).

    Examples
    --------
    >>> from cfm.metrics import size_scores
    >>> size_scores([1.5, 0.5, -2.0], [1.0, 0.5, 2.5])
    {'mae': 0.3333333333333333, 'spearman': 1.0}
    """
    truth, predicted = _pairs(effects, size, hidden)
    if not len(truth):
        return {"mae": float("nan"), "spearman": float("nan")}
    truth = np.abs(truth)
    a, b = rankdata(truth), rankdata(predicted)
    a, b = a - a.mean(), b - b.mean()
    norm = np.sqrt((a @ a) * (b @ b))
    return {
        "mae": float(np.abs(truth - predicted).mean()),
        "spearman": float(a @ b / norm) if norm > 0 else float("nan"),
    }
