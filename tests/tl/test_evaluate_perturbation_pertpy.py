"""Objects of pertpy in our table and ours in pertpy: predictions of scGen, distances, classifiers.

pertpy is no dependency: these tests run where it is installed. pertpy 1.0.3 needs statsmodels
before 0.15.
"""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from sklearn.decomposition import PCA

from cfm.metrics import e_distance
from cfm.pp import split_perturbations
from cfm.tl import simulate_perturbation
from tests.tl._perturbed import ARGUMENTS, evaluate, perturbed_cells, values

pt = pytest.importorskip("pertpy", exc_type=ImportError)


def _split() -> ad.AnnData:
    """Cells of which NK cells under A are held out."""
    cells = perturbed_cells()
    cells = cells[cells.obs["treatment"].isin(["ctrl", "A"]).to_numpy()].copy()
    where = {"groups": ["NK"], "groupby": "cell_type"}
    split_perturbations(cells, "treatment", control="ctrl", hold_out="group", **where)
    return cells


def _rows(adata: ad.AnnData, cell_type: str, treatment: str) -> np.ndarray:
    obs = adata.obs
    return ((obs["cell_type"] == cell_type) & (obs["treatment"] == treatment)).to_numpy()


def test_a_prediction_of_pertpy_is_scored() -> None:
    cells = _split()
    train = cells[(cells.obs["split"] == "train").to_numpy()].copy()
    pt.tl.Scgen.setup_anndata(train, batch_key="treatment", labels_key="cell_type")
    model = pt.tl.Scgen(train, n_hidden=32, n_layers=1, n_latent=8, dropout_rate=0.0)
    model.train(max_epochs=60, batch_size=32, early_stopping=False)
    predicted, _ = model.predict(ctrl_key="ctrl", stim_key="A", celltype_to_predict="NK")
    # as scGen returns them, they are still called controls
    assert set(predicted.obs["treatment"]) == {"ctrl"}
    predicted.obs["treatment"] = "A"
    predicted.obs["simulated_from"] = predicted.obs_names
    predicted.X = predicted.X.clip(0)
    table = evaluate(cells, {"scGen": predicted}, split_key="split", units="log")
    assert set(table["held_out"]) == {"group"}
    assert set(zip(table["group"], table["perturbation"], strict=True)) == {("NK", "A")}
    found = values(table, "delta_pearson")
    assert found["control"].item() == 0 and found["scGen"].item() > 0.5
    assert found["mean_shift"].item() > 0.98


def test_distances_are_those_of_pertpy() -> None:
    cells = _split()
    made = simulate_perturbation(cells, "A", model="mean_shift", groups=["NK"], **ARGUMENTS)
    real, ours = cells.X[_rows(cells, "NK", "A")], made.X
    table = evaluate(cells, {"made": made}, split_key="split", units="log", n_components=6)
    components = PCA(n_components=6, random_state=0).fit(cells.X[np.argsort(cells.obs_names)])
    a, b = (components.transform(x).astype(np.float64) for x in (real, ours))
    theirs = pt.tl.Distance("edistance")(a, b)
    assert e_distance(a, b, unbiased=False) == pytest.approx(theirs, rel=1e-6)
    # pertpy's is biased upwards: the distance of each cell to itself, 0, is in its means
    n = len(a)
    mean = [np.linalg.norm(x[:, None] - x[None], axis=2).mean() for x in (a, b)]
    expected = theirs - sum(mean) / (n - 1)
    assert values(table, "e_distance")["made"].item() == pytest.approx(expected, abs=2e-3)
    assert expected < theirs


def test_pertpy_compares_what_was_simulated() -> None:
    cells = _split()
    controls, real = (cells.X[_rows(cells, "NK", t)] for t in ("ctrl", "A"))
    for model, expected in (("mean_shift", 1.0), ("control", 0.0)):
        made = simulate_perturbation(cells, "A", model=model, groups=["NK"], **ARGUMENTS)
        compare = pt.tl.PerturbationComparison()
        assert compare.compare_classification(real, made.X, controls) == expected
