"""Generated against real cells, gene by gene."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import pearsonr, spearmanr, wasserstein_distance

from cfm.metrics import gene_mean_correlation, gene_wasserstein


@pytest.mark.parametrize("n", [30, 41])
def test_they_are_those_of_scipy_whatever_the_order(n, rng) -> None:
    x, y = rng.gamma(2.0, size=(30, 12)), rng.gamma(3.0, size=(n, 12))
    found = gene_wasserstein(x, y)
    expected = [wasserstein_distance(x[:, g], y[:, g]) for g in range(12)]
    np.testing.assert_allclose(found, expected)
    np.testing.assert_allclose(gene_wasserstein(x[::-1], rng.permutation(y)), expected)
    means = x.mean(axis=0), y.mean(axis=0)
    found = gene_mean_correlation(x[::-1], y)
    assert found["pearson"] == pytest.approx(pearsonr(*means)[0])
    assert found["spearman"] == pytest.approx(spearmanr(*means)[0])


def test_the_same_is_perfect_and_a_shift_is_its_distance(rng) -> None:
    x = rng.normal(size=(20, 5)) + np.arange(5)
    assert gene_mean_correlation(x, x) == pytest.approx({"pearson": 1.0, "spearman": 1.0})
    assert (gene_wasserstein(x, x) == 0).all()
    np.testing.assert_allclose(gene_wasserstein(x, x + np.arange(5)), np.arange(5))


def test_genes_that_do_not_differ_have_no_correlation(rng) -> None:
    y = rng.normal(size=(4, 7))
    for x in (np.ones((1, 7)), np.full((3, 7), 0.1), np.full((3, 7), 1 / 3)):
        for pair in ((x, y), (y, x)):
            assert np.isnan(list(gene_mean_correlation(*pair).values())).all()


@pytest.mark.parametrize("function", [gene_mean_correlation, gene_wasserstein])
@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        ([1.0], [1.0], "expected (n, genes)"),
        ([[1.0]], [[1.0, 2.0]], "the same genes"),
        (np.zeros((0, 1)), [[1.0]], "at least one"),
        ([[np.inf]], [[1.0]], "NaN or infinite"),
    ],
)
def test_what_cannot_be_compared_is_refused(function, x, y, message) -> None:
    with pytest.raises(ValueError) as error:
        function(x, y)
    assert message in str(error.value)
