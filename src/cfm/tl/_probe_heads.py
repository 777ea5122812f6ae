"""Small supervised models on top of a representation, from scikit-learn and scikit-survival."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.decomposition import PCA
from sklearn.impute import SimpleImputer
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cfm.tl._probe_target import Task

#: Weights of the squared-coefficient penalty, the strongest first: among equals it is taken.
PENALTIES = (1000.0, 100.0, 10.0, 1.0, 0.1)
#: The same for the elastic net of Cox, on features of unit variance.
NET_PENALTIES = (0.3, 0.1, 0.03)
_N_TREES = 300


@dataclass(frozen=True)
class Head:
    """A kind of supervised model.

    Attributes
    ----------
    name
        As the user calls it.
    settings
        Candidates among which the inner folds choose; one where nothing is chosen.
    make
        Builds the estimator from a setting, a seed and the weights of classes.
    is_rotation_free
        Whether a rotation of the features changes nothing, so that a wide table may be replaced
        by its principal components, all of them: ridge penalties, not trees or sparse models.
    """

    name: str
    settings: tuple[float, ...]
    make: Callable[[Any, int, str | None], Any]
    is_rotation_free: bool


def _logistic(penalty: float, seed: int, class_weight: str | None) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=1 / penalty, class_weight=class_weight, max_iter=2000)


def _forest_of_classes(_: float, seed: int, class_weight: str | None) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(_N_TREES, class_weight=class_weight, random_state=seed)


def _ridge(penalty: Any, seed: int, class_weight: str | None) -> Any:
    from sklearn.linear_model import Ridge

    return Ridge(alpha=penalty)


def _forest_of_values(_: float, seed: int, class_weight: str | None) -> Any:
    from sklearn.ensemble import RandomForestRegressor

    return RandomForestRegressor(
        _N_TREES, min_samples_leaf=3, max_features="sqrt", random_state=seed
    )


def _cox(penalty: float, seed: int, class_weight: str | None) -> Any:
    from sksurv.linear_model import CoxPHSurvivalAnalysis

    return CoxPHSurvivalAnalysis(alpha=penalty)


def _cox_elastic_net(penalty: float, seed: int, class_weight: str | None) -> Any:
    from sksurv.linear_model import CoxnetSurvivalAnalysis

    return CoxnetSurvivalAnalysis(alphas=[penalty], l1_ratio=0.5, fit_baseline_model=True)


def _survival_forest(_: float, seed: int, class_weight: str | None) -> Any:
    from sksurv.ensemble import RandomSurvivalForest

    return RandomSurvivalForest(_N_TREES, min_samples_leaf=3, random_state=seed)


HEADS: dict[str, tuple[Head, ...]] = {
    "classification": (
        Head("logistic", PENALTIES, _logistic, True),
        Head("random_forest", (0.0,), _forest_of_classes, False),
    ),
    "regression": (
        Head("ridge", PENALTIES, _ridge, True),
        Head("random_forest", (0.0,), _forest_of_values, False),
    ),
    "survival": (
        Head("cox", PENALTIES, _cox, True),
        Head("random_survival_forest", (0.0,), _survival_forest, False),
        Head("cox_elastic_net", NET_PENALTIES, _cox_elastic_net, False),
    ),
}


def choose_heads(names: str | Sequence[str] | None, task: Task, n_targets: int) -> list[Head]:
    """Return the heads by name; by default the first two, of several targets the first.

    Raises
    ------
    ImportError
        If the task is survival and scikit-survival is not installed.
    ValueError
        If a name is not known or none is given.
    """
    known = {head.name: head for head in HEADS[task]}
    if task == "survival" and find_spec("sksurv") is None:
        raise ImportError(
            "task='survival' needs scikit-survival, which is not installed; "
            "pip install 'cfm-tools[survival]'."
        )
    if names is None:
        return list(HEADS[task][: 1 if task == "regression" and n_targets > 1 else 2])
    asked = [names] if isinstance(names, str) else list(names)
    unknown = [name for name in asked if name not in known]
    if unknown or not asked:
        raise ValueError(
            f"heads={asked} is not known for task={task!r}; choose some of {list(known)}."
        )
    return [known[name] for name in dict.fromkeys(asked)]


class UnitEnergy(TransformerMixin, BaseEstimator):
    """Divide all features by one number, so that rows have length 1 in the root mean square.

    A penalty then means the same for 10 features and 10,000, and features keep their proportions.
    """

    def fit(self, X: np.ndarray, y: Any = None) -> UnitEnergy:
        """Measure the rows."""
        energy = float(np.mean(np.sum(np.square(X), axis=1)))
        self.scale_ = np.sqrt(energy) if energy > 0 else 1.0
        return self

    def transform(self, X: np.ndarray) -> np.ndarray:
        """Divide."""
        return np.asarray(X) / self.scale_


def preprocessing(
    head: Head, shape: tuple[int, int], n_components: int | None, seed: int
) -> Pipeline:
    """Return the steps between a representation and a head, to be fitted on training data only.

    Missing values become the mean. A representation is brought to unit variance; plain expression
    (``n_components`` is given) to its principal components.

    Parameters
    ----------
    head
        What comes next.
    shape
        Of the training data.
    n_components
        Principal components to keep, ``None`` for no PCA.
    seed
        Of the randomised PCA of large tables.
    """
    n, width = shape
    steps: list[Any] = [SimpleImputer(keep_empty_features=True)]
    if n_components is None:
        steps.append(StandardScaler())
        if head.is_rotation_free and width > n:
            steps.append(PCA(svd_solver="full"))
    else:
        most = max(1, min(n_components, n - 1, width))
        steps.append(PCA(most, random_state=seed))
    if head.is_rotation_free:
        steps.append(UnitEnergy())
    elif head.name == "cox_elastic_net":
        steps.append(StandardScaler())
    return make_pipeline(*steps)
