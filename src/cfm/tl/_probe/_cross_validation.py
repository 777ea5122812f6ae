"""Nested cross-validation of small supervised models (heads) with whole groups."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import KFold, StratifiedGroupKFold, StratifiedKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from cfm.metrics._fold_scores import partial_likelihood

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cfm.tl._probe._data import Target, Task

Split = tuple[np.ndarray, np.ndarray]

#: Inner folds, enough to choose between five penalties.
N_INNER_FOLDS = 3
#: Principal components of plain expression, the default of :func:`scanpy.pp.pca`.
N_COMPONENTS = 50
#: By task the heads; by default the first two.
HEADS = {
    "classification": ("logistic", "random_forest"),
    "regression": ("ridge", "random_forest"),
    "survival": ("cox", "random_survival_forest", "cox_elastic_net"),
}
#: Heads with ridge penalties, which are invariant to rotations of the features: all principal
#: components may replace a wide table.
_ROTATION_FREE = ("logistic", "ridge", "cox")
#: Weights of the squared-coefficient penalty; ties go to the first, the strongest.
_PENALTIES: tuple[float, ...] = (1000.0, 100.0, 10.0, 1.0, 0.1)
#: Candidates of the inner folds. Features of the elastic net have unit variance.
_SETTINGS = dict.fromkeys(_ROTATION_FREE, _PENALTIES) | {"cox_elastic_net": (0.3, 0.1, 0.03)}
_N_TREES = 300
#: Attempts at a split with all strata in every training part.
_ATTEMPTS = 20


def choose_heads(names: str | Sequence[str] | None, task: Task, n_targets: int) -> list[str]:
    """Return the heads; by default the first two, of several targets the first.

    Raises
    ------
    ImportError
        If the task is survival and scikit-survival is not installed.
    ValueError
        If a name is not known or none is given.
    """
    if task == "survival" and find_spec("sksurv") is None:
        raise ImportError(
            "task='survival' needs scikit-survival, which is not installed; "
            "pip install 'cfm-tools[survival]'."
        )
    if names is None:
        return list(HEADS[task][: 1 if task == "regression" and n_targets > 1 else 2])
    given = [names] if isinstance(names, str) else list(names)
    if not given or not set(given) <= set(HEADS[task]):
        raise ValueError(
            f"heads={given} is not known for task={task!r}; choose some of {list(HEADS[task])}."
        )
    return list(dict.fromkeys(given))


def _estimator(task: Task, head: str, setting: Any, seed: int) -> Any:
    """Return an unfitted head; classes have equal weights, as in the scores."""
    if head == "logistic":
        return LogisticRegression(C=1 / setting, class_weight="balanced", max_iter=2000)
    if head == "ridge":
        return Ridge(alpha=setting)
    if head == "random_forest" and task == "classification":
        return RandomForestClassifier(_N_TREES, class_weight="balanced", random_state=seed)
    if head == "random_forest":
        return RandomForestRegressor(
            _N_TREES, min_samples_leaf=3, max_features="sqrt", random_state=seed
        )
    from sksurv.ensemble import RandomSurvivalForest
    from sksurv.linear_model import CoxnetSurvivalAnalysis, CoxPHSurvivalAnalysis

    if head == "cox":
        return CoxPHSurvivalAnalysis(alpha=setting)
    if head == "cox_elastic_net":
        return CoxnetSurvivalAnalysis(alphas=[setting], l1_ratio=0.5, fit_baseline_model=True)
    return RandomSurvivalForest(_N_TREES, min_samples_leaf=3, random_state=seed)


class UnitEnergy(TransformerMixin, BaseEstimator):
    """Divide all features by one number, so that rows have a root mean square length of 1.

    Penalties are then comparable between 10 and 10,000 features, and features keep their ratios.
    """

    def fit(self, X: np.ndarray, y: Any = None) -> UnitEnergy:
        """Compute the scale from the rows."""
        energy = float(np.mean(np.sum(np.square(X), axis=1)))
        self.scale_ = np.sqrt(energy) if energy > 0 else 1.0
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Divide by the scale."""
        return np.asarray(X) / self.scale_


