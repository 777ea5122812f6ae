"""Energy distance and MMD: closed forms, null distributions, and what does not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import energy_distance, norm

from cfm.metrics import _distribution_distances as module
from cfm.metrics import e_distance, mean_squared_distance, mmd

POINTS = arrays(np.float64, (7, 3), elements=st.floats(-4, 4, width=16))


def _folded(mean: float, sd: float) -> float:
    """E|Z| of a normal variable."""
    z = mean / sd
    return sd * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + mean * (1 - 2 * norm.cdf(-z))


@pytest.mark.parametrize(("shift", "sd"), [(1.0, 1.0), (0.0, 3.0), (2.0, 0.5)])
def test_energy_distance_of_two_gaussians(shift, sd, rng) -> None:
    x, y = rng.normal(size=(4000, 1)), shift + sd * rng.normal(size=(4000, 1))
    expected = 2 * _folded(shift, np.hypot(1, sd)) - _folded(0, np.sqrt(2)) * (1 + sd)
    assert e_distance(x, y) == pytest.approx(expected, rel=0.1)


def test_biased_energy_distance_is_that_of_scipy(rng) -> None:
    x, y = rng.normal(size=50), 1 + rng.normal(size=70)
    # scipy returns the root of twice the squared distance of distribution functions
    expected = energy_distance(x, y) ** 2
    assert e_distance(x[:, None], y[:, None], unbiased=False) == pytest.approx(expected)


@pytest.mark.parametrize("distance", [e_distance, mmd])
def test_the_unbiased_form_scatters_around_zero_under_the_null(distance, rng) -> None:
    found = [distance(*rng.normal(size=(2, 30, 4))) for _ in range(300)]
    error = np.std(found) / np.sqrt(300)
    assert abs(np.mean(found)) < 4 * error
    assert min(found) < 0 < max(found)
    biased = [distance(*rng.normal(size=(2, 30, 4)), unbiased=False) for _ in range(20)]
    assert min(biased) > 0


@pytest.mark.parametrize("distance", [e_distance, mmd])
@given(POINTS)
def test_copies_are_at_distance_zero_and_nothing_is_below(distance, x) -> None:
    assert distance(x, x, unbiased=False) == pytest.approx(0.0, abs=1e-9)
    assert distance(x, x[::-1], unbiased=False) == pytest.approx(0.0, abs=1e-9)
    assert distance(x, x[:3], unbiased=False) >= -1e-9


@pytest.mark.parametrize("distance", [e_distance, mmd])
@given(POINTS, POINTS)
def test_order_and_side_do_not_matter(distance, x, y) -> None:
    expected = distance(x, y)
    assert distance(x[::-1], y[[3, 1, 0, 2, 6, 5, 4]]) == pytest.approx(expected, abs=1e-9)
    assert distance(y, x) == pytest.approx(expected, abs=1e-9)
    assert distance(x + 3, y + 3) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("distance", [e_distance, mmd])
def test_blocks_do_not_matter(distance, rng, monkeypatch) -> None:
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(30, 3))
    expected = distance(x, y)
    monkeypatch.setattr(module, "_BLOCK_VALUES", 64)
    assert distance(x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("distance", [e_distance, mmd])
def test_differences_in_spread_alone_are_seen(distance, rng) -> None:
    x, y, z = rng.normal(size=(3, 300, 5))
    assert distance(x, 3 * y) > 10 * abs(distance(x, z))


def test_mmd_by_its_definition(rng) -> None:
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(5, 2)) + 1
    both = np.vstack([x, y])
    squared = ((both[:, None] - both[None]) ** 2).sum(axis=2)
    sigma = squared.sum() / (11 * 10)
    assert mean_squared_distance(both) == pytest.approx(sigma)
    k = sum(np.exp(-squared / (sigma * f)) for f in (0.25, 0.5, 1, 2, 4))
    biased = k[:6, :6].mean() + k[6:, 6:].mean() - 2 * k[:6, 6:].mean()
    assert mmd(x, y, unbiased=False) == pytest.approx(biased)
    assert mmd(x, y, unbiased=False, sigma=sigma) == pytest.approx(biased)
    off = ~np.eye(11, dtype=bool)
    within = [k[p, p][off[p, p]].mean() for p in (slice(0, 6), slice(6, 11))]
    assert mmd(x, y) == pytest.approx(sum(within) - 2 * k[:6, 6:].mean())
    wide = np.exp(-squared / 7.0)
    expected = wide[:6, :6].mean() + wide[6:, 6:].mean() - 2 * wide[:6, 6:].mean()
    assert mmd(x, y, n_kernels=1, sigma=7.0, unbiased=False) == pytest.approx(expected)


def test_mmd_of_sets_far_apart_is_at_its_bound(rng) -> None:
    x, y = rng.normal(size=(2, 20, 2))
    far = mmd(1e-6 * x, 1e-6 * y + 1e6, sigma=1.0, unbiased=False)
    assert far == pytest.approx(10.0)
    assert mmd(np.ones((4, 2)), np.ones((3, 2))) == 0.0


def test_one_observation_has_no_unbiased_spread() -> None:
    assert np.isnan(e_distance([[0.0]], [[1.0], [2.0]]))
    assert e_distance([[0.0]], [[1.0]], unbiased=False) == 2.0


@pytest.mark.parametrize("distance", [e_distance, mmd])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0], [[1.0]], "expected (n, d)"),
        ([[1.0]], [[1.0, 2.0]], "the same d"),
        (np.zeros((0, 2)), [[1.0, 2.0]], "at least one"),
        ([[1.0]], [[np.nan]], "NaN or infinite"),
    ],
)
def test_what_cannot_be_measured_is_refused(distance, x, y, message) -> None:
    with pytest.raises(ValueError) as error:
        distance(x, y)
    assert message in str(error.value)


@pytest.mark.parametrize(
    "options", [{"n_kernels": 0}, {"multiplier": 1.0}, {"sigma": 0.0}, {"sigma": np.nan}]
)
def test_kernels_are_checked(options) -> None:
    with pytest.raises(ValueError, match="expected"):
        mmd([[0.0], [1.0]], [[2.0], [3.0]], **options)
    with pytest.raises(ValueError, match="at least two"):
        mean_squared_distance([[1.0]])
