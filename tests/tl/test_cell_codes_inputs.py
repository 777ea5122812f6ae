"""``cfm.tl.cell_codes``: bad input is refused, odd input has a documented result."""

from __future__ import annotations

import warnings
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

import cfm
from cfm.models import CellPulse
from tests._codes import NearestCode, typed_cells
from tests._same import assert_unchanged


@pytest.fixture
def adata() -> ad.AnnData:
    return typed_cells(12)


def refused() -> dict[str, tuple[dict[str, Any], type[Exception], str]]:
    """Calls that fail, by what is wrong: arguments, error, words of its message."""
    return {
        "all missing": ({"groupby": "empty"}, ValueError, "is missing in all 48 cells"),
        "numbers": ({"groupby": "age"}, ValueError, "expected categories"),
        "cells": ({"min_cells": 1}, ValueError, "min_cells=1; expected a whole number of at"),
        "fraction": ({"n_groups": 2.5}, ValueError, "n_groups=2.5"),
        "no codes": ({"model": "cellpulse-mini"}, TypeError, "CellPulse gives cells no codes"),
        "name": ({"model": "nobody"}, ValueError, "nobody"),
        "no reference": ({"reference": "pbmc"}, TypeError, "reference is a str"),
        "not read": ({"reference": typed_cells(2)}, KeyError, "reference.uns has no 'cell_code'"),
        "no tables": ({"reference": {"a": 1}}, ValueError, r"The reference holds \['a'\]"),
    }


@pytest.mark.parametrize("case", list(refused()))
def test_errors_leave_the_data_alone(adata: ad.AnnData, case: str) -> None:
    arguments, error, words = refused()[case]
    adata.obs["age"] = np.linspace(20, 70, adata.n_obs)
    adata.obs["empty"] = pd.Series(pd.NA, index=adata.obs_names, dtype="string")
    before = adata.copy()
    with pytest.raises(error, match=words):
        cfm.tl.cell_codes(adata, **({"model": NearestCode()} | arguments))
    assert_unchanged(adata, before)


def test_a_loaded_model_without_codes_is_refused(adata: ad.AnnData) -> None:
    with pytest.raises(TypeError, match=r"such as a cfm\.models\.CellVQ"):
        cfm.tl.cell_codes(adata, CellPulse.from_pretrained("cellpulse-mini"))


def test_more_codes_than_cells(adata: ad.AnnData) -> None:
    few = adata[::9].copy()
    cfm.tl.cell_codes(few, NearestCode(n_bits=10), groupby="cell_type")
    stored = few.uns["cell_code"]
    assert stored["params"]["n_codes"] == 1024
    assert stored["params"]["n_used"] == len(stored["codes"]) <= few.n_obs
    assert stored["params"]["perplexity"] <= few.n_obs
    assert stored["markers"].empty


def test_one_cell(adata: ad.AnnData) -> None:
    one = adata[:1].copy()
    with pytest.warns(UserWarning, match="has one level"):
        cfm.tl.cell_codes(one, NearestCode(), groupby="cell_type")
    stored = one.uns["cell_code"]
    assert len(stored["codes"]) == 1
    assert stored["params"]["perplexity"] == 1.0
    assert stored["markers"].empty
    assert stored["neighbours"].empty
    assert stored["codes"]["cell_type_purity"].tolist() == [1.0]


@pytest.mark.parametrize("kind", ["h5ad", "zarr"])
def test_empty_tables_survive_a_file(adata: ad.AnnData, tmp_path, kind: str) -> None:
    one = adata[:1].copy()
    cfm.tl.cell_codes(one, NearestCode())
    getattr(one, f"write_{kind}")(tmp_path / "x")
    back = getattr(ad, f"read_{kind}")(tmp_path / "x")
    for name in ("markers", "neighbours"):
        assert back.uns["cell_code"][name].columns.tolist() == (
            one.uns["cell_code"][name].columns.tolist()
        )


def test_an_annotation_with_one_level(adata: ad.AnnData) -> None:
    adata.obs["tissue"] = "blood"
    with pytest.warns(UserWarning, match=r"obs\['tissue'\] has one level \('blood'\)"):
        cfm.tl.cell_codes(adata, NearestCode(), groupby=["tissue", "cell_type"])
    codes, agreement = (adata.uns["cell_code"][name] for name in ("codes", "annotations"))
    assert (codes["tissue_purity"] == 1.0).all()
    assert (codes["tissue_enrichment"] == 1.0).all()
    assert agreement.loc["tissue", "ami"] == 0.0
    assert agreement["n_levels"].tolist() == [1, 4]


