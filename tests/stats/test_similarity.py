from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kstest, spearmanr

from cfm.stats._similarity import (
    METHODS,
    Similarity,
    cut_to_lists,
    grade_effects,
    pairwise_cosines,
    rank_effects,
    reference_p_values,
    spread_over_studies,
    study_weights,
)


def noise(n, genes=300, seed=0):
    return np.random.default_rng(seed).standard_normal((n, genes)).astype(np.float32)


def test_graded_effects_are_tanh_of_relative_ones():
    x = noise(3, 5000)
    q = np.sort(np.abs(x), axis=1)[:, -1000]
    assert np.allclose(grade_effects(x), np.tanh(x / q[:, None]), atol=1e-6)
    q = np.sort(np.abs(x), axis=1)[:, -200]
    assert np.allclose(grade_effects(x, 200, 3), np.tanh((x / q[:, None]) ** 3), atol=1e-6)


def test_grading_keeps_nan_and_zero_and_does_not_change_its_input():
    x = np.array([[1.0, np.nan, -2.0, 0.0], [0, 0, 0, 0], [0, 3.0, 0, 0]], dtype=np.float32)
    before = x.copy()
    graded = grade_effects(x)
    assert np.array_equal(x, before, equal_nan=True)
    assert np.isnan(graded[0, 1])
    assert (graded[1] == 0).all()
    assert graded[0, 0] > 0 > graded[0, 2]
    assert graded[2, 1] == pytest.approx(np.tanh(1))


@settings(deadline=None, max_examples=20)
@given(st.floats(0.01, 100), st.integers(0, 1000))
def test_grading_has_no_unit(factor, seed):
    x = noise(2, 60, seed)
    assert np.allclose(grade_effects(x), grade_effects(factor * x), atol=1e-5)


def test_cosines_are_over_genes_that_both_measure():
    a, b = noise(7, 50), noise(4, 50, 1)
    a[0, :10] = b[1, 5:30] = b[2, 5:30] = np.nan
    found = pairwise_cosines(a, b)
    for i in range(7):
        for j in range(4):
            both = np.isfinite(a[i]) & np.isfinite(b[j])
            x, y = a[i, both], b[j, both]
            expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
            assert found[i, j] == pytest.approx(expected, abs=1e-5)
    assert np.isnan(pairwise_cosines(np.zeros((1, 50), np.float32), b)).all()


def test_ranks_give_spearmans_correlation():
    a, b = noise(1), noise(1, seed=1)
    found = pairwise_cosines(rank_effects(a), rank_effects(b))[0, 0]
    assert found == pytest.approx(spearmanr(a[0], b[0]).statistic, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_a_row_is_most_like_itself_and_least_like_its_opposite(method):
    library = noise(40)
    similarity = Similarity(method, library, study_weights([str(i) for i in range(40)]))
    rows = similarity.transform(np.vstack([library[:5], -library[:5]]))
    found = similarity.compare(similarity.transform(library[:5]), rows)
    assert (found.argmax(axis=1) == np.arange(5)).all()
    assert (found.argmin(axis=1) == 5 + np.arange(5)).all()
    assert (np.abs(found) <= 1).all()


def test_what_all_have_in_common_is_removed():
    common = 5 * noise(1, 2000, 9)
    library = common + noise(40, 2000)
    similarity = {
        method: Similarity(method, library, np.full(40, 1 / 40))
        for method in ("cosine", "centered", "leading")
    }
    found = {m: s.compare(s.transform(library[:10]), s.transform(library[10:]))
             for m, s in similarity.items()}  # fmt: skip
    assert found["cosine"].mean() > 0.8
    assert abs(found["centered"].mean()) < 0.1
    assert abs(found["leading"].mean()) < 0.1


def test_genes_that_move_together_stand_in_for_each_other():
    rng = np.random.default_rng(0)
    factor = rng.standard_normal((60, 10)).astype(np.float32)
    library = np.repeat(factor, 20, axis=1) + 0.3 * noise(60, 200)
    # the query measures one half of a module, the match moves the other half
    query, match = np.zeros((2, 1, 200), dtype=np.float32)
    query[0, :10], match[0, 10:20] = 3, 3
    query[0, 40:50], match[0, 50:60] = -3, -3
    found = {}
    for method in ("leading", "kernel"):
        s = Similarity(method, library, np.full(60, 1 / 60))
        found[method] = s.compare(s.transform(query), s.transform(match))[0, 0]
    assert found["kernel"] > found["leading"] + 0.2


def test_references_are_spread_over_studies_whatever_the_order():
    names = np.array([f"c{i}" for i in range(60)])
    studies = np.array(["large"] * 50 + [f"s{i}" for i in range(10)])
    chosen = spread_over_studies(studies, names, 15)
    assert len(chosen) == 15
    assert len(set(studies[chosen])) == 11
    order = np.random.default_rng(0).permutation(60)
    again = order[spread_over_studies(studies[order], names[order], 15)]
    assert set(again) == set(chosen)


def test_lists_hold_the_strongest_genes():
    found = cut_to_lists(np.array([[3.0, -1, 2, np.nan, -5, 0]], dtype=np.float32), 2, 1)
    assert found.tolist() == [[1, 0, 1, 0, -1, 0]]


def correlated(n, rng, loadings):
    """Contrasts whose genes move together."""
    return (rng.standard_normal((n, len(loadings))) @ loadings
            + 0.5 * rng.standard_normal((n, loadings.shape[1]))).astype(np.float32)  # fmt: skip


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("method", ["leading", "cosine", "centered", "spearman"])
def test_p_values_are_uniform_under_the_null(method, together):
    rng = np.random.default_rng(3)
    loadings = rng.standard_normal((25, 600)) * (1.0 if together else 0.0)
    library, queries = correlated(150, rng, loadings), correlated(60, rng, loadings)
    similarity = Similarity(method, library, np.full(150, 1 / 150))
    rows = similarity.transform(library)
    null = similarity.compare_references(rows, rows)
    found = similarity.compare(similarity.transform(queries), rows)
    p = reference_p_values(
        found, null, ~np.eye(150, dtype=bool), np.ones(150, dtype=bool), 600**-0.5
    )
    assert np.mean(p < 0.05) == pytest.approx(0.05, abs=0.012)
    assert np.mean(p < 0.5) == pytest.approx(0.5, abs=0.04)
    assert kstest(p[:, ::3].ravel(), "uniform").statistic < 0.06
    if together:  # genes taken for independent ones: what the references are for
        naive = reference_p_values(
            found, null, np.zeros((150, 150), dtype=bool), np.ones(150, dtype=bool), 600**-0.5
        )
        assert np.mean(naive < 0.05) > 0.15
