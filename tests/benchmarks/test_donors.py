"""How the donor benchmark splits, ranks and doubts."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks._donor_features import (
    auroc_interval,
    distance_kernel,
    draw_cells,
    folds,
    kernel_machine,
    logistic,
    paired_interval,
    wins,
)

ILL = np.array([True] * 16 + [False] * 4)


@pytest.mark.parametrize(("rotations", "times"), [(1, 16), (4, 64)])
def test_pairs_are_held_out_together_once(rotations: int, times: int) -> None:
    met = [(h, s) for test in folds(ILL, rotations) for h, s, _ in wins(np.arange(20.0), ILL, test)]
    assert len(met) == len(set(met)) == times
    assert all(not ILL[int(h)] and ILL[int(s)] for h, s in met)


def test_wins_count_ties_by_half() -> None:
    won = wins(np.array([2.0, 1.0, 1.0]), np.array([True, True, False]), np.arange(3))
    assert won[:, 2].tolist() == [1.0, 0.5]


def test_interval_of_a_perfect_score_is_wide() -> None:
    low, high = auroc_interval(1.0, 4, 16)
    assert 0.65 < low < 0.8
    assert high == 1.0
    assert auroc_interval(1.0, 1, 4, 4)[0] < low  # fewer pairs met
    low, high = auroc_interval(0.5, 400, 1600)
    assert 0.46 < low < 0.5 < high < 0.54
    mirrored = auroc_interval(0.2, 4, 16), auroc_interval(0.8, 4, 16)
    np.testing.assert_allclose(mirrored[0], 1 - np.array(mirrored[1])[::-1], atol=1e-6)


def test_paired_interval_sees_what_is_better() -> None:
    rng = np.random.default_rng(0)
    worse = (rng.random((4, 16)) < 0.3).astype(float)
    difference, low, high = paired_interval(np.ones((4, 16)), worse)
    assert low > 0.3
    assert low < difference < high
    partly = np.where(rng.random((4, 16)) < 0.5, np.nan, 1.0)
    assert paired_interval(partly, partly) == (0.0, 0.0, 0.0)


def test_donors_that_differ_are_told_apart() -> None:
    rng = np.random.default_rng(0)
    donor = np.repeat(np.arange(20), 60)
    types = (rng.random(1200) < np.where(ILL[donor], 0.7, 0.3)).astype(int)
    cells = rng.normal(size=(1200, 6)) + 3.0 * types[:, None]
    draw = draw_cells(cells, types, [np.flatnonzero(donor == d) for d in range(20)], 40, 0)
    assert draw.rows.shape == (20, 40)
    np.testing.assert_allclose(np.diag(draw.energy), 0, atol=1e-12)
    np.testing.assert_allclose(np.diag(draw.mmd), 0, atol=1e-12)
    assert draw.mmd.min() > -1e-12
    for test in folds(ILL, 1):
        train = np.setdiff1d(np.arange(20), test)
        scores = [logistic(x, ILL, train) for x in (draw.means, draw.shares)]
        kernels = [distance_kernel(d, train) for d in (draw.energy, draw.mmd)]
        scores += [kernel_machine(kernel, ILL, train) for kernel in kernels]
        for score in scores:
            assert wins(score, ILL, test)[:, 2].mean() == 1.0