def preprocessing(head: str, shape: tuple[int, int], reduce: bool, seed: int) -> Pipeline:
    """Return the steps between a representation and a head, fitted on training data only.

    Missing values become the mean. A representation is scaled to unit variance; plain expression
    (``reduce``) is reduced to its principal components. ``shape`` is that of the training data.
    """
    n, width = shape
    rotation_free = head in _ROTATION_FREE
    steps: list[Any] = [SimpleImputer(keep_empty_features=True)]
    if reduce:
        steps.append(PCA(max(1, min(N_COMPONENTS, n - 1, width)), random_state=seed))
    else:
        steps.append(StandardScaler())
        if rotation_free and width > n:
            steps.append(PCA(svd_solver="full"))
    if rotation_free:
        steps.append(UnitEnergy())
    elif head == "cox_elastic_net":
        steps.append(StandardScaler())
    return make_pipeline(*steps)


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
        ``(n,)`` share of the training observations with a lower risk by the same model, which is
        comparable between folds, unlike the risk.
    """

    main: np.ndarray
    survival: np.ndarray = field(default_factory=lambda: np.empty(0))
    percentile: np.ndarray = field(default_factory=lambda: np.empty(0))

    def part(self, rows: np.ndarray) -> Prediction:
        """Return the predictions of some observations."""
        parts = (self.main, self.survival, self.percentile)
        return Prediction(*(part[rows] if part.size else part for part in parts))


def make_splits(
    strata: np.ndarray, groups: np.ndarray, n_folds: int, seed: int, *, grouped: bool
) -> list[Split]:
    """Cut observations into folds of whole groups with about equal shares of each stratum.

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
    n_folds = min(n_folds, len(np.unique(groups)) if grouped else len(strata))
    if n_folds < 2:
        return []
    kind: Any = KFold
    if grouped:
        kind = StratifiedGroupKFold
    elif len(np.unique(strata)) > 1 and np.bincount(strata).max() >= n_folds:
        kind = StratifiedKFold
    splits: list[Split] = []
    for attempt in range(_ATTEMPTS):
        cut = kind(n_folds, shuffle=True, random_state=seed + 1000 * attempt)
        with warnings.catch_warnings():
            # inner folds may lack a rare class, which _is_learnable checks
            warnings.filterwarnings("ignore", "The least populated class in y")
            pairs = cut.split(strata, strata, groups if grouped else None)
            splits = [(train, test) for train, test in pairs if len(test)]
        if len(splits) == n_folds and all(_is_learnable(strata, train) for train, _ in splits):
            break
    return splits


def _is_learnable(strata: np.ndarray, rows: np.ndarray) -> bool:
    """Return whether the rows have several strata, or there is only one."""
    return len(np.unique(strata[rows])) > 1 or len(np.unique(strata)) == 1


def out_of_fold(
    features: np.ndarray,
    target: Target,
    head: str,
    splits: Iterable[Split],
    horizons: np.ndarray,
    seed: int,
    *,
    reduce: bool,
) -> Prediction:
    """Predict each observation by a model that is trained without its group.

    In each fold an inner cross-validation of the training rows chooses the setting of the head;
    preprocessing is fitted on the training rows of each inner and outer fold.

    Parameters
    ----------
    features
        ``(n, n_features)``.
    target
        Target of the same observations.
    head
        Name of the model.
    splits
        Outer folds.
    horizons
        ``(n_horizons,)`` times at which survival is predicted; empty for other tasks.
    seed
        Seed of inner folds and forests.
    reduce
        Whether features are reduced to principal components.
    """
    n = len(features)
    width = len(target.classes) or (1 if target.task == "survival" else target.values.shape[1])
    main = np.zeros((n, width)) if target.classes else np.full((n, width), np.nan)
    survival: np.ndarray = np.full((n, len(horizons)), np.nan)
    percentile: np.ndarray = np.full(n, np.nan)
    for train, test in splits:
        for columns, rows in _complete_parts(target, train):
            setting = _tune(features, target, head, rows, columns, seed, reduce)
            steps = preprocessing(head, (len(rows), features.shape[1]), reduce, seed)
            x = steps.fit_transform(features[rows])
            model = _estimator(target.task, head, setting, seed)
            model.fit(x, _outcome(target, rows, columns))
            z = steps.transform(features[test])
            if target.task == "classification":
                # a class without training rows keeps probability 0
                main[np.ix_(test, model.classes_)] = model.predict_proba(z)
            elif target.task == "regression":
                main[np.ix_(test, columns)] = model.predict(z).reshape(len(test), -1)
            else:
                main[test, 0] = model.predict(z)
                survival[test] = _survival_at(model, z, horizons)
                known = np.sort(model.predict(x))
                sides = [np.searchsorted(known, main[test, 0], side) for side in ("left", "right")]
                percentile[test] = (sides[0] + sides[1]) / (2 * len(known))
    return Prediction(main, survival, percentile) if target.task == "survival" else Prediction(main)


