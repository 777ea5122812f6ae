"""What the benchmark of gene programs computes."""

from __future__ import annotations

import numpy as np
import pandas as pd
from sklearn.metrics import adjusted_rand_score

from benchmarks._programs import (
    best_sets,
    correlation,
    matched_modules,
    mean_coherence,
    planted_contrasts,
    random_modules,
    same_direction,
    set_matrix,
)


def test_correlation_finds_planted_modules_in_many_profiles() -> None:
    adata, module = planted_contrasts(80, seed=1, n_background=40)
    found = matched_modules(correlation(adata.X), 8, n_neighbors=10, min_size=10)
    assert len(found) == 8
    label = np.full(len(module), -1)
    for i, genes in enumerate(found):
        label[genes] = i
    assert adjusted_rand_score(module[module >= 0], label[module >= 0]) > 0.8
    shuffled = random_modules(found, len(module))
    assert [len(g) for g in shuffled] == [len(g) for g in found]
    assert mean_coherence(found, adata.X) > mean_coherence(shuffled, adata.X) + 0.05


def test_planted_genes_keep_their_loadings_whatever_the_profiles() -> None:
    first, module = planted_contrasts(40, seed=1, signal=3.0)
    second, again = planted_contrasts(40, seed=2, signal=3.0)
    np.testing.assert_array_equal(module, again)
    assert not np.array_equal(first.X, second.X)
    spread = [x.X[:, module >= 0].std(axis=0) for x in (first, second)]
    assert np.corrcoef(*spread)[0, 1] > 0.5


def test_correlation_is_numpys(rng: np.random.Generator) -> None:
    x = rng.standard_normal((7, 5))
    np.testing.assert_allclose(correlation(x), np.corrcoef(x.T), atol=1e-12)
    x[:, 2] = 1.0
    assert (correlation(x)[2] == 0).all()


def test_same_direction_by_hand() -> None:
    effects = np.array([[1.0, 2.0, -1.0, np.nan], [-1.0, -3.0, 2.0, 1.0]])
    total = np.array([[2, 2, -2, -1], [2, 2, -2, -1], [-2, -2, 2, 1], [-1, -1, 1, 1]])
    expected = (1 + total / 7) / 2  # two profiles, and five without a say
    np.testing.assert_allclose(same_direction(effects), expected)


def test_the_best_set_of_a_module() -> None:
    genes = pd.Index([f"G{i}" for i in range(60)])
    sets = {"small": ["G1"], "hit": list(genes[:8]), "other": list(genes[30:40])}
    member, names = set_matrix(genes, sets)
    assert names == ["hit", "other"]
    best, fdr = best_sets([np.arange(10), np.arange(45, 55)], member)
    assert best[0] == 0
    assert fdr[0] < 1e-4
    assert fdr[1] > 0.5
