"""Attention maps to a graph of genes, and the graph to modules."""

from __future__ import annotations

import igraph
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import adjusted_rand_score

from cfm.tl._program_graph import (
    AttentionMean,
    Edges,
    attention_excess,
    attention_similarity,
    by_size,
    cosine,
    leiden,
    modules,
    nearest_neighbour_graph,
    standardise,
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


def test_excess_of_an_empty_profile() -> None:
    assert attention_excess(np.ones((1, 2, 1, 1), dtype=np.float32)).shape == (0, 0)


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
    import random

    _, edges = planted(rng)
    random.seed(3)
    before = random.getstate()
    leiden(edges, seed=1)
    assert random.getstate() == before
    igraph.Graph.Erdos_Renyi(5, 0.5)  # draws from the module again
    assert random.getstate() != before


def test_numbers_by_size() -> None:
    np.testing.assert_array_equal(by_size(np.array([7, 2, 2, 5, 5, 9])), [2, 0, 0, 1, 1, 3])
    found = modules(np.array([0, 0, 1, 1, 2]), 2)
    assert [m.tolist() for m in found] == [[0, 1], [2, 3]]
