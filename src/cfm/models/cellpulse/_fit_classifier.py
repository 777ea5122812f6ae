"""Fits the wide-and-deep virus classifier: convex problems, and calibration out of fold."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from cfm._fields import UNINFECTED
from cfm.data._warn import warn_user
from cfm.metrics import unit_weights
from cfm.models.cellpulse._classifier import (
    SIGNED_STATISTICS,
    novelty_components,
    novelty_rank,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfm.models.cellpulse._classifier import VirusClassifier

#: Inverse penalties that are averaged: neither is better, and the mean of both is steadier.
PENALTIES = (100.0, 1000.0)
DEEP_SCALES = (0.0, 0.25, 0.5)
_TEMPERATURES = (0.8, 1.25)
#: A profile is called unknown when it is more unusual than this share of the held-out profiles
#: of known viruses.
NOVELTY_QUANTILE = 0.95
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


def weighted_quantile(values: np.ndarray, weight: np.ndarray, q: float) -> float:
    """Smallest value with at least ``q`` of the weight at or below it."""
    order = np.argsort(values)
    share = np.cumsum(weight[order]) / weight.sum()
    return float(values[order][min(int(np.searchsorted(share, q)), len(values) - 1)])


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
        self._wide, self._common, self._deep = (
            v[teaching].astype(np.float64) for v in rows.views[:3]
        )
        self._grams = [v @ v.T for v in (self._wide, self._common, self._deep)]
        self.labels = rows.labels[teaching]
        self.studies = rows.studies[teaching]
        self.truth = np.searchsorted(classes, self.labels)
        #: Every (virus, study) unit weighs the same: how predictions are judged.
        self.unit_weight = unit_weights(self.labels, self.studies)

    def fits(
        self, train: np.ndarray, scale: float, penalties: Sequence[float]
    ) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Fit once per wide view and penalty on some of the rows.

        Yields the view (0 or 1), dual weights and intercepts of the rows' viruses, sorted.
        """
        weight = unit_weights(self.labels[train], self.studies[train], balance_labels=True)
        inside = np.ix_(train, train)
        for view in (0, 1):
            gram = self._grams[view][inside] + scale**2 * self._grams[2][inside]
            for penalty in penalties:
                _, dual, intercept = softmax_regression(gram, self.labels[train], weight, penalty)
                yield view, dual, intercept

    def out_of_fold(self, scale: float, penalties: Sequence[float] = PENALTIES) -> np.ndarray:
        """Return ``(m, classes)`` logits of each row, fitted without its study.

        The mean over the fits; ``-inf`` for viruses that only this study has.
        """
        logits = np.full((len(self.rows), len(self.classes)), -np.inf)
        for test in self.folds():
            cross = np.ix_(test, ~test)
            total, n = np.zeros(0), 0
            for view, dual, intercept in self.fits(~test, scale, penalties):
                gram = self._grams[view][cross] + scale**2 * self._grams[2][cross]
                each = gram @ dual + intercept
                total, n = (each if n == 0 else total + each), n + 1
            columns = np.searchsorted(self.classes, np.unique(self.labels[~test]))
            logits[np.ix_(test, columns)] = total / n
        return logits

    def folds(self) -> Iterator[np.ndarray]:
        """Yield the rows of each study, ``(m,)`` bool, where the others hold two viruses."""
        for study in np.unique(self.studies):
            test = self.studies == study
            if len(np.unique(self.labels[~test])) >= 2:
                yield test

    def centroids(self, train: np.ndarray) -> np.ndarray:
        """Return the mean profile of each virus, studies weighing alike, ``(classes, genes)``.

        Rows of unit length; 0 for viruses that are not among the rows.
        """
        out = np.zeros((len(self.classes), self._wide.shape[1]))
        for i, virus in enumerate(self.classes):
            rows = train & (self.labels == virus)
            if rows.any():
                weight = unit_weights(self.labels[rows], self.studies[rows])
                mean = weight @ self._wide[rows]
                out[i] = mean / max(np.linalg.norm(mean), 1e-12)
        return out

    def novelty(self, held_out: np.ndarray, temperature: float) -> np.ndarray:
        """Return the novelty components of rows fitted without their study, ``(m, 2)``."""
        out = np.full((len(self.rows), 2), np.nan)
        for test in self.folds():
            parts = (held_out[test] / temperature, self._wide[test], self.centroids(~test))
            out[test] = novelty_components(*map(torch.from_numpy, parts)).numpy()
        return out

    def known(self, held_out: np.ndarray) -> np.ndarray:
        """Rows whose virus was learned from other studies, ``(m,)`` bool."""
        return np.isfinite(held_out[np.arange(len(held_out)), self.truth])

    def choose_deep_scale(self, scales: Sequence[float]) -> float:
        """Return the scale with the smallest log loss on left-out studies.

        Only one that beats the first by more than the standard error over (virus, study) units;
        with few units a free choice is a choice of noise.
        """
        first, best, loss = float(scales[0]), float(scales[0]), 0.0
        if len(scales) == 1:
            return first
        reference: np.ndarray | None = None
        for scale in scales:
            held_out = self.out_of_fold(scale, penalties=PENALTIES[:1])
            if not self.known(held_out).any():  # every virus has one study: nothing to compare
                return first
            losses = self.unit_losses(held_out)
            if reference is None:
                reference = losses
            elif clearly_lower(losses, reference) and (losses - reference).mean() < loss:
                best, loss = float(scale), float((losses - reference).mean())
        return best

    def unit_losses(self, held_out: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Return the mean log loss of each (virus, study) unit whose virus was known."""
        known = self.known(held_out)
        log_p = log_softmax(held_out[known] / temperature, axis=1)
        losses = -log_p[np.arange(known.sum()), self.truth[known]]
        names = np.char.add(np.char.add(self.labels[known], "|"), self.studies[known])
        unit = np.unique(names, return_inverse=True)[1]
        return np.bincount(unit, weights=losses) / np.bincount(unit)

    def store(self, classifier: VirusClassifier, scale: float, held_out: np.ndarray) -> None:
        """Fit on all rows, calibrate on the held-out logits, and fill the classifier."""
        fits = list(self.fits(np.ones(len(self.rows), dtype=bool), scale, PENALTIES))
        for view, dual, intercept in fits:
            wide = classifier.wide_common if view else classifier.wide_all
            inputs = self._common if view else self._wide
            for parameter, value in (
                (wide, dual.T @ inputs),
                (classifier.deep, scale**2 * dual.T @ self._deep),
                (classifier.bias, intercept),
            ):
                parameter.data += torch.from_numpy(value / len(fits)).float()
        known = self.known(held_out)
        if not known.any():
            return
        weight = self.unit_weight[known]
        temperature = fit_temperature(held_out[known], self.truth[known], weight)
        if not clearly_lower(self.unit_losses(held_out, temperature), self.unit_losses(held_out)):
            temperature = 1.0
        classifier.temperature.fill_(temperature)
        classifier.centroids = torch.from_numpy(
            self.centroids(np.ones(len(self.rows), dtype=bool))
        ).float()
        components = self.novelty(held_out, temperature)[known]
        reference = torch.from_numpy(np.sort(components, axis=0)).float()
        classifier.novelty_reference = reference
        ranks = novelty_rank(torch.from_numpy(components).float(), reference).numpy()
        classifier.novelty_threshold.fill_(weighted_quantile(ranks, weight, NOVELTY_QUANTILE))

    def log_proba(self, classifier: VirusClassifier, held_out: np.ndarray) -> np.ndarray:
        """Return calibrated held-out log-probabilities, ``NaN`` where the virus was not known."""
        log_p = log_softmax(held_out / float(classifier.temperature), axis=1)
        return np.where(self.known(held_out)[:, None] & np.isfinite(log_p), log_p, np.nan)


def fit_infected(classifier: VirusClassifier, rows: Rows, infected: np.ndarray) -> np.ndarray:
    """Fit the log-odds of infection, calibrate them, and fill the classifier.

    Returns
    -------
    ``(n,)`` calibrated log-odds of each row, fitted without its study.
    """
    if infected.all():
        # Without a negative nothing can be learned of infection: every profile is taken for one.
        classifier.infected_shift.fill_(20.0)
        return np.full(len(infected), 20.0)
    wide, _, _, statistics = (v.astype(np.float64) for v in rows.views)
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


def store_set_scores(
    classifier: VirusClassifier, rows: Rows, fit: VirusFit, held_out: np.ndarray, odds: np.ndarray
) -> None:
    """Store what conformal sets are calibrated on: scores of held-out profiles.

    Adaptive sets (Romano, Sesia & Candès 2020): the score of a profile is the summed probability
    of all answers that are more probable than its true label, 0 where that comes first. Leaving
    the label's own probability out needs no randomisation for sets of one answer where the
    classifier is sure and right. (label, study) units weigh alike; rows whose virus no other study
    has are left out.
    """
    usable = np.isfinite(odds)  # not where the study is the only one of its kind
    odds = np.where(usable, odds, 0.0)
    log_p = np.full((len(rows.labels), len(fit.classes) + 1), -np.inf)
    log_p[:, -1] = -np.logaddexp(0.0, odds)  # log P(uninfected)
    within = fit.log_proba(classifier, held_out)
    log_p[fit.rows, :-1] = np.nan_to_num(within, nan=-np.inf) - np.logaddexp(
        0.0, -odds[fit.rows][:, None]
    )
    truth = np.full(len(rows.labels), -1)
    truth[fit.rows] = np.where(fit.known(held_out), fit.truth, -1)
    truth[rows.labels == UNINFECTED] = len(fit.classes)
    seen = np.flatnonzero((truth >= 0) & usable)
    # The virus of an uninfected profile is never needed: its mass is put on one answer.
    uninfected = rows.labels == UNINFECTED
    log_p[uninfected, 0] = -np.logaddexp(0.0, -odds[uninfected])
    if not len(seen):
        return
    p = np.exp(log_p[seen])
    own = p[np.arange(len(seen)), truth[seen]][:, None]
    scores = np.where(p > own, p, 0.0).sum(axis=1).clip(max=1.0)
    weight = unit_weights(rows.labels[seen], rows.studies[seen])
    classifier.set_scores = torch.from_numpy(scores).float()
    classifier.set_weights = torch.from_numpy(weight).float()
    classifier.set_infected = torch.from_numpy(~uninfected[seen]).float()
