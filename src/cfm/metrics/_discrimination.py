"""Whether a predicted effect is nearer to that of its own perturbation than to others."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import cdist

from cfm._arguments import checks_arguments

if TYPE_CHECKING:
    from collections.abc import Sequence

Distance = Literal["l1", "l2", "cosine"]
_NAMES = {"l1": "cityblock", "l2": "euclidean", "cosine": "cosine"}


@checks_arguments()
def discrimination_score(
    effects: ArrayLike,
    predicted: ArrayLike,
    *,
    distance: Distance = "l1",
    excluded: Sequence[ArrayLike] | None = None,
) -> NDArray[np.float64]:
    r"""Score how well each predicted effect tells its perturbation from the others.

    .. math:: 1 - \frac{r_p}{T}

    with :math:`r_p` the number of the :math:`T` observed effects that are nearer to the predicted
    effect of perturbation :math:`p` than its own observed one; of those equally near half are
    counted. This is cell-eval's convention: 1 is perfect, about
    :math:`\frac{1}{2} + \frac{1}{2T}` is chance. The Lingshu-Cell paper writes
    :math:`1 - 2 \bar r / T`, for which chance is about 0.

    Parameters
    ----------
    effects, predicted
        ``(T, genes)`` observed and predicted effects of the same perturbations. A row of
        ``predicted`` that is all NaN stands for no prediction.
    distance
        ``"l1"``, ``"l2"`` or ``"cosine"`` (an effect of zeros has distance 1 to all).
    excluded
        For each perturbation the columns that are left out of its distances: the perturbed genes,
        whose own fall or rise would give a perturbation away.

    Returns
    -------
    ``(T,)`` float64; NaN where nothing was predicted, or if there is a single perturbation and
    nothing to tell apart.

    Raises
    ------
    ValueError
        If shapes differ, a value is not finite, or ``distance`` is unknown.

    References
    ----------
    cell-eval, ``discrimination_score`` (Arc Institute, Virtual Cell Challenge 2025).

    Examples
    --------
    >>> from cfm.metrics import discrimination_score
    >>> discrimination_score([[1.0, 0.0], [0.0, 1.0]], [[0.9, 0.1], [0.8, 0.0]]).tolist()
    [1.0, 0.5]
    """
    truth = np.asarray(effects, dtype=np.float64)
    guess = np.asarray(predicted, dtype=np.float64)
    if truth.ndim != 2 or truth.shape != guess.shape or not truth.size:
        raise ValueError(
            f"effects has shape {truth.shape} and predicted {guess.shape}; expected "
            "(perturbations, genes) twice, in the same order."
        )
    given = ~np.isnan(guess).all(axis=1)
    if not (np.isfinite(truth).all() and np.isfinite(guess[given]).all()):
        raise ValueError("effects or predicted holds NaN or infinite values.")
    if excluded is not None and len(excluded) != len(truth):
        raise ValueError(f"excluded has {len(excluded)} entries for {len(truth)} perturbations.")
    n = len(truth)
    scores = np.full(n, np.nan)
    for p in np.flatnonzero(given).tolist() if n > 1 else []:
        kept = np.ones(truth.shape[1], dtype=bool)
        if excluded is not None:
            kept[np.asarray(excluded[p], dtype=np.int64)] = False
        d = _distances(truth[:, kept], guess[p, kept], distance)
        own, others = d[p], np.delete(d, p)
        noise = 1e-12 * max(float(d.max()), 1e-300)
        tied = np.abs(others - own) <= noise
        scores[p] = 1.0 - ((others < own - noise).sum() + tied.sum() / 2) / n
    return scores


def _distances(
    truth: NDArray[np.float64], guess: NDArray[np.float64], distance: Distance
) -> NDArray[np.float64]:
    """Return ``(T,)`` distances of observed effects to a predicted one."""
    if distance != "cosine":
        return cdist(truth, guess[None], _NAMES[distance]).ravel()
    length = np.linalg.norm(truth, axis=1) * np.linalg.norm(guess)
    return 1.0 - (truth @ guess) / np.where(length > 0, length, 1.0)
