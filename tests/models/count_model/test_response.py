"""Effects in cases that were not measured."""

from __future__ import annotations

import numpy as np
import pytest

from cfm.metrics import linear_shift, mean_shift, nearest_shift
from cfm.models.count_model._response import Cases, ResponsePredictor

N_GENES = 400
NEAREST, LINEAR, PROPORTIONAL = range(3)


def in_proportion(n_cases: int, seed: int = 0) -> Cases:
    """Cases in which what is expressed rises: the effect is 80 % of the level."""
    rng = np.random.default_rng(seed)
    level = rng.gamma(1.0, 1.0, size=(n_cases, N_GENES))
    effect = 0.8 * level + rng.normal(0, 0.05, size=level.shape)
    return Cases(level, level, effect)


def two_kinds(n_cases: int) -> Cases:
    """Cases of two kinds, whose effects have nothing in common."""
    rng = np.random.default_rng(1)
    level, effect = rng.gamma(4.0, 1.0, (2, N_GENES)), np.abs(rng.normal(0, 1, (2, N_GENES)))
    kind = np.arange(n_cases) % 2
    level = level[kind] + rng.gamma(0.2, 1.0, (n_cases, N_GENES))
    return Cases(level, level, effect[kind] + rng.normal(0, 0.1, (n_cases, N_GENES)))


def squared_errors(cases: Cases, n_known: int) -> dict[str, float]:
    """Return the errors in the cases that are left."""
    known = Cases(cases.profiles[:n_known], cases.controls[:n_known], cases.effects[:n_known])
    predictor = ResponsePredictor([known])
    out = dict.fromkeys(("ours", "mean", "nearest", "linear"), 0.0)
    for i in range(n_known, len(cases)):
        query, real = cases.profiles[i], cases.effects[i]
        found = {
            "ours": predictor.predict(query, cases.controls[i], known),
            "mean": mean_shift(known.effects),
            "nearest": nearest_shift(query, known.profiles, known.effects),
            "linear": linear_shift(query, known.profiles, known.effects),
        }
        for name, guess in found.items():
            out[name] += float(((guess - real) ** 2).sum())
    return out


def test_weights_follow_what_predicts_cases_left_out() -> None:
    assert ResponsePredictor([in_proportion(8)]).weights.argmax() == PROPORTIONAL
    kinds = ResponsePredictor([two_kinds(8)]).weights
    assert kinds[NEAREST] + kinds[LINEAR] > 0.9
    rng = np.random.default_rng(1)
    level = rng.gamma(2.0, 2.0, size=(8, N_GENES)) + 3.0
    shared = Cases(level, level, rng.gamma(1.0, 1.0, N_GENES) + rng.normal(0, 0.3, level.shape))
    assert ResponsePredictor([shared]).weights[NEAREST] < 0.3
    for cases in (in_proportion(8), two_kinds(8), shared):
        weights = ResponsePredictor([cases]).weights
        assert weights.min() >= 0.0
        assert weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("cases", [in_proportion(12), two_kinds(12)], ids=["level", "kinds"])
def test_it_is_not_behind_the_best_of_the_simple_predictors(cases: Cases) -> None:
    errors = squared_errors(cases, 8)
    best = min(value for name, value in errors.items() if name != "ours")
    assert errors["ours"] < 1.25 * best


def test_what_is_silent_cannot_fall_and_what_is_high_falls_more() -> None:
    rng = np.random.default_rng(0)
    level = rng.gamma(4.0, 0.5, size=(5, N_GENES))
    cases = Cases(level, level, -0.8 * level)
    predictor = ResponsePredictor([cases])
    assert predictor.predict(level[0], np.zeros(N_GENES), cases).min() >= 0.0
    new = 2 * level[0]
    assert np.corrcoef(predictor.predict(new, new, cases), -0.8 * new)[0, 1] > 0.95


def test_few_cases() -> None:
    cases = in_proportion(6)
    one = Cases(cases.profiles[:1], cases.controls[:1], cases.effects[:1])
    predictor = ResponsePredictor([one])
    np.testing.assert_allclose(predictor.weights, 1 / 3)
    same = predictor.predict(one.profiles[0], one.controls[0], one)
    assert np.corrcoef(same, one.effects[0])[0, 1] > 0.99
    np.testing.assert_allclose(ResponsePredictor([]).weights, 1 / 3)
    still = Cases(cases.profiles, cases.controls, np.zeros_like(cases.effects))
    assert (
        ResponsePredictor([still]).predict(cases.profiles[0], cases.controls[0], still) == 0
    ).all()


def test_order_of_cases_does_not_matter() -> None:
    cases, turn = in_proportion(7), np.array([3, 1, 6, 0, 2, 5, 4])
    turned = Cases(cases.profiles[turn], cases.controls[turn], cases.effects[turn])
    query = in_proportion(1, seed=5)
    a, b = (
        ResponsePredictor([c]).predict(query.profiles[0], query.controls[0], c)
        for c in (cases, turned)
    )
    np.testing.assert_allclose(a, b)
