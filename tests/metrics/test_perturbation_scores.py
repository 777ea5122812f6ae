"""Scores of predicted perturbations: closed forms, chance, and what does not matter."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import energy_distance, norm, pearsonr, spearmanr, wasserstein_distance
from sklearn.metrics import pairwise_distances

from cfm.metrics import (
    _perturbation_scores,
    challenge_score,
    delta_cosine,
    delta_pearson,
    delta_r2,
    direction_accuracy,
    discrimination_score,
    e_distance,
    gene_mean_correlation,
    gene_wasserstein,
    ilisi,
    mean_squared_distance,
    mmd,
)

ALL = [delta_pearson, delta_cosine, delta_r2, direction_accuracy]
EFFECT = arrays(np.float64, 12, elements=st.floats(-5, 5, width=16))
POINTS = arrays(np.float64, (7, 3), elements=st.floats(-4, 4, width=16))


@pytest.mark.parametrize("score", ALL)
def test_the_truth_is_perfect_and_its_opposite_is_not(score, rng) -> None:
    effect = rng.normal(size=200)
    assert score(effect, effect) == pytest.approx(1.0)
    opposite = {delta_r2: -3.0, direction_accuracy: 0.0}.get(score, -1.0)
    assert score(effect, -effect) == pytest.approx(opposite)


@pytest.mark.parametrize("score", ALL)
def test_no_effect_is_worth_nothing(score, rng) -> None:
    chance = 0.5 if score is direction_accuracy else 0.0
    assert score(rng.normal(size=30), np.zeros(30)) == chance
    assert np.isnan(score(np.zeros(30), rng.normal(size=30)))


def test_only_r2_sees_the_size(rng) -> None:
    effect = rng.normal(size=100)
    for score in (delta_pearson, delta_cosine, direction_accuracy):
        assert score(effect, 0.01 * effect) == pytest.approx(1.0)
    assert delta_r2(effect, 0.5 * effect) == pytest.approx(0.75)
    assert delta_r2(effect, 3 * effect) == pytest.approx(-3.0)


def test_only_the_cosine_sees_a_shift_of_all_genes(rng) -> None:
    effect = rng.normal(size=100)
    assert delta_pearson(effect, effect + 9) == pytest.approx(1.0)
    assert delta_cosine(effect, effect + 9) < 0.5


def test_a_constant_has_no_correlation_however_it_is_rounded() -> None:
    constant = np.full(7, 0.1) * 3
    constant[3] += 1e-17
    assert delta_pearson([1, 2, 3, 4, 5, 6, 7], constant) == 0.0
    assert np.isnan(delta_pearson(constant, [1, 2, 3, 4, 5, 6, 7]))


@given(EFFECT, EFFECT)
def test_it_is_the_pearson_correlation_whatever_the_order(effect, predicted) -> None:
    assume(np.ptp(effect) > 0.1 and np.ptp(predicted) > 0.1)
    found = delta_pearson(effect, predicted)
    assert found == pytest.approx(pearsonr(effect, predicted)[0], abs=1e-9)
    order = np.random.default_rng(0).permutation(12)
    for score in ALL:
        for n_top in (None, 4):
            assert score(effect[order], predicted[order], n_top=n_top) == pytest.approx(
                score(effect, predicted, n_top=n_top), abs=1e-9, nan_ok=True
            )


def test_top_genes_are_those_of_the_largest_observed_effect() -> None:
    effect = np.array([5.0, -4.0, 3.0, 0.5, 0.4, 0.0])
    predicted = np.array([1.0, -1.0, -1.0, -9.0, -9.0, 9.0])
    assert direction_accuracy(effect, predicted, n_top=2) == 1.0
    assert direction_accuracy(effect, predicted, n_top=3) == pytest.approx(2 / 3)
    assert direction_accuracy(effect, predicted, n_top=99) == pytest.approx(2 / 5)
    assert direction_accuracy(effect, predicted, n_top=None) == pytest.approx(2 / 5)
    assert delta_pearson(effect, predicted, n_top=2) == pytest.approx(1.0)
    # ties at the end all count, so that the order of genes decides nothing
    assert direction_accuracy([2, 1, -1], [1, 1, 1], n_top=2) == pytest.approx(2 / 3)


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_the_own_effect_is_nearest_and_chance_is_a_half(distance, rng) -> None:
    effects = rng.normal(size=(60, 40))
    assert (discrimination_score(effects, effects, distance=distance) == 1.0).all()
    found = discrimination_score(effects, rng.normal(size=(60, 40)), distance=distance).mean()
    assert found == pytest.approx(0.5 + 0.5 / 60, abs=0.1)


@pytest.mark.parametrize("distance", ["l1", "l2", "cosine"])
def test_discrimination_is_one_minus_rank_over_number(distance, rng) -> None:
    effects, predicted = rng.normal(size=(2, 12, 30))
    name = {"l1": "manhattan", "l2": "euclidean", "cosine": "cosine"}[distance]
    matrix = pairwise_distances(predicted, effects, metric=name)
    expected = [1 - (row < row[p]).sum() / 12 for p, row in enumerate(matrix)]
    found = discrimination_score(effects, predicted, distance=distance)
    np.testing.assert_allclose(found, expected)


def test_the_order_of_perturbations_and_genes_does_not_matter(rng) -> None:
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


def _folded(mean: float, sd: float) -> float:
    """E|Z| of a normal variable."""
    z = mean / sd
    return sd * np.sqrt(2 / np.pi) * np.exp(-(z**2) / 2) + mean * (1 - 2 * norm.cdf(-z))


@pytest.mark.parametrize(("shift", "sd"), [(1.0, 1.0), (0.0, 3.0), (2.0, 0.5)])
def test_energy_distance_of_two_gaussians(shift, sd, rng) -> None:
    x, y = rng.normal(size=(4000, 1)), shift + sd * rng.normal(size=(4000, 1))
    expected = 2 * _folded(shift, np.hypot(1, sd)) - _folded(0, np.sqrt(2)) * (1 + sd)
    assert e_distance(x, y) == pytest.approx(expected, rel=0.1)


def test_biased_energy_distance_is_that_of_scipy(rng) -> None:
    x, y = rng.normal(size=50), 1 + rng.normal(size=70)
    # scipy returns the root of twice the squared distance of distribution functions
    expected = energy_distance(x, y) ** 2
    assert e_distance(x[:, None], y[:, None], unbiased=False) == pytest.approx(expected)


@pytest.mark.parametrize("distance", [e_distance, mmd])
def test_the_unbiased_form_scatters_around_zero_under_the_null(distance, rng) -> None:
    found = [distance(*rng.normal(size=(2, 30, 4))) for _ in range(300)]
    error = np.std(found) / np.sqrt(300)
    assert abs(np.mean(found)) < 4 * error
    assert min(found) < 0 < max(found)
    biased = [distance(*rng.normal(size=(2, 30, 4)), unbiased=False) for _ in range(20)]
    assert min(biased) > 0


@pytest.mark.parametrize("distance", [e_distance, mmd])
@given(POINTS)
def test_copies_are_at_distance_zero_and_nothing_is_below(distance, x) -> None:
    assert distance(x, x, unbiased=False) == pytest.approx(0.0, abs=1e-9)
    assert distance(x, x[::-1], unbiased=False) == pytest.approx(0.0, abs=1e-9)
    assert distance(x, x[:3], unbiased=False) >= -1e-9


@pytest.mark.parametrize("distance", [e_distance, mmd])
@given(POINTS, POINTS)
def test_order_and_side_do_not_matter(distance, x, y) -> None:
    expected = distance(x, y)
    assert distance(x[::-1], y[[3, 1, 0, 2, 6, 5, 4]]) == pytest.approx(expected, abs=1e-9)
    assert distance(y, x) == pytest.approx(expected, abs=1e-9)
    assert distance(x + 3, y + 3) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("distance", [e_distance, mmd])
def test_blocks_do_not_matter(distance, rng, monkeypatch) -> None:
    x, y = rng.normal(size=(40, 3)), rng.normal(size=(30, 3))
    expected = distance(x, y)
    monkeypatch.setattr(_perturbation_scores, "_BLOCK_VALUES", 64)
    assert distance(x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("distance", [e_distance, mmd])
def test_differences_in_spread_alone_are_seen(distance, rng) -> None:
    x, y, z = rng.normal(size=(3, 300, 5))
    assert distance(x, 3 * y) > 10 * abs(distance(x, z))


def test_mmd_by_its_definition(rng) -> None:
    x, y = rng.normal(size=(6, 2)), rng.normal(size=(5, 2)) + 1
    both = np.vstack([x, y])
    squared = ((both[:, None] - both[None]) ** 2).sum(axis=2)
    sigma = squared.sum() / (11 * 10)
    assert mean_squared_distance(both) == pytest.approx(sigma)
    k = sum(np.exp(-squared / (sigma * f)) for f in (0.25, 0.5, 1, 2, 4))
    biased = k[:6, :6].mean() + k[6:, 6:].mean() - 2 * k[:6, 6:].mean()
    assert mmd(x, y, unbiased=False) == pytest.approx(biased)
    assert mmd(x, y, unbiased=False, sigma=sigma) == pytest.approx(biased)
    off = ~np.eye(11, dtype=bool)
    within = [k[p, p][off[p, p]].mean() for p in (slice(0, 6), slice(6, 11))]
    assert mmd(x, y) == pytest.approx(sum(within) - 2 * k[:6, 6:].mean())
    wide = np.exp(-squared / 7.0)
    expected = wide[:6, :6].mean() + wide[6:, 6:].mean() - 2 * wide[:6, 6:].mean()
    assert mmd(x, y, n_kernels=1, sigma=7.0, unbiased=False) == pytest.approx(expected)


def test_mmd_of_sets_far_apart_is_at_its_bound(rng) -> None:
    x, y = rng.normal(size=(2, 20, 2))
    far = mmd(1e-6 * x, 1e-6 * y + 1e6, sigma=1.0, unbiased=False)
    assert far == pytest.approx(10.0)
    assert mmd(np.ones((4, 2)), np.ones((3, 2))) == 0.0


def test_one_observation_has_no_unbiased_spread() -> None:
    assert np.isnan(e_distance([[0.0]], [[1.0], [2.0]]))
    assert e_distance([[0.0]], [[1.0]], unbiased=False) == 2.0


@pytest.mark.parametrize("n", [30, 41])
def test_genes_are_compared_as_by_scipy_whatever_the_order(n, rng) -> None:
    x, y = rng.gamma(2.0, size=(30, 12)), rng.gamma(3.0, size=(n, 12))
    found = gene_wasserstein(x, y)
    expected = [wasserstein_distance(x[:, g], y[:, g]) for g in range(12)]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(gene_wasserstein(x[::-1], rng.permutation(y)), expected)
    means = x.mean(axis=0), y.mean(axis=0)
    found = gene_mean_correlation(x[::-1], y)
    assert found["pearson"] == pytest.approx(pearsonr(*means)[0])
    assert found["spearman"] == pytest.approx(spearmanr(*means)[0])


def test_the_same_cells_are_perfect_and_a_shift_is_its_distance(rng) -> None:
    x = rng.normal(size=(20, 5)) + np.arange(5)
    assert gene_mean_correlation(x, x) == pytest.approx({"pearson": 1.0, "spearman": 1.0})
    assert (gene_wasserstein(x, x) == 0).all()
    np.testing.assert_allclose(gene_wasserstein(x, x + np.arange(5)), np.arange(5))


def test_genes_that_do_not_differ_have_no_correlation(rng) -> None:
    y = rng.normal(size=(4, 7))
    for x in (np.ones((1, 7)), np.full((3, 7), 0.1), np.full((3, 7), 1 / 3)):
        for pair in ((x, y), (y, x)):
            assert np.isnan(list(gene_mean_correlation(*pair).values())).all()


@pytest.mark.parametrize("score", ALL)
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0]), "same genes in the same order"),
        (([[1.0]], [[1.0]]), "expected (genes,) twice"),
        (([], []), "expected (genes,) twice"),
        (([1.0, np.nan], [1.0, 2.0]), "NaN or infinite"),
        (([1.0, 2.0], [1.0, np.inf]), "NaN or infinite"),
    ],
)
def test_bad_effects_are_refused(score, arguments, message) -> None:
    with pytest.raises(ValueError) as error:
        score(*arguments)
    assert message in str(error.value)


@pytest.mark.parametrize("score", [e_distance, mmd, gene_mean_correlation, gene_wasserstein])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0], [[1.0]], "expected (n, d)"),
        ([[1.0]], [[1.0, 2.0]], "the same d"),
        (np.zeros((0, 2)), [[1.0, 2.0]], "at least one"),
        ([[1.0]], [[np.nan]], "NaN or infinite"),
    ],
)
def test_bad_observations_are_refused(score, x, y, message) -> None:
    with pytest.raises(ValueError) as error:
        score(x, y)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        *((lambda n=n: direction_accuracy([1.0], [1.0], n_top=n), "n_top") for n in (0, -1, 2.5)),
        *(
            (lambda o=o: mmd([[0.0], [1.0]], [[2.0], [3.0]], **o), "expected")
            for o in ({"n_kernels": 0}, {"multiplier": 1.0}, {"sigma": 0.0}, {"sigma": np.nan})
        ),
        (lambda: mean_squared_distance([[1.0]]), "at least two"),
        (lambda: discrimination_score([[1.0]], [[1.0, 2.0]]), "in the same order"),
        (lambda: discrimination_score([1.0], [1.0]), "perturbations, genes"),
        (lambda: discrimination_score([[1.0, np.nan]] * 2, [[1.0, 1.0]] * 2), "NaN"),
        (lambda: discrimination_score([[1.0, 2.0]] * 2, [[1.0, np.nan]] * 2), "NaN"),
        (lambda: discrimination_score([[1.0]] * 2, [[1.0]] * 2, distance="l3"), "l3"),
        (lambda: discrimination_score([[1.0]] * 2, [[1.0]] * 2, excluded=[[0]]), "1 entries for 2"),
    ],
)
def test_bad_arguments_are_named(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def _challenge_table(**methods: list[list[float]]) -> pd.DataFrame:
    """Two perturbations: DES, PDS and MAE of each."""
    names = ["overlap_at_N", "discrimination_score_l1", "cell_eval:mae"]
    rows = [
        {"perturbation": p, "metric": metric, "method": method, "value": value}
        for method, found in methods.items()
        for p, three in enumerate(found)
        for metric, value in zip(names, three, strict=True)
    ]
    return pd.DataFrame(rows)


def test_the_challenge_score_by_hand() -> None:
    baseline = [[0.1, 0.5, 0.02], [0.3, 0.5, 0.04]]  # means: 0.2, 0.5, 0.03
    table = _challenge_table(
        mean_shift=baseline,
        good=[[0.5, 1.0, 0.012], [0.7, 0.6, 0.018]],  # 0.6, 0.8, 0.015
        bad=[[0.4, 0.2, 0.3], [0.4, 0.4, 0.3]],  # worse in two
        perfect=[[1.0, 1.0, 0.0]] * 2,
        lacking=[[0.6, np.nan, 0.03], [0.6, 0.9, 0.03]],
    )
    found = challenge_score(table).loc[""]
    assert found.columns.tolist() == ["score", "overlap_at_N", "discrimination_score_l1", "mae"]
    np.testing.assert_allclose(found.loc["good"], [(0.5 + 0.6 + 0.5) / 3, 0.5, 0.6, 0.5])
    np.testing.assert_allclose(found.loc["bad"], [0.25 / 3, 0.25, 0.0, 0.0])
    np.testing.assert_allclose(found.loc["perfect"], 1.0)
    np.testing.assert_allclose(found.loc["mean_shift"], 0.0, atol=1e-12)
    np.testing.assert_allclose(found.loc["lacking"], [0.5 / 3, 0.5, 0.0, 0.0], atol=1e-12)
    # groups have baselines of their own
    halved = table.assign(value=table["value"] / 2)
    both = pd.concat([table.assign(group="a"), halved.assign(group="b")])
    two = challenge_score(both)
    pd.testing.assert_frame_equal(two.loc["a"], found)
    des = (0.3 - 0.1) / (1 - 0.1)
    np.testing.assert_allclose(two.loc[("b", "good"), "overlap_at_N"], des)
    np.testing.assert_allclose(two.loc[("b", "good"), "mae"], 0.5)
    # another baseline
    assert challenge_score(table, baseline="good").loc[("", "bad"), "score"] == 0.0
    with pytest.raises(KeyError, match=r"\['other'\]"):
        challenge_score(table, baseline="other")
    with pytest.raises(KeyError, match="discrimination_score_l1"):
        challenge_score(table[table["metric"] != "discrimination_score_l1"])


def test_batches_that_mix_have_a_high_ilisi(rng) -> None:
    x, batch = rng.normal(size=(600, 5)), np.repeat(["a", "b", "c"], 200)
    mixed = ilisi(x, batch)
    assert 0.75 < mixed < 1
    apart = [ilisi(x + shift * (batch == "b")[:, None], batch) for shift in (0.5, 1.0, 2.0)]
    assert mixed > apart[0] > apart[1] > apart[2]
    far = x + 100 * (batch[:, None] == ["a", "b", "c"]) @ np.eye(3, 5)
    assert ilisi(far, batch) == pytest.approx(0.0, abs=1e-9)
    # neither the unit nor the order matters
    order = rng.permutation(600)
    assert ilisi(7 * x[order], batch[order]) == pytest.approx(mixed, abs=1e-6)
    # the weights have the entropy that was asked for: with all distances equal, any k neighbours
    corners = np.eye(40)
    every = ilisi(corners, np.arange(40) < 20, perplexity=13)
    assert every == pytest.approx(1.0, abs=0.02)
    for wrong, message in (
        ((x, batch[:5]), "expected"),
        ((x, np.zeros(600)), "1 batches"),
        ((x[:90], batch[:90:]), "1 batches|more than"),
        ((np.full((600, 2), np.nan), batch), "finite"),
    ):
        with pytest.raises(ValueError, match=message):
            ilisi(*wrong)
