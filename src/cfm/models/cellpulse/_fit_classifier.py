"""Fits the classifier of responses and viruses: convex problems, judged out of fold."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.extmath import randomized_svd

from cfm._fields import NO_RESPONSE, UNINFECTED, VIRAL
from cfm.data._warn import warn_user
from cfm.metrics import unit_weights
from cfm.models.cellpulse._classifier import SIGNED_STATISTICS

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cfm.models.cellpulse._classifier import VirusClassifier

#: Inverse penalties that are averaged: neither is better, and the mean of both is steadier.
PENALTIES = (100.0, 1000.0)
_TEMPERATURES = (0.8, 1.25)
#: Coordinates that kinds of response are told by, the inverse penalty of that fit, and the number
#: of signed sets that are enough to take the coordinates from.
KIND_RANK = 60
KIND_PENALTY = 3.0
MIN_SETS = 100
#: Inverse penalty of the infection term, and size of its statistics beside the wide term.
INFECTED_PENALTY = 1.0
STATISTICS_SCALE = 0.1


def softmax_regression(
    gram: np.ndarray, y: np.ndarray, weight: np.ndarray, penalty: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Multinomial logistic regression with more columns than rows, from inner products alone.

    The solution lies in the row space of the inputs (representer theorem): the logits of a
    profile are its inner products with the training rows times the dual weights.

    Parameters
    ----------
    gram
        ``(n, n)`` inner products of the training rows.
    y, weight
        ``(n,)`` labels and weights.
    penalty
        Inverse strength of the L2 penalty.

    Returns
    -------
    Classes, ``(n, classes)`` dual weights and ``(classes,)`` intercepts.
    """
    values, vectors = np.linalg.eigh(gram)
    keep = values > 1e-10 * max(values[-1], 1e-300)
    scale = np.sqrt(values[keep])
    model = LogisticRegression(C=penalty, max_iter=5000, tol=1e-5)
    with warnings.catch_warnings():
        # A fit that is a hair from its optimum is as good as one at it.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors[:, keep] * scale, y, sample_weight=weight / weight.mean())
    coef, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # softmax of (−s/2, s/2) is the sigmoid of s
        coef = np.vstack([-coef[0], coef[0]]) / 2
        intercept = np.array([-intercept[0], intercept[0]]) / 2
    return model.classes_, (vectors[:, keep] / scale) @ coef.T, intercept


def clearly_lower(losses: np.ndarray, reference: np.ndarray) -> bool:
    """Whether paired losses are lower by more than the standard error of their mean difference."""
    difference = losses - reference
    if len(difference) < 2:
        return False
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return bool(difference.mean() < -error)


