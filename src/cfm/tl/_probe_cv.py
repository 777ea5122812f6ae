"""Nested cross-validation that keeps groups together."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold

from cfm.tl._probe_heads import preprocessing

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cfm.tl._probe_heads import Head
    from cfm.tl._probe_target import ProbeTarget, Task

Split = tuple[np.ndarray, np.ndarray]

#: Attempts at a split in which every part can be learned from.
_ATTEMPTS = 20


@dataclass(frozen=True)
class Plan:
    """How a probe is run, whatever the head and the representation.

    Attributes
    ----------
    n_inner_folds
        Folds within the training rows, by which settings are chosen.
    horizons
        ``(n_horizons,)`` times at which survival is predicted; empty for other tasks.
    class_weight
        Weights of classes in scikit-learn's words.
    seed
        Seed of folds and forests.
    """

    n_inner_folds: int
    horizons: np.ndarray
    class_weight: str | None
    seed: int


@dataclass(frozen=True)
class Prediction:
    """Out-of-fold predictions of one head on one representation.

    Attributes
    ----------
    main
        ``(n, k)``: class probabilities, values of the targets, or ``(n, 1)`` risk, larger =
        earlier, on the scale of the model of its fold.
    survival
        ``(n, n_horizons)`` probability to be free of the event at each horizon.
    percentile
        ``(n,)`` share of the training observations of the fold that the same model gives a lower
        risk; unlike the risk itself comparable between folds.
    """

    main: np.ndarray
    survival: np.ndarray = field(default_factory=lambda: np.empty(0))
    percentile: np.ndarray = field(default_factory=lambda: np.empty(0))

    def part(self, rows: np.ndarray) -> Prediction:
        """Return those of some observations."""
        parts = (self.main, self.survival, self.percentile)
        return Prediction(*(part[rows] if part.size else part for part in parts))


def make_splits(
    strata: np.ndarray, groups: np.ndarray, n_folds: int, seed: int, *, grouped: bool
) -> list[Split]:
    """Cut observations into folds with about equal shares of each stratum, groups kept whole.

    Parameters
    ----------
    strata
        ``(n,)`` integers.
    groups
        ``(n,)`` names; ignored unless ``grouped``.
    n_folds
        Number of folds; fewer where there are fewer groups.
    seed
        Seed of the shuffling.
    grouped
        Whether groups hold more than one observation.

    Returns
    -------
    Training and test rows of each fold. Empty if there are not enough groups for two folds.
    """
    n_groups = len(np.unique(groups)) if grouped else len(strata)
    n_folds = min(n_folds, n_groups)
    if n_folds < 2:
        return []
    members = groups if grouped else None
    splits: list[Split] = []
    for attempt in range(_ATTEMPTS):
        state = seed + 1000 * attempt
        cut: Any
        if grouped:
            cut = StratifiedGroupKFold(n_folds, shuffle=True, random_state=state)
        elif len(np.unique(strata)) > 1 and np.bincount(strata).max() >= n_folds:
            cut = StratifiedKFold(n_folds, shuffle=True, random_state=state)
        else:
            cut = KFold(n_folds, shuffle=True, random_state=state)
        with warnings.catch_warnings():
            # inner folds may be without a rare class; what they teach is checked below
            warnings.filterwarnings("ignore", "The least populated class in y")
            splits = [s for s in cut.split(strata, strata, members) if len(s[1])]
        if len(splits) == n_folds and all(_can_teach(strata, train) for train, _ in splits):
            break
    return splits


def _can_teach(strata: np.ndarray, rows: np.ndarray) -> bool:
    """Whether the rows hold more than one stratum, where there is more than one."""
    return len(np.unique(strata[rows])) > 1 or len(np.unique(strata)) == 1


def out_of_fold(
    features: np.ndarray,
    target: ProbeTarget,
    head: Head,
    splits: Iterable[Split],
    plan: Plan,
    n_components: int | None,
) -> Prediction:
    """Predict each observation by a model that saw neither it nor its group.

    In each fold the setting of the head is chosen by an inner cross-validation of the training
    rows; preprocessing is fitted anew on the training rows of each inner and outer fold.
    """
    n = len(features)
    width = len(target.classes) or (1 if target.task == "survival" else target.values.shape[1])
    main = np.zeros((n, width)) if target.classes else np.full((n, width), np.nan)
    survival: np.ndarray = np.full((n, len(plan.horizons)), np.nan)
    percentile: np.ndarray = np.full(n, np.nan)
    for train, test in splits:
        for columns, rows in _complete_parts(target, train):
            setting = _tuned(features, target, head, (rows, columns), plan, n_components)
            shape = (len(rows), features.shape[1])
            steps = preprocessing(head, shape, n_components, plan.seed)
            x = steps.fit_transform(features[rows])
            model = head.make(setting, plan.seed, plan.class_weight)
            model.fit(x, _outcome(target, rows, columns))
            z = steps.transform(features[test])
            if target.task == "classification":
                # a class that the training rows lack keeps probability 0
                main[np.ix_(test, model.classes_)] = model.predict_proba(z)
            elif target.task == "regression":
                main[np.ix_(test, columns)] = model.predict(z).reshape(len(test), -1)
            else:
                main[test, 0] = model.predict(z)
                survival[test] = _survival_at(model, z, plan.horizons)
                known = np.sort(model.predict(x))
                sides = [np.searchsorted(known, main[test, 0], side) for side in ("left", "right")]
                percentile[test] = (sides[0] + sides[1]) / (2 * len(known))
    if target.task == "survival":
        return Prediction(main, survival, percentile)
    return Prediction(main)


def trivial(target: ProbeTarget, splits: Iterable[Split], horizons: np.ndarray) -> Prediction:
    """Predict what needs no features: class frequencies, the mean, or one Kaplan–Meier curve."""
    n = len(target.rows)
    if target.task == "survival":
        from sksurv.nonparametric import SurvivalFunctionEstimator

        survival = np.empty((n, len(horizons)))
        for train, test in splits:
            curve = SurvivalFunctionEstimator().fit(_outcome(target, train, np.arange(2)))
            last = curve.unique_time_[np.isfinite(curve.unique_time_)].max()
            survival[test] = curve.predict_proba(np.minimum(horizons, last))
        return Prediction(np.zeros((n, 1)), survival, np.full(n, 0.5))
    if target.task == "regression":
        main: np.ndarray = np.empty(target.values.shape)
        for train, test in splits:
            main[test] = np.nanmean(target.values[train], axis=0)
        return Prediction(main)
    main = np.empty((n, len(target.classes)))
    for train, test in splits:
        main[test] = np.bincount(target.strata[train], minlength=main.shape[1]) / len(train)
    return Prediction(main)


def _complete_parts(
    target: ProbeTarget, rows: np.ndarray
) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Targets that are known in the same of these rows, and those rows."""
    if target.task != "regression":
        return [(np.arange(target.values.shape[1]), rows)]
    known = np.isfinite(target.values[rows])
    patterns, part = np.unique(known, axis=1, return_inverse=True)
    parts = [
        (np.flatnonzero(part.ravel() == k), rows[patterns[:, k]]) for k in range(patterns.shape[1])
    ]
    # a target that all training rows lack stays unpredicted
    return [(columns, part_rows) for columns, part_rows in parts if len(part_rows) > 1]


