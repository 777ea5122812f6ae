"""Scores of out-of-fold predictions with intervals, as tidy tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._fields import MEAN_TARGET, NO_FEATURES, PLAIN_EXPRESSION
from cfm.metrics._fold_scores import class_scores, survival_scores, value_scores

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.tl._probe_cv import Prediction, Split
    from cfm.tl._probe_target import ProbeTarget

#: By representation and head, metric → ``(1 + n_boot, n_targets)``, the plain score first.
Scores = dict[tuple[str, str], dict[str, np.ndarray]]


def score(
    target: ProbeTarget,
    repeats: Sequence[Prediction],
    splits_of: Sequence[Sequence[Split]],
    horizons: np.ndarray,
    weights: np.ndarray,
) -> dict[str, np.ndarray]:
    """Score each repeat under all weights, and average over the repeats.

    Returns metric → ``(n_draws, n_targets)``.
    """
    _, member, size = np.unique(target.groups, return_inverse=True, return_counts=True)
    mass = 1.0 / size[member.ravel()]
    found = []
    for prediction, splits in zip(repeats, splits_of, strict=True):
        fold = np.empty(len(target.rows), dtype=np.int64)
        for number, (_, test) in enumerate(splits):
            fold[test] = number
        if target.task == "classification":
            one = class_scores(target.strata, prediction.main, fold, weights, mass)
        elif target.task == "regression":
            one = value_scores(target.values, prediction.main, fold, weights)
        else:
            one = _survival(target, prediction, horizons, fold, (weights, mass))
        found.append({name: values.reshape(len(weights), -1) for name, values in one.items()})
    return {name: np.mean([one[name] for one in found], axis=0) for name in found[0]}


def _survival(
    target: ProbeTarget,
    prediction: Prediction,
    horizons: np.ndarray,
    fold: np.ndarray,
    weights: tuple[np.ndarray, np.ndarray],
) -> dict[str, np.ndarray]:
    from sksurv.nonparametric import CensoringDistributionEstimator
    from sksurv.util import Surv

    time, event = target.values[:, 0], target.values[:, 1].astype(bool)
    # how long people were observed says nothing of the predictions, so all observations serve
    censoring = CensoringDistributionEstimator().fit(Surv.from_arrays(event, time))
    at = (censoring.predict_proba(time), censoring.predict_proba(horizons))
    risk, survival = prediction.main[:, 0], prediction.survival
    return survival_scores(time, event, risk, survival, horizons, at, fold, *weights)


def _names(target: ProbeTarget) -> list[str]:
    return target.names if target.task == "regression" else ["/".join(target.names)]


def _with_mean(values: np.ndarray, names: list[str]) -> list[tuple[str, np.ndarray]]:
    """Scores of each target, and first the mean over targets where there are several."""
    columns = list(zip(names, values.T, strict=True))
    if len(names) == 1:
        return columns
    known = np.isfinite(values)
    n_known = known.sum(axis=1)
    total = np.where(known, values, 0.0).sum(axis=1)
    mean = np.divide(total, n_known, out=np.full(len(values), np.nan), where=n_known > 0)
    return [(MEAN_TARGET, mean), *columns]


def _interval(draws: np.ndarray, confidence: float) -> tuple[float, float]:
    known = draws[np.isfinite(draws)]
    # few draws with anything to compare are no sample of what could have been
    if known.size < max(2, len(draws) // 2):
        return float("nan"), float("nan")
    tail = (1 - confidence) / 2
    low, high = np.quantile(known, [tail, 1 - tail])
    return float(low), float(high)


def tabulate(target: ProbeTarget, scores: Scores, confidence: float) -> pd.DataFrame:
    """One row per representation, head, target and metric."""
    rows = []
    counts = _counts(target)
    for (representation, head), by_metric in scores.items():
        for metric, values in by_metric.items():
            for name, draws in _with_mean(values, _names(target)):
                low, high = _interval(draws[1:], confidence)
                n_obs, n_groups = counts[name]
                rows.append(
                    {
                        "representation": representation,
                        "head": head,
                        "target": name,
                        "metric": metric,
                        "score": float(draws[0]),
                        "low": low,
                        "high": high,
                        "n_obs": n_obs,
                        "n_groups": n_groups,
                    }
                )
    return _strings_index(pd.DataFrame(rows))


def compare(target: ProbeTarget, scores: Scores, confidence: float) -> pd.DataFrame:
    """Differences to plain expression and to no features, paired over the draws."""
    columns = ["representation", "baseline", "head", "target", "metric"]
    rows = []
    for (representation, head), by_metric in scores.items():
        if representation == NO_FEATURES:
            continue
        for (baseline, other_head), others in scores.items():
            is_plain = baseline == PLAIN_EXPRESSION and other_head == head
            if baseline == representation or not (is_plain or baseline == NO_FEATURES):
                continue
            for metric, values in by_metric.items():
                pairs = zip(
                    _with_mean(values, _names(target)),
                    _with_mean(others[metric], _names(target)),
                    strict=True,
                )
                for (name, own), (_, other) in pairs:
                    low, high = _interval((own - other)[1:], confidence)
                    difference = float(own[0] - other[0])
                    key = (representation, baseline, head, name, metric)
                    rows.append([*key, difference, low, high])
    return _strings_index(pd.DataFrame(rows, columns=[*columns, "difference", "low", "high"]))


def _counts(target: ProbeTarget) -> dict[str, tuple[int, int]]:
    """Observations and groups behind each row of the table, by target."""
    names, member = np.unique(target.groups, return_inverse=True)
    everything = (len(target.rows), len(names))
    counts = dict.fromkeys([MEAN_TARGET, *_names(target)], everything)
    if target.task == "regression":
        known = np.isfinite(target.values)
        for name, used in zip(target.names, known.T, strict=True):
            counts[name] = (int(used.sum()), int((np.bincount(member[used]) > 0).sum()))
    return counts


def _strings_index(frame: pd.DataFrame) -> pd.DataFrame:
    frame.index = frame.index.astype(str)
    return frame
