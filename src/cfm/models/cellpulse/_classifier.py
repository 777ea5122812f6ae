"""The classifier of responses and viruses: its scores, its fit and its answers."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy.optimize import minimize_scalar
from scipy.special import log_expit, log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cfm._adata import warn_user
from cfm._fields import NO_RESPONSE, NOT_VIRAL, UNINFECTED, UNRESOLVED, VIRAL
from cfm.metrics import unit_weights
from cfm.metrics._virus_baselines import INTERFERON_GENES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

#: A virus, or "not viral", is answered where at least this share of such answers was right in
#: studies left out; a kind of response where they were right more often than wrong.
MIN_SUPPORT, MIN_RESPONSE_SUPPORT = 0.8, 0.5
#: Either where at least as many studies got such an answer.
MIN_STUDIES = 3

Names = Literal["supported", "always"]

#: Largest absolute centred effect.
CLIP = 6.0
#: Scalars that describe a profile as a whole, see :func:`profile_statistics`.
N_STATISTICS = 8
#: Those of them that change sign with the profile.
SIGNED_STATISTICS = (2, 5, 6, 7)
#: Inverse penalties that are averaged: neither is better, and the mean of both is steadier.
PENALTIES = (100.0, 1000.0)
_TEMPERATURES = (0.8, 1.25)
#: Number of coordinates from which kinds of response are predicted, inverse penalty of that fit,
#: and fewest signed sets that the coordinates are fitted to.
KIND_RANK = 60
KIND_PENALTY = 3.0
MIN_SETS = 100
#: Inverse penalty of the infection term, and size of its statistics beside the wide term.
INFECTED_PENALTY = 1.0
STATISTICS_SCALE = 0.1


@dataclass(frozen=True)
class VirusPrediction:
    """Answers of the classifier, one row per contrast.

    Attributes
    ----------
    call
        ``(n,)`` object: ``"uninfected"`` (no response), a virus, ``"not viral"`` (a response of
        another kind), or ``"unresolved"`` (a response whose cause studies left out of training do
        not support naming).
    response
        ``(n,)`` object, the kind of response, ``"none"`` for no response, or ``"unresolved"``
        where answers of this kind were mostly wrong in studies left out.
    response_proba
        DataFrame, contrasts by ``"none"`` and the kinds of response; rows sum to 1.
    infected
        ``(n,)`` float32, probability of a viral response.
    virus_proba
        DataFrame, contrasts by viruses, given a viral response; rows sum to 1.
    support
        ``(n,)`` float32, share of such answers that were right in studies left out of training;
        of the kind of response where the call is ``"unresolved"``; NaN where there was none.
    """

    call: np.ndarray
    response: np.ndarray
    response_proba: pd.DataFrame
    infected: np.ndarray
    virus_proba: pd.DataFrame
    support: np.ndarray


class Views(NamedTuple):
    """Inputs of the classifier for a batch of profiles.

    ``all`` and ``common`` ``(b, n_genes)``: centred, clipped effects of unit length over all genes
    and over those that most training profiles measure; ``statistics`` ``(b, 8)``.
    """

    all: Tensor
    common: Tensor
    statistics: Tensor


class Scores(NamedTuple):
    """Output of the classifier for a batch.

    ``virus`` ``(b, classes)`` log-probabilities of the viruses given an infection; ``response``
    ``(b, 1 + kinds)`` log-probabilities of no response and of each kind of response.
    """

    virus: Tensor
    response: Tensor


def unit(x: Tensor) -> Tensor:
    """Scale rows to unit length; rows of zeros stay zeros."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def center(effects: Tensor) -> Tensor:
    """Subtract each row's median over measured genes, clip, and set missing genes to 0."""
    centred = effects - effects.nanmedian(dim=-1, keepdim=True).values
    return centred.clamp(-CLIP, CLIP).nan_to_num(0.0)