def _outcome(target: ProbeTarget, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    if target.task == "survival":
        from sksurv.util import Surv

        time, event = target.values[rows].T
        return Surv.from_arrays(event.astype(bool), time)
    if target.task == "classification":
        return target.strata[rows]
    return target.values[np.ix_(rows, columns)]


def _tuned(
    features: np.ndarray,
    target: ProbeTarget,
    head: Head,
    part: tuple[np.ndarray, np.ndarray],
    plan: Plan,
    n_components: int | None,
) -> Any:
    """Choose the setting with the best mean score of the inner folds; for each target its own."""
    if len(head.settings) == 1:
        return head.settings[0]
    rows, columns = part
    inner = make_splits(
        target.strata[rows],
        target.groups[rows],
        plan.n_inner_folds,
        plan.seed,
        # training rows of one group are split by observation
        grouped=target.grouped and len(np.unique(target.groups[rows])) > 1,
    )
    scores, sizes = [], []
    for train, test in inner:
        train, test = rows[train], rows[test]
        if not _can_teach(target.strata, train):
            continue
        shape = (len(train), features.shape[1])
        steps = preprocessing(head, shape, n_components, plan.seed)
        x, z = steps.fit_transform(features[train]), steps.transform(features[test])
        y, truth = (_outcome(target, side, columns) for side in (train, test))
        one = []
        for setting in head.settings:
            model = head.make(setting, plan.seed, plan.class_weight)
            one.append(_inner_score(model, target.task, (x, y), (z, truth), len(columns)))
        if np.isfinite(one).any():
            scores.append(one)
            sizes.append(len(test))
    if not scores:  # nothing to choose by
        middle: Any = head.settings[len(head.settings) // 2]
        return middle
    mean = np.average(np.nan_to_num(scores, nan=-np.inf), axis=0, weights=sizes)
    best = np.asarray(head.settings)[mean.argmax(axis=0)]  # (n_targets,)
    return best if target.task == "regression" else float(best[0])


def _inner_score(
    model: Any, task: Task, train: tuple[Any, Any], test: tuple[Any, Any], n_targets: int
) -> np.ndarray:
    """Larger = better: minus squared error of each target, or a log-likelihood.

    Of survival it is the cross-validated partial likelihood (Verweij and van Houwelingen 1993):
    what the test rows add to that of the training rows. A concordance would hardly see penalties.
    """
    z, truth = test
    if task == "survival":
        x, y = train
        try:
            model.fit(x, y)
            taught = model.predict(x)
            score = _partial_likelihood(np.append(y, truth), np.append(taught, model.predict(z)))
            return np.array([score - _partial_likelihood(y, taught)])
        except (ArithmeticError, ValueError):  # a penalty too weak for the fit to end
            return np.array([np.nan])
    model.fit(*train)
    if task == "regression":
        error = (truth - model.predict(z).reshape(truth.shape)) ** 2
        return -error.mean(axis=0)
    proba = np.zeros((len(truth), max(int(truth.max()), int(model.classes_.max())) + 1))
    proba[:, model.classes_] = model.predict_proba(z)
    own = np.log(np.clip(proba[np.arange(len(truth)), truth], 1e-3, 1))
    # classes weigh alike, as in the scores that are reported
    return np.array([np.mean([own[truth == c].mean() for c in np.unique(truth)])])


def _partial_likelihood(outcome: np.ndarray, log_hazard: np.ndarray) -> float:
    """Cox's log partial likelihood, Breslow's form for ties."""
    event, time = outcome["event"], outcome["time"]
    order = np.argsort(-time, kind="stable")
    at_risk = np.logaddexp.accumulate(log_hazard[order])
    last = np.searchsorted(-time[order], -time[event], side="right") - 1
    return float((log_hazard[event] - at_risk[last]).sum())


def _survival_at(model: Any, z: np.ndarray, horizons: np.ndarray) -> np.ndarray:
    """Predicted survival at the horizons; flat beyond the last training time."""
    curves = model.predict_survival_function(z, return_array=True)  # (n, n_times)
    before = np.searchsorted(model.unique_times_, horizons, side="right") - 1
    found = curves[:, np.maximum(before, 0)]
    found[:, before < 0] = 1.0
    return np.asarray(found)
