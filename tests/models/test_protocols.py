"""What models promise to tools."""

from __future__ import annotations

import numpy as np
import pytest

from cfm import models
from tests._block_model import BlockModel, FactorModel, SilentModel, block_data
from tests._small import trained

PROMISES = {
    "AttentionModel": {"CellPulse", "CellVQ"},
    "GeneFactorModel": {"CellPulse"},
    "GeneEmbeddingModel": {"BulkFormer", "CellVQ"},
    "CodeModel": {"CellVQ"},
    "DonorModel": {"Pulsar"},
    "PerturbationModel": {
        *("BulkFormer", "CellPulse", "CellVQ", "LingshuCell"),
        *("PerturbationCountModel", "VirtualInstrument"),
    },
}
NAMES = sorted({name for names in PROMISES.values() for name in names})


@pytest.mark.parametrize("promise", PROMISES)
def test_models_keep_their_promises_and_no_others(promise: str) -> None:
    protocol = getattr(models, promise)
    assert {name for name in NAMES if isinstance(trained(name), protocol)} == PROMISES[promise]


def test_any_class_with_the_method_is_meant() -> None:
    _, block, genes = block_data()
    assert not isinstance(SilentModel(), models.AttentionModel | models.GeneFactorModel)
    assert isinstance(BlockModel(genes, block), models.AttentionModel)
    assert not isinstance(BlockModel(genes, block), models.GeneFactorModel)
    assert isinstance(FactorModel(genes, block), models.GeneFactorModel)


def test_gene_factors_are_what_the_linear_term_predicts_with(model: models.CellPulse) -> None:
    genes, factors = model.get_gene_factors()
    assert genes.equals(model.vocabulary.genes)
    assert factors.dtype == np.float32
    np.testing.assert_array_equal(factors, model.module.scaled_factors().detach().numpy())
