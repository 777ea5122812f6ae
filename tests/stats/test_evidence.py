"""Evidence against a null: uniform without signal, small with it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kstest, norm
from scipy.stats import t as t_distribution

from cfm.stats._evidence import (
    pooled_p_values,
    random_set_means,
    rank_shares,
    standardize,
    sum_of_correlated,
    tail_p_values,
    upper_p_values,
)


def test_rank_shares() -> None:
    np.testing.assert_allclose(rank_shares([5.0, -1.0, 7.0, 0.0]), [0.625, 0.125, 0.875, 0.375])
    assert rank_shares([2.0, 2.0, 2.0]).tolist() == [0.5, 0.5, 0.5]


def test_means_of_random_sets(rng: np.random.Generator) -> None:
    pool = rng.random(30)
    means = random_set_means(pool, 10, 4000, seed=1)
    assert means.shape == (4000, 10)
    np.testing.assert_allclose(means.mean(axis=0), pool.mean(), atol=0.02)
    # Without replacement: the variance of a mean shrinks by (m - k) / (m - 1).
    expected = pool.std() / np.sqrt(10) * np.sqrt(20 / 29)
    assert means[:, 9].std() == pytest.approx(expected, rel=0.05)
    np.testing.assert_array_equal(random_set_means(pool, 10, 4000, seed=1), means)
    np.testing.assert_allclose(random_set_means(pool, 30, 3)[:, -1], pool.mean())
    with pytest.raises(ValueError, match="expected 1 to 30"):
        random_set_means(pool, 31, 5)


def test_p_values_count_the_null_and_ties() -> None:
    null = np.array([0.0, 1.0, 1.0, 2.0])
    found = upper_p_values([3.0, 2.0, 1.0, -1.0, np.nan], null)
    np.testing.assert_allclose(found, [0.2, 0.4, 0.8, 1.0, np.nan])
    assert upper_p_values([0.0], np.zeros(9)).tolist() == [1.0]


@given(st.integers(0, 1000))
def test_p_values_of_the_null_itself_are_uniform_or_larger(seed: int) -> None:
    rng = np.random.default_rng(seed)
    draws = rng.normal(size=400)
    p = upper_p_values(draws[:200], draws[200:])
    assert (p > 0).all() and (p <= 1).all()
    assert np.mean(p <= 0.05) < 0.12


def test_the_tail_goes_on_below_the_resolution(rng: np.random.Generator) -> None:
    at = np.array([0.0, 1.0, 2.0, 3.0, 3.5])
    found = np.stack([tail_p_values(at, rng.normal(size=2000)) for _ in range(60)])
    typical = np.log10(found).mean(axis=0)
    np.testing.assert_allclose(typical[:3], np.log10(norm.sf(at[:3])), atol=0.05)
    # A lighter tail than the exponential is read with caution: too large rather than too small.
    assert (typical[3:] > np.log10(norm.sf(at[3:])) - 0.05).all()
    assert (typical[3:] < np.log10(norm.sf(at[3:])) + 0.5).all()
    null = rng.normal(size=2000)
    far = tail_p_values([3.0, 5.0, 50.0], null)
    assert (np.diff(far) <= 0).all()
    assert far[0] > far[1] > far[2] == pytest.approx(0.01 / 2001)
    heavy = rng.standard_t(3, size=20_000)
    expected = t_distribution.sf(12.0, 3)
    assert tail_p_values([12.0], heavy[:2000])[0] == pytest.approx(expected, rel=2)
    assert (far <= upper_p_values([3.0, 5.0, 50.0], null)).all()
    assert np.isnan(tail_p_values([np.nan], null)).all()


def test_no_tail_where_there_is_none() -> None:
    for null in (np.zeros(500), np.arange(50.0), np.repeat([0.0, 1.0], [450, 50])):
        at = [-1.0, 0.0, 1.0, 10.0]
        np.testing.assert_array_equal(tail_p_values(at, null), upper_p_values(at, null))


def test_standardize(rng: np.random.Generator) -> None:
    null = rng.normal(3.0, 2.0, size=500)
    z = standardize(null, null)
    assert z.mean() == pytest.approx(0, abs=1e-12)
    assert z.std() == pytest.approx(1)
    assert standardize([5.0], np.full(10, 3.0)).tolist() == [0.0]
    assert np.isnan(standardize([np.nan], null)).all()


@pytest.mark.parametrize("k", [1, 2, 3])
def test_sum_of_correlated(rng: np.random.Generator, k: int) -> None:
    for rho in (0.0, 0.5, 0.95):
        correlation = np.full((k, k), rho) + (1 - rho) * np.eye(k)
        scores = rng.multivariate_normal(np.zeros(k), correlation, size=20_000).T
        assert sum_of_correlated(scores, correlation).std() == pytest.approx(1, abs=0.03)


def test_sum_of_correlated_takes_what_there_is() -> None:
    assert sum_of_correlated([2.0, 2.0], np.ones((2, 2))) == pytest.approx(2.0)
    assert sum_of_correlated([2.0, 2.0], [[1, -0.9], [-0.9, 1]]) == pytest.approx(np.sqrt(8))
    correlation = np.array([[1, 0.5, 0], [0.5, 1, 0], [0, 0, 1]])
    scores = np.array([[1, 1, np.nan, np.nan], [1, np.nan, np.nan, np.nan], [1, 1, 2, np.nan]])
    found = sum_of_correlated(scores, correlation)
    np.testing.assert_allclose(found, [3 / 2, 2 / np.sqrt(2), 2, np.nan])
    # A reading that does not vary has correlation 0 with itself, and still counts as one.
    assert sum_of_correlated([0.0, 2.0], [[0, 0], [0, 1]]) == pytest.approx(np.sqrt(2))
    with pytest.raises(ValueError, match=r"expected \(2, 2\)"):
        sum_of_correlated([1.0, 2.0], np.eye(3))


def test_pooled_p_values_are_uniform_without_signal_whatever_the_scale_of_each_gene() -> None:
    rng = np.random.default_rng(0)
    scale = rng.lognormal(size=2000)
    draws = rng.normal(size=(51, 2000)) * scale + 3 * scale
    p = pooled_p_values(draws[0], draws[1:])
    assert kstest(p, "uniform").pvalue > 0.01


def test_signal_is_resolved_below_one_over_the_permutations() -> None:
    rng = np.random.default_rng(1)
    draws = rng.normal(size=(21, 500))
    draws[0, 7] = 8.0
    p = pooled_p_values(draws[0], draws[1:])
    assert p[7] == pytest.approx(1 / (21 * 500))
    assert p.argmin() == 7


def test_scores_that_no_permutation_moves_are_not_significant() -> None:
    null = np.ones((20, 3))
    null[:, 0] = np.arange(20)
    p = pooled_p_values(np.array([90.0, 1.0, 1.0]), null)
    assert p[0] == pytest.approx(1 / 63)
    assert p[1] == 1.0
    assert p[2] == 1.0


def test_identical_permutations_reach_the_observed_score() -> None:
    rng = np.random.default_rng(2)
    observed = rng.normal(size=100)
    null = np.vstack([observed, -observed])  # a sign flip of one profile
    assert (pooled_p_values(observed, null)[observed > 0] >= 0.4).all()


def test_shapes_of_pooled_scores_are_checked() -> None:
    with pytest.raises(ValueError, match="at least two permutations"):
        pooled_p_values(np.zeros(3), np.zeros((1, 3)))
