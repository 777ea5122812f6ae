"""Discrimination score: ranks among observed effects."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import pairwise_distances

from cfm.metrics import discrimination_score


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_the_truth_is_perfect_and_chance_is_a_half(distance, rng) -> None:
    effects = rng.normal(size=(60, 40))
    assert (discrimination_score(effects, effects, distance=distance) == 1.0).all()
    found = discrimination_score(effects, rng.normal(size=(60, 40)), distance=distance).mean()
    assert found == pytest.approx(0.5 + 0.5 / 60, abs=0.1)


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_it_is_one_minus_rank_over_number(distance, rng) -> None:
    effects, predicted = rng.normal(size=(2, 12, 30))
    name = {"l1": "manhattan", "l2": "euclidean", "cosine": "cosine"}[distance]
    matrix = pairwise_distances(predicted, effects, metric=name)
    expected = [1 - (row < row[p]).sum() / 12 for p, row in enumerate(matrix)]
    found = discrimination_score(effects, predicted, distance=distance)
    np.testing.assert_allclose(found, expected)


def test_the_order_of_perturbations_and_genes_decides_nothing(rng) -> None:
    effects, predicted = rng.normal(size=(2, 9, 20))
    rows, columns = rng.permutation(9), rng.permutation(20)
    found = discrimination_score(effects[rows][:, columns], predicted[rows][:, columns])
    np.testing.assert_array_equal(found, discrimination_score(effects, predicted)[rows])


@pytest.mark.parametrize("distance", ["l1", "cosine"])
def test_what_is_equally_near_counts_half(distance) -> None:
    effects = np.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    found = discrimination_score(effects, np.zeros((4, 2)), distance=distance)
    assert found.tolist() == [1 - 1.5 / 4] * 4  # the mean of ranks 0 to 3


def test_perturbed_genes_are_left_out() -> None:
    # The prediction knows nothing but that the perturbed gene falls.
    effects = np.array([[-5.0, 0.0, 1.0], [0.0, -5.0, -1.0]])
    predicted = np.array([[-5.0, 0.0, -1.0], [0.0, -5.0, 1.0]])
    assert discrimination_score(effects, predicted).tolist() == [1.0, 1.0]
    found = discrimination_score(effects, predicted, excluded=[[0, 1], [0, 1]])
    assert found.tolist() == [0.5, 0.5]


def test_one_perturbation_or_no_prediction_has_no_score(rng) -> None:
    assert np.isnan(discrimination_score([[1.0, 2.0]], [[1.0, 2.0]])).all()
    effects = rng.normal(size=(3, 5))
    predicted = effects.copy()
    predicted[1] = np.nan
    np.testing.assert_array_equal(discrimination_score(effects, predicted), [1.0, np.nan, 1.0])


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([[1.0]], [[1.0, 2.0]]), {}, "in the same order"),
        (([1.0], [1.0]), {}, "expected (perturbations, genes)"),
        (([[1.0, np.nan]] * 2, [[1.0, 1.0]] * 2), {}, "NaN"),
        (([[1.0, 2.0]] * 2, [[1.0, np.nan]] * 2), {}, "NaN"),
        (([[1.0]] * 2, [[1.0]] * 2), {"distance": "l3"}, "l3"),
        (([[1.0]] * 2, [[1.0]] * 2), {"excluded": [[0]]}, "1 entries for 2"),
    ],
)
def test_what_cannot_be_scored_is_refused(arguments, options, message) -> None:
    with pytest.raises(ValueError) as error:
        discrimination_score(*arguments, **options)
    assert message in str(error.value)
