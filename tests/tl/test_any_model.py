"""Tools that take any object with ``get_latent_representation(adata)``, such as an scvi model."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scvi.model import SCVI

import cfm
from tests._same import assert_unchanged


class MeanAndSpread:
    """A model that nobody registered: two numbers of a cell."""

    def get_latent_representation(self, adata: ad.AnnData) -> np.ndarray:
        x = np.log1p(adata.X.toarray())
        return np.column_stack([x.mean(axis=1), x.std(axis=1), np.ones(len(x))])


class Broken:
    def get_latent_representation(self, adata: ad.AnnData) -> np.ndarray:
        return np.zeros((3, 2))


@pytest.fixture(scope="module")
def cells() -> ad.AnnData:
    return cfm.datasets.toy_donors(n_donors=6, n_cells=30)


@pytest.fixture(scope="module")
def scvi_model(cells: ad.AnnData) -> SCVI:
    registered = cells.copy()
    SCVI.setup_anndata(registered, batch_key="donor_id")
    model = SCVI(registered, n_latent=4, n_hidden=16)
    model.train(max_epochs=2, accelerator="cpu", enable_progress_bar=False, logger=False)
    return model


@pytest.mark.filterwarnings("ignore:Only 10%:UserWarning")
@pytest.mark.parametrize("kind", ["plain", "scvi", "cfm"])
def test_a_model_is_probed_like_its_embedding(cells: ad.AnnData, scvi_model, kind: str) -> None:
    model = {
        "plain": MeanAndSpread(),
        "scvi": scvi_model,
        "cfm": cfm.models.load_model("cellvq-mini"),
    }[kind]
    name, module = f"X_{type(model).__name__.lower()}", type(model).__module__
    direct, stored = cells.copy(), cells.copy()
    arguments = {"groups": "donor_id", "n_folds": 3, "heads": "logistic"}
    cfm.tl.probe(direct, "cell_type", use_rep=model, **arguments)
    assert name not in direct.obsm
    stored.obsm[name] = np.asarray(model.get_latent_representation(stored))
    cfm.tl.probe(stored, "cell_type", use_rep=name, **arguments)
    table = direct.uns["probe"]["results"]
    assert table["representation"].unique().tolist() == [name, "expression PCA", "none"]
    pd.testing.assert_frame_equal(table, stored.uns["probe"]["results"])
    record = direct.uns["probe"]["params"]["models"][name]
    assert record["module"] == module
    assert bool(record["sha256"]) == (kind == "cfm")
    assert stored.uns["probe"]["params"]["models"] == {}


@pytest.mark.parametrize("kind", ["plain", "scvi"])
def test_a_model_embeds_query_and_reference(cells: ad.AnnData, scvi_model, kind: str) -> None:
    model = MeanAndSpread() if kind == "plain" else scvi_model
    is_new = cells.obs["donor_id"].isin(["donor01", "donor02"]).to_numpy()
    query, reference = cells[is_new].copy(), cells[~is_new].copy()
    cfm.tl.map_reference(query, reference, "cell_type", use_rep=model)
    params = query.uns["map_reference"]["params"]
    assert (params["model"], params["sha256"]) == (type(model).__name__, "")
    assert params["module"] == type(model).__module__
    again = query.copy()
    for adata in (again, reference):
        adata.obsm["X_own"] = model.get_latent_representation(adata)
    cfm.tl.map_reference(again, reference, "cell_type", use_rep="X_own")
    pd.testing.assert_series_equal(again.obs["map_reference"], query.obs["map_reference"])
    pd.testing.assert_frame_equal(
        again.uns["map_reference"]["neighbours"], query.uns["map_reference"]["neighbours"]
    )


def test_donors_are_embedded_by_cells_of_another_model(cells: ad.AnnData, scvi_model) -> None:
    cells = cells.copy()
    cells.obsm["X_scvi"] = scvi_model.get_latent_representation(cells)
    cfm.models.Pulsar.setup_anndata(cells, donor_key="donor_id", use_rep="X_scvi")
    model = cfm.models.Pulsar(cells, dim=32, encoder_ff=64, decoder_layers=0)
    donors = cfm.tl.embed_donors(cells, "donor_id", model, use_rep="X_scvi")
    assert donors.obsm["X_pulsar"].shape == (6, 32)
    assert donors.uns["X_pulsar"]["params"]["use_rep"] == "X_scvi"


def test_what_is_no_model_or_embeds_something_else_is_refused(cells: ad.AnnData) -> None:
    before = cells.copy()
    for use_rep, error, message in (
        (object(), TypeError, "use_rep is a object; expected"),
        (MeanAndSpread, TypeError, "use_rep is a type; expected"),
        (Broken(), ValueError, r"shape \(3, 2\); expected a row"),
        ([MeanAndSpread(), MeanAndSpread()], ValueError, "two representations are named"),
    ):
        with pytest.raises(error, match=message):
            cfm.tl.probe(cells, "cell_type", groups="donor_id", n_folds=3, use_rep=use_rep)
        assert_unchanged(cells, before)
    with pytest.raises(ValueError, match=r"shape \(3, 2\); expected a row"):
        cfm.tl.map_reference(cells, before, "cell_type", use_rep=Broken())
    assert_unchanged(cells, before)
