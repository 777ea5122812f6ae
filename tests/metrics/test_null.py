"""Pooled permutation p-values: uniform without signal, small with it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from cfm.metrics import pooled_p_values


def test_uniform_without_signal_whatever_the_scale_of_each_gene() -> None:
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


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match="at least two permutations"):
        pooled_p_values(np.zeros(3), np.zeros((1, 3)))
