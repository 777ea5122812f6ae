"""Baselines of perturbation: shifts of expression, computed from known effects."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cfm._arguments import ABOVE_0, checks_arguments

Array = NDArray[np.float64]


def mean_shift(effects: ArrayLike) -> Array:
    """Return the mean of known effects.

    Of one perturbation in other cell types this is the mean shift; of all other perturbations it
    is the perturbation mean, which is hard to beat for perturbations that are not in the data.

    Parameters
    ----------
    effects
        ``(k, genes)`` perturbed mean minus control mean of each known case.

    Returns
    -------
    ``(genes,)`` float64.

    Raises
    ------
    ValueError
        If there is no effect, or a value is not finite.

    References
    ----------
    Ahlmann-Eltze, Huber, Anders. Deep-learning-based gene perturbation effect prediction does not
    yet outperform simple linear baselines. Nature Methods 22, 1657-1661 (2025).

    Examples
    --------
    >>> from cfm.metrics import mean_shift
    >>> mean_shift([[1.0, 0.0], [3.0, -2.0]]).tolist()
    [2.0, -1.0]
    """
    return _effects(effects).mean(axis=0)


def additive_shift(effects: ArrayLike) -> Array:
    """Return the sum of known effects: of the single perturbations of a combination.

    Parameters
    ----------
    effects
        ``(k, genes)`` effect of each part.

    Returns
    -------
    ``(genes,)`` float64.

    Raises
    ------
    ValueError
        As for :func:`mean_shift`.

    Examples
    --------
    >>> from cfm.metrics import additive_shift
    >>> additive_shift([[1.0, 0.0], [3.0, -2.0]]).tolist()
    [4.0, -2.0]
    """
    return _effects(effects).sum(axis=0)


def nearest_shift(query: ArrayLike, profiles: ArrayLike, effects: ArrayLike) -> Array:
    """Return the effect of the known case that is most similar to a query.

    Parameters
    ----------
    query
        ``(d,)`` description of a case: its control profile, or features of the perturbation.
    profiles
        ``(k, d)`` the same of the known cases.
    effects
        ``(k, genes)`` their effects.

    Returns
    -------
    ``(genes,)`` float64: the effect of the profile with the highest correlation to ``query``, the
    mean of those that are equally high. A profile without spread has correlation 0 to anything.

    Raises
    ------
    ValueError
        As for :func:`mean_shift`, or if shapes do not fit.

    Examples
    --------
    >>> from cfm.metrics import nearest_shift
    >>> nearest_shift([0, 1, 2], [[0, 2, 4], [5, 1, 0]], [[1.0], [-1.0]]).tolist()
    [1.0]
    """
    query, profiles, effects = _cases(query, profiles, effects)
    likeness = (
        _unit(profiles - profiles.mean(axis=1, keepdims=True))
        @ _unit((query - query.mean())[None]).ravel()
    )
    return effects[likeness >= likeness.max() - 1e-12].mean(axis=0)


@checks_arguments(alpha=ABOVE_0)
def linear_shift(
    query: ArrayLike, profiles: ArrayLike, effects: ArrayLike, *, alpha: float = 1.0
) -> Array:
    r"""Return the effect that a ridge regression on known cases expects.

    .. math:: \bar e + (q - \bar x) \tilde X^\top (\tilde X \tilde X^\top + \lambda I)^{-1}
        \tilde E, \qquad \lambda = \alpha \, \mathrm{tr}(\tilde X \tilde X^\top) / k

    with :math:`q` the query, :math:`\tilde X` and :math:`\tilde E` the centred profiles and effects
    of the :math:`k` known cases and :math:`\bar x, \bar e` their means. Written in the cases and
    not in the genes, of which there are many more.

    Parameters
    ----------
    query, profiles, effects
        As for :func:`nearest_shift`.
    alpha
        Ridge penalty in units of the mean squared length of a centred profile, above 0. A large
        one gives the mean effect.

    Returns
    -------
    ``(genes,)`` float64. With one known case, or profiles that do not differ, the mean effect.

    Raises
    ------
    ValueError
        As for :func:`nearest_shift`, or if ``alpha`` is not above 0.

    Examples
    --------
    >>> from cfm.metrics import linear_shift
    >>> linear_shift([2.0], [[0.0], [1.0]], [[0.0], [10.0]], alpha=1e-9).round(3).tolist()
    [20.0]
    """
    query, profiles, effects = _cases(query, profiles, effects)
    mean = effects.mean(axis=0)
    x = profiles - profiles.mean(axis=0)
    gram = x @ x.T
    ridge = alpha * np.trace(gram) / len(gram)
    if ridge <= 0:
        return mean
    known = np.linalg.solve(gram + ridge * np.eye(len(gram)), effects - mean)
    return mean + (x @ (query - profiles.mean(axis=0))) @ known


def _effects(effects: ArrayLike) -> Array:
    array = np.asarray(effects, dtype=np.float64)
    if array.ndim != 2 or not len(array):
        raise ValueError(
            f"effects has shape {array.shape}; expected known cases by genes, at least one case."
        )
    if not np.isfinite(array).all():
        raise ValueError("effects holds NaN or infinite values; leave those cases or genes out.")
    return array


def _cases(query: ArrayLike, profiles: ArrayLike, effects: ArrayLike) -> tuple[Array, Array, Array]:
    known = _effects(effects)
    x, q = np.asarray(profiles, dtype=np.float64), np.asarray(query, dtype=np.float64)
    if x.ndim != 2 or len(x) != len(known) or q.shape != x.shape[1:]:
        raise ValueError(
            f"query has shape {q.shape} and profiles {x.shape}; expected (d,) and "
            f"({len(known)}, d), a profile for each effect."
        )
    if not (np.isfinite(x).all() and np.isfinite(q).all()):
        raise ValueError("query or profiles holds NaN or infinite values.")
    return q, x, known


def _unit(rows: Array) -> Array:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1.0)
