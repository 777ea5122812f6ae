"""Hidden directions: baselines recover planted signal; scores agree with those of libraries."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
import scipy.stats
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from cfm.metrics import (
    CorrelationKernel,
    EffectPCA,
    GeneMean,
    MajoritySign,
    NearestProfiles,
    SignedSetSVD,
    direction_scores,
    size_scores,
)
from cfm.stats._similarity import grade_effects

ALL = [
    GeneMean(n_top=20),
    MajoritySign(),
    NearestProfiles(n_top=20),
    EffectPCA(rank=5, n_top=20),
    SignedSetSVD(rank=8),
    SignedSetSVD(rank=8, effect_weight=1.0, n_top=20),
    CorrelationKernel(n_top=20),
    CorrelationKernel(n_top=20, rank=10),
]
GENES = 120


def planted(n: int, seed: int, missing: float = 0.1) -> NDArray[np.float32]:
    """Profiles of three gene programmes with random signs, so that no gene has a usual way."""
    truth = np.random.default_rng(7)
    loadings = truth.choice([-1.0, 1.0], (3, GENES)) * (np.arange(GENES) % 3 == np.c_[:3])
    size = truth.uniform(0.5, 2.0, GENES)
    rng = np.random.default_rng(seed)
    effects = rng.choice([-1.0, 1.0], (n, 3)) @ loadings * size * rng.lognormal(0, 0.1, (n, GENES))
    effects[rng.random(effects.shape) < missing] = np.nan
    return effects.astype(np.float32)


def sets_of(effects: NDArray[np.float32]) -> sp.csr_matrix:
    return sp.csr_matrix(np.sign(np.nan_to_num(effects)))


def hide(effects: NDArray[np.float32], seed: int = 0) -> tuple[NDArray, NDArray]:
    hidden = (np.random.default_rng(seed).random(effects.shape) < 0.5) & np.isfinite(effects)
    return np.where(hidden, np.float32(np.nan), effects), hidden


def accuracy_of(model: GeneMean, test: NDArray[np.float32]) -> float:
    observed, hidden = hide(test)
    score, _ = model.predict(observed, hidden)
    rows = [direction_scores(*row)["accuracy"] for row in zip(test, score, hidden, strict=True)]
    return float(np.mean(rows))


@pytest.mark.parametrize("model", ALL[2:], ids=str)
def test_programmes_are_recovered(model: GeneMean) -> None:
    train = planted(40, 1)
    model.fit(train, signed_sets=sets_of(planted(40, 2)))
    assert accuracy_of(model, planted(10, 3)) > 0.95


def test_sets_alone_are_enough_for_set_methods() -> None:
    nothing = np.empty((0, GENES), dtype=np.float32)
    for model in (SignedSetSVD(rank=8), CorrelationKernel()):
        model.fit(nothing, signed_sets=sets_of(planted(40, 2)))
        assert accuracy_of(model, planted(10, 3)) > 0.95
    with pytest.raises(ValueError, match="no training profiles"):
        EffectPCA().fit(nothing, signed_sets=sets_of(planted(40, 2)))


def test_gene_mean_and_majority() -> None:
    usual = np.where(np.arange(GENES) % 2 == 0, 1.0, -1.0)
    train = usual * np.random.default_rng(0).uniform(0.5, 2, (5, GENES))
    assert accuracy_of(GeneMean(n_top=20).fit(train), train) == 1.0
    upward = np.abs(train)
    upward[:, :12] *= -1
    majority = MajoritySign().fit(train)
    observed, hidden = hide(upward.astype(np.float32))
    score, _ = majority.predict(observed, hidden)
    expected = np.nanmean(np.sign(observed), axis=1)
    np.testing.assert_allclose(score[hidden], np.repeat(expected, hidden.sum(1)), rtol=1e-6)


def test_constant_kernel_is_the_majority() -> None:
    """Where nothing else is known about a gene, the profile's own direction decides."""
    sets = sp.csr_matrix(np.eye(1, GENES, dtype=np.float32))
    observed = np.full((1, GENES), np.nan, np.float32)
    observed[0, 1:11] = 1.0
    hidden = np.zeros((1, GENES), bool)
    hidden[0, 50:] = True
    nothing = np.empty((0, GENES), dtype=np.float32)
    with_level = CorrelationKernel(constant=0.5, ridge=1.0).fit(nothing, signed_sets=sets)
    score, _ = with_level.predict(observed, hidden)
    np.testing.assert_allclose(score[hidden], 0.5 * 10 / (0.5 * 10 + 1.0), rtol=1e-5)
    without = CorrelationKernel(constant=0.0).fit(nothing, signed_sets=sets)
    assert np.all(without.predict(observed, hidden)[0][hidden] == 0)


