"""``cfm.tl.predict_properties``: what it writes, for which cells, and what survives a file."""

from __future__ import annotations

import json
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scanpy as sc

import cfm
from cfm.models import CellVQ
from tests._cellvq import CLASSES, GENES, SIZES, counted_cells, small_model
from tests._same import assert_unchanged

KEYS = ["predicted_cell_type", "predicted_tissue"]
FIELDS = [KEYS[0], f"{KEYS[0]}_confidence", KEYS[1], f"{KEYS[1]}_confidence"]


@pytest.fixture(scope="module")
def model() -> CellVQ:
    return small_model()


@pytest.fixture
def called(model: CellVQ) -> ad.AnnData:
    cells = counted_cells()
    assert cfm.tl.predict_properties(cells, model) is None
    return cells


def test_what_is_written_is_what_the_model_says(model: CellVQ, called: ad.AnnData) -> None:
    expected = model.predict_properties(counted_cells())
    for key, name in zip(KEYS, CLASSES, strict=True):
        proba = called.obsm[f"{key}_proba"]
        pd.testing.assert_frame_equal(proba, expected[name])
        call, confidence = called.obs[key], called.obs[f"{key}_confidence"]
        assert isinstance(call.dtype, pd.CategoricalDtype)
        assert call.tolist() == proba.idxmax(axis=1).tolist()
        assert set(call.cat.categories) == set(call)
        assert confidence.dtype == np.float32
        np.testing.assert_array_equal(confidence, proba.max(axis=1))
        assert called.uns[key]["classes"] == CLASSES[name]
        params = {
            **{"batch_size": 64, "units": "counts", "precision": "float32", "property": name},
            **{"model": "CellVQ", "vocabulary_share": 1.0, "device": "cpu"},
        }
        assert called.uns[key]["params"].items() >= params.items()


def test_nothing_else_is_touched(called: ad.AnnData) -> None:
    for name in FIELDS:
        del called.obs[name]
    for key in KEYS:
        del called.obsm[f"{key}_proba"], called.uns[key]
    assert_unchanged(called, counted_cells())


def test_cells_without_genes_have_no_class(model: CellVQ) -> None:
    cells = counted_cells()
    cells.X[[0, 3]] = 0
    with pytest.warns(UserWarning, match="2 of 12 cells express none") as warned:
        cfm.tl.predict_properties(cells, model)
    assert len(warned) == 1
    for name in FIELDS:
        assert cells.obs[name].isna().to_numpy().nonzero()[0].tolist() == [0, 3]
    nobody = cells[[0, 3]].copy()
    with pytest.warns(UserWarning, match="2 of 2 cells express none"):
        cfm.tl.predict_properties(nobody, model, key_added="again_")
    assert nobody.obs["again_tissue"].isna().all()


def test_one_property_under_another_name(model: CellVQ) -> None:
    cells = counted_cells()
    cfm.tl.predict_properties(cells, model, properties="tissue", key_added="their_")
    assert cells.obs.columns.tolist() == ["their_tissue", "their_tissue_confidence"]
    assert list(cells.obsm) == ["their_tissue_proba"]
    assert list(cells.uns) == ["their_tissue"]
    assert cells.uns["their_tissue"]["params"]["key_added"] == "their_"


def test_log_values_that_are_declared(model: CellVQ) -> None:
    cells = counted_cells(genes=GENES)
    expected = cfm.tl.predict_properties(cells, model, precision="float32", copy=True)
    cells.obs["n"] = cells.X.sum(axis=1)
    cells.layers["log"] = np.log1p(cells.X / cells.X.sum(axis=1, keepdims=True) * 1e4)
    arguments = {"units": "log1p_cp10k", "total_counts": "n", "layer": "log"}
    cfm.tl.predict_properties(cells, model, precision="float32", **arguments)
    for key in KEYS:
        np.testing.assert_allclose(
            cells.obsm[f"{key}_proba"], expected.obsm[f"{key}_proba"], atol=1e-5
        )
    assert cells.uns[KEYS[0]]["params"].items() >= arguments.items()


