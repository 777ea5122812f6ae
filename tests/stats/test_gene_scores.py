"""Scores of genes: means, consensus, permutations, likeness to known genes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest

from cfm.stats._gene_scores import guided_scores, importance, mean_known, permute_effects


def test_means_skip_what_is_not_measured() -> None:
    effects = np.array([[1.0, np.nan, np.nan], [3.0, -2.0, np.nan]])
    np.testing.assert_array_equal(mean_known(effects), [2.0, -2.0, 0.0])
    np.testing.assert_array_equal(mean_known(np.stack([effects, -effects]))[1], [-2, 2, 0])


def test_the_consensus_is_the_mean_log_rank() -> None:
    scores = np.array([[[3.0, -2.0, 1.0]], [[1.0, -5.0, np.nan]]])
    found = importance(scores)
    np.testing.assert_array_equal(found[:2], [[3, 2, 1], [1, 5, 0]])
    np.testing.assert_allclose(found[2], -np.log10([[1, 2, 3], [2, 1, 3]] / np.array(3)).mean(0))
    assert importance(scores[:1]).shape == (1, 3)  # of one method there is none


@pytest.mark.parametrize("kind", ["effects", "directions"])
def test_a_permuted_profile_holds_the_same(
    kind: Literal["effects", "directions"], rng: np.random.Generator
) -> None:
    effects = rng.standard_normal((3, 50))
    effects[:, :5], effects[:, 5:9] = np.nan, 0.0
    found = permute_effects(effects, kind, [(0, 1), (0, 2), (0, 1)])
    assert (np.isnan(found) == np.isnan(effects)).all()
    assert (found[:, 5:] != effects[:, 5:]).any(axis=1).all()
    if kind == "effects":
        np.testing.assert_array_equal(np.sort(found), np.sort(effects))
    else:
        np.testing.assert_array_equal(np.abs(found), np.abs(effects))
        np.testing.assert_array_equal(np.sort(np.sign(found)), np.sort(np.sign(effects)))
    alone = permute_effects(effects[1:2], kind, [(0, 2)])
    np.testing.assert_array_equal(alone, found[1:2])


def test_guided_scores_in_closed_form(rng: np.random.Generator) -> None:
    vectors, known = rng.normal(size=(300, 4)), rng.random((300, 3)) < 0.3
    fold = rng.integers(0, 3, 300)
    found = guided_scores(vectors, known, fold, ridge=0.5)
    train = fold != 1
    x = vectors[train]
    covariance = np.cov(x.T, bias=True)
    shrunken = covariance + 0.5 * np.trace(covariance) / 4 * np.eye(4)
    w = np.linalg.solve(shrunken, x[known[train, 2]].mean(0) - x.mean(0))
    expected = (vectors[~train] - x.mean(0)) @ w / np.sqrt(w @ covariance @ w)
    np.testing.assert_allclose(found[~train, 2], expected)
