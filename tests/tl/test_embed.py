"""``cfm.tl.embed``: what it writes, from what it reads, and what it leaves alone."""

from __future__ import annotations

import warnings
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
import scanpy as sc

import cfm
from cfm.models import CellPulse
from tests._same import assert_unchanged
from tests._toy import SIZES, toy_contrasts, toy_model


def test_what_is_written(model: CellPulse, contrasts: ad.AnnData) -> None:
    before = contrasts.copy()
    assert cfm.tl.embed(contrasts, model) is None
    latent = contrasts.obsm["X_cellpulse"]
    assert latent.dtype == np.float32
    assert latent.shape == (contrasts.n_obs, model.module.dim)
    np.testing.assert_array_equal(latent, model.get_latent_representation(before))
    params = contrasts.uns["X_cellpulse"]["params"]
    expected = {"batch_size": 64, "model": "CellPulse", "vocabulary_share": 1.0}
    assert params.items() >= expected.items()
    del contrasts.obsm["X_cellpulse"], contrasts.uns["X_cellpulse"]
    assert_unchanged(contrasts, before)


def test_the_record_names_the_checkpoint_and_the_layer(
    checkpoint: Path, contrasts: ad.AnnData
) -> None:
    contrasts.layers["lfc"] = contrasts.X
    part = contrasts[:, :400].copy()
    cfm.tl.embed(part, str(checkpoint), layer="lfc", batch_size=5)
    params = part.uns["X_cellpulse"]["params"]
    assert params["model"] == "toy"
    assert len(params["sha256"]) == 64
    assert params["layer"] == "lfc"
    assert params["batch_size"] == 5
    assert params["vocabulary_share"] == 0.5


def test_a_warning_that_is_an_error_leaves_the_data_alone(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    contrasts.obsm["X_pca"] = np.zeros((contrasts.n_obs, 2))
    before = contrasts.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="not written by this tool"):
            cfm.tl.embed(contrasts, model, key_added="X_pca")
    assert_unchanged(contrasts, before)


def test_one_contrast_and_silent_ones(model: CellPulse, contrasts: ad.AnnData) -> None:
    one = contrasts[:1].copy()
    one.X[:] = 0.0
    cfm.tl.embed(one, model)
    assert np.isfinite(one.obsm["X_cellpulse"]).all()


def failing(contrasts: ad.AnnData) -> dict[str, tuple[ad.AnnData, dict, type, str]]:
    """Calls that fail, by what is wrong: data, arguments, error, words of its message."""
    counts = contrasts.copy()
    counts.X[-1] = np.arange(contrasts.n_vars) % 50 + 1
    none = ad.AnnData(obs=contrasts.obs, var=contrasts.var)
    few = contrasts[:, :30].copy()
    return {
        "counts": (counts, {}, ValueError, "looks like expression or counts"),
        "few genes": (few, {}, ValueError, "at least 50 are needed"),
        "no matrix": (none, {}, ValueError, "adata.X is None"),
        "name": (contrasts, {"model": "nobody"}, ValueError, "nobody"),
        "device": (contrasts, {"device": "warp"}, ValueError, "device='warp' is not available"),
    }


@pytest.mark.parametrize("case", list(failing(ad.AnnData(np.ones((2, 60))))))
def test_calls_that_fail_leave_the_data_alone(
    model: CellPulse, contrasts: ad.AnnData, case: str
) -> None:
    adata, arguments, error, words = failing(contrasts)[case]
    before = adata.copy()
    with pytest.raises(error, match=words):
        cfm.tl.embed(adata, **({"model": model} | arguments))
    assert_unchanged(adata, before)


def test_few_genes_warn(model: CellPulse, contrasts: ad.AnnData) -> None:
    few = contrasts[:, :100].copy()
    with pytest.warns(UserWarning, match="Only 12% of the model's 800 genes"):
        cfm.tl.embed(few, model)
    assert few.uns["X_cellpulse"]["params"]["vocabulary_share"] == 0.125


@pytest.mark.parametrize("data", [None, np.ones((3, 800)), [None], []])
def test_only_anndata_are_embedded(checkpoint: Path, data: object) -> None:
    with pytest.raises(TypeError, match="expected an AnnData"):
        cfm.tl.embed(data, checkpoint)


def test_the_bundled_model() -> None:
    counts = cfm.datasets.blanco_melo()
    contrasts = cfm.pp.contrasts(counts, "virus", "none", by="series")
    cfm.tl.embed(contrasts)
    assert contrasts.obsm["X_cellpulse"].shape[0] == contrasts.n_obs
    params = contrasts.uns["X_cellpulse"]["params"]
    assert params["model"] == "cellpulse-mini"
    assert len(params["sha256"]) == 64
    assert params["vocabulary_share"] > 0.8


