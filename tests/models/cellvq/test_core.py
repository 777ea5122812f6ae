"""What a CellVQ is made of, what may be registered, and which checkpoints are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cfm.models import CellVQ
from tests._planted_codes import SMALL, planted_cells, untrained


def test_heads_follow_the_registered_labels() -> None:
    cells = planted_cells(40)
    cells.obs["cell_type"] = cells.obs["cell_type"].astype("category")
    cells.obs.loc[cells.obs_names[:3], "cell_type"] = np.nan
    cells.obs["age"] = [10, 9] * 20
    cells.obs["cell.type"] = [True, False] * 20
    model = untrained(cells, labels_keys=["cell_type", "age", "cell.type"])
    assert model.properties == {
        "cell_type": ["T0", "T1", "T2", "T3"],
        "age": ["10", "9"],
        "cell.type": ["False", "True"],
    }
    assert {k: v.shape[1] for k, v in model.module.classify(torch.zeros(2, 128)).items()} == {
        "cell_type": 4,
        "age": 2,
        "cell.type": 2,
    }


def test_given_properties_and_genes_win_over_registered_ones() -> None:
    CellVQ.setup_anndata(cells := planted_cells(20), labels_keys=["even"])
    given = {"even": ["yes", "no", "?"], "tissue": ["blood"]}
    model = CellVQ(cells, vocabulary=["A", "B"], properties=given, **SMALL)
    assert model.properties == given
    assert model.vocabulary.genes.tolist() == ["A", "B"]
    assert "2 genes, 32 codes" in model._model_summary_string


def test_properties_can_be_put_in_and_taken_away() -> None:
    model = untrained(labels_keys=["even"])
    old = model.module.property_heads[0]
    model.set_properties({"tissue": ["blood", "lung", "gut"]}, seed=1)
    assert model.module.property_heads[0] is old
    one = model.module.property_heads[1].weight.clone()
    model.set_properties({"tissue": ["blood", "lung", "gut"]}, seed=1)
    assert torch.equal(one, model.module.property_heads[1].weight)
    model.set_properties({"even": None})
    assert model.properties == {"tissue": ["blood", "lung", "gut"]}
    assert len(model.module.property_heads) == 1
    with pytest.raises(KeyError, match="no heads \\['even'\\]"):
        model.set_properties({"even": None})
    for classes in ([], ["a", "a"], ["a", ""]):
        with pytest.raises(ValueError, match="property 'x' has the classes"):
            model.set_properties({"x": classes})
    with pytest.raises(TypeError, match="one text"):
        model.set_properties({"x": "ab"})
    assert list(model.properties) == ["tissue"]


def _normalised(cells: Any) -> None:
    cells.X = np.log1p(cells.X / cells.X.sum(1, keepdims=True) * 1e4)


def test_log_values_need_the_counts_of_each_cell() -> None:
    cells = planted_cells(20)
    cells.obs["total"] = cells.X.sum(1)
    with pytest.raises(ValueError, match=r"holds values up to .* counts"):
        CellVQ.setup_anndata(cells, units="log1p_cp10k", total_counts="total")
    _normalised(cells)
    CellVQ.setup_anndata(cells, units="log1p_cp10k", total_counts="total")
    with pytest.raises(ValueError, match="lacks the counts per cell"):
        CellVQ.setup_anndata(cells, units="log1p_cp10k")


def test_labels_that_say_nothing() -> None:
    cells = planted_cells(20)
    cells.obs["one"] = "blood"
    cells.obs["none"] = [np.nan, ""] * 10
    with pytest.warns(UserWarning, match=r"'one'.* one level only \('blood'\)"):
        CellVQ.setup_anndata(cells, labels_keys=["one"])
    assert CellVQ(cells, **SMALL).properties == {"one": ["blood"]}
    with pytest.raises(ValueError, match="no label in any of 20 cells"):
        CellVQ.setup_anndata(cells, labels_keys=["none"])
    with pytest.raises(ValueError, match="names a column twice"):
        CellVQ.setup_anndata(cells, labels_keys=["even", "even"])
    with pytest.raises(TypeError, match="one text"):
        CellVQ.setup_anndata(cells, labels_keys="even")


def test_names_are_for_the_weights_of_the_authors(tmp_path: Path) -> None:
    folder = untrained().save(tmp_path / "model")
    with pytest.raises(ValueError, match="contains its own"):
        CellVQ.from_pretrained(folder, genes=["A"])
    golden = Path(__file__).parents[2] / "golden" / "cellvq" / "models.ckpt"
    model = CellVQ.from_pretrained(golden, properties={"sex": ["f", "m", "?"]})
    assert model.properties["sex"] == ["f", "m", "?"]
    assert model.properties["tissue"] == ["0", "1", "2", "3", "4"]
    with pytest.raises(ValueError, match="names 2 classes of 'sex'"):
        CellVQ.from_pretrained(golden, properties={"sex": ["f", "m"]})
    with pytest.raises(ValueError, match="2 names of genes, but weights of 90"):
        CellVQ.from_pretrained(golden, genes=["A", "B"])
    again = CellVQ.load(model.save(tmp_path / "golden"))
    with pytest.raises(ValueError, match="without the names of their genes"):
        _ = again.vocabulary
    assert again.properties == model.properties