def fit_temperature(logits: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    """Return the temperature with the smallest weighted log loss, bounded to 0.8…1.25.

    Classes that a fold did not know have logits of ``-inf``; ``truth`` is never one of them.
    """

    def loss(log_t: float) -> float:
        log_p = log_softmax(logits / np.exp(log_t), axis=1)
        return float(-(weight * log_p[np.arange(len(truth)), truth]).sum())

    bounds = tuple(np.log(_TEMPERATURES))
    return float(np.exp(minimize_scalar(loss, bounds=bounds, method="bounded").x))


def fit_odds_calibration(
    odds: np.ndarray, infected: np.ndarray, weight: np.ndarray
) -> tuple[float, float]:
    """Platt scaling: scale (never negative) and shift of out-of-fold log-odds, weighted."""
    if infected.all() or not infected.any():
        warn_user(
            "All uninfected contrasts are of one study: without another the probability of an "
            "infection is not calibrated."
        )
        return 1.0, 0.0
    model = LogisticRegression(C=100.0)
    model.fit(odds[:, None], infected, sample_weight=weight / weight.mean())
    scale = float(model.coef_[0, 0])
    if scale <= 0:  # out of fold the odds say nothing: answer the base rate
        rate = float(np.average(infected, weights=weight))
        return 0.0, float(np.log(rate / (1.0 - rate)))
    return scale, float(model.intercept_[0])


@dataclass(frozen=True)
class Rows:
    """Labelled training profiles: the classifier's views as arrays, labels and studies."""

    views: tuple[np.ndarray, ...]
    labels: np.ndarray
    studies: np.ndarray


class VirusFit:
    """Fits of the virus term with and without single studies.

    Parameters
    ----------
    rows
        All labelled profiles.
    teaching
        ``(m,)`` positions of those that teach which virus it is.
    classes
        Viruses, sorted.
    """

    def __init__(self, rows: Rows, teaching: np.ndarray, classes: np.ndarray) -> None:
        self.rows = teaching
        self.classes = classes
        self.all_studies = rows.studies
        self._views = [v[teaching].astype(np.float64) for v in rows.views[:2]]
        #: Inner products of all profiles with those that teach.
        self._crosses = [
            v.astype(np.float64) @ own.T for v, own in zip(rows.views[:2], self._views, strict=True)
        ]
        self.labels = rows.labels[teaching]
        self.studies = rows.studies[teaching]
        self.truth = np.searchsorted(classes, self.labels)
        #: Every (virus, study) unit weighs the same: how predictions are judged.
        self.unit_weight = unit_weights(self.labels, self.studies)

    def fits(self, train: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Fit once per wide view and penalty on some of the rows that teach.

        Yields the view (0 or 1), dual weights and intercepts of the rows' viruses, sorted.
        """
        weight = unit_weights(self.labels[train], self.studies[train], balance_labels=True)
        for view in (0, 1):
            gram = self._crosses[view][np.ix_(self.rows[train], train)]
            for penalty in PENALTIES:
                _, dual, intercept = softmax_regression(gram, self.labels[train], weight, penalty)
                yield view, dual, intercept

    def out_of_fold(self) -> np.ndarray:
        """Return ``(n, classes)`` logits of every profile, fitted without its study.

        The mean over the fits; ``-inf`` for viruses that only this study has, and for all where
        the other studies hold fewer than two viruses.
        """
        logits = np.full((len(self.all_studies), len(self.classes)), -np.inf)
        teaching = np.unique(self.studies)
        folds = [([study], self.studies != study) for study in teaching]
        strangers = np.setdiff1d(self.all_studies, teaching).tolist()
        for studies, train in [*folds, (strangers, np.ones(len(self.rows), dtype=bool))]:
            viruses = np.unique(self.labels[train])
            test = np.isin(self.all_studies, studies)
            if len(viruses) < 2 or not test.any():
                continue
            total, n = np.zeros(0), 0
            for view, dual, intercept in self.fits(train):
                each = self._crosses[view][np.ix_(test, train)] @ dual + intercept
                total, n = (each if n == 0 else total + each), n + 1
            logits[np.ix_(test, np.searchsorted(self.classes, viruses))] = total / n
        return logits

    def known(self, held_out: np.ndarray) -> np.ndarray:
        """Rows that teach whose virus was learned from other studies, ``(m,)`` bool."""
        return np.isfinite(held_out[self.rows, self.truth])

    def unit_losses(self, held_out: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Return the mean log loss of each (virus, study) unit whose virus was known."""
        known = self.known(held_out)
        log_p = log_softmax(held_out[self.rows[known]] / temperature, axis=1)
        losses = -log_p[np.arange(known.sum()), self.truth[known]]
        names = np.char.add(np.char.add(self.labels[known], "|"), self.studies[known])
        unit = np.unique(names, return_inverse=True)[1]
        return np.bincount(unit, weights=losses) / np.bincount(unit)

    def store(self, classifier: VirusClassifier, held_out: np.ndarray) -> None:
        """Fit on all rows, calibrate on the held-out logits, and fill the classifier."""
        fits = list(self.fits(np.ones(len(self.rows), dtype=bool)))
        for view, dual, intercept in fits:
            wide = classifier.wide_common if view else classifier.wide_all
            for parameter, value in (
                (wide, dual.T @ self._views[view]),
                (classifier.bias, intercept),
            ):
                parameter.data += torch.from_numpy(value / len(fits)).float()
        known = self.known(held_out)
        if not known.any():
            return
        weight = self.unit_weight[known]
        temperature = fit_temperature(held_out[self.rows[known]], self.truth[known], weight)
        if not clearly_lower(self.unit_losses(held_out, temperature), self.unit_losses(held_out)):
            temperature = 1.0
        classifier.temperature.fill_(temperature)

    def log_proba(self, classifier: VirusClassifier, held_out: np.ndarray) -> np.ndarray:
        """Return scaled held-out log-probabilities, ``NaN`` for viruses that were not known."""
        out = np.full_like(held_out, np.nan)
        known = np.isfinite(held_out).any(axis=1)
        out[known] = log_softmax(held_out[known] / float(classifier.temperature), axis=1)
        return np.where(np.isfinite(out), out, np.nan)


def fit_infected(classifier: VirusClassifier, rows: Rows, infected: np.ndarray) -> np.ndarray:
    """Fit the log-odds of a response, scale them (Platt), and fill the classifier.

    Parameters
    ----------
    infected
        ``(n,)`` bool, responses; the others are differences between controls.

    Returns
    -------
    ``(n,)`` scaled log-odds of each row, fitted without its study.
    """
    if infected.all():
        # Without a negative nothing can be learned of infection: every profile is taken for one.
        classifier.infected_shift.fill_(20.0)
        return np.full(len(infected), 20.0)
    wide, _, statistics = (v.astype(np.float64) for v in rows.views)
    mean, spread = statistics.mean(axis=0), statistics.std(axis=0).clip(min=1e-6)
    flipped = statistics.copy()
    flipped[:, SIGNED_STATISTICS] *= -1.0

    def inputs(wide: np.ndarray, statistics: np.ndarray) -> np.ndarray:
        return np.hstack([wide, STATISTICS_SCALE * (statistics - mean) / spread])

    kind = np.where(infected, "infected", UNINFECTED)
    # Which half of the controls is called the case is arbitrary: each null profile is learned
    # both ways round.
    null = np.flatnonzero(~infected)
    x = np.vstack([inputs(wide, statistics), inputs(-wide[null], flipped[null])])
    kinds = np.concatenate([kind, kind[null]])
    studies = np.concatenate([rows.studies, rows.studies[null]])
    gram = x @ x.T

    def fit(train: np.ndarray) -> tuple[np.ndarray, float]:
        weight = unit_weights(kinds[train], studies[train], balance_labels=True)
        _, dual, intercept = softmax_regression(
            gram[np.ix_(train, train)], kinds[train], weight, INFECTED_PENALTY
        )
        return dual[:, 0] - dual[:, 1], float(intercept[0] - intercept[1])

    n = len(kind)
    odds = np.full(n, np.nan)
    for group in _study_groups(rows.studies):
        test = np.isin(studies, group)
        if len(np.unique(kinds[~test])) == 2:
            dual, intercept = fit(~test)
            own = np.flatnonzero(test[:n])
            odds[own] = gram[np.ix_(own, np.flatnonzero(~test))] @ dual + intercept
    seen = np.isfinite(odds)
    weight = unit_weights(kind[seen], rows.studies[seen], balance_labels=True)
    scale, shift = fit_odds_calibration(odds[seen], infected[seen], weight)
    dual, intercept = fit(np.ones(len(kinds), dtype=bool))
    coef = dual @ x
    of_statistics = coef[wide.shape[1] :] * STATISTICS_SCALE / spread
    classifier.infected_all.data = torch.from_numpy(coef[: wide.shape[1]]).float()
    classifier.infected_statistics.data = torch.from_numpy(of_statistics).float()
    classifier.infected_bias.data.fill_(intercept - float(of_statistics @ mean))
    classifier.infected_scale.fill_(scale)
    classifier.infected_shift.fill_(shift)
    return scale * odds + shift


def _study_groups(studies: np.ndarray, n_groups: int = 10) -> list[np.ndarray]:
    """Put studies into at most ``n_groups`` groups of about as many rows, without randomness."""
    names, sizes = np.unique(studies, return_counts=True)
    order = names[np.argsort(-sizes, kind="stable")]
    return [order[i::n_groups] for i in range(min(n_groups, len(order)))]


def fit_kinds(
    classifier: VirusClassifier, rows: Rows, responses: np.ndarray, signed: np.ndarray
) -> np.ndarray:
    r"""Fit the kinds of response by multinomial logistic regression, and fill the classifier.

    The inputs are the coordinates :math:`c = V^\top u` of unit-length profiles on the leading
    singular vectors :math:`V` of the signed gene sets (of all profiles if there are few sets): few
    numbers, in which the share of a profile that lies in known programmes is kept. Sets and
    measured profiles weigh alike, and within each the kinds, and the studies of a kind.

    Parameters
    ----------
    rows
        All profiles.
    responses
        ``(n,)`` kind of response; :data:`cfm._fields.NO_RESPONSE` and ``""`` take no part.
    signed
        ``(n,)`` bool, rows of −1, 0 and 1.

    Returns
    -------
    ``(n, kinds)`` log-probabilities given a response, each row fitted without its study; ``NaN``
    for studies of signed sets alone, and where one kind would be left.
    """
    kinds = np.array(classifier.responses)
    wide = rows.views[0].astype(np.float64)
    takes_part = np.isin(responses, kinds)
    domain = np.where(signed, "signed", "measured")

    def basis(train: np.ndarray) -> np.ndarray:
        source = train & signed
        if source.sum() < MIN_SETS:
            source = train
        rank = min(KIND_RANK, int(source.sum()) - 1)
        rank = max(1, min(rank, wide.shape[1] - 1))
        _, _, vectors = randomized_svd(wide[source], rank, random_state=0)
        return np.asarray(vectors)

    def fit(train: np.ndarray, vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        x = wide[train] @ vectors.T
        # one scale for all coordinates, in sets and in measured profiles apart
        scale = np.ones(2)
        weight = np.zeros(len(x))
        for i, name in enumerate(("measured", "signed")):
            own = domain[train] == name
            if own.any():
                scale[i] = max(np.sqrt((x[own] ** 2).sum(axis=1).mean()), 1e-12)
                x[own] /= scale[i]
                weight[own] = unit_weights(
                    responses[train][own], rows.studies[train][own], balance_labels=True
                )
        model = LogisticRegression(C=KIND_PENALTY, max_iter=5000, tol=1e-5)
        model.fit(x, responses[train], sample_weight=weight / weight.mean())
        coef, intercept = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # the softmax of (-s/2, s/2) is the sigmoid of s
            coef = np.vstack([-coef[0], coef[0]]) / 2
            intercept = np.array([-intercept[0], intercept[0]]) / 2
        table = np.zeros((len(kinds), wide.shape[1]))
        bias = np.full(len(kinds), -30.0)  # a kind that these rows do not have
        places = [list(kinds).index(name) for name in model.classes_]
        table[places], bias[places] = coef / scale[0] @ vectors, intercept
        return table, bias

    def one_kind(train: np.ndarray) -> bool:
        return len(np.unique(responses[train])) < 2

    held_out = np.full((len(responses), len(kinds)), np.nan)
    if one_kind(takes_part):
        held_out[:] = 0.0
        return held_out
    everyone = basis(takes_part)
    for study in np.unique(rows.studies):
        test = rows.studies == study
        train = takes_part & ~test
        if signed[test].all() or one_kind(train):
            continue
        # coordinates that are taken from signed sets of other studies stay
        shared = (takes_part & signed).sum() >= MIN_SETS and not (signed & test).any()
        vectors = everyone if shared else basis(train)
        table, bias = fit(train, vectors)
        held_out[test] = log_softmax(wide[test] @ table.T + bias, axis=1)
    table, bias = fit(takes_part, everyone)
    classifier.kind.data = torch.from_numpy(table).float()
    classifier.kind_bias.data = torch.from_numpy(bias).float()
    return held_out


def support_records(
    labels: np.ndarray,
    responses: np.ndarray,
    studies: np.ndarray,
    called: np.ndarray,
    virus: np.ndarray,
) -> list[dict[str, Any]]:
    """Count how often each answer was right in studies left out of training.

    Parameters
    ----------
    labels, responses, studies
        ``(n,)`` truth: virus or another label, kind of response, study.
    called, virus
        ``(n,)`` answers for each profile, fitted without its study: kind of response, virus.

    Returns
    -------
    A record for each answer that was given: ``level`` (``"response"``; ``"virus"``; ``"not
    viral"``, by the kind that was called, right if there was a response and no virus),
    ``answer``, ``n_contrasts``, ``n_studies`` and ``share``, the mean over studies of the share
    that was right.
    """
    levels = {"response": (called, called == responses)}
    other = ~np.isin(called, (NO_RESPONSE, VIRAL))
    levels["not viral"] = (
        np.where(other, called, ""),
        ~np.isin(responses, (NO_RESPONSE, VIRAL)),
    )
    levels["virus"] = (np.where(called == VIRAL, virus, ""), virus == labels)
    records = []
    for level, (answers, right) in levels.items():
        for answer in sorted(set(answers) - {""}):
            rows = answers == answer
            shares = pd.Series(right[rows]).groupby(studies[rows]).mean()
            records.append(
                {
                    "level": level,
                    "answer": str(answer),
                    "n_contrasts": int(rows.sum()),
                    "n_studies": len(shares),
                    "share": float(shares.mean()),
                }
            )
    return records
