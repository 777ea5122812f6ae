"""Scores of class predictions, all with sample weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from sklearn.metrics import roc_auc_score

from cfm._arguments import checks_arguments
from cfm.metrics._checks import as_labels, as_probabilities, as_weights


def accuracy(y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    r"""Weighted share of right answers, :math:`\sum_i w_i [y_i = \hat y_i] / \sum_i w_i`.

    Parameters
    ----------
    y_true
        ``(n,)`` true labels.
    y_pred
        ``(n,)`` predicted labels.
    sample_weight
        ``(n,)`` weights; uniform by default. See :func:`cfm.metrics.unit_weights`.

    Returns
    -------
    A number in [0, 1].

    Examples
    --------
    >>> from cfm.metrics import accuracy
    >>> accuracy(["RSV", "IAV", "IAV"], ["RSV", "IAV", "RSV"], sample_weight=[2, 1, 1])
    0.75
    """
    true = as_labels(y_true, "y_true")
    pred = as_labels(y_pred, "y_pred", len(true))
    return float(as_weights(sample_weight, len(true)) @ (true == pred))


@checks_arguments()
def top_k_accuracy(
    y_true: ArrayLike,
    proba: ArrayLike,
    classes: ArrayLike,
    k: int = 2,
    sample_weight: ArrayLike | None = None,
) -> float:
    """Weighted share of samples whose true label is among the ``k`` most probable classes.

    A true label without a column counts as missed. Ties are broken against the true label, so
    that a constant prediction is not rewarded for the order of its columns.

    Parameters
    ----------
    y_true
        ``(n,)`` true labels.
    proba
        ``(n, n_classes)`` probabilities or scores.
    classes
        ``(n_classes,)`` names of the columns.
    k
        How many candidates are allowed.
    sample_weight
        ``(n,)`` weights; uniform by default.

    Returns
    -------
    A number in [0, 1].

    Raises
    ------
    ValueError
        If shapes disagree, ``proba`` is not finite or ``k`` is below 1.

    Examples
    --------
    >>> from cfm.metrics import top_k_accuracy
    >>> proba = [[0.5, 0.3, 0.2], [0.5, 0.3, 0.2]]
    >>> top_k_accuracy(["IAV", "RSV"], proba, ["HCoV", "IAV", "RSV"], k=2)
    0.5
    """
    true = as_labels(y_true, "y_true")
    score, names = as_probabilities(proba, classes, len(true))
    is_true = true[:, None] == names[None, :]  # (n, classes)
    own = np.where(is_true, score, -np.inf).max(axis=1, initial=-np.inf)
    n_at_least = ((score >= own[:, None]) & ~is_true).sum(axis=1)
    hit = is_true.any(axis=1) & (n_at_least < k)
    return float(as_weights(sample_weight, len(true)) @ hit)


def recall_per_class(
    y_true: ArrayLike, y_pred: ArrayLike, sample_weight: ArrayLike | None = None
) -> dict[str, float]:
    """Weighted recall of every true label, keyed by the label as text.

    Parameters
    ----------
    y_true
        ``(n,)`` true labels.
    y_pred
        ``(n,)`` predicted labels.
    sample_weight
        ``(n,)`` weights; uniform by default. A label whose weights are all 0 has recall NaN.

    Returns
    -------
    Recall from 0 to 1 by label.

    Examples
    --------
    >>> from cfm.metrics import recall_per_class
    >>> recall_per_class(["IAV", "IAV", "RSV"], ["IAV", "RSV", "RSV"])
    {'IAV': 0.5, 'RSV': 1.0}
    """
    true = as_labels(y_true, "y_true")
    pred = as_labels(y_pred, "y_pred", len(true))
    weight = as_weights(sample_weight, len(true))
    recall = {}
    for label in np.unique(true):
        w = weight * (true == label)
        recall[str(label)] = float(w @ (pred == label) / w.sum()) if w.sum() else float("nan")
    return recall


def macro_f1(
    y_true: ArrayLike,
    y_pred: ArrayLike,
    sample_weight: ArrayLike | None = None,
    labels: ArrayLike | None = None,
) -> float:
    r"""Mean over labels of the weighted F1 score.

    :math:`F_1 = 2 TP / (2 TP + FP + FN)` with weighted counts; 0 for a label that is never hit.

    Parameters
    ----------
    y_true
        ``(n,)`` true labels.
    y_pred
        ``(n,)`` predicted labels.
    sample_weight
        ``(n,)`` weights; uniform by default.
    labels
        Labels to average over; by default those that occur in ``y_true``. A label that is only
        ever predicted still costs the labels it was predicted for.

    Returns
    -------
    A number in [0, 1].

    Examples
    --------
    >>> from cfm.metrics import macro_f1
    >>> round(macro_f1(["IAV", "IAV", "RSV"], ["IAV", "RSV", "RSV"]), 3)
    0.667
    """
    true = as_labels(y_true, "y_true")
    pred = as_labels(y_pred, "y_pred", len(true))
    weight = as_weights(sample_weight, len(true))
    over = np.unique(true) if labels is None else as_labels(labels, "labels")
    if not len(over):
        raise ValueError("labels is empty; give at least one label to average over.")
    scores = []
    for label in over:
        hit = weight @ ((true == label) & (pred == label))
        total = weight @ (true == label) + weight @ (pred == label)  # 2 TP + FP + FN
        scores.append(2.0 * hit / total if total > 0 else 0.0)
    return float(np.mean(scores))


def auroc(y_true: ArrayLike, score: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
    """Area under the ROC curve of a binary target; ties count one half.

    Parameters
    ----------
    y_true
        ``(n,)`` booleans or 0/1.
    score
        ``(n,)`` finite scores, larger = more likely true.
    sample_weight
        ``(n,)`` weights; uniform by default.

    Returns
    -------
    A number in [0, 1], or NaN if only one class has weight.

    Raises
    ------
    ValueError
        If a score is not finite, shapes disagree or ``y_true`` is not binary.

    Examples
    --------
    >>> from cfm.metrics import auroc
    >>> auroc([True, True, False, False], [0.9, 0.4, 0.5, 0.1])
    0.75
    """
    true = as_labels(y_true, "y_true")
    value = as_labels(score, "score", len(true)).astype(np.float64)
    weight = as_weights(sample_weight, len(true))
    if not np.isin(true, [0, 1]).all():
        raise ValueError("y_true must be boolean or 0/1.")
    if not np.isfinite(value).all():
        raise ValueError("score holds NaN or infinite values; give one finite score per sample.")
    positive = true.astype(bool)
    if weight[positive].sum() == 0 or weight[~positive].sum() == 0:
        return float("nan")
    return float(roc_auc_score(positive, value, sample_weight=weight))
