"""``cfm.tl.cell_importance``: planted cells are found, and tables mean what they say."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch

import cfm
from cfm.models import CellPulse, Pulsar
from tests._pulsar import donors
from tests._same import assert_unchanged

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}


@pytest.fixture(scope="module")
def adata() -> ad.AnnData:
    adata = donors((40, 30, 50, 45, 35, 42), width=10)
    Pulsar.setup_anndata(adata, use_rep="X_uce")
    return adata


@pytest.fixture(scope="module")
def model(adata: ad.AnnData) -> Pulsar:
    """The B cells of the ill set them apart, and the head says so."""
    model = Pulsar(adata, dim=32, encoder_ff=64, decoder_layers=0)
    model.train_head("disease", max_epochs=20, validation_share=0, **QUIET)
    return model


def test_attention_is_what_the_module_attends_to(adata: ad.AnnData, model: Pulsar) -> None:
    found = cfm.tl.cell_importance(adata, "donor_id", model, copy=True)
    assert "cell_importance" not in adata.obs
    values = found.obs["cell_importance"]
    assert values.dtype == np.float32
    assert (values > 0).all()
    np.testing.assert_allclose(values.groupby(adata.obs["donor_id"], observed=True).mean(), 1, 1e-5)
    own = (adata.obs["donor_id"] == "donor3").to_numpy(copy=True)
    cells = torch.from_numpy(adata.obsm["X_uce"][own])
    weights = model.module.attention(cells[None]).mean(dim=(0, 2))[0, 1:]
    np.testing.assert_allclose(values[own], weights / weights.mean(), rtol=1e-4)


def test_the_cells_behind_a_call_are_found(adata: ad.AnnData, model: Pulsar) -> None:
    found = cfm.tl.cell_importance(
        adata, "donor_id", model, groupby="cell_type", method="gradient", output="lupus", copy=True
    )
    of = found.obs.groupby("cell_type", observed=True)["cell_importance"].mean()
    assert of["B"] > 0 > of["T"]
    other = cfm.tl.cell_importance(
        adata, "donor_id", model, method="gradient", output="normal", copy=True
    )
    correlation = np.corrcoef(found.obs["cell_importance"], other.obs["cell_importance"])[0, 1]
    assert correlation < 0


def test_each_of_several_properties_has_its_own_cells() -> None:
    rng = np.random.default_rng(0)
    shares = rng.dirichlet((2, 2, 2), size=24)
    donor = np.repeat(np.arange(24), 40)
    kind = (rng.random(len(donor))[:, None] > shares.cumsum(axis=1)[donor]).sum(axis=1)
    adata = ad.AnnData(
        obs=pd.DataFrame({"donor_id": donor.astype(str), "kind": kind.astype(str)}).set_axis(
            [f"cell{i}" for i in range(len(donor))]
        ),
        obsm={"X_uce": 3 * np.eye(3, 10)[kind] + 0.3 * rng.normal(size=(len(donor), 10))},
    )
    for k in range(2):  # the level of a protein is the share of one kind of cells
        adata.obs[f"protein{k}"] = shares[donor, k]
    Pulsar.setup_anndata(adata, use_rep="X_uce")
    model = Pulsar(adata, dim=32, encoder_ff=64, decoder_layers=0)
    names = ["protein0", "protein1"]
    model.train_head(names, "regression", max_epochs=100, validation_share=0, **QUIET)
    for k, name in enumerate(names):
        cfm.tl.cell_importance(adata, "donor_id", model, method="gradient", output=name)
        of = adata.obs.groupby("kind", observed=True)["cell_importance"].mean()
        assert of.idxmax() == str(k)
        assert of[str(k)] > 0 > of.drop(str(k)).max()


def test_without_an_output_it_is_what_sets_the_donor_apart(
    adata: ad.AnnData, model: Pulsar
) -> None:
    found = cfm.tl.cell_importance(adata, "donor_id", model, method="gradient", copy=True)
    z = torch.tensor(model.get_latent_representation(adata, precision="float32"))
    x = torch.tensor(adata.obsm["X_uce"])
    own = (adata.obs["donor_id"] == "donor3").to_numpy(copy=True)
    cells = x[own][None].requires_grad_()
    (model.module.encode(cells)[0, 0] @ (z[3] - z.mean(dim=0))).backward()
    expected = ((cells - x.mean(dim=0)) * cells.grad).sum(-1)[0].detach()
    values = found.obs["cell_importance"][own]
    np.testing.assert_allclose(values, expected / expected.abs().mean(), rtol=1e-3, atol=1e-3)


def test_the_table_of_groups(adata: ad.AnnData, model: Pulsar) -> None:
    found = cfm.tl.cell_importance(adata, "donor_id", model, groupby="cell_type", copy=True)
    table = found.uns["cell_importance"]["groups"]
    assert len(table) == 12
    np.testing.assert_allclose(table.groupby("donor")["share_cells"].sum(), 1)
    np.testing.assert_allclose(table.groupby("donor")["share_importance"].sum(), 1, rtol=1e-5)
    np.testing.assert_allclose(
        table["enrichment"], table["share_importance"] / table["share_cells"]
    )
    first = table.query("donor == 'donor0' and group == 'B'").iloc[0]
    own = (adata.obs["donor_id"] == "donor0").to_numpy()
    is_b = own & (adata.obs["cell_type"] == "B").to_numpy()
    assert first["n_cells"] == is_b.sum()
    with torch.no_grad():
        whole, without = (
            model.module.encode(torch.from_numpy(adata.obsm["X_uce"][rows])[None])[0, 0]
            for rows in (own, own & ~is_b)
        )
    assert first["removal"] == pytest.approx(float((whole - without).norm()), rel=1e-3)
    # A whole kind of cells matters more than as many cells of both.
    assert (table["removal"] > table["removal_random"]).mean() > 0.7


def test_neither_order_nor_other_donors_change_it(adata: ad.AnnData, model: Pulsar) -> None:
    first = cfm.tl.cell_importance(adata, "donor_id", model, n_cells=16, copy=True)
    part = adata[(adata.obs["donor_id"] == "donor2").to_numpy()][::-1].copy()
    cfm.tl.cell_importance(part, "donor_id", model, n_cells=16)
    np.testing.assert_allclose(
        part.obs["cell_importance"],
        first.obs.loc[part.obs_names, "cell_importance"],
        rtol=1e-3,
    )


def test_cells_in_no_group_and_donors_of_one_group(adata: ad.AnnData, model: Pulsar) -> None:
    part = adata.copy()
    kinds = part.obs["cell_type"].astype(object)
    part.obs["cell_type"] = kinds.where(part.obs["donor_id"] != "donor1", "B").where(
        part.obs["donor_id"] != "donor4", None
    )
    cfm.tl.cell_importance(part, "donor_id", model, groupby="cell_type")
    table = part.uns["cell_importance"]["groups"]
    assert "donor4" not in set(table["donor"])
    only = table.query("donor == 'donor1'")
    assert only["removal"].isna().all()
    assert only["share_cells"].tolist() == [1.0]


def test_what_cannot_be_explained_is_refused(adata: ad.AnnData, model: Pulsar) -> None:
    before = adata.copy()
    call = cfm.tl.cell_importance
    with pytest.raises(TypeError, match="does not read the cells of donors"):
        call(adata, "donor_id", CellPulse.from_pretrained("cellpulse-mini"))
    with pytest.raises(ValueError, match="attention has no outputs"):
        call(adata, "donor_id", model, output="lupus")
    with pytest.raises(KeyError, match="no output 'gout'"):
        call(adata, "donor_id", model, method="gradient", output="gout")
    with pytest.raises(ValueError, match="no head"):
        call(adata, "donor_id", Pulsar(input_dim=10), method="gradient", output="lupus")
    assert_unchanged(adata, before)
