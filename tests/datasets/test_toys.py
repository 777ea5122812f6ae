"""What all toy data have in common: seeds, files, speed, refused arguments."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cfm

#: By name small sizes, and whether all seeds plant the same.
TOYS: dict[str, tuple[dict[str, int], bool]] = {
    "toy_infection": ({"n_studies": 2}, True),
    "toy_bulk_cohort": ({"n_patients": 20}, True),
    "toy_infection_cells": ({"n_cells": 20}, True),
    "toy_donors": ({"n_donors": 4}, False),
    "toy_perturbation": ({"n_cells": 600}, True),
    "toy_communication": ({"n_cells": 100}, False),
}


def make(name: str, *seed: int) -> ad.AnnData:
    adata: ad.AnnData = getattr(cfm.datasets, name)(*seed, **TOYS[name][0])
    return adata


def dense(adata: ad.AnnData) -> np.ndarray:
    return adata.X.toarray() if sparse.issparse(adata.X) else adata.X


def same(found: Any, expected: Any) -> bool:
    if isinstance(expected, Mapping):
        return set(found) == set(expected) and all(same(found[k], expected[k]) for k in expected)
    if isinstance(expected, pd.DataFrame):
        return list(found) == list(expected) and bool(
            (found.astype(object).to_numpy() == expected.astype(object).to_numpy()).all()
        )
    return np.array_equal(found, expected)


@pytest.mark.parametrize("name", TOYS)
def test_seeds(name: str) -> None:
    first, again, other = make(name, 3), make(name, 3), make(name, 4)
    np.testing.assert_array_equal(dense(first), dense(again))
    pd.testing.assert_frame_equal(first.obs, again.obs)
    assert first.shape[1] == other.shape[1]
    assert first.shape != other.shape or (dense(first) != dense(other)).mean() > 0.05
    assert same(first.uns["truth"], other.uns["truth"]) == TOYS[name][1]
    assert first.uns["params"]["seed"] == 3


@pytest.mark.parametrize("name", TOYS)
def test_callers_cannot_change_each_other(name: str) -> None:
    first, expected = make(name), make(name)
    truth = first.uns["truth"]
    for table in [truth] if isinstance(truth, pd.DataFrame) else truth.values():
        table.loc[:] = table.iloc[::-1].to_numpy()
    first.var_names = first.var_names[::-1]
    assert same(make(name).uns["truth"], expected.uns["truth"])
    assert make(name).var_names.equals(expected.var_names)


@pytest.mark.parametrize("form", ["h5ad", "zarr"])
@pytest.mark.parametrize("name", TOYS)
def test_survives_files(name: str, form: str, tmp_path: Path) -> None:
    adata = make(name)
    getattr(adata, f"write_{form}")(tmp_path / "toy")
    back = getattr(ad, f"read_{form}")(tmp_path / "toy")
    np.testing.assert_array_equal(dense(back), dense(adata))
    pd.testing.assert_frame_equal(back.obs, adata.obs)
    pd.testing.assert_frame_equal(back.var, adata.var, check_dtype=False)
    for part in ("truth", "params"):
        assert same(back.uns[part], adata.uns[part])


@pytest.mark.parametrize("name", TOYS)
def test_quick(name: str) -> None:
    start = time.process_time()
    getattr(cfm.datasets, name)()
    assert time.process_time() - start < 2


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("toy_infection", {"n_studies": 0}, "at least 1"),
        ("toy_infection", {"n_donors": 0}, "at least 1"),
        ("toy_infection", {"times": []}, "positive"),
        ("toy_infection", {"times": [0.0]}, "positive"),
        ("toy_bulk_cohort", {"n_studies": 0}, "at least 1"),
        ("toy_bulk_cohort", {"n_patients": 8}, "at least one study"),
        ("toy_infection_cells", {"n_donors": 0}, "at least 1"),
        ("toy_infection_cells", {"n_cells": 0}, "at least 1"),
        ("toy_donors", {"n_donors": 1}, "at least 2 donors of 8 cells"),
        ("toy_donors", {"n_cells": 7}, "at least 2 donors of 8 cells"),
        ("toy_perturbation", {"n_cells": 519}, "n_cells is 519 .* at least 520 cells"),
        ("toy_perturbation", {"n_donors": 0}, "n_donors=0"),
        ("toy_perturbation", {"n_genes": 199}, "n_genes is 199; expected 200 to 3000"),
        ("toy_perturbation", {"n_genes": 3001}, "expected 200 to 3000"),
        ("toy_communication", {"n_types": 1}, "at least 10 cells each"),
        ("toy_communication", {"n_types": 9}, "at least 10 cells each"),
        ("toy_communication", {"n_links": 0}, "at least 1"),
        ("toy_communication", {"n_links": 41}, "1 to 40 links"),
        ("toy_communication", {"n_cells": 49}, "at least 10 cells each"),
    ],
)
def test_bad_arguments(name: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(cfm.datasets, name)(**arguments)
