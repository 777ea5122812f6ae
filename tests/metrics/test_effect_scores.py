"""Scores of predicted effects: what is right, wrong, absent or turned around."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import pearsonr

from cfm.metrics import delta_cosine, delta_pearson, delta_r2, direction_accuracy

ALL = [delta_pearson, delta_cosine, delta_r2, direction_accuracy]
EFFECT = arrays(np.float64, 12, elements=st.floats(-5, 5, width=16))


@pytest.mark.parametrize("score", ALL)
def test_the_truth_is_perfect_and_its_opposite_is_not(score, rng) -> None:
    effect = rng.normal(size=200)
    assert score(effect, effect) == pytest.approx(1.0)
    opposite = {delta_r2: -3.0, direction_accuracy: 0.0}.get(score, -1.0)
    assert score(effect, -effect) == pytest.approx(opposite)


@pytest.mark.parametrize("score", ALL)
def test_no_effect_is_worth_nothing(score, rng) -> None:
    chance = 0.5 if score is direction_accuracy else 0.0
    assert score(rng.normal(size=30), np.zeros(30)) == chance
    assert np.isnan(score(np.zeros(30), rng.normal(size=30)))


def test_only_r2_sees_the_size(rng) -> None:
    effect = rng.normal(size=100)
    for score in (delta_pearson, delta_cosine, direction_accuracy):
        assert score(effect, 0.01 * effect) == pytest.approx(1.0)
    assert delta_r2(effect, 0.5 * effect) == pytest.approx(0.75)
    assert delta_r2(effect, 3 * effect) == pytest.approx(-3.0)


def test_only_the_cosine_sees_a_shift_of_all_genes(rng) -> None:
    effect = rng.normal(size=100)
    assert delta_pearson(effect, effect + 9) == pytest.approx(1.0)
    assert delta_cosine(effect, effect + 9) < 0.5


def test_a_constant_has_no_correlation_however_it_is_rounded() -> None:
    constant = np.full(7, 0.1) * 3
    constant[3] += 1e-17
    assert delta_pearson([1, 2, 3, 4, 5, 6, 7], constant) == 0.0
    assert np.isnan(delta_pearson(constant, [1, 2, 3, 4, 5, 6, 7]))


@given(EFFECT, EFFECT)
def test_it_is_the_pearson_correlation_whatever_the_order(effect, predicted) -> None:
    assume(np.ptp(effect) > 0.1 and np.ptp(predicted) > 0.1)
    found = delta_pearson(effect, predicted)
    assert found == pytest.approx(pearsonr(effect, predicted)[0], abs=1e-9)
    order = np.random.default_rng(0).permutation(12)
    for score in ALL:
        for n_top in (None, 4):
            assert score(effect[order], predicted[order], n_top=n_top) == pytest.approx(
                score(effect, predicted, n_top=n_top), abs=1e-9, nan_ok=True
            )


def test_top_genes_are_those_of_the_largest_observed_effect() -> None:
    effect = np.array([5.0, -4.0, 3.0, 0.5, 0.4, 0.0])
    predicted = np.array([1.0, -1.0, -1.0, -9.0, -9.0, 9.0])
    assert direction_accuracy(effect, predicted, n_top=2) == 1.0
    assert direction_accuracy(effect, predicted, n_top=3) == pytest.approx(2 / 3)
    assert direction_accuracy(effect, predicted, n_top=99) == pytest.approx(2 / 5)
    assert direction_accuracy(effect, predicted, n_top=None) == pytest.approx(2 / 5)
    assert delta_pearson(effect, predicted, n_top=2) == pytest.approx(1.0)
    # ties at the end all count, so that the order of genes decides nothing
    assert direction_accuracy([2, 1, -1], [1, 1, 1], n_top=2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("score", ALL)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0]), "same genes in the same order"),
        (([[1.0]], [[1.0]]), "expected (genes,) twice"),
        (([], []), "expected (genes,) twice"),
        (([1.0, np.nan], [1.0, 2.0]), "NaN or infinite"),
        (([1.0, 2.0], [1.0, np.inf]), "NaN or infinite"),
    ],
)
def test_what_cannot_be_scored_is_refused(score, arguments, message) -> None:
    with pytest.raises(ValueError) as error:
        score(*arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("n_top", [0, -1, 2.5])
def test_the_number_of_genes_is_checked(n_top) -> None:
    with pytest.raises(ValueError, match="n_top"):
        direction_accuracy([1.0, 2.0], [1.0, 2.0], n_top=n_top)
