"""Virus classifiers on planted profiles."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression

from cfm.metrics import (
    InterferonRule,
    VirusLogisticRegression,
    VirusNeighbors,
    center_effects,
)

GENES = [f"G{i}" for i in range(54)] + ["IFI27", "IFI44L", "ISG15", "MX1", "IFIT1", "RSAD2"]
MODELS = [
    VirusLogisticRegression(),
    VirusNeighbors(),
    InterferonRule(GENES),
]


def planted(n: int, seed: int) -> tuple[NDArray[np.float32], NDArray]:
    """Two viruses and uninfected contrasts; infections raise the last six genes."""
    rng = np.random.default_rng(seed)
    y = np.array(["flu", "uninfected", "zika"])[np.arange(n) % 3]
    x = rng.normal(0, 0.3, (n, len(GENES)))
    x[y == "flu", :20] += 2.0
    x[y == "zika", 20:40] += 2.0
    x[y != "uninfected", -6:] += 3.0
    x[rng.random(x.shape) < 0.1] = np.nan
    return x.astype(np.float32), y


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_probabilities(model: VirusLogisticRegression) -> None:
    x, y = planted(30, 0)
    test, truth = planted(12, 1)
    fitted = clone(model).fit(x, y)
    p = fitted.predict_proba(test)
    assert p.shape == (12, 3)
    np.testing.assert_allclose(p.sum(1), 1.0)
    assert (p >= 0).all()
    assert list(fitted.classes_) == ["flu", "uninfected", "zika"]
    if isinstance(model, InterferonRule):
        assert ((p[:, 1] < 0.5) == (truth != "uninfected")).all()
    else:
        # What is near a profile of pure noise is up to chance, so only viruses count for all.
        infected = truth != "uninfected"
        assert (fitted.predict(test) == truth)[infected].all()
    order = [7, 3]
    np.testing.assert_allclose(fitted.predict_proba(test[order]), p[order], atol=1e-6)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_one_class_one_sample(model: VirusLogisticRegression) -> None:
    x, y = planted(3, 0)
    fitted = clone(model).fit(x[:1], y[:1])
    assert fitted.predict(x).tolist() == ["flu"] * 3
    np.testing.assert_array_equal(fitted.predict_proba(x), 1.0)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_unmeasured_profiles_and_genes(model: VirusLogisticRegression) -> None:
    x, y = planted(30, 0)
    x[:, 3] = np.nan
    p = clone(model).fit(x, y).predict_proba(np.full((2, len(GENES)), np.nan))
    assert np.isfinite(p).all()
    np.testing.assert_allclose(p.sum(1), 1.0)


@pytest.mark.parametrize("model", MODELS, ids=lambda m: type(m).__name__)
def test_bad_input(model: VirusLogisticRegression) -> None:
    x, y = planted(9, 0)
    with pytest.raises(ValueError, match="not fitted"):
        clone(model).predict_proba(x)
    with pytest.raises(ValueError, match="infinite"):
        clone(model).fit(np.where(np.isnan(x), np.inf, x), y)
    with pytest.raises(ValueError, match="8 entries, expected 9"):
        clone(model).fit(x, y[:-1])
    with pytest.raises(ValueError, match=r"genes|expected \(n"):
        clone(model).fit(x, y).predict_proba(x[:, :4])


def test_center_effects_by_hand() -> None:
    x = np.array([[1.0, 2.0, 9.0, np.nan], [np.nan] * 4])
    np.testing.assert_array_equal(center_effects(x, clip=5.0), [[-1, 0, 5, 0], [0, 0, 0, 0]])
    assert np.isnan(x[0, 3]), "the input is left alone"


@pytest.mark.parametrize("classes", [2, 3])
def test_logistic_regression_equals_the_direct_fit(classes: int) -> None:
    """The rotation is lossless, and sample weights are relative to their mean."""
    x, y = planted(30, 0)
    x, y = x[y != "zika"] if classes == 2 else x, y[y != "zika"] if classes == 2 else y
    weight = np.random.default_rng(0).uniform(0.5, 2.0, len(y))
    model = VirusLogisticRegression(C=1.0).fit(x, y, 10 * weight)
    rows = center_effects(x).astype(float)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    direct = LogisticRegression(C=1.0, tol=1e-8, max_iter=5000)
    direct.fit(rows, y, sample_weight=weight * len(y) / weight.sum())
    np.testing.assert_allclose(model.predict_proba(x), direct.predict_proba(rows), atol=1e-3)
    if classes == 3:  # of two classes scikit-learn keeps one row
        np.testing.assert_allclose(model.coef_, direct.coef_, atol=5e-3)


def test_logistic_regression_ignores_strength_shift_and_rare_genes() -> None:
    x, y = planted(30, 0)
    x[5:, :2] = np.nan
    model = VirusLogisticRegression(clip=100.0).fit(x, y)
    assert (model.coef_[:, :2] == 0).all()
    changed = 3.0 * x + np.float32(0.7)
    np.testing.assert_allclose(model.predict_proba(changed), model.predict_proba(x), atol=1e-3)


def test_neighbors_compare_shared_genes_only() -> None:
    x, y = planted(30, 0)
    model = VirusNeighbors(n_neighbors=3).fit(x, y)
    part = x.copy()
    part[:, 1::2] = np.nan
    assert (model.predict(part) == y).mean() > 0.9


def test_interferon_rule_score() -> None:
    x, y = planted(30, 0)
    model = InterferonRule(GENES).fit(x, y)
    np.testing.assert_allclose(model.decision_function(x), np.nanmean(x[:, -6:], axis=1), rtol=1e-5)
    only_viruses = InterferonRule(GENES).fit(x[y != "uninfected"], y[y != "uninfected"])
    np.testing.assert_allclose(only_viruses.predict_proba(x), 0.5)
    with pytest.raises(ValueError, match="None of the genes"):
        InterferonRule([f"X{i}" for i in GENES]).decision_function(x)
