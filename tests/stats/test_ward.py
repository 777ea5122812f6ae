"""``weighted_ward``: Ward's method, in which a point counts as often as it weighs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from sklearn.metrics import adjusted_rand_score

from cfm.stats._ward import weighted_ward

POINTS = np.random.default_rng(0).normal(size=(25, 6))


@pytest.mark.parametrize("k", [1, 2, 5, 25])
def test_with_equal_weights_it_is_wards_method(k: int) -> None:
    ours = weighted_ward(POINTS, np.ones(25), k)
    theirs = fcluster(linkage(POINTS, "ward"), k, "maxclust")
    assert adjusted_rand_score(ours, theirs) == 1.0
    assert len(set(ours)) == k


@pytest.mark.parametrize("k", [2, 4, 9])
def test_a_point_of_weight_three_is_three_points_in_one_place(k: int) -> None:
    weight = np.where(np.arange(25) < 10, 3, 1)
    ours = weighted_ward(POINTS, weight, k)
    repeated = np.repeat(POINTS, weight, axis=0)
    theirs = fcluster(linkage(repeated, "ward"), k, "maxclust")
    assert adjusted_rand_score(np.repeat(ours, weight), theirs) == 1.0
    assert (np.diff(np.bincount(ours, weights=weight)) <= 0).all()  # the first weighs most


def test_points_in_one_place_and_a_single_point() -> None:
    places = np.repeat(np.eye(3), 4, axis=0)
    assert weighted_ward(places, np.ones(12), 3).tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert weighted_ward(np.ones((1, 2)), np.ones(1), 1).tolist() == [0]
