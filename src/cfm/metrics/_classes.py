"""Scores of class predictions and their probabilities, with sample weights.

What scikit-learn scores (accuracy, recall, F1) is taken from there, with ``sample_weight=`` of
:func:`unit_weights`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.metrics import roc_auc_score

from cfm._arguments import checks_arguments


@checks_arguments()
def unit_weights(
    labels: ArrayLike, groups: ArrayLike, *, balance_labels: bool = False
) -> NDArray[np.float64]:
    r"""Weigh samples so that each (label, group) unit counts the same.

    With :math:`n_u` samples in the unit :math:`u` of a sample and :math:`U` units, the weight is
    :math:`1 / (U n_u)`. A unit is, for example, one virus in one study: ten contrasts of it tell
    little more than one. With ``balance_labels`` it is :math:`1 / (L\, m_y\, n_u)` with
    :math:`L` labels and :math:`m_y` groups that hold label :math:`y`, so that in addition each
    label counts the same; this is the weighting to *train* a classifier with.

    Parameters
    ----------
    labels
        ``(n,)`` labels.
    groups
        ``(n,)`` groups, such as studies.
    balance_labels
        Let every label weigh the same too.

    Returns
    -------
    ``(n,)`` float64 weights with sum 1.

    Raises
    ------
    ValueError
        If the lengths differ or there are no samples.

    Examples
    --------
    >>> unit_weights(["a", "a", "a", "b"], [1, 1, 2, 1]).round(3).tolist()
    [0.167, 0.167, 0.333, 0.333]
    >>> unit_weights(["a", "a", "a", "b"], [1, 1, 2, 1], balance_labels=True).tolist()
    [0.125, 0.125, 0.25, 0.5]
    """
    label = np.unique(np.asarray(labels), return_inverse=True)[1].ravel()
    group = np.unique(np.asarray(groups), return_inverse=True)[1].ravel()
    if len(label) != len(group):
        raise ValueError(
            f"Got {len(label)} labels and {len(group)} groups; give one of each per sample."
        )
    if not len(label):
        raise ValueError("Got no samples; unit weights need at least one.")
    pairs, unit, size = np.unique(
        np.column_stack([label, group]), axis=0, return_inverse=True, return_counts=True
    )
    unit = unit.ravel()
    weight = 1.0 / size[unit]
    if balance_labels:
        weight /= np.bincount(pairs[:, 0])[label]
    return np.asarray(weight / weight.sum(), dtype=np.float64)


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


@checks_arguments()
def expected_calibration_error(
    y_true: ArrayLike,
    proba: ArrayLike,
    classes: ArrayLike,
    n_bins: int = 10,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Expected calibration error of the most probable class (Guo et al. 2017, eq. 3).

    .. math:: \mathrm{ECE} = \sum_b W_b \,\lvert \mathrm{acc}_b - \mathrm{conf}_b \rvert

    over ``n_bins`` equal bins of the confidence :math:`\max_c p_{ic}`, with :math:`W_b` the
    share of weight in the bin. It is biased upwards for few samples: compare methods on the same
    samples and beside :func:`brier_score`.

    Parameters
    ----------
    y_true
        ``(n,)`` true labels.
    proba
        ``(n, n_classes)`` probabilities.
    classes
        ``(n_classes,)`` names of the columns.
    n_bins
        Number of bins.
    sample_weight
        ``(n,)`` weights; uniform by default.

    Returns
    -------
    A number in [0, 1]; 0 is best.

    Examples
    --------
    >>> from cfm.metrics import expected_calibration_error
    >>> proba = [[0.9, 0.1], [0.9, 0.1]]  # 0.9 sure, and right in one of two
    >>> round(expected_calibration_error(["IAV", "RSV"], proba, ["IAV", "RSV"]), 3)
    0.4
    """
    true = as_labels(y_true, "y_true")
    p, names = as_probabilities(proba, classes, len(true))
    weight = as_weights(sample_weight, len(true))
    confidence = p.max(axis=1)
    hit = names[p.argmax(axis=1)] == true
    # Bins are open to the left as in the paper: (0, 0.1], (0.1, 0.2], …
    index = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gap = np.bincount(index, weights=weight * (hit - confidence), minlength=n_bins)
    return float(np.abs(gap).sum())


def brier_score(
    y_true: ArrayLike,
    proba: ArrayLike,
    classes: ArrayLike,
    sample_weight: ArrayLike | None = None,
) -> float:
    r"""Brier score of several classes, :math:`\sum_i w_i \sum_c (p_{ic} - [y_i = c])^2`.

    Brier (1950); 0 is best, 2 is worst. A true label without a column adds 1 to its sample.

    Parameters
    ----------
    y_true
        ``(n,)`` true labels.
    proba
        ``(n, n_classes)`` probabilities.
    classes
        ``(n_classes,)`` names of the columns.
    sample_weight
        ``(n,)`` weights; uniform by default.

    Returns
    -------
    A number in [0, 2].

    Examples
    --------
    >>> from cfm.metrics import brier_score
    >>> round(brier_score(["IAV", "RSV"], [[0.9, 0.1], [0.9, 0.1]], ["IAV", "RSV"]), 3)
    0.82
    """
    true = as_labels(y_true, "y_true")
    p, names = as_probabilities(proba, classes, len(true))
    is_true = (true[:, None] == names[None, :]).astype(np.float64)
    loss = ((p - is_true) ** 2).sum(axis=1) + (1.0 - is_true.sum(axis=1))
    return float(as_weights(sample_weight, len(true)) @ loss)


def as_weights(sample_weight: ArrayLike | None, n: int) -> NDArray[np.float64]:
    """Return ``(n,)`` weights with sum 1, uniform for ``None``."""
    if not n:
        raise ValueError("Got no samples; a score needs at least one.")
    if sample_weight is None:
        return np.full(n, 1.0 / n)
    weight = np.asarray(sample_weight, dtype=np.float64)
    if weight.shape != (n,):
        raise ValueError(f"sample_weight has shape {weight.shape}, expected ({n},).")
    if not np.isfinite(weight).all() or (weight < 0).any() or weight.sum() <= 0:
        raise ValueError("sample_weight must be finite, not negative and have a positive sum.")
    return weight / weight.sum()


def as_labels(values: ArrayLike, name: str, n: int | None = None) -> NDArray[np.generic]:
    """Return a one-dimensional array of labels of the expected length."""
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} has shape {array.shape}, expected one dimension.")
    if n is not None and len(array) != n:
        raise ValueError(f"{name} has {len(array)} entries, expected {n}.")
    return array


def as_probabilities(
    proba: ArrayLike, classes: ArrayLike, n: int
) -> tuple[NDArray[np.float64], NDArray[np.generic]]:
    """Return ``(n, classes)`` finite scores and the names of their columns."""
    names = as_labels(classes, "classes")
    array = np.asarray(proba, dtype=np.float64)
    if array.shape != (n, len(names)):
        raise ValueError(f"proba has shape {array.shape}, expected ({n}, {len(names)}).")
    if not np.isfinite(array).all():
        raise ValueError("proba holds NaN or infinite values; give one finite value per class.")
    if len(np.unique(names)) != len(names):
        raise ValueError("classes holds a name twice; name each column of proba once.")
    return array, names
