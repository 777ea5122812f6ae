"""Class scores against hand-computed values and scikit-learn; units that weigh the same."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from cfm.metrics import (
    auroc,
    brier_score,
    expected_calibration_error,
    top_k_accuracy,
    unit_weights,
)

CLASSES = np.array(["a", "b", "c"])
Case = tuple[np.ndarray, np.ndarray, np.ndarray]


@st.composite
def predictions(draw: st.DrawFn) -> Case:
    """Labels, probabilities and weights of a few samples."""
    n = draw(st.integers(2, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.choice(CLASSES, n), rng.dirichlet(np.ones(3), n), rng.random(n) + 0.01


@settings(deadline=None)
@given(predictions())
def test_agrees_with_sklearn(case: Case) -> None:
    y, p, w = case
    np.testing.assert_allclose(
        top_k_accuracy(y, p, CLASSES, 2, w),
        sk.top_k_accuracy_score(y, p, k=2, labels=CLASSES, sample_weight=w),
    )
    one_hot = y[:, None] == CLASSES
    np.testing.assert_allclose(
        brier_score(y, p, CLASSES, w), np.average(((p - one_hot) ** 2).sum(1), weights=w)
    )
    is_a = y == "a"
    value = auroc(is_a, p[:, 0], w)
    if is_a.all() or not is_a.any():
        assert np.isnan(value)
    else:
        np.testing.assert_allclose(value, sk.roc_auc_score(is_a, p[:, 0], sample_weight=w))


@settings(deadline=None)
@given(predictions(), st.floats(0.1, 100), st.integers(0, 1000))
def test_order_and_scale_of_weights_do_not_matter_and_repeats_are_weights(
    case: Case, factor: float, seed: int
) -> None:
    y, p, w = case
    rng = np.random.default_rng(seed)
    order, columns, times = rng.permutation(len(y)), rng.permutation(3), np.arange(len(y)) % 3 + 1
    for score in (expected_calibration_error, brier_score, top_k_accuracy):
        moved = y[order], p[order][:, columns], CLASSES[columns]
        np.testing.assert_allclose(
            score(y, p, CLASSES, sample_weight=w),
            score(*moved, sample_weight=w[order] * factor),
            atol=1e-12,
        )
        np.testing.assert_allclose(
            score(y, p, CLASSES, sample_weight=times),
            score(np.repeat(y, times), np.repeat(p, times, axis=0), CLASSES),
            atol=1e-12,
        )


def test_calibration_error_by_hand() -> None:
    y = ["a", "a", "b", "b"]
    p = [[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.4, 0.6]]
    # bin (.8, .9]: 2 of 2 right at .9; bin (.5, .6]: 1 of 2 right at .6
    expected = 0.5 * 0.1 + 0.5 * 0.1
    assert expected_calibration_error(y, p, ["a", "b"]) == pytest.approx(expected)
    assert expected_calibration_error(["a"], [[1.0, 0.0]], ["a", "b"]) == 0.0
    assert expected_calibration_error(["b"], [[1.0, 0.0]], ["a", "b"]) == 1.0


def test_labels_without_a_column_ties_and_single_classes() -> None:
    p = [[0.5, 0.5], [1.0, 0.0]]
    assert top_k_accuracy(["new", "a"], p, ["a", "b"], k=2) == 0.5
    assert brier_score(["new", "a"], p, ["a", "b"]) == pytest.approx((0.5 + 1.0) / 2)
    constant = np.full((3, 3), 1 / 3)
    assert top_k_accuracy(CLASSES, constant, CLASSES, k=2) == 0.0
    assert top_k_accuracy(CLASSES, constant, CLASSES, k=3) == 1.0
    assert np.isnan(auroc([True], [0.3]))
    assert np.isnan(auroc([True, False], [0.3, 0.2], [1.0, 0.0]))


def test_unit_weights_by_hand() -> None:
    labels, groups = ["flu", "flu", "flu", "zika"], ["s1", "s1", "s2", "s1"]
    np.testing.assert_allclose(unit_weights(labels, groups), [1 / 6, 1 / 6, 1 / 3, 1 / 3])
    balanced = unit_weights(labels, groups, balance_labels=True)
    np.testing.assert_allclose(balanced, [1 / 8, 1 / 8, 1 / 4, 1 / 2])


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=30))
def test_units_and_labels_weigh_the_same(pairs: list[tuple[str, int]]) -> None:
    labels, groups = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    units = np.array([f"{a}|{b}" for a, b in pairs])
    plain = unit_weights(labels, groups)
    balanced = unit_weights(labels, groups, balance_labels=True)
    np.testing.assert_allclose([plain.sum(), balanced.sum()], 1.0)
    for weight, of in ((plain, units), (balanced, labels)):
        each = [weight[of == name].sum() for name in np.unique(of)]
        np.testing.assert_allclose(each, each[0])
    order = np.random.default_rng(0).permutation(len(pairs))
    np.testing.assert_allclose(unit_weights(labels[order], groups[order]), plain[order])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: auroc([], []), "no samples"),
        (lambda: auroc([0], [0.1, 0.2]), "2 entries, expected 1"),
        (lambda: auroc([[0]], [0.1]), "one dimension"),
        (lambda: auroc([0, 1], [0, 1], [-1.0, 2.0]), "not negative"),
        (lambda: auroc([0, 1], [0, 1], [np.nan, 1.0]), "finite"),
        (lambda: auroc([0, 1], [0, 1], [0.0, 0.0]), "positive sum"),
        (lambda: auroc([0, 1], [0, 1], [1.0]), "shape"),
        (lambda: auroc([0, 1], [0.1, np.inf]), "infinite"),
        (lambda: auroc([0, 2], [0.1, 0.2]), "boolean"),
        (lambda: top_k_accuracy(["a"], [[np.nan, 1]], ["a", "b"]), "NaN"),
        (lambda: top_k_accuracy(["a"], [[0.5, 0.5]], ["a", "a"]), "twice"),
        (lambda: top_k_accuracy(["a"], [[0.5, 0.5]], ["a", "b"], k=0), "k=0"),
        (lambda: brier_score(["a"], [[1.0]], ["a", "b"]), "shape"),
        (lambda: expected_calibration_error(["a"], [[1.0]], ["a"], n_bins=0), "n_bins"),
        (lambda: unit_weights(["a", "b"], ["s"]), "2 labels and 1 groups"),
        (lambda: unit_weights([], []), "no samples"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
