"""Scores of hidden directions and sizes."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats
import sklearn.metrics as sk

from cfm.metrics import direction_scores, size_scores


def test_by_hand() -> None:
    effects = np.array([2.0, 1.0, -1.0, -3.0, np.nan, 0.0, 5.0])
    score = np.array([0.5, -0.1, -0.2, 0.0, 1.0, 1.0, -1.0])
    hidden = np.array([True] * 6 + [False])
    result = direction_scores(effects, score, hidden)
    assert result["accuracy"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert result["balanced_accuracy"] == pytest.approx((0.5 + 0.75) / 2)
    assert result["auroc"] == pytest.approx(3 / 4)


def test_agrees_with_sklearn() -> None:
    rng = np.random.default_rng(0)
    effects, score = rng.normal(size=200), rng.normal(size=200)
    result = direction_scores(effects, score)
    up = effects > 0
    assert result["auroc"] == pytest.approx(sk.roc_auc_score(up, score))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(up, score > 0))


def test_one_way_and_nothing() -> None:
    result = direction_scores([1.0, 2.0], [1.0, -1.0])
    assert result["accuracy"] == 0.5
    assert np.isnan([result["balanced_accuracy"], result["auroc"]]).all()
    assert np.isnan(list(direction_scores([0.0, np.nan], [1.0, 1.0]).values())).all()
    assert np.isnan(list(size_scores([np.nan], [1.0]).values())).all()


def test_size() -> None:
    rng = np.random.default_rng(0)
    effects, size = rng.normal(size=50), rng.integers(0, 5, 50).astype(float)
    result = size_scores(effects, size)
    assert result["mae"] == pytest.approx(np.abs(np.abs(effects) - size).mean())
    assert result["spearman"] == pytest.approx(scipy.stats.spearmanr(np.abs(effects), size)[0])
    assert np.isnan(size_scores([1.0, 2.0], [1.0, 1.0])["spearman"])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="2 true and 1 predicted"):
        direction_scores([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="NaN or infinite"):
        direction_scores([1.0, 2.0], [1.0, np.nan])
    with pytest.raises(ValueError, match="hidden has 1"):
        direction_scores([1.0, 2.0], [1.0, 1.0], [True])
