r"""Scores of out-of-fold predictions under many weightings at once.

Every function takes ``weights`` of shape ``(n_draws, n)``: a row of ones gives the plain score, a
row of how often a bootstrap drew each observation gives the score of that draw. All draws
are scored by a few matrix products.

What ranks (AUROC, concordance, correlations) is compared *within* a fold only. The folds of a
cross-validation have models of their own, whose outputs differ in level; across folds even a
constant prediction would be ranked, against the truth: the mean of the training folds is lowest
where the test fold is highest. AUROC and concordance are then averaged over the folds, each with
the weight of its groups: a study of 100 samples has 2,500 pairs where one of 10 has 25, and would
else decide alone.
"""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

#: Rows of a table of pairs at a time.
_BLOCK = 1024


def group_draws(groups: np.ndarray, n_draws: int, seed: int, *, within: bool = False) -> np.ndarray:
    """Weights of a bootstrap that draws whole groups, after a first row of ones.

    Parameters
    ----------
    groups
        ``(n,)`` group of each observation.
    n_draws
        Number of bootstrap draws.
    seed
        Seed; the draws depend on the sorted names of the groups, not on the order of rows.
    within
        Draw observations within each group instead, for so few groups that their draws hardly
        differ.

    Returns
    -------
    ``(1 + n_draws, n)`` float64.
    """
    names, member = np.unique(groups, return_inverse=True)
    member = member.ravel()
    rng = np.random.default_rng(seed)

    def drawn(n: int) -> np.ndarray:
        return rng.multinomial(n, np.full(n, 1 / n), size=n_draws)

    weights = np.ones((1 + n_draws, len(member)))
    if within:
        for number in range(len(names)):
            rows = np.flatnonzero(member == number)
            weights[1:, rows] = drawn(len(rows))
    else:
        weights[1:] = drawn(len(names))[:, member]
    return weights


def class_scores(
    truth: np.ndarray,
    proba: np.ndarray,
    fold: np.ndarray,
    weights: np.ndarray,
    mass: np.ndarray,
) -> dict[str, np.ndarray]:
    """Accuracy, balanced accuracy, macro F1 and AUROC of class probabilities.

    Parameters
    ----------
    truth
        ``(n,)`` number of the true class.
    proba
        ``(n, n_classes)``; the call is the first class of the highest probability.
    fold
        ``(n,)`` fold in which each observation was predicted.
    weights
        ``(n_draws, n)``.
    mass
        ``(n,)`` 1 / size of the group of each observation: what it adds to the weight of its fold.

    Returns
    -------
    By name ``(n_draws,)``: ``accuracy``; ``balanced_accuracy`` and ``macro_f1``, means over the
    classes that a draw holds; ``auroc``, of the second class if there are two, else the mean over
    classes, each against the rest, within folds. NaN where a draw leaves nothing to compare.
    """
    k = proba.shape[1]
    call = proba.argmax(axis=1)
    cell = np.zeros((len(truth), k * k))
    cell[np.arange(len(truth)), truth * k + call] = 1.0
    confusion = (weights @ cell).reshape(-1, k, k)  # (draws, true, called)
    hit = np.diagonal(confusion, axis1=1, axis2=2)
    true, called = confusion.sum(axis=2), confusion.sum(axis=1)
    present = true > 0
    n_present = present.sum(axis=1)
    recall = np.where(present, hit / np.where(present, true, 1), 0)
    f1 = np.where(present, 2 * hit / np.where(present, true + called, 1), 0)
    columns = range(1, 2) if k == 2 else range(k)
    curves = [pair_auroc(proba[:, c], truth == c, truth != c, fold, weights, mass) for c in columns]
    return {
        "accuracy": _ratio(hit.sum(axis=1), true.sum(axis=1)),
        "balanced_accuracy": _ratio(recall.sum(axis=1), n_present),
        "macro_f1": _ratio(f1.sum(axis=1), n_present),
        "auroc": _nan_mean(np.stack(curves)),
    }