def profile_statistics(effects: Tensor, interferon: Tensor) -> Tensor:
    """Return size and shape of profiles.

    Parameters
    ----------
    effects
        ``(b, n_genes)`` log2 fold changes, NaN = not measured.
    interferon
        ``(n_genes,)`` 1 at interferon-stimulated genes, else 0.

    Returns
    -------
    ``(b, 8)``: log of the root mean square; log share of effects above 1; asinh of the mean
    interferon effect; log share beyond three robust standard deviations; log ratio of the mean of
    the largest hundredth to the robust standard deviation; interferon effect in units of the root
    mean square; mean sign of the largest fiftieth; asinh of the skewness. All over measured genes.
    """
    seen = ~torch.isnan(effects)
    x = center(effects)  # (b, g)
    return centred_statistics(x, seen, mean_response(effects, interferon), robust_spread(x, seen))


def mean_response(effects: Tensor, interferon: Tensor) -> Tensor:
    """Return the mean effect of the measured interferon genes, ``(b,)``; 0 if there is none."""
    n = (~torch.isnan(effects) * interferon).sum(-1).clamp(min=1)
    return (effects.nan_to_num(0.0) * interferon).sum(-1) / n


def robust_spread(x: Tensor, seen: Tensor) -> Tensor:
    """Return 1.4826 times the median absolute centred effect of the measured genes, ``(b,)``."""
    blank = torch.full_like(x, float("nan"))
    median = torch.where(seen, x.abs(), blank).nanmedian(dim=-1).values.nan_to_num(0.0)
    return (1.4826 * median).clamp(min=1e-3)


def centred_statistics(x: Tensor, seen: Tensor, response: Tensor, robust: Tensor) -> Tensor:
    """Return :func:`profile_statistics` from centred effects ``(b, g)`` and two of their parts."""
    size = x.abs()
    n = seen.sum(-1).clamp(min=1)
    rms = (x.square().sum(-1) / n).sqrt().clamp(min=1e-3)
    large = ((size > 1.0) & seen).sum(-1) / n
    far = ((size > 3.0 * robust.unsqueeze(-1)) & seen).sum(-1) / n
    # by row, so that a profile with few measured genes is described by its own largest ones
    order = size.sort(dim=-1, descending=True)
    rank = torch.arange(x.shape[-1], device=x.device)
    top = order.values * (rank < (n / 100).ceil().unsqueeze(-1))
    top = top.sum(-1) / (n / 100).ceil()
    signs = x.gather(-1, order.indices).sign() * (rank < (n / 50).ceil().unsqueeze(-1))
    tilt = signs.sum(-1) / (n / 50).ceil()
    skewness = (x / rms.unsqueeze(-1)).pow(3).sum(-1) / n
    return torch.stack(
        [
            rms.log(),
            (large + 1e-3).log(),
            response.asinh(),
            (far + 1e-3).log(),
            (top / robust + 1e-3).log(),
            response / rms,
            tilt,
            skewness.asinh(),
        ],
        dim=-1,
    )