def test_cells_without_an_annotation_do_not_count(adata: ad.AnnData) -> None:
    full = adata.copy()
    cfm.tl.cell_codes(full, NearestCode(), groupby="cell_type")
    values = adata.obs["cell_type"].astype(object)
    hidden = np.arange(adata.n_obs) % 3 == 0
    adata.obs["cell_type"] = values.where(~hidden, np.nan)
    adata.obs["as_text"] = values.where(~hidden, "")
    cfm.tl.cell_codes(adata, NearestCode(), groupby=["cell_type", "as_text"])
    codes = adata.uns["cell_code"]["codes"]
    assert codes["cell_type_labelled"].sum() == (~hidden).sum()
    assert codes["n_cells"].tolist() == full.uns["cell_code"]["codes"]["n_cells"].tolist()
    unknown = codes["cell_type_labelled"] == 0
    assert unknown.any()
    assert (codes.loc[unknown, "cell_type_majority"] == "").all()
    assert codes.loc[unknown, "cell_type_purity"].isna().all()
    assert (codes.loc[~unknown, "cell_type_majority"] != "").all()
    for name in ("labelled", "majority", "purity", "entropy", "enrichment"):
        pd.testing.assert_series_equal(
            codes[f"cell_type_{name}"], codes[f"as_text_{name}"], check_names=False
        )


def test_whole_numbers_and_flags_are_annotations(adata: ad.AnnData) -> None:
    adata.obs["plate"] = np.arange(adata.n_obs) % 2
    adata.obs["ill"] = adata.obs["plate"] == 1
    cfm.tl.cell_codes(adata, NearestCode(), groupby=["plate", "ill"])
    codes = adata.uns["cell_code"]["codes"]
    assert set(codes["plate_majority"]) <= {"0", "1"}
    assert set(codes["ill_majority"]) <= {"False", "True"}


def test_cells_that_cannot_be_read_have_no_code(adata: ad.AnnData) -> None:
    x = adata.X.toarray()
    x[[3, 20]] = 0
    silent = adata.copy()
    silent.X = sparse.csr_matrix(x)
    cfm.tl.cell_codes(silent, NearestCode(), groupby="cell_type")
    missing = np.isin(np.arange(adata.n_obs), [3, 20])
    for name in ("cell_code", "cell_code_similarity", "cell_code_margin"):
        assert silent.obs[name].isna().tolist() == missing.tolist()
    assert silent.uns["cell_code"]["params"]["n_unread"] == 2
    assert silent.uns["cell_code"]["codes"]["n_cells"].sum() == adata.n_obs - 2
    # and they count for nothing else
    rest = silent[~missing].copy()
    cfm.tl.cell_codes(rest, NearestCode(), groupby="cell_type")
    for name in ("codes", "markers", "neighbours", "annotations"):
        pd.testing.assert_frame_equal(rest.uns["cell_code"][name], silent.uns["cell_code"][name])
    adata.X = sparse.csr_matrix(adata.shape, dtype=np.float32)
    before = adata.copy()
    with pytest.raises(ValueError, match="could not read any of the 48 cells"):
        cfm.tl.cell_codes(adata, NearestCode())
    assert_unchanged(adata, before)


def test_a_collapsed_codebook_is_named(adata: ad.AnnData) -> None:
    model = NearestCode()
    found = model.get_cell_codes(adata)
    collapsed = type(found)(np.full_like(found.code, 7), *list(vars(found).values())[1:])
    model.get_cell_codes = lambda *_, **__: collapsed  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="All 48 cells have the code 7, of 64"):
        cfm.tl.cell_codes(adata, model)
    assert adata.uns["cell_code"]["params"]["perplexity"] == 1.0


def test_of_a_repeated_annotation_one_is_kept(adata: ad.AnnData) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cfm.tl.cell_codes(adata, NearestCode(), groupby=["donor", "donor"], min_cells=1000)
    assert adata.uns["cell_code"]["annotations"].index.tolist() == ["donor"]
    assert adata.uns["cell_code"]["markers"].empty
