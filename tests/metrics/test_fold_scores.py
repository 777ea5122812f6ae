"""Scores under weights equal those of scikit-learn and scikit-survival on repeated rows."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sk

from cfm.metrics._fold_scores import class_scores, group_draws, survival_scores, value_scores

N = 60
ONE_FOLD = np.zeros(N, dtype=int)
MASS = np.ones(N)


@pytest.fixture
def draws() -> np.ndarray:
    return group_draws(np.arange(N) % 20, 5, seed=3)


def repeat(weights: np.ndarray) -> np.ndarray:
    return np.repeat(np.arange(N), weights.astype(int))


def test_draws_take_whole_groups(draws):
    assert draws.shape == (6, N)
    assert (draws[0] == 1).all()
    assert (draws.sum(axis=1) == N).all()
    assert (draws[:, :20] == draws[:, 20:40]).all()
    assert (group_draws(np.arange(N) % 20, 5, seed=3) == draws).all()


@pytest.mark.parametrize("k", [2, 4])
def test_class_scores_equal_those_of_sklearn(rng, draws, k):
    truth = rng.integers(k, size=N)
    proba = rng.dirichlet(np.ones(k), size=N).round(1) + 0.5 * np.eye(k)[truth]
    found = class_scores(truth, proba, ONE_FOLD, draws, MASS)
    for i, weights in enumerate(draws):
        rows = repeat(weights)
        y, call = truth[rows], proba[rows].argmax(axis=1)
        present = np.unique(y)
        assert found["accuracy"][i] == pytest.approx(sk.accuracy_score(y, call))
        assert found["balanced_accuracy"][i] == pytest.approx(sk.balanced_accuracy_score(y, call))
        f1 = sk.f1_score(y, call, labels=present, average="macro", zero_division=0)
        assert found["macro_f1"][i] == pytest.approx(f1)
        columns = [1] if k == 2 else present
        areas = [sk.roc_auc_score(y == c, proba[rows, c]) for c in columns]
        assert found["auroc"][i] == pytest.approx(np.mean(areas))


def test_value_scores_equal_those_of_sklearn_and_scipy(rng, draws):
    truth = rng.normal(size=(N, 3)) + np.array([0, 5, 100])
    predicted = truth + rng.normal(size=(N, 3))
    truth[::7, 1] = np.nan
    found = value_scores(truth, predicted, ONE_FOLD, draws)
    for i, weights in enumerate(draws):
        for t in range(3):
            rows = repeat(weights)
            rows = rows[np.isfinite(truth[rows, t])]
            y, p = truth[rows, t], predicted[rows, t]
            assert found["r2"][i, t] == pytest.approx(sk.r2_score(y, p))
            assert found["mae"][i, t] == pytest.approx(sk.mean_absolute_error(y, p))
            assert found["pearson"][i, t] == pytest.approx(stats.pearsonr(y, p)[0])
    use = np.isfinite(truth[:, 1])
    expected = stats.spearmanr(truth[use, 1], predicted[use, 1])[0]
    assert found["spearman"][0, 1] == pytest.approx(expected)


def test_survival_scores_equal_those_of_sksurv(rng, draws):
    sksurv = pytest.importorskip("sksurv.metrics")
    from sksurv.nonparametric import CensoringDistributionEstimator
    from sksurv.util import Surv

    event = rng.random(N) < 0.6
    risk = rng.normal(size=N).round(1)
    time = rng.exponential(np.exp(-risk)).round(2) + 0.01
    horizons = np.quantile(time[event], [0.25, 0.5, 0.75])
    y = Surv.from_arrays(event, time)
    censoring = CensoringDistributionEstimator().fit(y)
    at = censoring.predict_proba(time), censoring.predict_proba(horizons)
    survival = rng.random((N, 3))
    found = survival_scores(time, event, risk, survival, horizons, at, ONE_FOLD, draws, MASS)
    for i, weights in enumerate(draws):
        rows = repeat(weights)
        expected = sksurv.concordance_index_censored(event[rows], time[rows], risk[rows])[0]
        assert found["c_index"][i] == pytest.approx(expected)
    areas, _ = sksurv.cumulative_dynamic_auc(y, y, risk, horizons)
    assert found["auroc_t"][0] == pytest.approx(areas.mean())
    _, errors = sksurv.brier_score(y, y, survival, horizons)
    assert found["brier_t"][0] == pytest.approx(errors.mean())


def test_a_constant_in_each_fold_ranks_nothing(rng):
    fold = np.arange(N) % 5
    y = rng.normal(size=N)
    # the mean of the other folds: low where the own fold is high
    constant = np.array([y[fold != f].mean() for f in fold])
    ones = np.ones((1, N))
    scores = value_scores(y[:, None], constant[:, None], fold, ones)
    assert np.isnan(scores["pearson"][0, 0])
    assert scores["r2"][0, 0] < 0
    truth = (y > 0).astype(int)
    proba = np.stack([1 - constant, constant], axis=1)
    assert class_scores(truth, proba, fold, ones, MASS)["auroc"][0] == 0.5
    at = np.ones(N), np.ones(1)
    time, event = np.exp(y), np.ones(N, dtype=bool)
    half = np.full((N, 1), 0.5)
    found = survival_scores(time, event, constant, half, np.ones(1), at, fold, ones, MASS)
    assert found["c_index"][0] == found["auroc_t"][0] == 0.5
    assert found["brier_t"][0] == pytest.approx(0.25)


def test_levels_of_folds_do_not_matter_to_what_ranks(rng):
    fold = np.arange(N) % 3
    y = rng.normal(size=(N, 1))
    p = y + rng.normal(size=(N, 1))
    moved = p + 100.0 * fold[:, None]
    ones = np.ones((1, N))
    a, b = (value_scores(y, q, fold, ones) for q in (p, moved))
    assert a["pearson"][0, 0] == pytest.approx(b["pearson"][0, 0])
    assert a["spearman"][0, 0] == pytest.approx(b["spearman"][0, 0])
    assert b["r2"][0, 0] < a["r2"][0, 0]


def test_nothing_to_compare_is_nan():
    truth = np.array([0, 1, 0, 1])
    proba = np.array([[0.2, 0.8]] * 4)
    alone = class_scores(truth, proba, np.arange(4), np.ones((1, 4)), np.ones(4))
    assert np.isnan(alone["auroc"][0])
    assert alone["accuracy"][0] == 0.5


def test_each_fold_counts_as_its_groups_do(rng):
    # a large study that is ranked perfectly, two small ones that are ranked upside down
    fold = np.repeat([0, 1, 2], [40, 10, 10])
    truth = np.tile([0, 1], 30)
    score = np.where(fold == 0, truth, 1 - truth) + 0.1 * rng.random(N)
    proba = np.stack([1 - score, score], axis=1)
    one_study_each = 1 / np.array([40, 10, 10])[fold]
    ones = np.ones((1, N))
    by_study = class_scores(truth, proba, fold, ones, one_study_each)["auroc"][0]
    assert by_study == pytest.approx(1 / 3)
    by_sample = class_scores(truth, proba, fold, ones, MASS)["auroc"][0]
    assert by_sample == pytest.approx(40 / 60)
