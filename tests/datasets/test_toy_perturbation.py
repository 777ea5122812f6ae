import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfm.data import map_identifiers
from cfm.datasets import toy_perturbation

TYPES = ["B cell", "Monocyte", "NK cell", "T cell"]
SINGLE = ["IFNB1", "IFNA2", "IFNG", "TNF", "IL1B", "IL6", "IL10", "IL2", "IL15", "EPO"]
LEVELS = ["control", *SINGLE, "IFNB1+IL6", "IFNG+TNF"]


@pytest.fixture(scope="module")
def toy():
    return toy_perturbation()


@pytest.fixture(scope="module")
def large():
    return toy_perturbation(1, n_cells=40_000)


def log2_change(adata, perturbation, cell_type):
    """Log2 ratio of mean counts, and how sure it is: the fewer of both sums."""
    inside = (adata.obs["cell_type"] == cell_type).to_numpy()
    sums, means = [], []
    for level in (perturbation, "control"):
        rows = inside & (adata.obs["perturbation"] == level).to_numpy()
        sums.append(np.asarray(adata.X[rows].sum(axis=0)).ravel())
        means.append((sums[-1] + 0.5) / rows.sum())
    return np.log2(means[0] / means[1]), np.minimum(*sums)


def test_shape_and_design(toy):
    assert toy.shape == (2000, 300)
    assert isinstance(toy.X, sparse.csr_matrix)
    assert toy.X.dtype == np.float32
    assert (toy.X.data == np.round(toy.X.data)).all()
    assert toy.X.data.min() > 0
    assert toy.obs["perturbation"].cat.categories.tolist() == LEVELS
    assert toy.obs["cell_type"].cat.categories.tolist() == TYPES
    assert (toy.obs["perturbation"] == "control").mean() == pytest.approx(0.2, abs=0.01)
    cells = toy.obs.groupby(["perturbation", "cell_type"], observed=False).size()
    assert cells.min() >= 15
    donors = toy.obs.groupby(["perturbation", "cell_type"], observed=True)["donor"].nunique()
    assert (donors == 3).all()
    # in random order: a run of cells is no batch of one condition
    assert toy.obs["perturbation"].iloc[:200].nunique() == len(LEVELS)


def test_counts_look_like_counts_of_single_cells(toy):
    reads = np.asarray(toy.X.sum(axis=1)).ravel()
    assert 700 < np.median(reads) < 1000
    assert 0.3 < np.log(reads).std() < 0.45
    zeros = 1 - toy.X.nnz / np.prod(toy.shape)
    assert 0.25 < zeros < 0.6
    # overdispersed: variance beyond the mean grows with the mean, also within one condition
    same = (toy.obs["perturbation"] == "control") & (toy.obs["cell_type"] == "T cell")
    dense = toy.X[same.to_numpy()].toarray()
    mean, variance = dense.mean(axis=0), dense.var(axis=0, ddof=1)
    high = mean > 5
    assert high.sum() > 10
    assert (variance[high] > 1.5 * mean[high]).all()
    assert np.median((variance - mean)[high] / mean[high] ** 2) == pytest.approx(0.35, abs=0.15)


def test_genes_are_known(toy):
    assert map_identifiers(list(toy.var_names)).symbol.tolist() == list(toy.var_names)
    assert toy.var_names.is_unique
    assert {"ISG15", "MS4A1", "CXCL10", "SOCS3", "CISH"} <= set(toy.var_names)
    assert toy.var["pathway"].value_counts().drop("").eq(24).all()
    assert not ((toy.var["pathway"] != "") & (toy.var["marker_of"] != "")).any()


@pytest.mark.parametrize("cell_type", TYPES)
@pytest.mark.parametrize("perturbation", LEVELS[1:])
def test_the_truth_is_what_the_counts_show(large, perturbation, cell_type):
    planted = large.uns["truth"][cell_type][perturbation].to_numpy()
    change, reads = log2_change(large, perturbation, cell_type)
    seen = reads > 200
    assert seen.sum() > 200
    error = (change - planted)[seen]
    assert np.abs(error).mean() < 0.1
    assert abs(error.mean()) < 0.1  # library sizes of the cells that were drawn
    if np.abs(planted).max() > 1:
        assert np.corrcoef(change[seen], planted[seen])[0, 1] > 0.9


def test_effects_follow_from_the_features_within_a_cell_type(toy):
    features = toy.uns["features"]
    assert features.index.tolist() == SINGLE
    for cell_type in TYPES:
        truth = toy.uns["truth"][cell_type]
        for left_out in ("IFNA2", "IL1B", "IL10", "IL15", "EPO"):
            known = [name for name in SINGLE if name != left_out]
            weights, *_ = np.linalg.lstsq(features.loc[known], truth[known].T, rcond=None)
            predicted = features.loc[left_out].to_numpy() @ weights
            np.testing.assert_allclose(predicted, truth[left_out], atol=1e-4)


def test_one_pair_adds_and_one_does_more(toy):
    for cell_type in TYPES:
        truth = toy.uns["truth"][cell_type].astype(float)
        additive = truth["IFNB1+IL6"] - truth["IFNB1"] - truth["IL6"]
        assert additive.abs().max() < 1e-5
        extra = truth["IFNG+TNF"] - truth["IFNG"] - truth["TNF"]
        assert (extra > 0.2).sum() == 18
        assert (extra[extra <= 0.2].abs() < 1e-5).all()
        assert (truth["EPO"] == 0).all()
    monocytes = toy.uns["truth"]["Monocyte"]
    assert (monocytes["IFNG+TNF"] - monocytes["IFNG"] - monocytes["TNF"]).max() > 1


def test_answers_depend_on_the_cell_type_and_pathways_are_shared(toy):
    truth = toy.uns["truth"]
    strength = {t: truth[t].abs().max() for t in TYPES}
    assert strength["Monocyte"]["TNF"] > 1.5 * strength["T cell"]["TNF"]
    assert strength["NK cell"]["IL2"] > 4 * strength["Monocyte"]["IL2"]
    for first, second in (("IFNB1", "IFNA2"), ("TNF", "IL1B"), ("IL2", "IL15")):
        assert np.corrcoef(truth["T cell"][first], truth["T cell"][second])[0, 1] > 0.8
    # one type is not another one times a number
    same = np.corrcoef(truth["T cell"]["IFNB1"], truth["Monocyte"]["IFNB1"])[0, 1]
    assert 0.7 < same < 0.99


@pytest.mark.parametrize(
    ("marker", "cell_type"),
    [("MS4A1", "B cell"), ("LYZ", "Monocyte"), ("NKG7", "NK cell"), ("CD3D", "T cell")],
)
def test_markers_mark_their_type(toy, marker, cell_type):
    assert toy.var.loc[marker, "marker_of"] == cell_type
    counts = toy[:, marker].X.toarray().ravel()
    means = pd.Series(counts).groupby(toy.obs["cell_type"].to_numpy()).mean()
    assert means[cell_type] > 10 * means.drop(cell_type).max()


def test_a_larger_panel_keeps_genes_and_effects(toy):
    more = toy_perturbation(n_genes=900, n_cells=600)
    assert more.var_names[:300].tolist() == toy.var_names.tolist()
    for cell_type in TYPES:
        truth = more.uns["truth"][cell_type]
        pd.testing.assert_frame_equal(truth.iloc[:300], toy.uns["truth"][cell_type])
        assert (truth.iloc[300:] == 0).all().all()
    assert toy_perturbation(n_genes=200, n_cells=520).shape == (520, 200)
