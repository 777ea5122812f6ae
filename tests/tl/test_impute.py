"""``cfm.tl.impute`` and ``cfm.tl.embed`` with BulkFormer: what is written, and what is refused."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scipy.sparse as sp

import cfm
from cfm.models import BulkFormer, CellPulse
from tests._bulk import published, toy_bulkformer, toy_log_tpm
from tests._same import assert_unchanged


@pytest.fixture
def bulk() -> BulkFormer:
    return toy_bulkformer()


@pytest.fixture
def adata() -> ad.AnnData:
    """Twenty samples; some entries missing, a tenth of the others in a mask layer."""
    made = toy_log_tpm(seed=4, n=20)
    made.layers["hidden"] = np.random.default_rng(0).random(made.shape) < 0.1
    made.X[:4, 7] = np.nan
    made.X[5, 9] = -10.0
    return made


def test_what_is_written(bulk: BulkFormer, adata: ad.AnnData) -> None:
    before = adata.copy()
    assert cfm.tl.impute(adata, bulk) is None
    found = adata.layers["imputed"]
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, bulk.impute(before))
    missing = np.isnan(before.X) | (before.X == -10)
    np.testing.assert_array_equal(found[~missing], before.X[~missing])
    record = adata.uns["imputed"]
    assert record["n_imputed"] == 5
    assert record["n_left"] == 0
    expected = {"model": "BulkFormer", "mask": False, "absent_genes": False, "batch_size": 64}
    assert record["params"].items() >= expected.items()
    del adata.layers["imputed"], adata.uns["imputed"]
    assert_unchanged(adata, before)


def test_masked_entries_are_predicted(bulk: BulkFormer, adata: ad.AnnData) -> None:
    hidden = adata.layers["hidden"]
    cfm.tl.impute(adata, bulk, mask="hidden", key_added="by_layer")
    cfm.tl.impute(adata, bulk, mask=hidden, key_added="by_array")
    adata.layers["hidden"] = sp.csr_matrix(hidden)
    cfm.tl.impute(adata, bulk, mask="hidden", key_added="sparse")
    for key in ("by_array", "sparse"):
        np.testing.assert_array_equal(adata.layers[key], adata.layers["by_layer"])
    assert (adata.layers["by_layer"][hidden] != adata.X[hidden]).mean() > 0.9
    assert adata.uns["by_layer"]["params"]["mask"] == "hidden"
    assert adata.uns["by_array"]["params"]["mask"] is True


def test_genes_that_are_absent_are_predicted_if_asked_for(
    bulk: BulkFormer, adata: ad.AnnData
) -> None:
    part = adata[:, 10:].copy()
    cfm.tl.impute(part, bulk, mask="hidden", absent_genes=True)
    made = part.obsm["imputed"]
    assert made.columns.tolist() == adata.var_names[:10].tolist()
    assert made.index.equals(part.obs_names)
    mask = np.asarray(part.layers["hidden"], dtype=bool)
    predicted = bulk.predict_expression(part, genes=list(made), mask=mask)
    np.testing.assert_array_equal(made, predicted)
    cfm.tl.impute(adata, bulk, absent_genes=True)  # none is absent
    assert "imputed" not in adata.obsm


def test_what_the_model_does_not_know_is_left_and_counted(
    bulk: BulkFormer, adata: ad.AnnData
) -> None:
    adata.var_names = ["OTHER" if n == "GENE7" else n for n in adata.var_names]
    cfm.tl.impute(adata, bulk)
    assert adata.uns["imputed"]["n_left"] == 4
    assert adata.uns["imputed"]["n_imputed"] == 1


def failing(adata: ad.AnnData) -> dict[str, tuple[ad.AnnData, dict, type, str]]:
    """Calls that fail, by what is wrong: data, arguments, error, words of its message."""
    counts, complete = adata.copy(), adata.copy()
    counts.X = np.random.default_rng(0).poisson(300, adata.shape).astype(np.float32)
    complete.X = np.nan_to_num(np.abs(adata.X))
    complete.X[complete.X == 10] = 1.0
    return {
        "counts": (counts, {}, ValueError, "cfm.pp.tpm"),
        "nothing to do": (complete, {}, ValueError, "Nothing is missing"),
        "mask": (adata, {"mask": np.ones((2, 2), bool)}, ValueError, "expected .* of bool"),
    }


@pytest.mark.parametrize("case", list(failing(toy_log_tpm())))
def test_calls_that_fail_leave_the_data_alone(
    bulk: BulkFormer, adata: ad.AnnData, case: str
) -> None:
    data, arguments, error, words = failing(adata)[case]
    before = data.copy()
    with pytest.raises(error, match=words):
        cfm.tl.impute(data, **({"model": bulk} | arguments))
    np.testing.assert_array_equal(data.X, before.X)
    assert list(data.layers) == list(before.layers)
    assert not data.uns


def test_other_models_do_not_impute(adata: ad.AnnData) -> None:
    other = CellPulse(vocabulary=adata.var_names, dim=32, n_heads=2, n_tokens=8, n_factors=4)
    with pytest.raises(TypeError, match="model= is a CellPulse; expected BulkFormer"):
        cfm.tl.impute(adata, other)


def test_samples_are_embedded_by_the_common_tool(bulk: BulkFormer, adata: ad.AnnData) -> None:
    cfm.tl.embed(adata, bulk)
    np.testing.assert_array_equal(adata.obsm["X_bulkformer"], bulk.get_latent_representation(adata))
    cfm.tl.embed(adata, bulk, pooling="max", genes=["GENE1", "GENE2"], key_added="X_two")
    expected = bulk.get_latent_representation(adata, pooling="max", genes=["GENE1", "GENE2"])
    np.testing.assert_array_equal(adata.obsm["X_two"], expected)
    assert adata.uns["X_two"]["params"]["pooling"] == "max"
    with pytest.raises(TypeError, match="pool"):
        cfm.tl.embed(adata, bulk, pool="max")


def test_published_weights_embed_by_their_folder(tmp_path: Path) -> None:
    folder = published(tmp_path / "released")
    model = BulkFormer.from_pretrained(folder)
    adata = ad.AnnData(np.random.default_rng(0).uniform(0, 4, (3, 160)).astype(np.float32))
    adata.var_names = [f"{name}.2" for name in model.vocabulary.genes]
    cfm.tl.embed(adata, folder)
    params = adata.uns["X_bulkformer"]["params"]
    assert params["model"] == "bulkformer_tiny"
    assert params["sha256"] == model.checkpoint_sha256
    assert params["vocabulary_share"] == 1.0
    assert adata.obsm["X_bulkformer"].shape == (3, 35)