def test_kernel_formula() -> None:
    """Against K_HO (K_OO + λ I)^-1 y written out, in both the gene and the row system."""
    train, test = planted(30, 1, missing=0.0), planted(1, 4, missing=0.0)
    z = grade_effects(train, 20)
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    weight = np.random.default_rng(0).random(30)
    rows = np.sqrt(weight / weight.sum())[:, None] * z
    diagonal = (rows**2).sum(0)
    kernel = rows.T @ rows * diagonal.sum() / (diagonal**2).sum() + 0.2
    model = CorrelationKernel(ridge=0.7, constant=0.2, n_top=20).fit(train, weight)
    for n_seen in (10, 100):  # fewer and more than the 31 rows
        observed, hidden = np.full_like(test, np.nan), np.zeros(test.shape, bool)
        observed[0, :n_seen] = test[0, :n_seen]
        hidden[0, n_seen:] = True
        o, h = np.arange(n_seen), np.arange(n_seen, GENES)
        alpha = np.linalg.solve(kernel[np.ix_(o, o)] + 0.7 * np.eye(n_seen), np.sign(test[0, o]))
        score, _ = model.predict(observed, hidden)
        np.testing.assert_allclose(score[0, h], kernel[np.ix_(h, o)] @ alpha, atol=2e-5)


def test_full_rank_changes_nothing() -> None:
    train, test = planted(12, 1), planted(4, 3)
    observed, hidden = hide(test)
    full = CorrelationKernel(n_top=20).fit(train).predict(observed, hidden)[0]
    for rank in (11, 12, 500):
        part = CorrelationKernel(n_top=20, rank=rank).fit(train).predict(observed, hidden)[0]
        tolerance = 1e-4 if rank > 11 else 0.5
        np.testing.assert_allclose(part[hidden], full[hidden], atol=tolerance)


@pytest.mark.parametrize("model", ALL, ids=str)
def test_profiles_do_not_see_each_other(model: GeneMean) -> None:
    model.fit(planted(40, 1), signed_sets=sets_of(planted(40, 2)))
    observed, hidden = hide(planted(6, 3))
    score, size = model.predict(observed, hidden)
    order = [4, 2, 0]
    other_score, other_size = model.predict(observed[order], hidden[order])
    np.testing.assert_array_equal(score[order], other_score)
    np.testing.assert_array_equal(size[order], other_size)
    assert np.isnan(score[~hidden]).all()
    assert np.isfinite(score[hidden]).all()
    assert (size[hidden] > 0).all()


@pytest.mark.parametrize("model", ALL, ids=str)
@settings(deadline=None, max_examples=10)
@given(factor=st.floats(0.01, 50), seed=st.integers(0, 100))
def test_units_of_training_effects_do_not_matter(model: GeneMean, factor: float, seed: int) -> None:
    train = planted(30, seed)
    sets = sets_of(planted(30, seed + 1))
    observed, hidden = hide(planted(3, seed + 2))
    score = model.fit(train, signed_sets=sets).predict(observed, hidden)[0]
    scaled = model.fit(train * np.float32(factor), signed_sets=sets).predict(observed, hidden)[0]
    np.testing.assert_allclose(score[hidden], scaled[hidden], atol=2e-3)


@pytest.mark.parametrize("model", ALL, ids=str)
def test_zero_weight_is_absence_and_repeats_are_weight(model: GeneMean) -> None:
    train, sets = planted(20, 1), sets_of(planted(20, 2))
    observed, hidden = hide(planted(3, 3))
    if isinstance(model, NearestProfiles):  # a neighbour of weight 0 still takes a place
        model = NearestProfiles(n_neighbors=100, n_top=20)
    few = model.fit(train[:15], signed_sets=sets).predict(observed, hidden)[0]
    weight = np.r_[np.ones(15), np.zeros(5)]
    same = model.fit(train, weight, sets).predict(observed, hidden)[0]
    np.testing.assert_allclose(few[hidden], same[hidden], atol=1e-4)


def test_an_unmeasured_gene_and_an_empty_profile() -> None:
    train = planted(20, 1)
    train[:, 5] = np.nan
    for model in ALL:
        model.fit(train, signed_sets=sets_of(planted(20, 2))[:, :])
        observed = np.full((1, GENES), np.nan, np.float32)
        score, size = model.predict(observed, np.ones((1, GENES), bool))
        assert np.isfinite(score).all()
        assert np.isfinite(size).all()
        score, _ = model.predict(observed, np.zeros((1, GENES), bool))
        assert np.isnan(score).all()


