"""Tools that take any model, with a CellVQ: embed, probe, simulate and judge."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.models import CellVQ
from tests._cellvq import GENES, counted_cells, small_model
from tests._same import assert_unchanged


@pytest.fixture(scope="module")
def model() -> CellVQ:
    made = small_model()
    made.provenance = {"training_studies": []}
    return made


def test_embed_writes_the_cell_embedding(model: CellVQ) -> None:
    cells = counted_cells()
    cfm.tl.embed(cells, model)
    np.testing.assert_array_equal(cells.obsm["X_cellvq"], model.get_latent_representation(cells))
    assert cells.uns["X_cellvq"]["params"]["model"] == "CellVQ"
    log = cells[:, GENES].copy()
    log.X = np.log1p(log.X / log.X.sum(axis=1, keepdims=True) * 1e4)
    log.obs["n"] = cells[:, GENES].X.sum(axis=1)
    units = {"units": "log1p_cp10k", "total_counts": "n"}
    cfm.tl.embed(log, model, key_added="X_log", representation="code", **units)
    assert log.obsm["X_log"].shape == (12, 8)
    assert log.uns["X_log"]["params"].items() >= (units | {"representation": "code"}).items()
    with pytest.raises(ValueError, match="not whole"):
        cfm.tl.embed(log, model)


def test_embed_averages_a_gene_over_the_cells_that_express_it(model: CellVQ) -> None:
    cells = counted_cells()
    cells.X[:, 9] = 0
    cfm.tl.embed(cells, model, level="gene", batch_size=5, precision="float32")
    found = cells.varm["X_cellvq_genes"]
    each = np.concatenate([x for _, x in model.get_gene_embeddings(cells, precision="float32")])
    seen = cells.X[:, 4] > 0
    assert 0 < seen.sum() < 12
    np.testing.assert_allclose(found[4], each[seen, 4].mean(axis=0), atol=1e-5)
    assert np.isnan(found).any(axis=1).nonzero()[0].tolist() == [9, 40, 41]


def test_probe_reads_the_embedding(model: CellVQ) -> None:
    cells = counted_cells(60)
    cells.X[::2, :8] = 0
    cells.X[1::2, 8:16] = 0
    cells.obs["kind"] = pd.Categorical(["even", "odd"] * 30)
    cells.layers["log"] = np.log1p(cells.X)
    cfm.tl.embed(cells, model)
    cfm.tl.probe(cells, "kind", use_rep="X_cellvq", layer="log", heads="logistic", n_folds=3)
    table = cells.uns["probe"]["results"]
    auroc = table[table["metric"] == "auroc"].set_index("representation")["score"]
    assert auroc["X_cellvq"] > 0.8
    assert auroc["none"] == pytest.approx(0.5)


def screen() -> ad.AnnData:
    cells = counted_cells(60)
    cells.obs["target"] = pd.Categorical(["none"] * 40 + ["G5"] * 20)
    cells.X[40:, 5] = 0
    return cells


def test_simulations_carry_the_codes(model: CellVQ, tmp_path: Path) -> None:
    cells = screen()
    before = cells.copy()
    made = cfm.tl.simulate_perturbation(cells, "G5", model=model, key="target", control="none")
    assert_unchanged(cells, before)
    expected = model.simulate(cells[:40].copy(), ["G5"])
    for column in ("cell_code_before", "cell_code_after"):
        assert made.obs[column].tolist() == expected.obs[column].tolist()
    assert (made.obs["target"] == "G5").all()
    assert made.var["simulated"].tolist() == [True] * 40 + [False] * 2
    table = made.uns["simulation"]["code_transitions"]
    pd.testing.assert_frame_equal(table, expected.uns["code_transitions"])
    assert made.uns["simulation"]["params"]["model"] == "CellVQ"
    for kind in ("h5ad", "zarr"):
        path = tmp_path / f"x.{kind}"
        getattr(made, f"write_{kind}")(path)
        back = getattr(ad, f"read_{kind}")(path)
        assert back.obs["cell_code_after"].tolist() == made.obs["cell_code_after"].tolist()
        pd.testing.assert_frame_equal(back.uns["simulation"]["code_transitions"], table)


def test_options_reach_the_model_and_the_record(model: CellVQ) -> None:
    cells = screen()
    targets = pd.DataFrame({"compound": ["drugol"], "gene": ["G5"]})
    made = cfm.tl.simulate_perturbation(
        cells, "drugol", model=model, targets=targets, effect="over_expression", n_folds=3
    )
    params = made.uns["simulation"]["params"]
    assert params.items() >= {"effect": "over_expression", "n_folds": 3, "targets": "1 x 2"}.items()
    assert (made[:, "G5"].X.toarray() >= cells[:, "G5"].X).all()
    with pytest.raises(KeyError, match="'other' is neither"):
        cfm.tl.simulate_perturbation(cells, "other", model=model, targets=targets)


def test_simulations_can_be_judged(model: CellVQ) -> None:
    cells = screen()[:, GENES].copy()
    made = cfm.tl.simulate_perturbation(cells, "G5", model=model, key="target", control="none")
    table = cfm.tl.evaluate_perturbation(
        cells, made, key="target", control="none", metrics=["delta_pearson"]
    )
    assert {"control", "CellVQ"} <= set(table["method"])
