"""Attention maps to a graph of genes, the graph to modules, and what is measured of these."""

from __future__ import annotations

import random
from itertools import combinations

import igraph
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import adjusted_rand_score

from cfm.stats._gene_modules import (
    AttentionMean,
    Edges,
    attention_excess,
    attention_similarity,
    best_jaccard,
    centrality,
    cohesion,
    concordance,
    cosine,
    leiden,
    module_effects,
    module_strengths,
    modules,
    nearest_neighbour_graph,
    standardise,
    without_size_trend,
)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def test_excess_is_zero_where_attention_only_follows_popularity(rng: np.random.Generator) -> None:
    popularity = rng.standard_normal((2, 3, 1, 9))  # logits that depend on the key alone
    weights = softmax(np.broadcast_to(popularity, (2, 3, 9, 9)))
    np.testing.assert_allclose(attention_excess(weights), 0.0, atol=1e-5)


def test_excess_by_hand() -> None:
    inner = np.array([[0.6, 0.2], [0.1, 0.3]])  # the rest goes to the summary
    weights = np.zeros((1, 1, 3, 3), dtype=np.float32)
    weights[0, 0, 1:, 1:] = inner
    weights[0, 0, :, 0] = 1.0 - weights[0, 0].sum(axis=1)
    rows = inner / inner.sum(axis=1, keepdims=True)  # .75 .25 / .25 .75, columns' mean .5
    np.testing.assert_allclose(attention_excess(weights), rows / 0.5 - 1.0, atol=1e-6)


def test_excess_does_not_see_the_summary(rng: np.random.Generator) -> None:
    logits = rng.standard_normal((1, 2, 6, 6))
    louder = logits.copy()
    louder[..., 0] += 5.0
    np.testing.assert_allclose(
        attention_excess(softmax(louder)), attention_excess(softmax(logits)), atol=1e-4
    )


def test_means_are_over_the_profiles_in_which_both_genes_occur() -> None:
    mean = AttentionMean(3, 2)
    mean.add(0, np.array([1, -1, 0]), np.arange(9.0).reshape(3, 3))  # the second is left aside
    mean.add(1, np.array([0, 1, 2]), np.full((3, 3), 2.0))
    whole = mean.mean()
    assert whole[1, 0] == (2.0 + 2.0) / 2  # map [0, 2] is gene 1 to gene 0
    assert whole[0, 1] == (6.0 + 2.0) / 2
    assert whole[2, 0] == 2.0  # together in one profile only
    np.testing.assert_array_equal(mean.mean(np.array([1, 0]))[2], 0.0)
    twice = mean.mean(np.array([2, 1]))
    np.testing.assert_allclose(twice[0, 1], (2 * 6.0 + 2.0) / 3, rtol=1e-6)


def test_genes_that_attend_alike_are_similar_even_if_not_to_each_other() -> None:
    # genes 0, 1 attend to 4, 5; genes 2, 3 to 6, 7: nobody to its own kind
    mean = np.zeros((8, 8), dtype=np.float32)
    mean[:2, 4:6] = 1.0
    mean[2:4, 6:] = 1.0
    similarity = attention_similarity(mean)
    np.testing.assert_allclose(similarity, similarity.T, atol=1e-6)
    assert similarity[0, 1] > 0.99
    assert similarity[0, 2] < 0.0
    assert similarity[4, 5] > 0.99
    assert similarity[4, 6] < 0.0


def test_cosine_of_zeros_is_zero() -> None:
    found = cosine(np.array([[1.0, 0.0], [2.0, 0.0], [0.0, 0.0]]))
    np.testing.assert_allclose(found, [[1, 1, 0], [1, 1, 0], [0, 0, 0]])


def test_standardised_pairs(rng: np.random.Generator) -> None:
    values = rng.standard_normal((6, 6))
    scaled = standardise(values + values.T + 9 * np.eye(6))
    pairs = scaled[~np.eye(6, dtype=bool)]
    assert pairs.mean() == pytest.approx(0.0, abs=1e-6)
    assert pairs.std() == pytest.approx(1.0, abs=1e-5)
    assert np.isfinite(standardise(np.ones((3, 3)))).all()


def test_neighbours_by_hand() -> None:
    similarity = np.array(
        [[9, 5, 4, -1], [5, 9, 3, -1], [4, 3, 9, -1], [-1, -1, -1, 9]], dtype=float
    )
    union = nearest_neighbour_graph(similarity, 1)
    assert list(zip(union.a, union.b, union.weight, strict=True)) == [(0, 1, 5.0), (0, 2, 4.0)]
    np.testing.assert_array_equal(union.strength(), [9.0, 5.0, 4.0, 0.0])


