"""How honest predicted probabilities are."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from cfm._arguments import checks_arguments
from cfm.metrics._checks import as_labels, as_probabilities, as_weights


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
