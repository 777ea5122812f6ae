"""PULSAR on an AnnData: what donors are read, and what does not change their embeddings."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from scipy import sparse

import cfm
from cfm.models import Pulsar
from cfm.models.pulsar._published import scope_of
from tests._pulsar import GOLDEN, donors


@pytest.fixture(scope="module")
def model() -> Pulsar:
    return Pulsar.from_pretrained(GOLDEN / "PULSAR-tiny")


@pytest.fixture
def adata() -> ad.AnnData:
    return donors()


def test_moments_need_a_model_that_standardises(model: Pulsar, adata: ad.AnnData) -> None:
    with pytest.raises(ValueError, match=r"standardised=False.*pass pooling='cls'"):
        model.get_donor_embeddings(adata, pooling="moments")


def test_donors_are_embedded_in_the_order_of_their_names(model: Pulsar, adata: ad.AnnData) -> None:
    found = model.get_donor_embeddings(adata, precision="float32")
    assert found.donors.tolist() == [f"donor{i}" for i in range(6)]
    assert found.embedding.shape == (6, 32)
    assert found.embedding.dtype == np.float32
    assert found.n_cells.tolist() == [30, 12, 50, 25, 40, 18]
    assert (found.spread == 0).all()
    for name, row in zip(found.donors, found.embedding, strict=True):
        cells = adata.obsm["X_uce"][(adata.obs["donor_id"] == name).to_numpy()]
        with torch.no_grad():
            alone = model.module.encode(torch.from_numpy(cells)[None])[0, 0]
        np.testing.assert_allclose(row, alone, atol=1e-5)


@pytest.mark.parametrize("n_cells", [None, 15])
def test_shuffling_and_splitting_leave_embeddings_unchanged(
    model: Pulsar, adata: ad.AnnData, n_cells: int | None
) -> None:
    settings = {"n_cells": n_cells, "n_draws": 3, "precision": "float32"}
    first = model.get_donor_embeddings(adata, **settings)
    order = np.random.default_rng(4).permutation(adata.n_obs)
    second = model.get_donor_embeddings(adata[order].copy(), batch_size=1, **settings)
    np.testing.assert_allclose(second.embedding, first.embedding, atol=1e-5)
    np.testing.assert_allclose(second.spread, first.spread, atol=1e-5)
    part = adata[adata.obs["donor_id"] == "donor2"].copy()
    alone = model.get_latent_representation(part, **settings)
    np.testing.assert_allclose(alone[0], first.embedding[2], atol=1e-5)


def test_draws_are_seeded_and_their_spread_is_told(model: Pulsar, adata: ad.AnnData) -> None:
    few = model.get_donor_embeddings(adata, n_cells=5, n_draws=8, precision="float32")
    many = model.get_donor_embeddings(adata, n_cells=16, n_draws=8, precision="float32")
    assert (few.n_used == 5).all()
    assert many.n_used.tolist() == [16, 12, 16, 16, 16, 16]
    assert (few.spread > 0).all()
    assert many.spread[1] == 0  # donor1 has 12 cells: all of them, every time
    assert few.spread.mean() > many.spread.mean()
    again = model.get_latent_representation(adata, n_cells=5, n_draws=8, precision="float32")
    np.testing.assert_array_equal(again, few.embedding)
    other = model.get_latent_representation(adata, n_cells=5, n_draws=8, seed=1)
    assert np.abs(other - few.embedding).max() > 1e-4
    one = model.get_donor_embeddings(adata, n_cells=16)
    assert np.isnan(one.spread).tolist() == [True, False, True, True, True, True]


def test_any_storage_and_names(model: Pulsar, adata: ad.AnnData) -> None:
    expected = model.get_latent_representation(adata)
    adata.obsm["X_other"] = pd.DataFrame(adata.obsm["X_uce"], index=adata.obs_names)
    adata.obsm["X_sparse"] = sparse.csr_matrix(adata.obsm["X_uce"])
    adata.obs["person"] = adata.obs["donor_id"].astype(str)
    for rep in ("X_other", "X_sparse"):
        found = model.get_latent_representation(adata, donor_key="person", use_rep=rep)
        np.testing.assert_array_equal(found, expected)


def test_the_classifier_answers_with_probabilities(adata: ad.AnnData) -> None:
    classifier = Pulsar.from_pretrained(GOLDEN / "PULSAR-classifier")
    found = classifier.predict(adata)
    assert found.columns.tolist() == [f"LABEL_{i}" for i in range(5)]
    assert found.index.tolist() == [f"donor{i}" for i in range(6)]
    np.testing.assert_allclose(found.sum(axis=1), 1.0, rtol=1e-5)
    with pytest.raises(ValueError, match="no head"):
        Pulsar.from_pretrained(GOLDEN / "PULSAR-tiny").predict(adata)


def test_a_new_model_reads_the_registered_representation(adata: ad.AnnData) -> None:
    adata.obsm["X_pca"] = adata.obsm["X_uce"][:, :7] * 100 + 5
    Pulsar.setup_anndata(adata, use_rep="X_pca", labels_key="disease")
    model = Pulsar(adata, size="mini")
    assert model.size.input_dim == 7
    found = model.module.standardise(torch.from_numpy(adata.obsm["X_pca"]))
    np.testing.assert_allclose(found.mean(0), 0.0, atol=1e-4)
    np.testing.assert_allclose(found.std(0, correction=0), 1.0, rtol=1e-4)
    assert model.get_latent_representation().shape == (6, 64)
    with pytest.raises(ValueError, match="7 columns"):
        Pulsar(adata, input_dim=9)


def test_what_cannot_be_embedded_is_refused(model: Pulsar, adata: ad.AnnData) -> None:
    """NaN, names that occur twice, absent columns: ``tests/matrix``."""
    embed = model.get_latent_representation
    wide = adata.copy()
    wide.obsm["X_uce"] = np.ones((adata.n_obs, 50), dtype=np.float32)
    with pytest.raises(ValueError, match="50 columns; the model reads 48"):
        embed(wide)
    adata.obs["donor_id"] = adata.obs["donor_id"].astype(object)
    for donor, message in ((None, "missing in 4 of 175 rows"), ("", "empty in 4 of 175 rows")):
        adata.obs.iloc[:4, 0] = donor
        with pytest.raises(ValueError, match=message):
            embed(adata)


def test_a_donor_with_one_cell_is_embedded_with_a_warning(model: Pulsar) -> None:
    adata = donors((30, 1))
    with pytest.warns(UserWarning, match="1 of 2 donors have fewer than 10 cells"):
        found = model.get_latent_representation(adata)
    assert np.isfinite(found).all()


def test_labels_that_vary_within_a_donor_are_refused(adata: ad.AnnData) -> None:
    adata.obs["visit"] = np.arange(adata.n_obs) % 2
    with pytest.raises(ValueError, match="several values within 6 donors"):
        Pulsar.setup_anndata(adata, use_rep="X_uce", labels_key="visit")


def test_other_tissues_are_warned_of(model: Pulsar, adata: ad.AnnData) -> None:
    assert scope_of("KuanP/PULSAR-pbmc", None) == ["blood", "pbmc"]
    assert scope_of("KuanP/PULSAR-all-tissue", "see PULSAR-pbmc") is None
    assert scope_of("mine", "Trained on peripheral blood mononuclear cells.") == ["blood", "pbmc"]
    assert scope_of("mine", None) is None
    adata.obs["tissue"] = "venous blood"
    blood = Pulsar.from_pretrained(GOLDEN / "PULSAR-tiny")
    blood.provenance["scope"] = ["blood", "pbmc"]
    blood.get_latent_representation(adata)
    adata.obs["tissue"] = "lung"
    with pytest.warns(UserWarning, match=r"names \['lung'\]"):
        blood.get_latent_representation(adata)
    model.get_latent_representation(adata)  # a checkpoint for any tissue says nothing


def test_embed_points_to_embed_donors_by_what_it_says(model: Pulsar, adata: ad.AnnData) -> None:
    with pytest.raises(TypeError, match="embeds donors"):
        cfm.tl.embed(adata, model)


def test_data_that_do_not_fit_are_not_attached() -> None:
    cohort = donors((30, 20, 25), width=10)
    Pulsar.setup_anndata(cohort, use_rep="X_uce")
    model = Pulsar(cohort, dim=32, encoder_layers=1, encoder_ff=64, decoder_ff=64)
    before = model.adata, model.registry_, model.summary_stats
    wide = donors((30, 20, 25), width=12)
    Pulsar.setup_anndata(wide, use_rep="X_uce")
    with pytest.raises(ValueError, match="12"):
        model.attach(wide)
    after = model.adata, model.registry_, model.summary_stats
    assert all(old is new for old, new in zip(before, after, strict=True))
