"""Linear discriminants of counts, for whichever genes are measured."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import multivariate_normal

from cfm.stats._discriminant import ARRAYS, GeneDiscriminant


def planted(
    n_cells: int = 300,
    *,
    n_genes: int = 80,
    strength: float = 1.0,
    shift: float = 0.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return counts of three classes, with ten marker genes each, from two studies."""
    rng = np.random.default_rng(seed)
    classes, studies = rng.integers(3, size=n_cells), rng.integers(2, size=n_cells)
    genes = np.random.default_rng(7)
    log = genes.normal(0, 0.5, n_genes) + np.zeros((n_cells, 1))
    for k in range(3):
        log[classes == k, 10 * k : 10 * (k + 1)] += strength
    log[studies == 1] += shift * genes.normal(size=n_genes)
    share = np.exp(log) / np.exp(log).sum(axis=1, keepdims=True)
    counts = rng.poisson(share * rng.integers(400, 1200, n_cells)[:, None])
    return counts.astype(float), classes, studies


def everything(model: GeneDiscriminant) -> np.ndarray:
    return np.arange(model.means.shape[1])


def test_new_cells_are_named_and_probabilities_sum_to_one() -> None:
    model, _ = GeneDiscriminant.fit(*planted())
    counts, classes, _ = planted(seed=1)
    probability = np.exp(model.log_probabilities(counts, everything(model)))
    np.testing.assert_allclose(probability.sum(axis=1), 1)
    assert (probability.argmax(axis=1) == classes).mean() > 0.95


def test_a_shift_between_studies_is_not_learned_as_a_class() -> None:
    counts, classes, studies = planted(600, strength=0.4, shift=0.7)
    # the third class is rare in the second study
    kept = (studies == 0) | (classes != 2) | (np.arange(600) % 10 == 0)
    new, truth, study = planted(400, strength=0.4, shift=0.7, seed=1)

    def right(studies: np.ndarray | None) -> float:
        model, _ = GeneDiscriminant.fit(counts[kept], classes[kept], studies)
        found = model.log_probabilities(new, everything(model)).argmax(axis=1)
        return float((found == truth)[study == 1].mean())

    assert right(studies[kept]) > 0.8
    assert right(studies[kept]) > right(None)


@pytest.mark.parametrize("n", [80, 40, 25])
def test_scores_are_those_of_the_marginal_normal_distribution(n: int) -> None:
    model, _ = GeneDiscriminant.fit(*planted(), n_factors=5)
    genes = np.sort(np.random.default_rng(2).permutation(80)[:n])
    counts = planted(20, seed=3)[0][:, genes]
    part = 1e4 * model.abundance[genes].sum() / model.abundance.sum()
    values = np.log1p(counts * part / counts.sum(axis=1, keepdims=True))
    values = (values - model.centre[genes]) / model.spread[genes]
    factors = model.factors[genes]
    covariance = factors @ factors.T + np.diag(model.noise[genes])
    log = np.stack(
        [multivariate_normal.logpdf(values, mean[genes], covariance) for mean in model.means],
        axis=1,
    )
    gaps = [
        (a - b) @ np.linalg.solve(covariance, a - b)
        for i, a in enumerate(model.means[:, genes])
        for b in model.means[:i, genes]
    ]
    expected = model.slope * log / np.sqrt(np.mean(gaps))
    expected -= np.log(np.exp(expected - expected.max(axis=1, keepdims=True)).sum(axis=1))[
        :, None
    ] + expected.max(axis=1, keepdims=True)
    np.testing.assert_allclose(model.log_probabilities(counts, genes), expected, atol=1e-8)


def test_depth_order_and_neighbours_do_not_matter() -> None:
    model, _ = GeneDiscriminant.fit(*planted())
    counts = planted(30, seed=4)[0]
    whole = model.log_probabilities(counts, everything(model))
    np.testing.assert_allclose(model.log_probabilities(7 * counts, everything(model)), whole)
    backwards = everything(model)[::-1]
    np.testing.assert_allclose(
        model.log_probabilities(counts[::-1, ::-1], backwards)[::-1], whole, atol=1e-9
    )
    np.testing.assert_allclose(
        model.log_probabilities(counts[:1], everything(model)), whole[:1], atol=1e-9
    )


def test_confidence_is_that_of_cells_left_out() -> None:
    clear, sure = GeneDiscriminant.fit(*planted(strength=1.5))
    vague, unsure = GeneDiscriminant.fit(*planted(strength=0.15))
    assert np.median(sure) > 0.9 > 0.6 > np.median(unsure)
    assert clear.slope > vague.slope
    counts, classes, _ = planted(2000, strength=0.15, seed=9)
    log = vague.log_probabilities(counts, everything(vague))
    right = (log.argmax(axis=1) == classes).mean()
    assert abs(np.exp(log.max(axis=1)).mean() - right) < 0.1


def test_one_study_and_classes_of_one_study_alone() -> None:
    counts, classes, studies = planted()
    _, sure = GeneDiscriminant.fit(counts, classes)
    assert len(sure) == 3 * len(classes)  # each cell, by three sets of genes
    kept = (classes != 2) | (studies == 0)
    model, sure = GeneDiscriminant.fit(counts[kept], classes[kept], studies[kept])
    assert len(model.means) == 3
    # the class that only study 0 has cannot be told when that study is left out
    assert len(sure) == 3 * (kept & (classes != 2)).sum()


def test_the_same_data_give_the_same_and_all_arrays_are_finite() -> None:
    counts, classes, studies = planted()
    counts[:, 5] = 0  # a gene that is never expressed
    counts[3] = 0  # and a cell that expresses nothing
    first, second = (GeneDiscriminant.fit(counts, classes, studies)[0] for _ in range(2))
    for name in ARRAYS:
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
        assert np.isfinite(getattr(first, name)).all()
    assert np.isfinite(first.log_probabilities(counts, everything(first))).all()


def test_a_single_class_gets_all() -> None:
    counts = planted()[0]
    model, _ = GeneDiscriminant.fit(counts, np.zeros(len(counts), dtype=int))
    np.testing.assert_allclose(model.log_probabilities(counts, everything(model)), 0, atol=1e-12)