def _checked_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Check a record of support, which may come from a file."""
    kinds = {"level": str, "answer": str, "n_contrasts": int, "n_studies": int, "share": float}
    found = {name: type(value) for name, value in dict(record).items()}
    if found != kinds or not 0 <= record["share"] <= 1:
        raise ValueError(
            f"a record of support is {record!r}; expected {', '.join(kinds)}, and a share in 0…1."
        )
    return dict(record)


class VirusClassifier(nn.Module):
    r"""Linear in the effects of all genes.

    Logits of virus :math:`c` for a profile with unit-length effects :math:`u` (all genes),
    :math:`v` (genes that most training profiles measure):

    .. math:: s_c = (w_c^\top u + w_c'^\top v + b_c) / T

    A binary linear term over :math:`u` and eight statistics of the profile gives the probability
    of a response :math:`p`, against what controls differ by among themselves. A third one, linear
    in :math:`u`, divides it among the kinds of response: :math:`p\,\mathrm{softmax}(R u + a)`.

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    classes
        Viruses, sorted.
    responses
        Kinds of response.
    support
        Records of :func:`support_records`.
    """

    common: Tensor
    temperature: Tensor
    infected_scale: Tensor
    infected_shift: Tensor
    interferon: Tensor

    def __init__(
        self,
        n_genes: int,
        *,
        classes: Sequence[str],
        responses: Sequence[str] = (VIRAL,),
        support: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        self.classes = [str(c) for c in classes]
        self.responses = [str(r) for r in responses]
        self.support = [_checked_record(record) for record in support]
        n = len(self.classes)
        self.wide_all = nn.Parameter(torch.zeros(n, n_genes))
        self.wide_common = nn.Parameter(torch.zeros(n, n_genes))
        self.bias = nn.Parameter(torch.zeros(n))
        self.infected_all = nn.Parameter(torch.zeros(n_genes))
        self.infected_statistics = nn.Parameter(torch.zeros(N_STATISTICS))
        self.infected_bias = nn.Parameter(torch.zeros(()))
        self.kind = nn.Parameter(torch.zeros(len(self.responses), n_genes))
        self.kind_bias = nn.Parameter(torch.zeros(len(self.responses)))
        self.register_buffer("common", torch.ones(n_genes))
        self.register_buffer("temperature", torch.ones(()))
        # log-odds of a response are scaled and shifted: Platt scaling on studies left out
        self.register_buffer("infected_scale", torch.ones(()))
        self.register_buffer("infected_shift", torch.zeros(()))
        self.register_buffer("interferon", torch.zeros(n_genes))

    def settings(self) -> dict[str, Any]:
        """Return what the constructor needs, for the checkpoint."""
        return {
            "classes": self.classes,
            "responses": self.responses,
            "support": self.support,
        }

    def views(self, effects: Tensor) -> Views:
        """Prepare ``(b, n_genes)`` effects (NaN = not measured)."""
        common = torch.where(self.common > 0, effects, torch.full_like(effects, float("nan")))
        statistics = profile_statistics(effects, self.interferon)
        return Views(unit(center(effects)), unit(center(common)), statistics)

    def raw_logits(self, views: Views) -> Tensor:
        """Return logits of the viruses before scaling, ``(b, classes)``."""
        return views.all @ self.wide_all.T + views.common @ self.wide_common.T + self.bias

    def raw_infected(self, views: Views) -> Tensor:
        """Return log-odds of a response before scaling, ``(b,)``."""
        return (
            views.all @ self.infected_all
            + views.statistics @ self.infected_statistics
            + self.infected_bias
        )

    def forward(self, effects: Tensor) -> Scores:
        """Return the scores of profiles; see :class:`Scores`."""
        views = self.views(effects)
        logits = self.raw_logits(views) / self.temperature
        odds = (self.infected_scale * self.raw_infected(views) + self.infected_shift)[:, None]
        kinds = torch.log_softmax(views.all @ self.kind.T + self.kind_bias, dim=-1)
        response = torch.cat([logsigmoid(-odds), logsigmoid(odds) + kinds], dim=-1)
        return Scores(torch.log_softmax(logits, dim=-1), response)


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
        # a fit close to its optimum is as good
        warnings.simplefilter("ignore", ConvergenceWarning)
        model.fit(vectors[:, keep] * scale, y, sample_weight=weight / weight.mean())
    coef, intercept = _softmax_weights(model)
    return model.classes_, (vectors[:, keep] / scale) @ coef.T, intercept


def _softmax_weights(model: LogisticRegression) -> tuple[np.ndarray, np.ndarray]:
    """Return coefficients and intercepts with a row per class, also of two classes."""
    coef, intercept = model.coef_, model.intercept_
    if len(model.classes_) == 2:  # softmax of (−s/2, s/2) is the sigmoid of s
        coef = np.vstack([-coef[0], coef[0]]) / 2
        intercept = np.array([-intercept[0], intercept[0]]) / 2
    return coef, intercept


def clearly_lower(losses: np.ndarray, reference: np.ndarray) -> bool:
    """Whether paired losses are lower by more than the standard error of their mean difference."""
    difference = losses - reference
    if len(difference) < 2:
        return False
    error = difference.std(ddof=1) / np.sqrt(len(difference))
    return bool(difference.mean() < -error)


def fit_temperature(logits: np.ndarray, truth: np.ndarray, weight: np.ndarray) -> float:
    """Return the temperature with the smallest weighted log loss, bounded to 0.8…1.25.

    Classes that are not in a fold have logits of ``-inf``; ``truth`` is never one of them.
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
    if scale <= 0:  # the odds are not informative out of fold: return the base rate
        rate = float(np.average(infected, weights=weight))
        return 0.0, float(np.log(rate / (1.0 - rate)))
    return scale, float(model.intercept_[0])


@dataclass(frozen=True)
class LabelledProfiles:
    """Training profiles: the classifier's views as arrays, labels and studies."""

    views: tuple[np.ndarray, ...]
    labels: np.ndarray
    studies: np.ndarray


class VirusFit:
    """Fits of the virus term with and without single studies.

    Parameters
    ----------
    profiles
        All labelled profiles.
    training
        ``(m,)`` positions of those that the virus term is fitted to.
    classes
        Viruses, sorted.
    """

    def __init__(
        self, profiles: LabelledProfiles, training: np.ndarray, classes: np.ndarray
    ) -> None:
        self.training = training
        self.classes = classes
        self.all_studies = profiles.studies
        views = [view.astype(np.float64) for view in profiles.views[:2]]
        self._views = [view[training] for view in views]
        #: Inner products of all profiles with the training profiles.
        self._crosses = [view @ view[training].T for view in views]
        self.labels = profiles.labels[training]
        self.studies = profiles.studies[training]
        self.truth = np.searchsorted(classes, self.labels)
        #: Predictions are scored with the same weight for every (virus, study) unit.
        self.unit_weight = unit_weights(self.labels, self.studies)

    def fits(self, train: np.ndarray) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Fit once per wide view and penalty on some of the training profiles.

        Yields the view (0 or 1), dual weights and intercepts of their viruses, sorted.
        """
        weight = unit_weights(self.labels[train], self.studies[train], balance_labels=True)
        for view in (0, 1):
            gram = self._crosses[view][np.ix_(self.training[train], train)]
            for penalty in PENALTIES:
                _, dual, intercept = softmax_regression(gram, self.labels[train], weight, penalty)
                yield view, dual, intercept

    def out_of_fold(self) -> np.ndarray:
        """Return ``(n, classes)`` logits of every profile, fitted without its study.

        The mean over the fits; ``-inf`` for viruses that only this study has, and for all where
        the other studies hold fewer than two viruses.
        """
        logits = np.full((len(self.all_studies), len(self.classes)), -np.inf)
        names = np.unique(self.studies)
        folds = [([study], self.studies != study) for study in names]
        other = np.setdiff1d(self.all_studies, names).tolist()
        for studies, train in [*folds, (other, np.ones(len(self.training), dtype=bool))]:
            viruses = np.unique(self.labels[train])
            test = np.isin(self.all_studies, studies)
            if len(viruses) < 2 or not test.any():
                continue
            fitted = [
                self._crosses[view][np.ix_(test, train)] @ dual + intercept
                for view, dual, intercept in self.fits(train)
            ]
            columns = np.searchsorted(self.classes, viruses)
            logits[np.ix_(test, columns)] = sum(fitted) / len(fitted)
        return logits

    def known(self, held_out: np.ndarray) -> np.ndarray:
        """Return which training profiles have a virus that other studies have, ``(m,)`` bool."""
        return np.isfinite(held_out[self.training, self.truth])

    def unit_losses(self, held_out: np.ndarray, temperature: float = 1.0) -> np.ndarray:
        """Return the mean log loss of each (virus, study) unit whose virus other studies have."""
        known = self.known(held_out)
        log_p = log_softmax(held_out[self.training[known]] / temperature, axis=1)
        losses = -log_p[np.arange(known.sum()), self.truth[known]]
        names = np.char.add(np.char.add(self.labels[known], "|"), self.studies[known])
        unit = np.unique(names, return_inverse=True)[1]
        return np.bincount(unit, weights=losses) / np.bincount(unit)

    def store(self, classifier: VirusClassifier, held_out: np.ndarray) -> None:
        """Fit on all rows, calibrate on the held-out logits, and fill the classifier."""
        fits = list(self.fits(np.ones(len(self.training), dtype=bool)))
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
        temperature = fit_temperature(held_out[self.training[known]], self.truth[known], weight)
        if not clearly_lower(self.unit_losses(held_out, temperature), self.unit_losses(held_out)):
            temperature = 1.0
        classifier.temperature.fill_(temperature)

    def log_proba(self, classifier: VirusClassifier, held_out: np.ndarray) -> np.ndarray:
        """Return scaled held-out log-probabilities, ``NaN`` for viruses of no other study."""
        out = np.full_like(held_out, np.nan)
        known = np.isfinite(held_out).any(axis=1)
        out[known] = log_softmax(held_out[known] / float(classifier.temperature), axis=1)
        return np.where(np.isfinite(out), out, np.nan)


def fit_infected(
    classifier: VirusClassifier, rows: LabelledProfiles, infected: np.ndarray
) -> np.ndarray:
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
        # without controls every profile is called a response
        classifier.infected_shift.fill_(20.0)
        return np.full(len(infected), 20.0)
    wide, _, statistics = (v.astype(np.float64) for v in rows.views)
    mean, spread = statistics.mean(axis=0), statistics.std(axis=0).clip(min=1e-6)
    flipped = statistics.copy()
    flipped[:, SIGNED_STATISTICS] *= -1.0

    def inputs(wide: np.ndarray, statistics: np.ndarray) -> np.ndarray:
        return np.hstack([wide, STATISTICS_SCALE * (statistics - mean) / spread])

    kind = np.where(infected, "infected", UNINFECTED)
    # which half of the controls is the case is arbitrary, so each null profile enters both ways
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
    classifier: VirusClassifier, rows: LabelledProfiles, responses: np.ndarray, signed: np.ndarray
) -> np.ndarray:
    r"""Fit the kinds of response by multinomial logistic regression, and fill the classifier.

    The inputs are the coordinates :math:`c = V^\top u` of unit-length profiles on the leading
    singular vectors :math:`V` of the signed gene sets (of all profiles if there are few sets): few
    numbers, which keep the share of a profile that lies in these programmes. Sets and measured
    profiles weigh alike, and within each the kinds, and the studies of a kind.

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
        # one scale for all coordinates of the sets, and one for those of measured profiles
        scale = np.ones(2)
        weight = np.zeros(len(x))
        for i, own in enumerate((~signed[train], signed[train])):
            if own.any():
                scale[i] = max(np.sqrt((x[own] ** 2).sum(axis=1).mean()), 1e-12)
                x[own] /= scale[i]
                weight[own] = unit_weights(
                    responses[train][own], rows.studies[train][own], balance_labels=True
                )
        model = LogisticRegression(C=KIND_PENALTY, max_iter=5000, tol=1e-5)
        model.fit(x, responses[train], sample_weight=weight / weight.mean())
        coef, intercept = _softmax_weights(model)
        table = np.zeros((len(kinds), wide.shape[1]))
        bias = np.full(len(kinds), -30.0)  # of a kind that these rows do not have
        places = [list(kinds).index(name) for name in model.classes_]
        table[places], bias[places] = coef / scale[0] @ vectors, intercept
        return table, bias

    def one_kind(train: np.ndarray) -> bool:
        return len(np.unique(responses[train])) < 2

    if one_kind(takes_part):
        return np.zeros((len(responses), len(kinds)))
    held_out = np.full((len(responses), len(kinds)), np.nan)
    of_all = basis(takes_part)
    for study in np.unique(rows.studies):
        test = rows.studies == study
        train = takes_part & ~test
        if signed[test].all() or one_kind(train):
            continue
        # coordinates that come from signed sets of other studies are not fitted again
        shared = (takes_part & signed).sum() >= MIN_SETS and not (signed & test).any()
        vectors = of_all if shared else basis(train)
        table, bias = fit(train, vectors)
        held_out[test] = log_softmax(wide[test] @ table.T + bias, axis=1)
    table, bias = fit(takes_part, of_all)
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
    no_other = (NO_RESPONSE, VIRAL)
    levels = {
        "response": (called, called == responses),
        "not viral": (
            np.where(np.isin(called, no_other), "", called),
            ~np.isin(responses, no_other),
        ),
        "virus": (np.where(called == VIRAL, virus, ""), virus == labels),
    }
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


def fit_classifier(
    genes: pd.Index,
    effects: np.ndarray,
    labels: np.ndarray,
    studies: np.ndarray,
    responses: np.ndarray,
    teaches_virus: np.ndarray | None = None,
) -> tuple[VirusClassifier, pd.DataFrame]:
    """Fit a classifier to labelled contrasts; see :meth:`CellPulse.train_classifier`.

    Parameters
    ----------
    genes
        The vocabulary.
    effects
        ``(n, n_vocabulary)`` log2 fold changes, ``NaN`` = not measured.
    labels, studies, responses
        ``(n,)`` virus or ``"uninfected"``, study, and kind of response.
    teaches_virus
        ``(n,)`` bool: rows that train which virus it is; all viruses by default.

    Returns
    -------
    The classifier and the out-of-fold predictions.
    """
    infected = labels != UNINFECTED
    wrong = np.flatnonzero(infected != (responses == VIRAL))
    if len(wrong):
        raise ValueError(
            f"{len(wrong)} contrasts have a label and a kind of response that do not fit each "
            f"other, such as {labels[wrong[0]]!r} and {responses[wrong[0]]!r}; expected {VIRAL!r} "
            f"for viruses and another kind where the label is {UNINFECTED!r}."
        )
    signed = np.asarray(np.isin(np.nan_to_num(effects), (-1.0, 0.0, 1.0)).all(axis=1))
    teaches = infected & ~signed
    if teaches_virus is not None:
        if np.shape(teaches_virus) != infected.shape:
            raise ValueError(
                f"teaches_virus has shape {np.shape(teaches_virus)}; expected one value for each "
                f"of the {len(infected)} contrasts."
            )
        teaches &= np.asarray(teaches_virus, dtype=bool)
    viruses = sorted(set(labels[teaches]))
    for answer in {UNRESOLVED, NOT_VIRAL}.intersection(viruses):
        raise ValueError(f"{answer!r} is an answer, not a label; rename it.")
    if len(viruses) < 2:
        raise ValueError(
            f"Found {len(viruses)} virus label(s) {viruses}; a classifier needs at least two."
        )
    if len(set(studies[teaches])) < 2:
        raise ValueError(
            "All contrasts are from one study; nothing can be calibrated without another. "
            "Register the study of each contrast with study_key=."
        )
    kinds = [VIRAL, *sorted(set(responses) - {NO_RESPONSE, VIRAL, ""})]
    classifier = VirusClassifier(len(genes), classes=viruses, responses=kinds)
    classifier.interferon.copy_(torch.from_numpy(genes.isin(INTERFERON_GENES)))
    share = np.isfinite(effects[teaches]).mean(axis=0)
    classifier.common.copy_(torch.from_numpy(share >= min(0.5, share.max())))
    with torch.inference_mode():
        parts = [
            classifier.views(torch.from_numpy(effects[start : start + 64]))
            for start in range(0, len(effects), 64)
        ]
    views = tuple(torch.cat(part).numpy() for part in zip(*parts, strict=True))
    profiles = LabelledProfiles(views, labels.astype(str), studies.astype(str))
    measured = np.flatnonzero(~signed)
    of_measured = LabelledProfiles(
        tuple(view[measured] for view in views),
        profiles.labels[measured],
        profiles.studies[measured],
    )

    fit = VirusFit(of_measured, np.flatnonzero(teaches[measured]), np.array(viruses))
    held_out = np.full((len(labels), len(viruses)), -np.inf)
    held_out[measured] = fit.out_of_fold()
    fit.store(classifier, held_out[measured])
    odds = np.full(len(labels), np.nan)
    odds[measured] = fit_infected(classifier, of_measured, responses[measured] != NO_RESPONSE)
    log_p = fit_kinds(classifier, profiles, responses, signed)
    log_p = np.column_stack([log_expit(-odds), log_p + log_expit(odds)[:, None]])

    names = np.array([NO_RESPONSE, *kinds], dtype=object)
    judged = np.isfinite(log_p).all(axis=1) & ~signed
    # the virus that is named after a fit to the other studies
    virus = fit.classes[held_out.argmax(axis=1)].astype(object)
    virus[~np.isfinite(held_out).any(axis=1)] = ""
    classifier.support = support_records(
        labels[judged],
        responses[judged],
        studies[judged],
        names[call_response(log_p[judged])],
        virus[judged],
    )
    table = pd.DataFrame(fit.log_proba(classifier, held_out), columns=pd.Index(viruses))
    table[names.tolist()] = log_p
    return classifier, table.assign(label=labels, study=studies, response=responses)


def call_response(log_p: np.ndarray) -> np.ndarray:
    """Return the place of the answer in rows of log-probabilities of no response and the kinds."""
    kind = 1 + log_p[:, 1:].argmax(axis=1)
    return np.where(log_p[:, 0] >= np.log(0.5), 0, kind)


def predict_viruses(
    classifier: VirusClassifier, scores: Scores, contrasts: pd.Index, names: Names
) -> VirusPrediction:
    """Turn scores into answers; see :meth:`CellPulse.predict`."""
    response_proba, virus_proba = (
        p / p.sum(axis=1, keepdims=True)
        for p in (table.double().exp().numpy() for table in (scores.response, scores.virus))
    )
    kinds = np.array([NO_RESPONSE, *classifier.responses], dtype=object)
    kind_of = kinds[call_response(scores.response.numpy())]
    virus_of = np.array(classifier.classes, dtype=object)[virus_proba.argmax(axis=1)]
    answers = [
        _answer(classifier, kind, virus, names)
        for kind, virus in zip(kind_of, virus_of, strict=True)
    ]
    call, response, support = zip(*answers, strict=True)
    return VirusPrediction(
        np.array(call, dtype=object),
        np.array(response, dtype=object),
        pd.DataFrame(response_proba, index=contrasts, columns=kinds.astype(str)),
        response_proba[:, 1].astype(np.float32),
        pd.DataFrame(virus_proba, index=contrasts, columns=classifier.classes),
        np.array(support, dtype=np.float32),
    )


def _answer(
    classifier: VirusClassifier, kind: str, virus: str, names: Names
) -> tuple[str, str, float]:
    """Return the call, the response and the support of the most probable kind and virus."""

    def is_given(level: str, answer: str, least: float) -> tuple[bool, float]:
        for record in classifier.support:
            if (record["level"], record["answer"]) == (level, answer):
                share, n_studies = float(record["share"]), int(record["n_studies"])
                return names == "always" or (share >= least and n_studies >= MIN_STUDIES), share
        return names == "always", float("nan")

    resolved, share = is_given("response", kind, MIN_RESPONSE_SUPPORT)
    if kind == NO_RESPONSE:  # is always answered, with its support
        return UNINFECTED, kind, share
    response, of_response = (kind, share) if resolved else (UNRESOLVED, float("nan"))
    level, answer = ("virus", virus) if kind == VIRAL else ("not viral", kind)
    named, share = is_given(level, answer, MIN_SUPPORT)
    if named:
        return (virus if kind == VIRAL else NOT_VIRAL), response, share
    return UNRESOLVED, response, of_response
