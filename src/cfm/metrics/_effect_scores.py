"""Scores of predicted effects of one perturbation against observed ones."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfm._arguments import checks_arguments

Array = NDArray[np.float64]


@checks_arguments()
def delta_pearson(effect: ArrayLike, predicted: ArrayLike, *, n_top: int | None = None) -> float:
    r"""Return the Pearson correlation of an observed and a predicted effect over genes.

    .. math:: \mathrm{corr}_g(\bar p_g - \bar c_g,\; \hat p_g - \hat c_g)

    with means of log expression of perturbed and control observations. Effects are signed, as in
    cell-eval; correlations of their absolute values, which some papers define, reward genes that
    move the wrong way.

    Parameters
    ----------
    effect, predicted
        ``(genes,)`` perturbed mean minus control mean of log expression.
    n_top
        Only the genes of the largest observed absolute effect; all by default.

    Returns
    -------
    Between −1 and 1. A prediction that is the same for all genes, such as no effect, has 0. NaN
    if the observed effect is the same for all genes: then there is nothing to predict.

    Raises
    ------
    ValueError
        If shapes differ, there is no gene, or a value is not finite.

    References
    ----------
    Roohani, Huang, Leskovec. Predicting transcriptional outcomes of novel multigene perturbations
    with GEARS. Nature Biotechnology 42, 927-935 (2024); cell-eval, ``pearson_delta``.

    Examples
    --------
    >>> from cfm.metrics import delta_pearson
    >>> round(delta_pearson([1.0, 0.0, -1.0], [2.0, 0.0, -2.0]), 6)
    1.0
    >>> delta_pearson([1.0, 0.0, -1.0], [0.0, 0.0, 0.0])
    0.0
    """
    truth, guess = _top(*_pair(effect, predicted), n_top)
    return _cosine(truth - truth.mean(), guess - guess.mean(), *_scales(truth, guess))


@checks_arguments()
def delta_cosine(effect: ArrayLike, predicted: ArrayLike, *, n_top: int | None = None) -> float:
    """Return the cosine of the angle between an observed and a predicted effect.

    Unlike :func:`delta_pearson` it sees a shift that all genes share.

    Parameters
    ----------
    effect, predicted, n_top
        As for :func:`delta_pearson`.

    Returns
    -------
    Between −1 and 1; 0 for a prediction of no effect, NaN if no effect was observed.

    Raises
    ------
    ValueError
        As for :func:`delta_pearson`.

    Examples
    --------
    >>> from cfm.metrics import delta_cosine
    >>> round(delta_cosine([1.0, 1.0], [1.0, 0.0]), 3)
    0.707
    """
    truth, guess = _top(*_pair(effect, predicted), n_top)
    return _cosine(truth, guess, 0.0, 0.0)


@checks_arguments()
def delta_r2(effect: ArrayLike, predicted: ArrayLike, *, n_top: int | None = None) -> float:
    r"""Return the share of an effect that a prediction explains, its size included.

    .. math:: 1 - \frac{\sum_g (e_g - \hat e_g)^2}{\sum_g e_g^2}

    The reference is the prediction of no effect, which has 0; what is worse is negative.

    Parameters
    ----------
    effect, predicted, n_top
        As for :func:`delta_pearson`.

    Returns
    -------
    At most 1. NaN if no effect was observed.

    Raises
    ------
    ValueError
        As for :func:`delta_pearson`.

    Examples
    --------
    >>> from cfm.metrics import delta_r2
    >>> delta_r2([2.0, 0.0], [1.0, 0.0])
    0.75
    """
    truth, guess = _top(*_pair(effect, predicted), n_top)
    total = float(truth @ truth)
    return 1.0 - float((truth - guess) @ (truth - guess)) / total if total > 0 else float("nan")


@checks_arguments()
def direction_accuracy(effect: ArrayLike, predicted: ArrayLike, *, n_top: int | None = 50) -> float:
    """Return the share of the genes with the largest effects whose direction is predicted.

    Parameters
    ----------
    effect, predicted
        As for :func:`delta_pearson`.
    n_top
        How many genes, by observed absolute effect; all with ``None``. Genes without an effect
        have no direction and are left out.

    Returns
    -------
    Between 0 and 1. A predicted effect of exactly 0 is worth half a right answer, so that no
    effect at all has 0.5. NaN if no effect was observed.

    Raises
    ------
    ValueError
        As for :func:`delta_pearson`.

    Examples
    --------
    >>> from cfm.metrics import direction_accuracy
    >>> direction_accuracy([3.0, -2.0, 0.1], [1.0, -1.0, -5.0], n_top=2)
    1.0
    """
    truth, guess = _top(*_pair(effect, predicted), n_top)
    moved = truth != 0
    if not moved.any():
        return float("nan")
    right = np.where(guess == 0, 0.5, (guess > 0) == (truth > 0))
    return float(right[moved].mean())


def _pair(effect: ArrayLike, predicted: ArrayLike) -> tuple[Array, Array]:
    truth = np.asarray(effect, dtype=np.float64)
    guess = np.asarray(predicted, dtype=np.float64)
    if truth.ndim != 1 or truth.shape != guess.shape or not len(truth):
        raise ValueError(
            f"effect has shape {truth.shape} and predicted {guess.shape}; expected (genes,) twice, "
            "the same genes in the same order."
        )
    if not (np.isfinite(truth).all() and np.isfinite(guess).all()):
        raise ValueError("effect or predicted holds NaN or infinite values; drop those genes.")
    return truth, guess


def _top(truth: Array, guess: Array, n_top: int | None) -> tuple[Array, Array]:
    if n_top is None:
        return truth, guess
    size = np.abs(truth)
    # All genes that are as large as the last one stay, so that their order decides nothing.
    chosen = size >= np.partition(size, -min(n_top, len(size)))[-min(n_top, len(size))]
    return truth[chosen], guess[chosen]


def _scales(truth: Array, guess: Array) -> tuple[float, float]:
    """Return the lengths below which spread is the rounding of a constant."""
    noise = 1e-12 * np.sqrt(len(truth))
    return noise * float(np.abs(truth).max()), noise * float(np.abs(guess).max())


def _cosine(truth: Array, guess: Array, least_truth: float, least_guess: float) -> float:
    a, b = float(np.linalg.norm(truth)), float(np.linalg.norm(guess))
    if a <= least_truth:
        return float("nan")
    if b <= least_guess:
        return 0.0
    return float(np.clip((truth / a) @ (guess / b), -1.0, 1.0))
