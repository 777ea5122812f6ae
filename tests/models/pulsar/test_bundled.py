"""The bundled model of donors: what it reads, what it tells apart, what it says of itself."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.models import Pulsar
from cfm.models.pulsar._model import Pooling

NAME = "pulsar-mini"
KEYS = {"donor_key": "donor_id", "model": NAME}


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    """Counts of ten donors, of two kinds of cells whose shares differ between the donors' halves.

    The kinds are two cells of the reference, of which counts are drawn anew.
    """
    rng = np.random.default_rng(0)
    projection = Pulsar.from_pretrained(NAME).projection
    assert projection is not None
    far = projection.cells[:, 0].argsort()[[100, -100]]
    level = projection.cells[far] @ projection.components.T * projection.scale + projection.mean
    share = np.expm1(np.maximum(level, 0.0))
    share /= share.sum(axis=1, keepdims=True)
    donor = rng.permutation(np.repeat(np.arange(10), rng.integers(60, 100, 10)))
    kind = (rng.random(len(donor)) < np.where(donor < 5, 0.2, 0.6)).astype(int)
    obs = pd.DataFrame(
        {
            "donor_id": pd.Categorical([f"d{i}" for i in donor]),
            "half": pd.Categorical(np.where(donor < 5, "first", "second")),
            "kind": pd.Categorical(np.where(kind, "B", "T")),
            "tissue": pd.Categorical(["blood"] * len(donor)),
        },
        index=[f"cell{i}" for i in range(len(donor))],
    )
    counts = rng.poisson(3000 * share[kind]).astype(np.float32)
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=projection.genes.genes.astype(str)))


def test_it_embeds_donors_of_any_size(cells: ad.AnnData) -> None:
    donors = cfm.tl.embed_donors(cells, "donor_id")
    assert donors.obsm["X_pulsar"].shape == (10, 96)
    assert donors.uns["X_pulsar"]["params"]["model"] == NAME
    assert donors.uns["X_pulsar"]["params"]["vocabulary_share"] == 1.0
    assert (donors.obs["X_pulsar_unknown"] < 0.2).all()
    alone = cfm.tl.embed_donors(cells[cells.obs["donor_id"] == "d3"].copy(), **KEYS)
    np.testing.assert_allclose(
        alone.obsm["X_pulsar"][0], donors["d3"].obsm["X_pulsar"][0], atol=1e-5
    )
    shuffled = cells[np.random.default_rng(1).permutation(cells.n_obs)].copy()
    again = cfm.tl.embed_donors(shuffled, batch_size=3, **KEYS)
    np.testing.assert_allclose(again.obsm["X_pulsar"], donors.obsm["X_pulsar"], atol=1e-5)


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_composition_shows(share: float, cells: ad.AnnData) -> None:
    genes = np.random.default_rng(0).random(cells.n_vars) < share
    donors = cfm.tl.embed_donors(cells[:, genes].copy(), **KEYS)
    x = donors.obsm["X_pulsar"] - donors.obsm["X_pulsar"].mean(axis=0)
    first = (donors.obs["half"] == "first").to_numpy()
    axis = x[first].mean(axis=0) - x[~first].mean(axis=0)
    assert (x @ axis)[first].min() > (x @ axis)[~first].max()


@pytest.mark.parametrize("pooling", ["cls", "moments", "both"])
def test_two_draws_of_a_donor_are_alike(pooling: Pooling, cells: ad.AnnData) -> None:
    """Contrastive training asks for it: nearer to each other than to draws of other donors."""
    model = Pulsar.from_pretrained(NAME)
    settings: dict[str, Any] = {"donor_key": "donor_id", "n_cells": 50, "pooling": pooling}
    one, two = (model.get_latent_representation(cells, seed=s, **settings) for s in (0, 1))
    centre = one.mean(axis=0)
    within = np.linalg.norm(one - two, axis=1).mean()
    between = np.linalg.norm(one - centre, axis=1).mean()
    assert within < between


def test_both_are_the_default_until_it_is_trained_further(cells: ad.AnnData) -> None:
    Pulsar.setup_anndata(cells, donor_key="donor_id")
    model = Pulsar.from_pretrained(NAME, cells)
    both = np.hstack(
        [
            2 * model.get_latent_representation(n_cells=50, pooling="moments"),
            model.get_latent_representation(n_cells=50, pooling="cls"),
        ]
    )
    np.testing.assert_allclose(model.get_latent_representation(n_cells=50), both, rtol=1e-6)
    model.train(max_steps=1, n_cells=20, enable_progress_bar=False, accelerator="cpu")
    network = model.get_latent_representation(n_cells=50, pooling="cls")
    np.testing.assert_array_equal(model.get_latent_representation(n_cells=50), network)


def test_the_tools_of_donors_take_it(cells: ad.AnnData) -> None:
    copy = cells.copy()
    cfm.tl.cell_importance(copy, "donor_id", groupby="kind")
    assert len(copy.uns["cell_importance"]["groups"]) == 20
    donors = cfm.tl.embed_donors(cells, **KEYS)
    cfm.tl.map_reference(donors[:5].copy(), donors[5:].copy(), "half", n_neighbors=2)


def test_other_tissues_are_warned_about(cells: ad.AnnData) -> None:
    copy = cells.copy()
    copy.obs["tissue"] = "lung"
    with pytest.warns(UserWarning, match=r"trained on blood and pbmc only.*'lung'"):
        cfm.tl.embed_donors(copy, **KEYS)


def test_it_says_where_it_comes_from() -> None:
    model = Pulsar.from_pretrained(NAME)
    assert model.card is not None
    assert "GSE96583" in model.card
    assert "GSE164378" in model.card
    assert "never donors" in model.card
    assert model.provenance["training_command"] == "python -m training.train_pulsar"
    assert model.provenance["n_donors"] == 400
    assert model.history["train_loss"].iloc[-1].item() < model.history["train_loss"].iloc[0].item()
    assert cfm.hub.list_checkpoints().loc[NAME, "size_mb"] <= 3
