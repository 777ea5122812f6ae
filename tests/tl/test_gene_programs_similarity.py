"""How similar two genes of a group are, and with which profiles."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm.tl._gene_programs._find import (
    MAX_BLOCKS,
    PRIOR_PROFILES,
    SimilarityOf,
    Source,
    choose_genes,
    profiles_of,
)
from tests._block_model import BLOCK, FactorModel, block_data


class ShiftedModel(FactorModel):
    """The same factors, with one more that all genes share."""

    def get_gene_factors(self) -> tuple[pd.Index, np.ndarray]:
        genes, factors = super().get_gene_factors()
        return genes, np.hstack([factors, np.full((len(genes), 1), 9.0, dtype=np.float32)])


def similarity_of(
    adata: ad.AnnData, source: Source = "interaction", *, shifted: bool = False, n_genes: int = 999
) -> SimilarityOf:
    _, block, genes = block_data()
    model = (ShiftedModel if shifted else FactorModel)(genes, block)
    part = profiles_of(adata, np.arange(adata.n_obs), None)
    tokens_of = [names[1:] for names, _ in model.get_attention(part)]
    tokens, _, effects = choose_genes(part, tokens_of, n_genes, "all")
    return SimilarityOf(model, part, tokens, effects, source, lambda n: None)


def test_a_factor_that_all_genes_share_does_not_count() -> None:
    adata, _, _ = block_data()
    plain = similarity_of(adata)()
    np.testing.assert_allclose(similarity_of(adata, shifted=True)(), plain, atol=1e-5)
    assert (plain == 0).mean() > 0.5  # genes of other blocks


@pytest.mark.parametrize("source", ["attention", "interaction", "combined"])
def test_genes_that_move_against_each_other_are_less_alike(source: Source) -> None:
    adata, _, _ = block_data()
    adata.X[:, :4] = 1.0
    adata.X[:, 1] = -1.0
    adata.X[: adata.n_obs // 2, 2] *= -1.0
    found = similarity_of(adata, source)()
    share = adata.n_obs / (adata.n_obs + PRIOR_PROFILES)
    np.testing.assert_allclose(found[0, 1] / found[0, 3], (1 - share) / (1 + share), rtol=1e-3)
    np.testing.assert_allclose(found[0, 2] / found[0, 3], 1 / (1 + share), rtol=1e-3)


def test_drawn_profiles_alone_decide() -> None:
    adata, _, _ = block_data()
    adata.X[0, :BLOCK] = np.nan
    adata.X[1:, :BLOCK] = 0.0  # the first block moves nowhere
    adata.X[2, :BLOCK] = 1.0  # but here
    graph = similarity_of(adata, "attention")
    n_blocks = graph.n_blocks
    assert n_blocks == adata.n_obs
    moving = [graph.drawn(np.eye(n_blocks)[i]).sum() for i in range(n_blocks)]
    assert sorted(moving) == [3 * BLOCK] * (n_blocks - 1) + [4 * BLOCK]
    without = np.eye(n_blocks)[int(np.argmin(moving))]
    found = graph(without)
    absent = ~graph.drawn(without)
    assert absent.sum() == BLOCK
    assert (found[absent] == 0).all()
    assert (found[:, absent] == 0).all()
    assert (found[~absent][:, ~absent] > 0).any()


def test_every_profile_counts_once_without_a_draw() -> None:
    adata, _, _ = block_data(2 * MAX_BLOCKS + 3)
    graph = similarity_of(adata, "attention")
    assert graph.n_blocks == MAX_BLOCKS
    assert sorted(np.bincount(graph.block_of).tolist()) == [2] * (MAX_BLOCKS - 3) + [3] * 3
    np.testing.assert_allclose(graph(), graph(np.ones(MAX_BLOCKS)), rtol=1e-5)


def test_the_genes_that_are_tokens_most_often_are_taken_then_the_strongest() -> None:
    adata, _, genes = block_data()
    adata.X[0, 5] = 0.0  # a token less
    adata.X[:, 7] *= 100.0
    one = similarity_of(adata, n_genes=59)
    assert one.signs.shape == (adata.n_obs, 59)
    part = profiles_of(adata, np.arange(adata.n_obs), None)
    model = FactorModel(genes, block_data()[1])
    tokens_of = [names[1:] for names, _ in model.get_attention(part)]
    tokens, columns, effects = choose_genes(part, tokens_of, 59, "all")
    assert "G05" not in tokens
    assert tokens.tolist() == sorted(tokens)
    assert adata.var_names[columns].tolist() == tokens.tolist()
    np.testing.assert_array_equal(effects, part[:, tokens.astype(str)].X)
    assert "G07" in choose_genes(part, tokens_of, 5, "all")[0]
