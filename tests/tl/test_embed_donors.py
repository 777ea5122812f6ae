"""``cfm.tl.embed_donors``: what is made of donors, what is carried over, and what is reported."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy.sparse import csc_matrix, csr_matrix

import cfm
from cfm.models import CellPulse, Pulsar
from tests._pulsar import GOLDEN, donors
from tests._same import assert_unchanged


@pytest.fixture(scope="module")
def model() -> Pulsar:
    return Pulsar.from_pretrained(GOLDEN / "PULSAR-tiny")


@pytest.fixture
def adata() -> ad.AnnData:
    return donors()


def test_what_is_made(model: Pulsar, adata: ad.AnnData) -> None:
    before = adata.copy()
    found = cfm.tl.embed_donors(adata, "donor_id", model, n_cells=20, n_draws=3)
    assert_unchanged(adata, before)
    assert found.obs_names.tolist() == [f"donor{i}" for i in range(6)]
    expected = model.get_donor_embeddings(adata, n_cells=20, n_draws=3)
    np.testing.assert_array_equal(found.obsm["X_pulsar"], expected.embedding)
    assert found.obsm["X_pulsar"].dtype == np.float32
    np.testing.assert_array_equal(found.obs["X_pulsar_spread"], expected.spread)
    assert found.obs["n_cells"].tolist() == [30, 12, 50, 25, 40, 18]
    assert found.obs["n_cells_used"].tolist() == [20, 12, 20, 20, 20, 18]
    assert found.obs["disease"].tolist() == ["normal"] * 3 + ["lupus"] * 3
    assert isinstance(found.obs["disease"].dtype, pd.CategoricalDtype)
    assert found.obs["age"].tolist() == [30.0] * 3 + [60.0] * 3
    assert "cell_type" not in found.obs
    varying = found.uns["X_pulsar"]["varying"]
    assert varying["column"].tolist() == ["cell_type"]
    assert varying["n_donors"].tolist() == [6]
    params = found.uns["X_pulsar"]["params"]
    said = {"model": "PULSAR-tiny", "donor_key": "donor_id", "n_cells": 20, "n_draws": 3, "seed": 0}
    assert params.items() >= said.items()
    assert len(params["sha256"]) == 64


def test_names_folders_and_own_representations(model: Pulsar, adata: ad.AnnData) -> None:
    expected = cfm.tl.embed_donors(adata, "donor_id", model)
    adata.obsm["X_other"] = adata.obsm.pop("X_uce")
    found = cfm.tl.embed_donors(
        adata, "donor_id", str(GOLDEN / "PULSAR-tiny"), use_rep="X_other", batch_size=1
    )
    embeddings = (found.obsm["X_pulsar"], expected.obsm["X_pulsar"])
    np.testing.assert_allclose(*embeddings, atol=1e-5)
    assert found.uns["X_pulsar"]["params"]["use_rep"] == "X_other"


def test_expression_of_donors_is_that_of_their_cells(model: Pulsar, adata: ad.AnnData) -> None:
    """So that a probe compares with expression, and not with the embedding itself."""
    assert cfm.tl.embed_donors(adata, "donor_id", model).X is None
    rng = np.random.default_rng(0)
    counts = rng.poisson(3.0, (adata.n_obs, 7)).astype(np.float32)
    which = adata.obs["donor_id"].astype(str).to_numpy()
    genes = pd.DataFrame({"symbol": list("abcdefg")}, index=[f"G{i}" for i in range(7)])
    for x, how in ((counts, "sum"), (np.log1p(counts), "mean")):
        for wrap in (np.asarray, csr_matrix, csc_matrix):
            cells = ad.AnnData(wrap(x), obs=adata.obs, var=genes, obsm=dict(adata.obsm))
            found = cfm.tl.embed_donors(cells, "donor_id", model)
            expected = pd.DataFrame(x, index=cells.obs_names).groupby(which).agg(how)
            np.testing.assert_allclose(found.X, expected.loc[found.obs_names], rtol=1e-5)
            assert found.X.dtype == np.float32
            pd.testing.assert_frame_equal(found.var, genes)


def test_a_column_that_should_be_constant_is_reported(model: Pulsar, adata: ad.AnnData) -> None:
    adata.obs["note"] = np.where(np.arange(adata.n_obs) % 2, None, "x")
    first = adata.obs_names[adata.obs["donor_id"] == "donor2"][0]
    adata.obs.loc[first, "age"] = 31.0
    with pytest.warns(UserWarning, match=r"'age'\] varies within 1 of 6 donors"):
        found = cfm.tl.embed_donors(adata, "donor_id", model)
    assert found.uns["X_pulsar"]["varying"]["column"].tolist() == ["cell_type", "age"]
    assert found.obs["note"].tolist() == ["x"] * 6
    adata.obs["age"] = np.where(adata.obs["donor_id"] == "donor2", np.nan, 5.0)
    adata.obs["n_cells"] = 3
    with pytest.warns(UserWarning, match=r"\['n_cells'\] of adata.obs are replaced"):
        found = cfm.tl.embed_donors(adata, "donor_id", model)
    assert np.isnan(found.obs["age"]).tolist() == [False, False, True, False, False, False]


def test_donors_go_on_to_probe(model: Pulsar) -> None:
    cells = donors((40,) * 16)
    sick = (cells.obs["disease"] == "lupus").to_numpy()[:, None]
    counts = np.random.default_rng(0).poisson(5.0 + 20 * sick * [1, 0, 0, 0, 0, 0])
    cells = ad.AnnData(counts.astype(np.float32), obs=cells.obs, obsm=dict(cells.obsm))
    found = cfm.tl.embed_donors(cells, "donor_id", model)
    cfm.tl.probe(found, "disease", use_rep="X_pulsar", n_folds=4, heads="logistic")
    table = found.uns["probe"]["results"].set_index(["representation", "metric"])["score"]
    assert table["expression PCA", "auroc"] > 0.9


def test_what_cannot_be_embedded_is_refused(model: Pulsar, adata: ad.AnnData) -> None:
    with pytest.raises(TypeError, match="CellPulse does not embed donors"):
        cfm.tl.embed_donors(adata, "donor_id", CellPulse.from_pretrained("cellpulse-mini"))
    adata.obs["donor_id"] = adata.obs["donor_id"].astype(object)
    adata.obs.iloc[0, 0] = None
    with pytest.raises(ValueError, match="missing in 1 of 175 rows"):
        cfm.tl.embed_donors(adata, "donor_id", model)


def test_the_representation_of_the_training_is_asked_for(adata: ad.AnnData, model: Pulsar) -> None:
    adata.obsm["X_mine"] = adata.obsm.pop("X_uce")
    Pulsar.setup_anndata(adata, use_rep="X_mine")
    other = Pulsar(adata, dim=16, encoder_layers=1, encoder_ff=16, decoder_ff=16)
    del adata.obsm["X_mine"]
    with pytest.raises(KeyError, match=r"no 'X_mine', which the model was trained on.*use_rep="):
        cfm.tl.embed_donors(adata, "donor_id", other)
