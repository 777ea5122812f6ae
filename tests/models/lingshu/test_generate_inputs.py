"""What cannot be generated is refused with a sentence."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfm.models import LingshuCell
from tests._lingshu import N_GENES, SIZES, toy_counts, untrained

MODEL = untrained()
PLAIN = LingshuCell(vocabulary=["A", "B"], **(SIZES | {"depth": False}))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"cells": 0}, ValueError, "cells=0; expected a whole number"),
        ({"cells": pd.DataFrame()}, ValueError, "at least one cell"),
        ({"cells": "10"}, TypeError, "number of cells"),
        ({"cells": True}, TypeError, "number of cells"),
        ({"source": "NK"}, KeyError, r"does not have the source.*'NK'.*'B', 'T'"),
        ({"perturbation": "z"}, KeyError, r"perturbation 'z'; it has \['x', 'y'\]"),
        ({"perturbation": "x+z"}, KeyError, "perturbation 'z'"),
        ({"covariates": {"batch": "b1"}}, KeyError, "no covariate 'batch'"),
        ({"depth": -1.0}, ValueError, "above 0"),
        ({"guidance": 2.0}, ValueError, "none was given"),
        ({"guidance_floor": 1.0, "perturbation": "x"}, ValueError, "guidance_floor"),
        ({"n_steps": 0}, ValueError, "n_steps="),
        ({"frozen": {"NOGENE": 1}}, KeyError, "does not have the genes"),
        ({"frozen": {"GENE1": 1.5}}, ValueError, "not whole"),
        ({"frozen": {"GENE1": -1}}, ValueError, "negative"),
        ({"frozen": [1, 2]}, TypeError, "expected counts by gene"),
        ({"frozen": np.zeros((3, N_GENES))}, ValueError, "3 rows for 2 cells"),
        ({"frozen": pd.DataFrame({"GENE1": [1, 1, 1]})}, ValueError, "3 rows for 2 cells"),
        ({"features": pd.Series([1.0])}, ValueError, "perturbation_features"),
        ({"path": "cells.csv"}, ValueError, r"\.h5ad or \.zarr"),
    ],
)
def test_refused(arguments: dict, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MODEL.generate(**({"cells": 2, "n_steps": 1} | arguments))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"source": "B"}, "trained without"),
        ({"perturbation": "x"}, "trained without"),
        ({"depth": 100.0}, "trained without"),
        ({"guidance": 1.0}, "none was given"),
    ],
)
def test_a_model_without_conditions_refuses_them(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PLAIN.generate(2, n_steps=1, **arguments)


def test_names_of_cells_must_be_unique() -> None:
    with pytest.raises(ValueError, match="more than once"):
        MODEL.generate(pd.DataFrame(index=["a", "a"]), n_steps=1)


def test_a_table_may_hold_more_than_conditions() -> None:
    table = pd.DataFrame({"cell_type": ["B"], "note": ["mine"], "depth": [200]}, index=["a"])
    cells = MODEL.generate(table, n_steps=1)
    assert cells.obs["note"].tolist() == ["mine"]
    assert cells.obs["depth"].tolist() == [200.0]
    assert cells.obs_names.tolist() == ["a"]


def test_covariates_are_conditions() -> None:
    adata = toy_counts(n=60)
    LingshuCell.setup_anndata(adata, covariate_keys=["batch"])
    model = LingshuCell(adata, **SIZES)
    assert model.module.n_prefix == 2
    cells = model.generate(3, covariates={"batch": "b2"}, n_steps=1)
    assert (cells.obs["batch"] == "b2").all()
    with pytest.raises(KeyError, match="covariate batch 'b9'"):
        model.generate(3, covariates={"batch": "b9"}, n_steps=1)