def trivial(target: Target, splits: Iterable[Split], horizons: np.ndarray) -> Prediction:
    """Predict without features: class frequencies, the mean, or one Kaplan–Meier curve."""
    n = len(target.rows)
    main = np.zeros((n, len(target.classes) or target.values.shape[1]))
    survival = np.empty((n, len(horizons)))
    for train, test in splits:
        if target.task == "classification":
            main[test] = np.bincount(target.strata[train], minlength=main.shape[1]) / len(train)
        elif target.task == "regression":
            main[test] = np.nanmean(target.values[train], axis=0)
        else:
            from sksurv.nonparametric import SurvivalFunctionEstimator

            curve = SurvivalFunctionEstimator().fit(_outcome(target, train, np.arange(2)))
            last = curve.unique_time_[np.isfinite(curve.unique_time_)].max()
            survival[test] = curve.predict_proba(np.minimum(horizons, last))
    if target.task == "survival":
        return Prediction(main[:, :1], survival, np.full(n, 0.5))
    return Prediction(main)


def _complete_parts(target: Target, rows: np.ndarray) -> Iterable[tuple[np.ndarray, np.ndarray]]:
    """Yield targets with values in the same of these rows, and those rows."""
    if target.task != "regression":
        return [(np.arange(target.values.shape[1]), rows)]
    known = np.isfinite(target.values[rows])
    patterns, part = np.unique(known, axis=1, return_inverse=True)
    parts = [
        (np.flatnonzero(part.ravel() == k), rows[patterns[:, k]]) for k in range(patterns.shape[1])
    ]
    # a target without training rows has no prediction
    return [(columns, part_rows) for columns, part_rows in parts if len(part_rows) > 1]


def _outcome(target: Target, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
    if target.task == "survival":
        from sksurv.util import Surv

        time, event = target.values[rows].T
        return Surv.from_arrays(event.astype(bool), time)
    if target.task == "classification":
        return target.strata[rows]
    return target.values[np.ix_(rows, columns)]


def _tune(
    features: np.ndarray,
    target: Target,
    head: str,
    rows: np.ndarray,
    columns: np.ndarray,
    seed: int,
    reduce: bool,
) -> Any:
    """Choose the setting with the best mean score of the inner folds, per target."""
    settings = _SETTINGS.get(head)
    if settings is None:
        return None
    # training rows of one group are split by observation
    grouped = target.grouped and len(np.unique(target.groups[rows])) > 1
    inner = make_splits(
        target.strata[rows], target.groups[rows], N_INNER_FOLDS, seed, grouped=grouped
    )
    scores, sizes = [], []
    for train, test in inner:
        train, test = rows[train], rows[test]
        if not _is_learnable(target.strata, train):
            continue
        steps = preprocessing(head, (len(train), features.shape[1]), reduce, seed)
        x, z = steps.fit_transform(features[train]), steps.transform(features[test])
        y, truth = (_outcome(target, side, columns) for side in (train, test))
        models = [_estimator(target.task, head, setting, seed) for setting in settings]
        one = [_inner_score(model, target.task, (x, y), (z, truth)) for model in models]
        if np.isfinite(one).any():
            scores.append(one)
            sizes.append(len(test))
    if not scores:  # nothing to choose by
        return settings[len(settings) // 2]
    mean = np.average(np.nan_to_num(scores, nan=-np.inf), axis=0, weights=sizes)
    best = np.asarray(settings)[mean.argmax(axis=0)]  # (n_targets,)
    return best if target.task == "regression" else float(best[0])


def _inner_score(
    model: Any, task: Task, train: tuple[Any, Any], test: tuple[Any, Any]
) -> np.ndarray:
    """Return minus the squared error of each target, or a log-likelihood; larger = better.

    Survival has the cross-validated partial likelihood (Verweij and van Houwelingen 1993): the
    contribution of the test rows to that of all rows. A concordance hardly depends on penalties.
    """
    (x, y), (z, truth) = train, test
    if task == "survival":
        try:
            model.fit(x, y)
            fitted = model.predict(x)
            score = partial_likelihood(np.append(y, truth), np.append(fitted, model.predict(z)))
            return np.array([score - partial_likelihood(y, fitted)])
        except (ArithmeticError, ValueError):  # the penalty is too weak for the fit to converge
            return np.array([np.nan])
    model.fit(x, y)
    if task == "regression":
        return -((truth - model.predict(z).reshape(truth.shape)) ** 2).mean(axis=0)
    proba = np.zeros((len(truth), max(int(truth.max()), int(model.classes_.max())) + 1))
    proba[:, model.classes_] = model.predict_proba(z)
    own = np.log(np.clip(proba[np.arange(len(truth)), truth], 1e-3, 1))
    # classes have equal weights, as in the scores
    return np.array([np.mean([own[truth == c].mean() for c in np.unique(truth)])])


def _survival_at(model: Any, z: np.ndarray, horizons: np.ndarray) -> np.ndarray:
    """Return predicted survival at the horizons; constant after the last training time."""
    curves = model.predict_survival_function(z, return_array=True)  # (n, n_times)
    before = np.searchsorted(model.unique_times_, horizons, side="right") - 1
    found = curves[:, np.maximum(before, 0)]
    found[:, before < 0] = 1.0
    return np.asarray(found)
