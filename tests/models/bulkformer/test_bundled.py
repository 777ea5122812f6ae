"""The bundled checkpoint: loads offline, embeds and imputes real counts."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import cfm
from cfm.models import BulkFormer


@pytest.fixture(scope="module")
def model() -> BulkFormer:
    return BulkFormer.from_pretrained("bulkformer-mini")


@pytest.fixture(scope="module")
def samples() -> ad.AnnData:
    adata = cfm.datasets.blanco_melo()[:6].copy()
    cfm.pp.tpm(adata)
    return adata


# The bundled counts hold a part of the genes, some of them without a length.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def test_its_card_and_provenance_say_what_it_is(model: BulkFormer) -> None:
    assert "lcl_rnaseq_pickrell" in model.provenance["training_tables"]
    assert model.provenance["training_seed"] == 0
    assert "## Limits" in (model.card or "")
    assert cfm.hub.list_checkpoints().loc["bulkformer-mini", "size_mb"] <= 8


def test_embed(model: BulkFormer, samples: ad.AnnData) -> None:
    cfm.tl.embed(samples, "bulkformer-mini", layer="log_tpm", key_added="X_test")
    embedded = samples.obsm["X_test"]
    assert embedded.shape == (6, 128)
    assert np.isfinite(embedded).all()
    assert len(np.unique(embedded.round(5), axis=0)) == 6


def test_imputation_beats_the_mean_of_each_gene(model: BulkFormer, samples: ad.AnnData) -> None:
    values = np.asarray(samples.to_df("log_tpm"))
    place = model.vocabulary.genes.get_indexer(samples.var_names)
    mask = (np.random.default_rng(0).random(values.shape) < 0.15) & (place >= 0)
    made = model.impute(samples, layer="log_tpm", mask=mask, precision="float32")
    mean = np.broadcast_to(model.module.gene_offset.numpy()[place], values.shape)
    np.testing.assert_array_equal(
        made[~mask & np.isfinite(made)], values[~mask & np.isfinite(made)]
    )
    assert np.square(made - values)[mask].mean() < np.square(mean - values)[mask].mean()
    centred = [
        np.corrcoef((x - m)[k], (p - m)[k])[0, 1]
        for x, m, p, k in zip(values, mean, made, mask, strict=True)
    ]
    assert np.mean(centred) > 0.3
    again = model.impute(
        samples[::-1].copy(), layer="log_tpm", mask=mask[::-1], precision="float32"
    )
    np.testing.assert_allclose(again[::-1], made, rtol=1e-4, atol=1e-4)
