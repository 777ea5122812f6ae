"""Scores by expression level and pathway: sums of genes give the correlation of all entries."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.imputation import OURS, by_level, by_pathway, gene_sums, pooled
from cfm.datasets import hallmark


def sums_of(
    genes: list[str], noise: np.ndarray, seed: int = 0
) -> tuple[pd.DataFrame, np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    mean = np.linspace(0, 5, len(genes))
    truth = mean + rng.normal(size=(30, len(genes)))
    made = truth + noise * rng.normal(size=truth.shape)
    hidden = rng.random(truth.shape) < 0.3
    return gene_sums(pd.Index(genes), hidden, truth, made, mean), hidden, truth - mean, made - mean


def test_sums_give_the_correlation_of_all_hidden_entries() -> None:
    sums, hidden, truth, made = sums_of([f"g{i}" for i in range(50)], np.ones(50))
    assert pooled(sums) == pytest.approx(np.corrcoef(truth[hidden], made[hidden])[0, 1])
    some = sums["gene"].isin(["g3", "g8"])
    part = hidden[:, some]
    expected = np.corrcoef(truth[:, some][part], made[:, some][part])[0, 1]
    assert pooled(sums[some]) == pytest.approx(expected)
    same = sums.assign(m=0.0, mm=0.0, tm=0.0)  # the mean of each gene itself
    assert pooled(same) == 0.0


def test_levels_and_pathways_with_planted_quality() -> None:
    sets = hallmark()
    good, bad = sets["HALLMARK_G2M_CHECKPOINT"], sets["HALLMARK_MYOGENESIS"]
    genes = [*good, *(g for g in bad if g not in good)]
    noise = np.where(np.isin(genes, good), 0.1, 3.0)
    parts = [
        sums_of(genes, noise * factor)[0].assign(data="toy", method=method)
        for method, factor in ((OURS, 1.0), ("ridge", 4.0))
    ]
    sums = pd.concat(parts)
    pathways = by_pathway(sums).set_index("set")
    assert pathways.index[0] == "g2m_checkpoint"
    assert pathways.loc["g2m_checkpoint", OURS] > 0.95 > pathways.loc["myogenesis", OURS] + 0.4
    assert (pathways[OURS] > pathways["ridge"]).all()
    levels = by_level(sums).set_index("method")
    assert levels.columns.tolist() == ["data", *(f"fifth {i + 1}" for i in range(5))]
    assert levels.loc[OURS, "fifth 1"] > 0.95 > levels.loc[OURS, "fifth 5"]


def test_unexpressed_genes_share_levels_of_equal_size() -> None:
    genes = [f"g{i}" for i in range(50)]
    zeros = np.zeros((4, 50))
    made = gene_sums(pd.Index(genes), zeros == 0, zeros, zeros, np.maximum(np.arange(50) - 30, 0))
    assert made["level"].value_counts().tolist() == [10] * 5
