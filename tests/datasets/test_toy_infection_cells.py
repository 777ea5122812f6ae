import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfm.datasets import toy_infection_cells

TYPES = ["B cell", "Monocyte", "NK cell", "T cell"]


def test_shape_and_design():
    adata = toy_infection_cells()
    assert adata.shape == (1200, 3000)
    assert isinstance(adata.X, sparse.csr_matrix)
    assert adata.X.dtype == np.float32
    assert (adata.X.data == np.round(adata.X.data)).all()
    assert adata.X.data.min() > 0
    assert (adata.obs["sample"].value_counts() == 150).all()
    assert adata.obs.groupby("donor", observed=True)["virus"].nunique().eq(2).all()
    assert set(adata.obs["cell_type"]) == set(TYPES)
    assert (np.asarray(adata.X.sum(axis=1)) > 300).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_each_cell_type_responds_as_planted(seed):
    adata = toy_infection_cells(seed, n_cells=400)
    truth = adata.uns["truth"]
    infected = (adata.obs["virus"] == "virus_A").to_numpy()
    response = {}
    for cell_type in TYPES:
        inside = (adata.obs["cell_type"] == cell_type).to_numpy()
        case = np.asarray(adata.X[inside & infected].sum(axis=0)).ravel()
        control = np.asarray(adata.X[inside & ~infected].sum(axis=0)).ravel()
        change = np.log2((case + 1) / case.sum()) - np.log2((control + 1) / control.sum())
        change -= np.median(change)
        planted = truth[cell_type].to_numpy()
        seen = (planted != 0) & (case + control > 100)
        assert seen.sum() > 30
        assert np.abs(change - planted)[seen].mean() < 0.3  # counting noise of about 100 reads
        assert abs((change - planted)[seen].mean()) < 0.15
        response[cell_type] = change[(truth["programme"] == "virus_A") & (control > 50)]
    assert np.abs(response["Monocyte"]).mean() > 1
    assert np.abs(response["T cell"]).mean() < 0.5


def test_only_monocytes_are_infected():
    truth = toy_infection_cells().uns["truth"]
    assert set(truth["programme"]) == {"", "interferon", "virus_A"}
    own = truth["programme"] == "virus_A"
    assert (truth.loc[own, "Monocyte"] != 0).all()
    assert (truth.loc[own, ["B cell", "NK cell", "T cell"]] == 0).all().all()
    shared = truth["programme"] == "interferon"
    assert (truth.loc[shared, TYPES] > 0).all().all()
    assert (truth.loc[shared, "Monocyte"] > truth.loc[shared, "T cell"]).all()


@pytest.mark.parametrize(
    ("marker", "cell_type"),
    [("MS4A1", "B cell"), ("LYZ", "Monocyte"), ("NKG7", "NK cell"), ("CD3D", "T cell")],
)
def test_markers_mark_their_type(marker, cell_type):
    adata = toy_infection_cells()
    counts = adata[:, marker].X.toarray().ravel()
    means = pd.Series(counts).groupby(adata.obs["cell_type"].to_numpy()).mean()
    assert means.idxmax() == cell_type
    assert means[cell_type] > 10 * means.drop(cell_type).max()