def value_scores(
    truth: np.ndarray, predicted: np.ndarray, fold: np.ndarray, weights: np.ndarray
) -> dict[str, np.ndarray]:
    r"""R², correlations and mean absolute error of each of several targets.

    Parameters
    ----------
    truth
        ``(n, n_targets)``, NaN where unknown: left out of that target.
    predicted
        ``(n, n_targets)``.
    fold
        ``(n,)`` fold in which each observation was predicted.
    weights
        ``(n_draws, n)``.

    Returns
    -------
    By name ``(n_draws, n_targets)``: ``pearson``, the correlation of what is left after the mean
    of each fold is taken off both; ``spearman``, the same of ranks within folds; ``r2``,
    :math:`1 - \sum w (y - \hat y)^2 / \sum w (y - \bar y)^2` over all folds; ``mae``, in units of
    the target. NaN where nothing varies.
    """
    known = np.isfinite(truth)
    y = np.where(known, truth, 0.0)
    p = np.where(known, predicted, 0.0)
    total = weights @ known
    spread = weights @ y**2 - _ratio((weights @ y) ** 2, total)
    error = weights @ (np.where(known, y - p, 0.0) ** 2)
    rank_y, rank_p = (_fold_ranks(values, known, fold) for values in (truth, predicted))
    return {
        "pearson": _within_correlation(y, p, known, fold, weights),
        "spearman": _within_correlation(rank_y, rank_p, known, fold, weights),
        "r2": 1.0 - _ratio(error, np.where(spread > 1e-12 * (weights @ y**2), spread, 0.0)),
        "mae": _ratio(weights @ np.abs(np.where(known, y - p, 0.0)), total),
    }


def survival_scores(
    time: np.ndarray,
    event: np.ndarray,
    risk: np.ndarray,
    survival: np.ndarray,
    horizons: np.ndarray,
    censoring: tuple[np.ndarray, np.ndarray],
    fold: np.ndarray,
    weights: np.ndarray,
    mass: np.ndarray,
) -> dict[str, np.ndarray]:
    """Concordance, time-dependent AUROC and Brier score of predicted survival.

    Parameters
    ----------
    time, event
        ``(n,)`` time and whether the event happened then (else it was not seen until then).
    risk
        ``(n,)`` larger = earlier.
    survival
        ``(n, n_horizons)`` predicted probability to be free of the event at each horizon.
    horizons
        ``(n_horizons,)`` times.
    censoring
        Probability not to be censored: ``(n,)`` at each own time and ``(n_horizons,)`` at each
        horizon (Kaplan–Meier of the censoring).
    fold
        ``(n,)`` fold in which each observation was predicted.
    weights
        ``(n_draws, n)``.
    mass
        ``(n,)`` 1 / size of the group of each observation: what it adds to the weight of its fold.

    Returns
    -------
    By name ``(n_draws,)``: ``c_index`` (Harrell 1996) within folds; ``auroc_t``, cumulative/dynamic
    AUROC with inverse probability of censoring weights (Uno 2007), within folds, mean over the
    horizons; ``brier_t`` (Graf 1999), mean over the horizons, smaller = better.
    """
    at_own, at_horizon = (np.where(g > 0, 1 / np.where(g > 0, g, 1), 0) for g in censoring)
    areas, errors = [], []
    for k, horizon in enumerate(horizons):
        case = np.where(event & (time <= horizon), at_own, 0.0)
        later = (time > horizon).astype(np.float64)
        areas.append(pair_auroc(risk, case, later, fold, weights, mass))
        error = case * survival[:, k] ** 2 + later * at_horizon[k] * (1 - survival[:, k]) ** 2
        errors.append(_ratio(weights @ error, weights.sum(axis=1)))
    return {
        "c_index": _concordance(time, event, risk, fold, weights, mass),
        "auroc_t": _nan_mean(np.stack(areas)),
        "brier_t": np.mean(errors, axis=0),
    }


def pair_auroc(
    score: np.ndarray,
    case: np.ndarray,
    control: np.ndarray,
    fold: np.ndarray,
    weights: np.ndarray,
    mass: np.ndarray,
) -> np.ndarray:
    """Share of (case, control) pairs in which the case scores higher, mean over folds.

    ``case`` and ``control`` are ``(n,)`` weights, 0 for what is neither; ties count one half.
    Returns ``(n_draws,)``.
    """
    shares = []
    for rows in _folds(fold):
        above, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        controls = rows[control[rows] > 0]
        heavy = weights[:, controls] * control[controls]
        for cases in _blocks(rows[case[rows] > 0]):
            wins = _wins(score[cases], score[controls])
            own = weights[:, cases] * case[cases]
            above += ((own @ wins) * heavy).sum(axis=1)
            pairs += own.sum(axis=1) * heavy.sum(axis=1)
        shares.append((_ratio(above, pairs), weights[:, rows] @ mass[rows]))
    return _mean_over_folds(shares)


