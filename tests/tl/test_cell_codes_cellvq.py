"""``cfm.tl.cell_codes`` with a CellVQ that was trained on planted cell types."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scanpy as sc
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

import cfm
from cfm.models import CellVQ, CodeModel
from tests._codes import GENES, N_OWN, TYPES, typed_cells

SIZES = {
    **{"dim": 16, "n_layers": 1, "n_heads": 2, "ff_dim": 16, "n_bins": 8, "n_bits": 6},
    **{"decoder_dim": 8, "decoder_layers": 1, "decoder_heads": 2, "codebook_dim": 32},
    "expression_codes": False,
}


@pytest.fixture(scope="module")
def model() -> CellVQ:
    cells = typed_cells(50)
    CellVQ.setup_anndata(cells, labels_keys=["cell_type"])
    model = CellVQ(cells, **SIZES)
    model.train(
        max_steps=140, lr=5e-3, code_label_weight=1.0, validation_share=0.0, n_validation=50,
        accelerator="cpu", enable_progress_bar=False,
    )  # fmt: skip
    return model


def test_planted_types_are_found_in_new_cells(model: CellVQ) -> None:
    assert isinstance(model, CodeModel)
    known, new = typed_cells(50), typed_cells(30, seed=5)
    cfm.tl.cell_codes(known, model, groupby="cell_type")
    cfm.tl.cell_codes(new, model, groupby="cell_type", reference=known)
    for cells in (known, new):
        agreement = cells.uns["cell_code"]["annotations"].loc["cell_type"]
        assert agreement["purity"] > 0.95
        assert agreement["ami"] > 0.6
    called = new.obs["cell_code_cell_type"]
    truth = new.obs["cell_type"].astype(str)
    assert (called.astype("string") == truth).mean() > 0.8
    codes, markers = (known.uns["cell_code"][name] for name in ("codes", "markers"))
    largest = codes.sort_values("n_cells").groupby("cell_type_majority").tail(1)
    assert sorted(largest["cell_type_majority"]) == list(TYPES)
    for code, kind in largest["cell_type_majority"].items():
        first = TYPES.index(kind) * N_OWN
        found = markers.loc[markers["code"] == code, "gene"].head(N_OWN)
        assert set(found) == set(GENES[first : first + N_OWN])


def test_a_saved_model_is_the_same_and_a_retrained_one_is_not(
    model: CellVQ, tmp_path: Path
) -> None:
    reference, query = typed_cells(20), typed_cells(10, seed=5)
    cfm.tl.cell_codes(reference, model, groupby="cell_type")
    loaded = CellVQ.from_pretrained(model.save(tmp_path / "model"))
    cfm.tl.cell_codes(query, loaded, reference=reference)
    ours, theirs = (x.uns["cell_code"]["params"] for x in (query, reference))
    assert ours["fingerprint"] == theirs["fingerprint"]
    assert ours["sha256"]
    assert len(theirs["sha256"]) == 64
    again = typed_cells(10, seed=5)
    cfm.tl.cell_codes(again, tmp_path / "model", reference=query, device="cpu")
    assert again.obs["cell_code"].tolist() == query.obs["cell_code"].tolist()
    with_data = typed_cells(10)
    CellVQ.setup_anndata(with_data, labels_keys=["cell_type"])
    other = CellVQ.from_pretrained(tmp_path / "model", with_data)
    other.train(max_steps=1, accelerator="cpu", enable_progress_bar=False)
    with pytest.raises(ValueError, match="come from another model"):
        cfm.tl.cell_codes(typed_cells(10), other, reference=reference)


def test_a_cell_that_expresses_nothing_is_named_once(model: CellVQ) -> None:
    cells = typed_cells(5)
    x = cells.X.toarray()
    x[3] = 0
    cells.X = x
    with pytest.warns(UserWarning, match="1 of 20 cells express none") as caught:
        cfm.tl.cell_codes(cells, model, batch_size=3)
    assert len([w for w in caught if w.category is UserWarning]) == 1
    assert cells.obs["cell_code"].isna().sum() == 1
    whole = typed_cells(5)
    cfm.tl.cell_codes(whole, model)
    others = np.arange(20) != 3
    assert cells.obs["cell_code"][others].tolist() == whole.obs["cell_code"][others].tolist()


def test_normalised_values_are_declared(model: CellVQ) -> None:
    cells = typed_cells(5)
    total = np.asarray(cells.X.sum(axis=1))
    logged = cells.copy()
    logged.X = np.log1p(cells.X.toarray() / total * 1e4)
    logged.obs["n_counts"] = total.ravel()
    with pytest.raises(ValueError, match="not whole"):
        cfm.tl.cell_codes(logged, model)
    assert "cell_code" not in logged.obs
    cfm.tl.cell_codes(logged, model, units="log1p_cp10k", total_counts="n_counts")
    cfm.tl.cell_codes(cells, model)
    assert logged.obs["cell_code"].tolist() == cells.obs["cell_code"].tolist()
    assert logged.uns["cell_code"]["params"]["total_counts"] == "n_counts"


def test_bundled_codes_agree_with_types_as_well_as_clusters_of_the_same_cells() -> None:
    """700 blood cells of another laboratory; k-means makes as many groups anew from them.

    NMI is level (its 95 % interval is about ± 0.03), ARI is ahead.
    """
    cells = sc.datasets.pbmc68k_reduced().raw.to_adata()
    truth = cells.obs["bulk_labels"].astype(str).to_numpy()
    cfm.tl.cell_codes(cells, units="log1p_cp10k", total_counts="n_counts", min_cells=701)
    codes = cells.obs["cell_code"].astype(str).to_numpy()
    sc.pp.pca(cells, n_comps=50, random_state=0)
    n_groups = len(set(codes))
    clusters = [
        KMeans(n_groups, n_init=5, random_state=seed).fit_predict(cells.obsm["X_pca"])
        for seed in range(2)
    ]
    for score, level in ((normalized_mutual_info_score, 0.03), (adjusted_rand_score, 0.0)):
        theirs = np.mean([score(truth, groups) for groups in clusters])
        assert score(truth, codes) >= theirs - level


def test_precision_is_passed_on_and_recorded(model: CellVQ) -> None:
    cells = typed_cells(20)
    cfm.tl.cell_codes(cells, model)
    assert cells.uns["cell_code"]["params"]["precision"] == "float32"
    similarity = cells.obs["cell_code_similarity"].to_numpy()
    cfm.tl.cell_codes(cells, model, precision="bfloat16")
    assert cells.uns["cell_code"]["params"]["precision"] == "bfloat16"
    assert not np.array_equal(similarity, cells.obs["cell_code_similarity"])