def test_sizes_follow_the_gene_and_the_profile() -> None:
    rng = np.random.default_rng(0)
    usual = rng.uniform(-2, 2, GENES)
    effects = np.exp2(usual + rng.normal(0, 0.1, (30, GENES))).astype(np.float32)
    model = MajoritySign().fit(effects[:25])
    test = 4.0 * effects[25:]
    observed, hidden = hide(test)
    _, size = model.predict(observed, hidden)
    error = np.abs(np.log2(size[hidden]) - np.log2(test[hidden]))
    assert np.median(error) < 0.3


@pytest.mark.parametrize("one", [1, 2])
def test_one_or_two_training_profiles(one: int) -> None:
    observed, hidden = hide(planted(2, 3))
    for model in ALL:
        model.fit(planted(one, 1), signed_sets=sets_of(planted(1, 2)))
        assert np.isfinite(model.predict(observed, hidden)[0][hidden]).all()


def test_direction_scores_by_hand() -> None:
    effects = np.array([2.0, 1.0, -1.0, -3.0, np.nan, 0.0, 5.0])
    score = np.array([0.5, -0.1, -0.2, 0.0, 1.0, 1.0, -1.0])
    hidden = np.array([True] * 6 + [False])
    result = direction_scores(effects, score, hidden)
    assert result["accuracy"] == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    assert result["balanced_accuracy"] == pytest.approx((0.5 + 0.75) / 2)
    assert result["auroc"] == pytest.approx(3 / 4)


def test_direction_scores_agree_with_sklearn() -> None:
    rng = np.random.default_rng(0)
    effects, score = rng.normal(size=200), rng.normal(size=200)
    result = direction_scores(effects, score)
    up = effects > 0
    assert result["auroc"] == pytest.approx(sk.roc_auc_score(up, score))
    assert result["balanced_accuracy"] == pytest.approx(sk.balanced_accuracy_score(up, score > 0))


def test_effects_that_go_one_way_and_no_effects() -> None:
    result = direction_scores([1.0, 2.0], [1.0, -1.0])
    assert result["accuracy"] == 0.5
    assert np.isnan([result["balanced_accuracy"], result["auroc"]]).all()
    assert np.isnan(list(direction_scores([0.0, np.nan], [1.0, 1.0]).values())).all()
    assert np.isnan(list(size_scores([np.nan], [1.0]).values())).all()


def test_size_scores_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    effects, size = rng.normal(size=50), rng.integers(0, 5, 50).astype(float)
    result = size_scores(effects, size)
    assert result["mae"] == pytest.approx(np.abs(np.abs(effects) - size).mean())
    assert result["spearman"] == pytest.approx(scipy.stats.spearmanr(np.abs(effects), size)[0])
    assert np.isnan(size_scores([1.0, 2.0], [1.0, 1.0])["spearman"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t, o, h: GeneMean().predict(o, h), "not fitted"),
        (lambda t, o, h: GeneMean().fit(np.where(t > 0, np.inf, t)), "infinite"),
        (lambda t, o, h: GeneMean().fit(t[0]), "expected .profiles, genes."),
        (
            lambda t, o, h: CorrelationKernel().fit(t, signed_sets=sp.csr_matrix((1, 4))),
            "signed_sets has 4 genes",
        ),
        (
            lambda t, o, h: CorrelationKernel().fit(t, signed_sets=sp.csr_matrix(t[:1] / 9)),
            "-1, 0 and 1",
        ),
        (lambda t, o, h: CorrelationKernel(ridge=0).fit(t), "ridge=0"),
        (lambda t, o, h: CorrelationKernel(effect_weight=0).fit(t), "weight above 0"),
        (lambda t, o, h: CorrelationKernel().fit(np.zeros((3, GENES))), "empty"),
        (lambda t, o, h: GeneMean().fit(t).predict(t[:2], h), "hidden gene has an observed value"),
        (lambda t, o, h: GeneMean().fit(t).predict(o[:, :5], h[:, :5]), "must both have 120"),
        (lambda t, o, h: direction_scores([1.0, 2.0], [1.0]), "2 true and 1 predicted"),
        (lambda t, o, h: direction_scores([1.0, 2.0], [1.0, np.nan]), "NaN or infinite"),
        (lambda t, o, h: direction_scores([1.0, 2.0], [1.0, 1.0], [True]), "hidden has 1"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    train = planted(10, 1, missing=0.0)
    observed, hidden = hide(train[:2])
    with pytest.raises(ValueError, match=message):
        call(train, observed, hidden)
