"""Effects in cases that were not measured."""

from __future__ import annotations

import numpy as np

from cfm.metrics import linear_shift
from cfm.models.count_model._training import ALPHAS, Cases, ResponsePredictor

N_GENES = 400


def in_proportion(n_cases: int, seed: int = 0) -> Cases:
    """Cases in which what is expressed is turned off: the effect is minus 80 % of the level."""
    rng = np.random.default_rng(seed)
    level = rng.gamma(1.0, 1.0, size=(n_cases, N_GENES))
    effect = -0.8 * level + rng.normal(0, 0.05, size=level.shape)
    return Cases(level, level, effect)


def errors(cases: Cases, n_known: int) -> tuple[float, float]:
    """Squared errors of the ridge and of the predictor in the cases that are left."""
    known = Cases(cases.profiles[:n_known], cases.controls[:n_known], cases.effects[:n_known])
    predictor = ResponsePredictor([known])
    ridge, ours = 0.0, 0.0
    for i in range(n_known, len(cases)):
        query = cases.profiles[i], cases.controls[i]
        plain = linear_shift(query[0], known.profiles, known.effects, alpha=predictor.alpha)
        ridge += float(((plain - cases.effects[i]) ** 2).sum())
        ours += float(((predictor.predict(*query, known) - cases.effects[i]) ** 2).sum())
    return ridge, ours


def test_what_genes_share_is_learned() -> None:
    ridge, ours = errors(in_proportion(12), 8)
    assert ours < 0.4 * ridge


def test_noise_is_not_taken_for_a_rule() -> None:
    rng = np.random.default_rng(1)
    shared = rng.normal(0, 1, N_GENES)
    level = rng.gamma(2.0, 2.0, size=(10, N_GENES)) + 3.0
    cases = Cases(level, level, shared + rng.normal(0, 0.3, size=level.shape))
    ridge, ours = errors(cases, 6)
    assert ours < 1.05 * ridge


def test_expression_does_not_fall_below_zero() -> None:
    cases = in_proportion(6)
    effect = ResponsePredictor([cases]).predict(cases.profiles[0], np.zeros(N_GENES), cases)
    assert effect.min() >= 0.0


def test_few_cases() -> None:
    cases = in_proportion(6)
    one = Cases(cases.profiles[:1], cases.controls[:1], cases.effects[:1])
    predictor = ResponsePredictor([one])
    assert predictor.trees is None
    got = predictor.predict(cases.profiles[1], cases.controls[1] + 10, one)
    np.testing.assert_allclose(got, one.effects[0])
    assert ResponsePredictor([]).alpha in ALPHAS


def test_order_of_cases_does_not_matter() -> None:
    cases, turn = in_proportion(7), np.array([3, 1, 6, 0, 2, 5, 4])
    turned = Cases(cases.profiles[turn], cases.controls[turn], cases.effects[turn])
    query = in_proportion(1, seed=5)
    a, b = (
        ResponsePredictor([c]).predict(query.profiles[0], query.controls[0], c)
        for c in (cases, turned)
    )
    np.testing.assert_allclose(a, b, atol=0.05)
    assert np.corrcoef(a, b)[0, 1] > 0.999
