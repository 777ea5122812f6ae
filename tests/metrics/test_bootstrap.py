"""The paired bootstrap resamples units, not samples."""

from __future__ import annotations

import numpy as np
import pytest

from cfm.metrics import paired_bootstrap


def test_mean_over_units_not_samples() -> None:
    result = paired_bootstrap([1, 1, 1, 0], [0, 0, 0, 0], ["u", "u", "u", "v"], n_boot=200)
    assert result["diff"] == pytest.approx(0.5)
    assert result["n_units"] == 2
    assert (result["low"], result["high"]) == (0.0, 1.0)


def test_interval_matches_the_normal_one() -> None:
    rng = np.random.default_rng(0)
    delta = rng.normal(0.2, 1.0, 400)
    result = paired_bootstrap(delta, np.zeros(400), np.arange(400))
    half = 1.96 * delta.std() / 20
    assert result["low"] == pytest.approx(delta.mean() - half, abs=0.01)
    assert result["high"] == pytest.approx(delta.mean() + half, abs=0.01)
    assert result["p"] < 0.01


def test_signs_and_symmetry() -> None:
    a, b = np.array([0.9, 0.8, 0.7, 0.9]), np.array([0.5, 0.6, 0.6, 0.4])
    forward = paired_bootstrap(a, b, range(4))
    backward = paired_bootstrap(b, a, range(4))
    assert forward["diff"] == -backward["diff"]
    assert forward["low"] == pytest.approx(-backward["high"])
    assert forward["p"] == backward["p"] == pytest.approx(2 / 10_001)


def test_equal_scores_have_p_one() -> None:
    result = paired_bootstrap([0.1, 0.2], [0.1, 0.2], ["u", "v"])
    assert (result["diff"], result["low"], result["high"], result["p"]) == (0, 0, 0, 1)


def test_one_unit_says_nothing_about_spread() -> None:
    result = paired_bootstrap([1.0, 0.0], [0.0, 0.0], ["u", "u"])
    assert result["diff"] == 0.5
    assert np.isnan([result["low"], result["high"], result["p"]]).all()


def test_seed_and_order() -> None:
    rng = np.random.default_rng(1)
    a, b, unit = rng.random(30), rng.random(30), np.repeat(np.arange(10), 3)
    order = rng.permutation(30)
    first = paired_bootstrap(a, b, unit, 500, seed=3)
    assert first == pytest.approx(paired_bootstrap(a[order], b[order], unit[order], 500, seed=3))
    assert first != paired_bootstrap(a, b, unit, 500, seed=4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1.0], [1.0, 2.0], ["u"]), "equally long"),
        (([], [], []), "no samples"),
        (([np.nan], [1.0], ["u"]), "NaN"),
        (([1.0], [1.0], ["u"], 0), "n_boot=0"),
    ],
)
def test_bad_input(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        paired_bootstrap(*arguments)
    with pytest.raises(ValueError, match="confidence"):
        paired_bootstrap([1.0], [1.0], ["u"], confidence=1.5)
