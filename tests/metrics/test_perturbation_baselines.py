"""Baselines of perturbations: their closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.linear_model import Ridge

from cfm.metrics import additive_shift, linear_shift, mean_shift, nearest_shift

EFFECTS = arrays(np.float64, (4, 3), elements=st.floats(-5, 5, width=32))


@given(EFFECTS)
def test_mean_and_sum_do_not_depend_on_the_order(effects: np.ndarray) -> None:
    np.testing.assert_allclose(mean_shift(effects), effects.mean(axis=0), atol=1e-12)
    np.testing.assert_allclose(additive_shift(effects), 4 * mean_shift(effects[::-1]), atol=1e-9)


def test_nearest_is_the_case_with_the_highest_correlation(rng: np.random.Generator) -> None:
    profiles, effects = rng.normal(size=(6, 20)), rng.normal(size=(6, 5))
    # The size and level of a profile do not matter.
    found = nearest_shift(3 * profiles[2] + 7 + 0.1 * rng.normal(size=20), profiles, effects)
    np.testing.assert_array_equal(found, effects[2])


def test_cases_that_are_equally_near_are_averaged() -> None:
    effects = np.array([[2.0], [4.0], [100.0]])
    assert nearest_shift([0, 1], [[0, 1], [0, 2], [1, 0]], effects) == 3.0
    # Nothing is like a query without spread, so all cases are equally near.
    np.testing.assert_allclose(nearest_shift([1, 1], [[0, 1], [0, 2], [1, 0]], effects), 106 / 3)


def test_linear_is_ridge_regression(rng: np.random.Generator) -> None:
    profiles, effects, query = rng.normal(size=(8, 5)), rng.normal(size=(8, 3)), rng.normal(size=5)
    centred = profiles - profiles.mean(axis=0)
    for alpha in (0.1, 1.0, 30.0):
        penalty = alpha * (centred**2).sum() / 8
        expected = Ridge(alpha=penalty).fit(profiles, effects).predict(query[None])[0]
        found = linear_shift(query, profiles, effects, alpha=alpha)
        np.testing.assert_allclose(found, expected, atol=1e-9)


def test_linear_interpolates_and_shrinks_to_the_mean(rng: np.random.Generator) -> None:
    profiles, effects = rng.normal(size=(4, 9)), rng.normal(size=(4, 3))
    close = linear_shift(profiles[1], profiles, effects, alpha=1e-9)
    np.testing.assert_allclose(close, effects[1], atol=1e-6)
    far = linear_shift(profiles[1], profiles, effects, alpha=1e9)
    np.testing.assert_allclose(far, effects.mean(axis=0), atol=1e-6)


def test_linear_without_anything_to_tell_cases_apart_is_the_mean() -> None:
    np.testing.assert_array_equal(linear_shift([1, 2], [[0, 0]], [[5.0]]), [5.0])
    np.testing.assert_array_equal(linear_shift([1, 2], [[3, 3]] * 2, [[5.0], [7.0]]), [6.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([[1.0]], [[1.0], [2.0]]), "expected (d,)"),
        (([1.0], [[1.0]], [[1.0], [2.0]]), "a profile for each effect"),
        (([1.0], [[np.nan]], [[1.0]]), "query or profiles holds NaN"),
        (([1.0], [[1.0]], [[np.inf]]), "effects holds NaN"),
        (([1.0], [[1.0]], np.zeros((0, 2))), "at least one case"),
    ],
)
@pytest.mark.parametrize("function", [nearest_shift, linear_shift])
def test_what_cannot_be_used_is_refused(function, arguments, message) -> None:
    if len(arguments) == 2:
        arguments = (arguments[0], arguments[1], [[1.0], [2.0]])
    with pytest.raises(ValueError) as error:
        function(*arguments)
    assert message in str(error.value)


def test_effects_and_penalty_are_checked() -> None:
    for function in (mean_shift, additive_shift):
        with pytest.raises(ValueError, match="at least one case"):
            function([1.0, 2.0])
        with pytest.raises(ValueError, match="NaN"):
            function([[np.nan]])
    with pytest.raises(ValueError, match="alpha=0; expected a finite number above 0"):
        linear_shift([1.0], [[1.0]], [[1.0]], alpha=0)
