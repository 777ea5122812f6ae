"""Tools that take any model, with a CellVQ: embeddings of genes, and simulations."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.models import CellVQ
from tests._cellvq import counted_cells, small_model
from tests._same import assert_unchanged


@pytest.fixture(scope="module")
def model() -> CellVQ:
    made = small_model()
    made.provenance = {"training_studies": []}
    return made


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
