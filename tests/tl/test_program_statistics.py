"""What is said of a module of genes."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cfm.tl._program_graph import Edges
from cfm.tl._program_statistics import (
    best_jaccard,
    centrality,
    cohesion,
    concordance,
    direction,
    mean_effects,
    null_p_values,
    program_effects,
    program_strengths,
)


@given(hnp.arrays(np.int64, (3, 6), elements=st.integers(-1, 1)))
def test_concordance_counts_pairs(signs: np.ndarray) -> None:
    shares = []
    for row in signs:
        pairs = [(a, b) for a, b in combinations(row[row != 0], 2)]
        if pairs:
            shares.append(np.mean([a == b for a, b in pairs]))
    found = concordance(np.where(signs == 0, np.nan, signs * 0.7))
    expected = np.mean(shares) if shares else np.nan
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(concordance(signs * 2.0), expected)


def test_means_skip_what_is_not_measured() -> None:
    effects = np.array([[1.0, np.nan, np.nan], [3.0, -2.0, np.nan]])
    np.testing.assert_array_equal(mean_effects(effects), [2.0, -2.0, 0.0])


@pytest.mark.parametrize(
    ("up", "name"), [(10, "up"), (8, "up"), (7, "mixed"), (3, "mixed"), (2, "down"), (0, "down")]
)
def test_directions(up: int, name: str) -> None:
    assert direction(np.array([1] * up + [-1] * (10 - up))) == name


#: A triangle 0-1-2 of weights 3, 2, 1, an edge 2-3 of weight 4, and node 4 alone.
GRAPH = Edges(5, np.array([0, 0, 1, 2]), np.array([1, 2, 2, 3]), np.array([3.0, 2.0, 1.0, 4.0]))


def test_centrality_and_cohesion_by_hand() -> None:
    np.testing.assert_allclose(centrality(GRAPH, np.array([0, 1, 2])), [1.0, 4 / 5, 3 / 5])
    np.testing.assert_array_equal(centrality(GRAPH, np.array([0, 4])), [0.0, 0.0])
    programs = [np.array([0, 1, 2]), np.array([3, 4])]
    np.testing.assert_allclose(cohesion(GRAPH, programs), [12 / 16, 0.0])
    whole = cohesion(GRAPH, [np.arange(5)])
    np.testing.assert_allclose(whole, [1.0])
    assert cohesion(GRAPH, []).shape == (0,)


def test_effects_and_strengths_by_hand() -> None:
    effects = np.array([[2.0, 2.0, -2.0, -2.0], [4.0, np.nan, -1.0, 1.0], [np.nan] * 4])
    programs = [np.array([0, 1]), np.array([2, 3]), np.arange(4)]
    np.testing.assert_allclose(program_effects(effects, programs), [3.0, 1.0, 2 / 3])
    scale = np.sqrt(18 / 3)
    expected = [
        (4 / (2 * np.sqrt(2)) + 4 / scale) / 3,
        (4 / (2 * np.sqrt(2)) + 0) / 3,
        (0 + 4 / (scale * np.sqrt(3))) / 3,
    ]
    np.testing.assert_allclose(program_strengths(effects, programs), expected)
    np.testing.assert_array_equal(program_strengths(effects * 0, programs), [0.0] * 3)
    np.testing.assert_allclose(program_strengths(effects * [[1], [7], [1]], programs), expected)


def test_p_values_compare_with_modules_of_the_null_whatever_their_size(
    rng: np.random.Generator,
) -> None:
    null_sizes = rng.integers(10, 100, 999).astype(float)
    noise = rng.lognormal(0, 0.1, 999)
    p = null_p_values(
        np.array([20.0, 80.0, 50.0]),
        np.sqrt([20.0, 80.0, 50.0]) * [1.0, 1.0, 2.0],
        null_sizes,
        np.sqrt(null_sizes) * noise,
    )
    expected = (1 + (noise >= 1).sum()) / 1000
    np.testing.assert_allclose(p, [expected, expected, 0.001], atol=0.15)
    # Beyond all sizes of the null the size itself counts.
    large = null_p_values(np.array([400.0]), np.array([20.0]), null_sizes, null_sizes**0.5 * noise)
    assert large.item() == 0.001
    tied = null_p_values(np.array([5.0]), np.array([0.0]), np.array([5.0, 6.0]), np.zeros(2))
    assert tied.tolist() == [1.0]
    none = null_p_values(np.array([5.0]), np.array([0.5]), np.empty(0), np.empty(0))
    assert np.isnan(none).all()


def test_best_jaccard_by_hand() -> None:
    programs = [np.array([0, 1, 2, 3]), np.array([4, 5])]
    again = np.array([0, 0, 0, 1, 1, 1, 0, -1])
    np.testing.assert_allclose(best_jaccard(programs, again), [3 / 5, 2 / 3])
    np.testing.assert_array_equal(best_jaccard(programs, np.full(8, -1)), [0.0, 0.0])
