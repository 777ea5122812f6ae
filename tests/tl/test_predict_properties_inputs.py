"""``cfm.tl.predict_properties``: what is refused, and that the data stay as they were."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pytest

import cfm
from cfm.models import UCE, CellVQ
from cfm.models.uce import UCESize
from tests._cellvq import counted_cells, small_model
from tests._same import assert_unchanged

MODEL = small_model()


def failing() -> dict[str, tuple[ad.AnnData, dict[str, Any], type[Exception], str]]:
    """Calls that fail, by what is wrong: data, arguments, error, words of its message."""
    cells = counted_cells()
    log = cells.copy()
    log.X = np.log1p(cells.X)
    empty = ad.AnnData(obs=cells.obs, var=cells.var)
    declared = {"units": "log1p_cp10k"}
    other = UCE(size=UCESize(n_tokens=8, token_dim=4, dim=4, n_heads=1, n_layers=1, ff_dim=4))
    return {
        "counts as logs": (cells, declared, ValueError, "values up to"),
        "few genes": (cells[:, :9].copy(), {}, ValueError, "at least 10 are needed"),
        "no matrix": (empty, {}, ValueError, "adata.X is None"),
        "units": (cells, {"units": "cpm"}, ValueError, "units='cpm'"),
        "totals of counts": (cells, {"total_counts": "n"}, ValueError, "only goes with"),
        "no totals": (log, declared | {"total_counts": "n"}, KeyError, "no column 'n'"),
        "property": (cells, {"properties": "age"}, KeyError, r"no property heads \['age'\]"),
        "no property": (cells, {"properties": []}, ValueError, "properties= is empty"),
        "headless": (cells, {"model": small_model(properties={})}, ValueError, "labels_keys"),
        "another model": (cells, {"model": other}, TypeError, "model= is a UCE; expected CellVQ"),
        "precision": (cells, {"precision": "half"}, ValueError, "precision='half'"),
    }


@pytest.mark.parametrize("case", list(failing()))
def test_calls_that_fail_leave_the_data_alone(case: str) -> None:
    adata, arguments, error, words = failing()[case]
    before = adata.copy()
    with pytest.raises(error, match=words):
        cfm.tl.predict_properties(adata, **({"model": MODEL} | arguments))
    assert_unchanged(adata, before)


def test_few_genes_warn() -> None:
    large = CellVQ(
        vocabulary=[*counted_cells().var_names, *(f"H{i}" for i in range(160))],
        n_layers=1,
        dim=16,
        properties={"tissue": ["blood", "lung"]},
    )
    cells = counted_cells()
    with pytest.warns(UserWarning, match="Only 21% of the model's 202 genes"):
        cfm.tl.predict_properties(cells, large)
    assert cells.uns["predicted_tissue"]["params"]["vocabulary_share"] == pytest.approx(42 / 202)


def test_a_head_of_one_class_is_warned_of_once() -> None:
    single = small_model(properties={"tissue": ["blood"]})
    with pytest.warns(UserWarning, match="have a single class") as warned:
        cfm.tl.predict_properties(counted_cells(), single)
    assert len(warned) == 1
