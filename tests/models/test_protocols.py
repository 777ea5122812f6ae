"""What models promise to tools."""

from __future__ import annotations

import numpy as np

from cfm.models import AttentionModel, CellPulse, GeneFactorModel
from tests._block_model import BlockModel, FactorModel, SilentModel, block_data
from tests._toy import toy_contrasts


def test_cellpulse_keeps_both_promises(model: CellPulse) -> None:
    assert isinstance(model, AttentionModel)
    assert isinstance(model, GeneFactorModel)


def test_any_class_with_the_method_is_meant() -> None:
    _, block, genes = block_data()
    assert not isinstance(SilentModel(), AttentionModel | GeneFactorModel)
    assert isinstance(BlockModel(genes, block), AttentionModel)
    assert not isinstance(BlockModel(genes, block), GeneFactorModel)
    assert isinstance(FactorModel(genes, block), GeneFactorModel)


def test_attention_maps_have_the_promised_shape(model: CellPulse) -> None:
    contrasts = toy_contrasts()[:3].copy()
    contrasts.X[1] = 0.0
    maps = list(model.get_attention(contrasts))
    assert len(maps) == 3
    for tokens, weights in maps:
        assert tokens[0] == "<summary>"
        assert tokens.is_unique
        assert weights.dtype == np.float32
        assert weights.shape == (1, 2, len(tokens), len(tokens))
        np.testing.assert_allclose(weights.sum(axis=-1), 1.0, atol=1e-5)
    assert len(maps[1][0]) == 1  # nothing moves: no token but the summary


def test_gene_factors_are_what_the_linear_term_predicts_with(model: CellPulse) -> None:
    genes, factors = model.get_gene_factors()
    assert genes.equals(model.vocabulary.genes)
    assert factors.dtype == np.float32
    np.testing.assert_array_equal(factors, model.module.scaled_factors().detach().numpy())
