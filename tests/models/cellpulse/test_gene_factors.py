"""Closed-form gene factors."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse as sp
from hypothesis import given
from hypothesis import strategies as st

from cfm.models.cellpulse._gene_factors import (
    fit_gene_factors,
    graded_direction,
    usual_sizes,
)


def planted(n: int = 12, n_genes: int = 80, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two programmes with signs, one per half of the genes; and three studies."""
    rng = np.random.default_rng(seed)
    sign = np.where(rng.random(n_genes) < 0.5, -1.0, 1.0)
    programme = np.zeros((2, n_genes))
    programme[0, : n_genes // 2] = sign[: n_genes // 2]
    programme[1, n_genes // 2 :] = sign[n_genes // 2 :]
    effects = rng.normal(size=(n, 2)) @ programme + 0.1 * rng.normal(size=(n, n_genes))
    return effects.astype(np.float32), np.repeat(["a", "b", "c"], n // 3).astype(object)


def test_the_covariance_knows_which_genes_move_together() -> None:
    effects, studies = planted()
    found = fit_gene_factors(effects, studies, constant=0.0)
    covariance = found.values @ found.values.T
    expected = np.sign(effects.T @ effects)
    same = np.zeros_like(covariance, dtype=bool)
    same[:40, :40] = same[40:, 40:] = True
    np.fill_diagonal(same, False)
    assert (np.sign(covariance)[same] == expected[same]).mean() > 0.95


def test_every_factor_names_its_study_and_each_profile_leaves_out_its_own() -> None:
    effects, studies = planted()
    sets = sp.csr_matrix(np.sign(effects[:6]))
    found = fit_gene_factors(effects, studies, signed_sets=sets, n_set_factors=4)
    assert found.values.shape == (80, len(found.group))
    assert found.values.dtype == np.float32
    assert dict(zip(*np.unique(found.group.astype(str), return_counts=True), strict=True)) == {
        "": 5,  # four of the sets and the constant
        "a": 4,
        "b": 4,
        "c": 4,
    }
    mask = found.without(["a", "c", "new", ""])
    for row, study in zip(mask, ["a", "c", "new", ""], strict=True):
        own = (found.group == study) & (found.group != "")
        np.testing.assert_array_equal(row == 0, own)


def test_what_is_left_holds_nothing_of_the_study() -> None:
    """Without its own factors a study is predicted as if it had never been there."""
    effects, studies = planted()
    other = effects.copy()
    other[studies == "b"] = np.random.default_rng(9).normal(size=(4, 80))

    # only the common scale, which is fitted to all, may differ
    found = [fit_gene_factors(x, studies) for x in (effects, other)]
    first, second = (f.values[:, f.group == "a"] for f in found)
    scale = np.linalg.norm(first) / np.linalg.norm(second)
    np.testing.assert_allclose(first, scale * second, rtol=1e-4, atol=1e-6)


def test_studies_weigh_alike_however_many_contrasts_they_have() -> None:
    effects, studies = planted()
    once = fit_gene_factors(effects, studies)
    many = np.vstack([effects, effects[studies == "a"], effects[studies == "a"]])
    names = np.concatenate([studies, ["a"] * 8])
    thrice = fit_gene_factors(many, names)
    np.testing.assert_allclose(
        once.values @ once.values.T, thrice.values @ thrice.values.T, rtol=1e-3, atol=1e-4
    )


def test_many_contrasts_are_compressed_study_by_study() -> None:
    effects, studies = planted(n=60)
    found = fit_gene_factors(effects, studies, max_contrast_factors=12)
    names, count = np.unique(found.group.astype(str), return_counts=True)
    assert dict(zip(names, count, strict=True)) == {"": 1, "a": 4, "b": 4, "c": 4}
    whole = fit_gene_factors(effects, studies)
    a, b = (f.values @ f.values.T for f in (found, whole))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98


def test_sets_alone_are_enough_and_nothing_is_too_little() -> None:
    effects, _ = planted()
    sets = sp.csr_matrix(np.sign(effects))
    nothing = np.zeros((0, 80), dtype=np.float32)
    found = fit_gene_factors(nothing, [], signed_sets=sets)
    assert (found.group == "").all()
    with pytest.raises(ValueError, match="at least one profile or signed gene set"):
        fit_gene_factors(nothing, [])


def test_missing_values_and_silent_profiles_are_finite() -> None:
    effects, studies = planted()
    effects[0] = np.nan
    effects[1] = 0.0
    effects[:, 5] = np.nan
    found = fit_gene_factors(effects, studies)
    assert np.isfinite(found.values).all()
    assert (found.values[5, :-1] == 0).all()  # nothing is known of a gene nobody measured


@given(seed=st.integers(0, 99), scale=st.floats(0.01, 100))
def test_graded_directions_do_not_depend_on_the_scale(seed: int, scale: float) -> None:
    x = np.random.default_rng(seed).normal(size=(3, 50)).astype(np.float32)
    graded = graded_direction(x, n_top=10)
    np.testing.assert_allclose(graded_direction(scale * x, n_top=10), graded, rtol=1e-3, atol=1e-5)
    assert (np.sign(graded) == np.sign(x)).all()
    order = np.argsort(-np.abs(x), axis=1)
    assert (np.abs(np.take_along_axis(graded, order[:, :10], axis=1)) >= np.tanh(1) - 1e-6).all()


def test_graded_directions_of_short_and_empty_profiles() -> None:
    x = np.array([[2.0, -2.0, 0.0, np.nan], [0.0, 0.0, 0.0, 0.0]])
    graded = graded_direction(x, n_top=3)
    np.testing.assert_allclose(graded[0], [np.tanh(1), -np.tanh(1), 0, 0], rtol=1e-6)
    assert (graded[1] == 0).all()


def test_usual_sizes_are_relative_to_the_profile_and_shrunken() -> None:
    rng = np.random.default_rng(0)
    size = np.linspace(0.2, 3.0, 30)
    level = np.array([0.5, 1.0, 2.0, 1.0])[:, None]
    effects = np.where(rng.random((4, 30)) < 0.5, -1, 1) * np.expm1(size * level / 2)
    studies = ["a", "a", "b", "b"]
    usual = usual_sizes(effects, studies)
    assert usual.dtype == np.float32
    assert np.corrcoef(usual, size)[0, 1] > 0.99
    assert abs(usual.mean()) < 0.05
    effects[:, 0] = np.nan
    effects[:, 1] = 0.0
    assert (usual_sizes(effects, studies)[:2] == 0).all()
