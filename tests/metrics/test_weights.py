"""Unit weights: every (label, group) unit counts the same."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfm.metrics import unit_weights


def test_by_hand() -> None:
    labels, groups = ["flu", "flu", "flu", "zika"], ["s1", "s1", "s2", "s1"]
    np.testing.assert_allclose(unit_weights(labels, groups), [1 / 6, 1 / 6, 1 / 3, 1 / 3])
    np.testing.assert_allclose(
        unit_weights(labels, groups, balance_labels=True), [1 / 8, 1 / 8, 1 / 4, 1 / 2]
    )


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 3)), min_size=1, max_size=30))
def test_units_and_labels_weigh_the_same(pairs: list[tuple[str, int]]) -> None:
    labels, groups = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    units = np.array([f"{a}|{b}" for a, b in pairs])
    plain = unit_weights(labels, groups)
    balanced = unit_weights(labels, groups, balance_labels=True)
    np.testing.assert_allclose([plain.sum(), balanced.sum()], 1.0)
    per_unit = [plain[units == u].sum() for u in np.unique(units)]
    np.testing.assert_allclose(per_unit, per_unit[0])
    per_label = [balanced[labels == v].sum() for v in np.unique(labels)]
    np.testing.assert_allclose(per_label, per_label[0])
    order = np.random.default_rng(0).permutation(len(pairs))
    np.testing.assert_allclose(unit_weights(labels[order], groups[order]), plain[order])


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="2 labels and 1 groups"):
        unit_weights(["a", "b"], ["s"])
    with pytest.raises(ValueError, match="no samples"):
        unit_weights([], [])
