"""``cfm.tl.embed(level="gene")``: one vector per gene, the mean over its contexts."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import cfm
from cfm.models import BulkFormer, CellPulse
from tests._bulk import published, toy_bulkformer, toy_log_tpm
from tests._same import assert_unchanged

KEY = "X_bulkformer_genes"


@pytest.fixture
def bulk() -> BulkFormer:
    return toy_bulkformer()


@pytest.fixture
def samples() -> ad.AnnData:
    return toy_log_tpm(seed=3, n=12)


def test_is_the_mean_over_samples(bulk: BulkFormer, samples: ad.AnnData) -> None:
    assert cfm.tl.embed(samples, bulk, level="gene", precision="float32") is None
    found = samples.varm[KEY]
    assert found.dtype == np.float32
    parts = [e for _, e in bulk.get_gene_embeddings(samples, precision="float32")]
    np.testing.assert_allclose(found, np.concatenate(parts).mean(axis=0), rtol=1e-4, atol=1e-5)
    assert KEY not in samples.obsm
    assert samples.uns[KEY]["params"]["level"] == "gene"


def test_order_batches_and_strange_genes_do_not_matter(
    bulk: BulkFormer, samples: ad.AnnData, rng: np.random.Generator
) -> None:
    cfm.tl.embed(samples, bulk, level="gene", precision="float32")
    names = [*samples.var_names, "NOT_A_GENE"]
    wide = ad.AnnData(np.c_[samples.X, np.ones(12, np.float32)], obs=samples.obs)
    wide.var_names = names
    turned = wide[rng.permutation(12), rng.permutation(wide.n_vars)].copy()
    cfm.tl.embed(turned, bulk, level="gene", batch_size=5, precision="float32")
    assert np.isnan(turned.varm[KEY][turned.var_names == "NOT_A_GENE"]).all()
    place = turned.var_names.get_indexer(samples.var_names)
    np.testing.assert_allclose(turned.varm[KEY][place], samples.varm[KEY], atol=1e-4)


def test_versions_of_ensembl_ids_do_not_matter(tmp_path: Path) -> None:
    model = BulkFormer.from_pretrained(published(tmp_path / "published"))
    values = np.tile(toy_log_tpm(n=4).X, 2)
    plain, versioned = ad.AnnData(values), ad.AnnData(values)
    plain.var_names = list(model.vocabulary.genes)
    versioned.var_names = [f"{g}.7" for g in model.vocabulary.genes]
    for adata in (plain, versioned):
        cfm.tl.embed(adata, model, level="gene", precision="float32")
    assert np.isfinite(plain.varm[KEY]).all()
    np.testing.assert_array_equal(versioned.varm[KEY], plain.varm[KEY])


def test_genes_of_one_factor_lie_together(bulk: BulkFormer, samples: ad.AnnData) -> None:
    cfm.tl.embed(samples, bulk, level="gene")
    vectors = samples.varm[KEY]
    assert np.isfinite(vectors).all()
    assert np.linalg.matrix_rank(vectors - vectors.mean(axis=0)) > 3


def test_bad_input(bulk: BulkFormer, samples: ad.AnnData, contrasts: ad.AnnData) -> None:
    before = samples.copy()
    with pytest.raises(TypeError, match="genes= goes with output="):
        cfm.tl.embed(samples, bulk, level="gene", genes=["GENE1"])
    assert_unchanged(samples, before)
    model = CellPulse.from_pretrained("cellpulse-mini")
    with pytest.raises(TypeError, match="CellPulse embeds observations only"):
        cfm.tl.embed(contrasts, model, level="gene")
