"""Rankings against counting by hand and against chance; the bootstrap draws units."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import fisher_exact

from cfm.metrics import (
    average_precision,
    enrichment_factor,
    hits_at,
    odds_ratio_at,
    paired_bootstrap,
    permutation_interval,
)


def test_hits_at_counts_and_shares_ties() -> None:
    scores = [5.0, 4.0, 3.0, 3.0, 1.0]
    hits = [True, False, True, False, True]
    assert hits_at(scores, hits, 1) == 1
    assert hits_at(scores, hits, 2) == 1
    assert hits_at(scores, hits, 3) == 1.5  # one of the two at 3.0
    assert hits_at(scores, hits, 5) == 3


def test_all_tied_is_what_chance_gives() -> None:
    hits = np.arange(100) < 7
    assert hits_at(np.zeros(100), hits, 10) == pytest.approx(0.7)
    assert enrichment_factor(np.zeros(100), hits, 0.1) == pytest.approx(1.0)
    assert average_precision(np.zeros(100), hits) == pytest.approx(0.07)


def test_odds_ratio_is_that_of_the_table_with_half_counts() -> None:
    rng = np.random.default_rng(0)
    scores, hits = rng.random(200), rng.random(200) < 0.2
    top = np.argsort(-scores)[:50]
    inside = hits[top].sum()
    table = np.array([[inside, 50 - inside], [hits.sum() - inside, 150 - hits.sum() + inside]])
    assert odds_ratio_at(scores, hits, 50) == pytest.approx(fisher_exact(table + 1)[0], rel=0.2)
    a, b, c, d = (table + 0.5).ravel()
    assert odds_ratio_at(scores, hits, 50) == pytest.approx(a * d / (b * c))


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_scores_depend_on_the_order_only(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, hits = rng.normal(size=60), np.arange(60) < rng.integers(1, 59)
    order = rng.permutation(60)
    for score in (average_precision, lambda s, h: odds_ratio_at(s, h, 20), enrichment_factor):
        value = score(scores, hits)
        assert score(np.exp(scores), hits) == pytest.approx(value)
        assert score(scores[order], hits[order]) == pytest.approx(value)


def test_a_perfect_ranking_is_beyond_chance_and_a_random_one_is_not() -> None:
    rng = np.random.default_rng(1)
    hits = np.arange(500) < 20
    perfect = permutation_interval(average_precision, -np.arange(500.0), hits, n_permutations=99)
    assert perfect["value"] == pytest.approx(1.0)
    assert perfect["p"] == pytest.approx(0.01)
    assert perfect["high"] < 0.5
    p = [
        permutation_interval(average_precision, rng.random(500), hits, n_permutations=99, seed=i)[
            "p"
        ]
        for i in range(40)
    ]
    assert 0.3 < np.mean(p) < 0.7


def test_interval_repeats_with_its_seed() -> None:
    scores, hits = np.arange(50.0), np.arange(50) % 7 == 0
    first = permutation_interval(average_precision, scores, hits, n_permutations=20, seed=3)
    assert first == permutation_interval(average_precision, scores, hits, n_permutations=20, seed=3)


def test_the_bootstrap_takes_means_over_units() -> None:
    result = paired_bootstrap([1, 1, 1, 0], [0, 0, 0, 0], ["u", "u", "u", "v"], n_boot=200)
    assert result["diff"] == pytest.approx(0.5)
    assert result["n_units"] == 2
    assert (result["low"], result["high"]) == (0.0, 1.0)


def test_interval_matches_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    delta = rng.normal(0.2, 1.0, 400)
    result = paired_bootstrap(delta, np.zeros(400), np.arange(400))
    half = 1.96 * delta.std() / 20
    assert result["low"] == pytest.approx(delta.mean() - half, abs=0.01)
    assert result["high"] == pytest.approx(delta.mean() + half, abs=0.01)
    assert result["p"] < 0.01


def test_the_bootstrap_is_symmetric() -> None:
    a, b = np.array([0.9, 0.8, 0.7, 0.9]), np.array([0.5, 0.6, 0.6, 0.4])
    forward = paired_bootstrap(a, b, range(4))
    backward = paired_bootstrap(b, a, range(4))
    assert forward["diff"] == -backward["diff"]
    assert forward["low"] == pytest.approx(-backward["high"])
    assert forward["p"] == backward["p"] == pytest.approx(2 / 10_001)


def test_equal_scores_have_p_one() -> None:
    result = paired_bootstrap([0.1, 0.2], [0.1, 0.2], ["u", "v"])
    assert (result["diff"], result["low"], result["high"], result["p"]) == (0, 0, 0, 1)


def test_one_unit_says_nothing_about_spread() -> None:
    result = paired_bootstrap([1.0, 0.0], [0.0, 0.0], ["u", "u"])
    assert result["diff"] == 0.5
    assert np.isnan([result["low"], result["high"], result["p"]]).all()


def test_the_bootstrap_repeats_whatever_the_order() -> None:
    rng = np.random.default_rng(1)
    a, b, unit = rng.random(30), rng.random(30), np.repeat(np.arange(10), 3)
    order = rng.permutation(30)
    first = paired_bootstrap(a, b, unit, 500, seed=3)
    assert first == pytest.approx(paired_bootstrap(a[order], b[order], unit[order], 500, seed=3))
    assert first != paired_bootstrap(a, b, unit, 500, seed=4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: average_precision([1.0, np.nan], [True, False]), "NaN"),
        (lambda: average_precision([1.0, 2.0], [True, True]), "2 of 2 are positive"),
        (lambda: average_precision([1.0, 2.0], [False, False]), "0 of 2 are positive"),
        (lambda: average_precision([1.0, 2.0], [True]), "same length"),
        (lambda: hits_at([1.0, 2.0], [True, False], 3), "k is 3; expected 1 to 2"),
        (lambda: enrichment_factor([1.0, 2.0], [True, False], 0), "share=0;"),
        (lambda: paired_bootstrap([1.0], [1.0, 2.0], ["u"]), "equally long"),
        (lambda: paired_bootstrap([], [], []), "no samples"),
        (lambda: paired_bootstrap([np.nan], [1.0], ["u"]), "NaN"),
        (lambda: paired_bootstrap([1.0], [1.0], ["u"], 0), "n_boot=0"),
        (lambda: paired_bootstrap([1.0], [1.0], ["u"], confidence=1.5), "confidence"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