def test_the_bundled_model_embeds_a_profile_the_same_in_any_company() -> None:
    """Real profiles of 17,607 genes: alone, in batches, in any order of rows and genes."""
    counts = cfm.datasets.blanco_melo()
    contrasts = cfm.pp.contrasts(counts, "virus", "none", by="series")
    model = CellPulse.from_pretrained("cellpulse-mini")
    latent = model.get_latent_representation(contrasts)
    rng = np.random.default_rng(0)
    rows, genes = rng.permutation(contrasts.n_obs), rng.permutation(contrasts.n_vars)
    alone = [model.get_latent_representation(contrasts[[i]].copy())[0] for i in rows]
    shuffled = contrasts[rows][:, genes].copy()
    for found in (np.array(alone), model.get_latent_representation(shuffled, batch_size=3)):
        np.testing.assert_allclose(found, latent[rows], rtol=1e-4, atol=5e-5)


def test_another_model_does_not_replace_an_embedding_unasked() -> None:
    contrasts = toy_contrasts()
    first = toy_model()
    CellPulse.setup_anndata(contrasts, study_key="study")
    second = CellPulse(contrasts, **SIZES, seed=3)
    cfm.tl.embed(contrasts, first)
    before = contrasts.obsm["X_cellpulse"].copy()
    cfm.tl.embed(contrasts, first)  # its own result
    with pytest.raises(ValueError, match="'X_cellpulse' holds the result of another model"):
        cfm.tl.embed(contrasts, second)
    np.testing.assert_array_equal(contrasts.obsm["X_cellpulse"], before)
    cfm.tl.embed(contrasts, second, key_added="X_second")
    np.testing.assert_array_equal(contrasts.obsm["X_cellpulse"], before)
    cfm.tl.embed(contrasts, second, key_added="X_cellpulse")
    np.testing.assert_array_equal(contrasts.obsm["X_cellpulse"], contrasts.obsm["X_second"])


@pytest.mark.parametrize("fast", [True, False])
def test_the_precision_that_was_used_is_recorded(
    fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfm.models._base.fast_bfloat16", lambda device: fast)
    cells = sc.datasets.pbmc68k_reduced().raw.to_adata()[:20].copy()
    reading = {"units": "log1p_cp10k"}
    cfm.tl.embed(cells, "cellvq-mini", **reading)
    rough = cells.obsm["X_cellvq"].copy()
    recorded = cells.uns["X_cellvq"]["params"]["precision"]
    assert recorded == ("bfloat16" if fast else "float32")
    cfm.tl.embed(cells, "cellvq-mini", precision="float32", **reading)
    assert cells.uns["X_cellvq"]["params"]["precision"] == "float32"
    assert np.array_equal(cells.obsm["X_cellvq"], rough) is not fast
    # codes and classes are computed in float32, whatever the processor
    cfm.tl.cell_codes(cells, **reading)
    cfm.tl.predict_properties(cells, **reading)
    for key in ("cell_code", "predicted_cell_type"):
        assert cells.uns[key]["params"]["precision"] == "float32"
    model = cfm.models.CellVQ.from_pretrained("cellvq-mini")
    expected = model.predict_properties(cells, "cell_type", precision="float32", **reading)
    np.testing.assert_array_equal(cells.obsm["predicted_cell_type_proba"], expected["cell_type"])
    exact = model.get_cell_codes(cells, precision="float32", **reading)
    np.testing.assert_array_equal(cells.obs["cell_code_similarity"], exact.similarity)


class MeanOfGenes:
    """A model of another package."""

    def get_latent_representation(self, adata: ad.AnnData, *, scale: float = 1.0) -> np.ndarray:
        return np.asarray(adata.X[:, :3] * scale)


def test_any_model_that_embeds(contrasts: ad.AnnData, tmp_path: Path) -> None:
    cfm.tl.embed(contrasts, MeanOfGenes(), scale=2.0)
    np.testing.assert_array_equal(contrasts.obsm["X_meanofgenes"], contrasts.X[:, :3] * 2)
    params = contrasts.uns["X_meanofgenes"]["params"]
    assert (params["model"], params["sha256"], params["scale"]) == ("MeanOfGenes", "", 2.0)
    made = cfm.tl.embed(contrasts, MeanOfGenes(), key_added="X_own", copy=True)
    assert "X_own" in made.obsm
    assert "X_own" not in contrasts.obsm
    for wrong in (
        {"layer": "a"},
        {"level": "gene"},
        {"device": "cpu"},
        {"output": tmp_path / "o.zarr"},
    ):
        with pytest.raises(ValueError, match=r"models of cfm"):
            cfm.tl.embed(contrasts, MeanOfGenes(), **wrong)


def test_a_trained_scvi_model() -> None:
    import scvi

    cells = cfm.datasets.toy_infection_cells()[::8].copy()
    scvi.model.SCVI.setup_anndata(cells)
    model = scvi.model.SCVI(cells, n_latent=4, n_hidden=16)
    model.train(max_epochs=1, accelerator="cpu", enable_progress_bar=False)
    new = cells.copy()
    cfm.tl.embed(new, model)
    np.testing.assert_allclose(
        new.obsm["X_scvi"], model.get_latent_representation(cells), rtol=1e-5
    )
    assert new.uns["X_scvi"]["params"]["module"].startswith("scvi.")
