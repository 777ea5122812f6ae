"""Class scores against hand-computed values and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import given, settings
from hypothesis import strategies as st

from cfm.metrics import (
    accuracy,
    auroc,
    brier_score,
    expected_calibration_error,
    macro_f1,
    recall_per_class,
    top_k_accuracy,
)

CLASSES = np.array(["a", "b", "c"])


@st.composite
def predictions(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, probabilities and weights of a few samples."""
    n = draw(st.integers(2, 25))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return rng.choice(CLASSES, n), rng.dirichlet(np.ones(3), n), rng.random(n) + 0.01


@settings(deadline=None)
@given(predictions())
def test_agrees_with_sklearn(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    y, p, w = case
    pred = CLASSES[p.argmax(1)]
    np.testing.assert_allclose(accuracy(y, pred, w), sk.accuracy_score(y, pred, sample_weight=w))
    np.testing.assert_allclose(
        top_k_accuracy(y, p, CLASSES, 2, w),
        sk.top_k_accuracy_score(y, p, k=2, labels=CLASSES, sample_weight=w),
    )
    np.testing.assert_allclose(
        macro_f1(y, pred, w, labels=CLASSES),
        sk.f1_score(y, pred, labels=CLASSES, average="macro", sample_weight=w, zero_division=0),
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
def test_order_and_scale_of_weights_do_not_matter(
    case: tuple[np.ndarray, np.ndarray, np.ndarray], factor: float, seed: int
) -> None:
    y, p, w = case
    order = np.random.default_rng(seed).permutation(len(y))
    columns = np.random.default_rng(seed).permutation(3)
    for score in (expected_calibration_error, brier_score, top_k_accuracy):
        np.testing.assert_allclose(
            score(y, p, CLASSES, sample_weight=w),
            score(
                y[order], p[order][:, columns], CLASSES[columns], sample_weight=w[order] * factor
            ),
            atol=1e-12,
        )


@given(predictions())
@settings(deadline=None)
def test_integer_weights_are_repeats(case: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    y, p, _ = case
    times = np.arange(len(y)) % 3 + 1
    yy, pp = np.repeat(y, times), np.repeat(p, times, axis=0)
    pred, ppred = CLASSES[p.argmax(1)], CLASSES[pp.argmax(1)]
    np.testing.assert_allclose(accuracy(y, pred, times), accuracy(yy, ppred))
    np.testing.assert_allclose(macro_f1(y, pred, times), macro_f1(yy, ppred))
    np.testing.assert_allclose(
        expected_calibration_error(y, p, CLASSES, sample_weight=times),
        expected_calibration_error(yy, pp, CLASSES),
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


def test_label_without_a_column() -> None:
    p = [[0.5, 0.5], [1.0, 0.0]]
    assert top_k_accuracy(["new", "a"], p, ["a", "b"], k=2) == 0.5
    assert brier_score(["new", "a"], p, ["a", "b"]) == pytest.approx((0.5 + 1.0) / 2)


def test_a_constant_prediction_gains_nothing_from_ties() -> None:
    constant = np.full((3, 3), 1 / 3)
    assert top_k_accuracy(CLASSES, constant, CLASSES, k=2) == 0.0
    assert top_k_accuracy(CLASSES, constant, CLASSES, k=3) == 1.0


def test_recall_and_f1_of_a_missed_class() -> None:
    y, pred = ["a", "a", "b"], ["a", "b", "c"]
    assert recall_per_class(y, pred) == {"a": 0.5, "b": 0.0}
    assert macro_f1(y, pred) == pytest.approx((2 / 3 + 0.0) / 2)
    assert np.isnan(recall_per_class(y, pred, [1.0, 1.0, 0.0])["b"])


def test_one_sample_one_class() -> None:
    assert accuracy(["a"], ["a"]) == 1.0
    assert macro_f1(["a"], ["a"]) == 1.0
    assert np.isnan(auroc([True], [0.3]))
    assert np.isnan(auroc([True, False], [0.3, 0.2], [1.0, 0.0]))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accuracy([], []), "no samples"),
        (lambda: accuracy(["a"], ["a", "b"]), "2 entries, expected 1"),
        (lambda: accuracy([["a"]], ["a"]), "one dimension"),
        (lambda: accuracy(["a"], ["a"], [-1.0]), "not negative"),
        (lambda: accuracy(["a"], ["a"], [np.nan]), "finite"),
        (lambda: accuracy(["a"], ["a"], [0.0]), "positive sum"),
        (lambda: accuracy(["a"], ["a"], [1.0, 1.0]), "shape"),
        (lambda: top_k_accuracy(["a"], [[np.nan, 1]], ["a", "b"]), "NaN"),
        (lambda: top_k_accuracy(["a"], [[0.5, 0.5]], ["a", "a"]), "twice"),
        (lambda: top_k_accuracy(["a"], [[0.5, 0.5]], ["a", "b"], k=0), "k=0"),
        (lambda: brier_score(["a"], [[1.0]], ["a", "b"]), "shape"),
        (lambda: expected_calibration_error(["a"], [[1.0]], ["a"], n_bins=0), "n_bins"),
        (lambda: auroc([0, 1], [0.1, np.inf]), "infinite"),
        (lambda: auroc([0, 2], [0.1, 0.2]), "boolean"),
        (lambda: macro_f1(["a"], ["a"], labels=[]), "empty"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