def test_a_saved_model_by_its_folder(model: CellVQ, called: ad.AnnData, tmp_path: Path) -> None:
    model.save(tmp_path / "mine")
    cells = counted_cells()
    cfm.tl.predict_properties(cells, tmp_path / "mine", device="cpu")
    pd.testing.assert_frame_equal(cells.obs, called.obs)
    assert len(cells.uns[KEYS[0]]["params"]["sha256"]) == 64


def test_a_property_of_the_training_data_is_predicted_only_when_asked_for() -> None:
    cells = sc.datasets.pbmc68k_reduced().raw.to_adata()[:10].copy()
    cfm.tl.predict_properties(cells, units="log1p_cp10k")
    assert [name for name in cells.obsm if name.startswith("predicted_")] == [
        "predicted_cell_type_proba"
    ]
    cfm.tl.predict_properties(cells, properties="condition", units="log1p_cp10k")
    assert set(cells.obs["predicted_condition"]) <= {"ctrl", "stim", "unknown"}


def test_cells_of_which_a_head_is_unsure_are_unknown(tmp_path: Path) -> None:
    cells = counted_cells(200)
    cells.obs["cell_type"] = np.where(np.arange(200) % 2, "B", "T")
    cells.X[::2, :10] *= 20
    CellVQ.setup_anndata(cells, labels_keys=["cell_type"])
    model = CellVQ(cells, vocabulary=GENES, **SIZES)
    held_out = {"max_steps": 30, "batch_size": 16, "validation_share": 0.5, "accelerator": "cpu"}
    model.train(**held_out, enable_progress_bar=False)
    assert len(model.confidence_levels["cell_type"]) == 51

    called = cells.copy()
    cfm.tl.predict_properties(called, model, unknown=0.2)
    unsure = called.obs[KEYS[0]] == "unknown"
    params = called.uns[KEYS[0]]["params"]
    below = called.obs[f"{KEYS[0]}_confidence"] < params["unknown_below"]
    np.testing.assert_array_equal(unsure, below)
    assert 0.1 < unsure.mean() < 0.3  # a fifth of the cells that were held out
    assert params["unknown"] == 0.2

    cfm.tl.predict_properties(called, model, unknown=0)
    assert set(called.obs[KEYS[0]]) == {"B", "T"}

    model.save(tmp_path / "model")
    again = CellVQ.from_pretrained(tmp_path / "model")
    assert again.confidence_levels == model.confidence_levels
    model.set_properties({"cell_type": ["B", "T"]})
    assert not model.confidence_levels


@pytest.mark.parametrize("levels", [{"sex": [0.5] * 51}, {"cell_type": [0.5] * 7}, [1], 3])
def test_damaged_confidence_levels_are_refused(tmp_path: Path, levels: object) -> None:
    model = small_model()
    model.save(tmp_path / "model")
    config = tmp_path / "model" / "config.json"
    content = json.loads(config.read_text())
    content["config"]["confidence_levels"] = levels
    config.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"checkpoint"):
        CellVQ.from_pretrained(tmp_path / "model")


def test_blood_of_another_laboratory() -> None:
    """Types of ``cellvq-mini`` in cells that it has not seen, named by other authors."""
    cells = sc.datasets.pbmc68k_reduced().raw.to_adata()
    cfm.tl.predict_properties(cells, units="log1p_cp10k", total_counts="n_counts")
    called, label = cells.obs["predicted_cell_type"], cells.obs["bulk_labels"]

    def share(of: str, names: list[str]) -> float:
        return called[label == of].isin(names).mean()

    assert share("CD56+ NK", ["NK cells"]) > 0.8
    assert share("Dendritic", ["Dendritic cells"]) > 0.7
    assert share("CD19+ B", ["B cells"]) > 0.95
    monocytes = ["CD14+ Monocytes", "FCGR3A+ Monocytes"]
    assert share("CD14+ Monocyte", monocytes) > 0.9
    # how sure it is tells how often it is right
    told = {"CD56+ NK": ["NK cells"], "Dendritic": ["Dendritic cells"], "CD19+ B": ["B cells"]}
    told |= {"CD14+ Monocyte": monocytes}
    known = label.isin(list(told))
    right = np.array(
        [name in told[of] for name, of in zip(called[known], label[known], strict=True)]
    )
    confidence = cells.obs["predicted_cell_type_confidence"][known]
    assert abs(right.mean() - confidence.mean()) < 0.1
    assert right[confidence > 0.9].mean() > 0.9