@given(
    hnp.arrays(np.float32, (7, 7), elements=st.floats(-1, 1, width=16)),
    st.integers(1, 9),
)
def test_a_neighbour_graph_is_simple_and_ties_do_not_widen_it(values: np.ndarray, k: int) -> None:
    similarity = np.round(values + values.T, 1)
    edges = nearest_neighbour_graph(similarity, k)
    assert (edges.a < edges.b).all()
    assert (edges.weight > 0).all()
    assert len(set(zip(edges.a.tolist(), edges.b.tolist(), strict=True))) == len(edges.a)
    assert len(edges.a) <= 7 * min(k, 6)
    positive = (similarity > 0).sum(axis=1) - (np.diag(similarity) > 0)
    degree = np.bincount(edges.a, minlength=7) + np.bincount(edges.b, minlength=7)
    assert (degree >= np.minimum(positive, k)).all()


def planted(rng: np.random.Generator, sizes: tuple[int, ...] = (30, 20, 10)) -> tuple:
    truth = np.repeat(np.arange(len(sizes)), sizes)
    vectors = np.eye(len(sizes))[truth] + 0.25 * rng.standard_normal((len(truth), len(sizes)))
    return truth, nearest_neighbour_graph(cosine(vectors), 6)


def test_leiden_finds_planted_modules_and_numbers_them_by_size(rng: np.random.Generator) -> None:
    truth, edges = planted(rng)
    found = leiden(edges, resolution=0.3)
    assert adjusted_rand_score(truth, found) > 0.9
    assert np.all(np.diff(np.bincount(found)) <= 0)
    np.testing.assert_array_equal(found, leiden(edges, resolution=0.3))


def test_leiden_without_edges_and_with_a_generator_of_its_own(rng: np.random.Generator) -> None:
    nothing = np.empty(0, dtype=np.int64)
    np.testing.assert_array_equal(leiden(Edges(3, nothing, nothing, np.empty(0))), [0, 1, 2])
    _, edges = planted(rng)
    random.seed(3)
    before = random.getstate()
    leiden(edges, seed=1)
    assert random.getstate() == before
    igraph.Graph.Erdos_Renyi(5, 0.5)  # draws from the module again
    assert random.getstate() != before


def test_modules_go_by_size() -> None:
    found = modules(np.array([0, 0, 1, 1, 2]), 2)
    assert [m.tolist() for m in found] == [[0, 1], [2, 3]]


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
    np.testing.assert_allclose(module_effects(effects, programs), [3.0, 1.0, 2 / 3])
    scale = np.sqrt(18 / 3)
    expected = [
        (4 / (2 * np.sqrt(2)) + 4 / scale) / 3,
        (4 / (2 * np.sqrt(2)) + 0) / 3,
        (0 + 4 / (scale * np.sqrt(3))) / 3,
    ]
    np.testing.assert_allclose(module_strengths(effects, programs), expected)
    np.testing.assert_array_equal(module_strengths(effects * 0, programs), [0.0] * 3)
    np.testing.assert_allclose(module_strengths(effects * [[1], [7], [1]], programs), expected)


def test_strengths_lose_what_the_size_brings(rng: np.random.Generator) -> None:
    null_sizes = rng.integers(10, 100, 999).astype(float)
    noise = rng.lognormal(0, 0.1, 999)
    own, null = without_size_trend(
        np.array([20.0, 80.0, 50.0]),
        np.sqrt([20.0, 80.0, 50.0]) * [1.0, 1.0, 2.0],
        null_sizes,
        np.sqrt(null_sizes) * noise,
    )
    np.testing.assert_allclose(own / own[0], [1, 1, 2], rtol=0.05)
    assert abs(np.corrcoef(null, null_sizes)[0, 1]) < 0.1
    # Beyond all sizes of the null the size itself counts.
    large, null = without_size_trend(
        np.array([400.0]), np.array([20.0]), null_sizes, null_sizes**0.5 * noise
    )
    assert large > null.max()
    tied = without_size_trend(np.array([5.0]), np.zeros(1), np.array([5.0, 6.0]), np.zeros(2))
    assert [x.tolist() for x in tied] == [[0], [0, 0]]


def test_best_jaccard_by_hand() -> None:
    programs = [np.array([0, 1, 2, 3]), np.array([4, 5])]
    again = np.array([0, 0, 0, 1, 1, 1, 0, -1])
    np.testing.assert_allclose(best_jaccard(programs, again), [3 / 5, 2 / 3])
    np.testing.assert_array_equal(best_jaccard(programs, np.full(8, -1)), [0.0, 0.0])