def partial_likelihood(outcome: np.ndarray, log_hazard: np.ndarray) -> float:
    r"""Cox's log partial likelihood, Breslow's form for ties.

    .. math:: \sum_{i: \mathrm{event}} \Bigl(h_i - \log \sum_{j: t_j \ge t_i} e^{h_j}\Bigr)

    Parameters
    ----------
    outcome
        ``(n,)`` records with ``event`` bool and ``time``, as scikit-survival's.
    log_hazard
        ``(n,)`` :math:`h`.
    """
    event, time = outcome["event"], outcome["time"]
    order = np.argsort(-time, kind="stable")
    at_risk = np.logaddexp.accumulate(log_hazard[order])
    last = np.searchsorted(-time[order], -time[event], side="right") - 1
    return float((log_hazard[event] - at_risk[last]).sum())


def _concordance(
    time: np.ndarray,
    event: np.ndarray,
    risk: np.ndarray,
    fold: np.ndarray,
    weights: np.ndarray,
    mass: np.ndarray,
) -> np.ndarray:
    """Harrell's C over pairs of which it is known who had the event first, mean over folds."""
    shares = []
    for rows in _folds(fold):
        above, pairs = np.zeros(len(weights)), np.zeros(len(weights))
        for first in _blocks(rows[event[rows]]):
            later = time[rows] > time[first, None]
            # censored at the moment of an event: alive then
            later |= (time[rows] == time[first, None]) & ~event[rows]
            own = weights[:, first]
            above += ((own @ (later * _wins(risk[first], risk[rows]))) * weights[:, rows]).sum(1)
            pairs += ((own @ later) * weights[:, rows]).sum(axis=1)
        shares.append((_ratio(above, pairs), weights[:, rows] @ mass[rows]))
    return _mean_over_folds(shares)


def _mean_over_folds(shares: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Weighted mean over the folds in which a draw leaves something to compare."""
    share, weight = (np.stack(part) for part in zip(*shares, strict=True))  # (folds, draws)
    known = np.isfinite(share)
    return _ratio(np.where(known, share * weight, 0).sum(0), np.where(known, weight, 0).sum(0))


def _wins(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``(len(a), len(b))``: 1 where a is above b, one half where they are equal."""
    return (a[:, None] > b) + 0.5 * (a[:, None] == b)


def _within_correlation(
    y: np.ndarray, p: np.ndarray, known: np.ndarray, fold: np.ndarray, weights: np.ndarray
) -> np.ndarray:
    shape = (len(weights), y.shape[1])
    yy, pp, yp = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    size_y, size_p = np.zeros(shape), np.zeros(shape)
    for rows in _folds(fold):
        w, use = weights[:, rows], known[rows]
        n = use.sum(axis=0)
        # an offset of its own for each fold leaves the sums small and the correlation as it is
        a = np.where(use, y[rows] - y[rows].sum(axis=0) / np.maximum(n, 1), 0.0)
        b = np.where(use, p[rows] - p[rows].sum(axis=0) / np.maximum(n, 1), 0.0)
        total = np.where(w @ use > 0, w @ use, 1.0)
        sum_a, sum_b = w @ a, w @ b
        yy += w @ a**2 - sum_a**2 / total
        pp += w @ b**2 - sum_b**2 / total
        yp += w @ (a * b) - sum_a * sum_b / total
        size_y += w @ np.where(use, y[rows], 0.0) ** 2
        size_p += w @ np.where(use, p[rows], 0.0) ** 2
    varies = (yy > 1e-12 * size_y) & (pp > 1e-12 * size_p)
    scale = np.sqrt(np.where(varies, yy * pp, 1.0))
    return np.where(varies, np.clip(yp / scale, -1, 1), np.nan)


def _fold_ranks(values: np.ndarray, known: np.ndarray, fold: np.ndarray) -> np.ndarray:
    """Ranks of the known values of each column within each fold, as shares of the fold."""
    ranks = np.zeros(values.shape)
    for rows in _folds(fold):
        for column in range(values.shape[1]):
            use = rows[known[rows, column]]
            if use.size:
                ranks[use, column] = rankdata(values[use, column]) / len(use)
    return ranks


def _folds(fold: np.ndarray) -> list[np.ndarray]:
    return [np.flatnonzero(fold == name) for name in np.unique(fold)]


def _blocks(rows: np.ndarray) -> list[np.ndarray]:
    return [rows[start : start + _BLOCK] for start in range(0, len(rows), _BLOCK)]


def _ratio(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    a, b = np.broadcast_arrays(np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)


def _nan_mean(values: np.ndarray) -> np.ndarray:
    """Mean over the first axis of what is not NaN."""
    known = ~np.isnan(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0))
