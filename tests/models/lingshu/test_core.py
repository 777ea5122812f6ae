"""Registering data: what is taken, what is refused, and what is left alone."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfm.models import LingshuCell
from tests._lingshu import KEYS, SIZES, toy_counts, untrained
from tests._same import assert_unchanged


def test_levels_are_read_from_obs() -> None:
    levels = untrained().levels
    assert levels.sources == ["B", "T"]
    assert levels.perturbations == ["x", "y"]  # the parts of "x+y" and no more
    assert levels.control == "none"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (1.5, "not whole.*layer="),
        (-1.0, "negative"),
        (np.nan, "NaN"),
        (np.inf, "infinite"),
    ],
)
@pytest.mark.parametrize("dense", [True, False])
def test_what_is_no_count_is_refused(values: float, message: str, dense: bool) -> None:
    adata = toy_counts(n=50)
    x = adata.X.toarray()
    x[7, 3] = values
    adata.X = x if dense else sparse.csr_matrix(x)
    before = adata.copy()
    with pytest.raises(ValueError, match=message):
        LingshuCell.setup_anndata(adata, **KEYS)
    if not np.isnan(values):
        assert_unchanged(adata, before)


def test_counts_beyond_the_range_are_reported() -> None:
    adata = toy_counts(n=50)
    adata.X[0, 0], adata.X[1, 1], adata.X[2, 2] = 9999, 10_000, 123_456
    with pytest.warns(UserWarning, match=r"2 counts of adata\.X lie above 9,999.*123,456"):
        LingshuCell.setup_anndata(adata)
    model = LingshuCell(adata, **SIZES)
    model.train(max_steps=1, accelerator="cpu", enable_progress_bar=False, count_term=False)
    assert model.module.largest[:3].tolist() == [280, 280, 280]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"layer": "counts"}, KeyError, "no layer 'counts'"),
        ({"source_key": "line"}, KeyError, "no column 'line'"),
        ({"covariate_keys": ["line"]}, KeyError, "no column 'line'"),
        ({"study_key": "line"}, KeyError, "no column 'line'"),
        ({"covariate_keys": "batch"}, TypeError, "is one text"),
        ({"perturbation_key": "drug"}, ValueError, "without control="),
        ({"control": "none"}, ValueError, "without perturbation_key="),
        ({"perturbation_key": "drug", "control": "mock"}, ValueError, "no control 'mock'.*none"),
        ({"source_key": "batch", "covariate_keys": ["batch"]}, ValueError, "two conditions"),
    ],
)
def test_bad_settings_are_refused(arguments: dict, error: type[Exception], message: str) -> None:
    adata = toy_counts(n=50)
    before = adata.copy()
    with pytest.raises(error, match=message):
        LingshuCell.setup_anndata(adata, **arguments)
    assert_unchanged(adata, before)


def test_incomplete_columns_are_refused() -> None:
    adata = toy_counts(n=50)
    adata.obs.loc[adata.obs_names[3], "cell_type"] = np.nan
    with pytest.raises(ValueError, match="missing in 1 of"):
        LingshuCell.setup_anndata(adata, **KEYS)


def test_something_else_than_an_anndata_is_refused() -> None:
    with pytest.raises(TypeError, match="expected an AnnData"):
        LingshuCell.setup_anndata(np.zeros((3, 3)))
    with pytest.raises(ValueError, match="found neither"):
        LingshuCell()


def test_genes_named_twice_are_refused() -> None:
    adata = toy_counts(n=50)
    adata.var_names = ["A"] * adata.n_vars
    with pytest.raises(ValueError, match="more than once"):
        LingshuCell.setup_anndata(adata)


def test_a_layer_of_any_storage_can_be_registered() -> None:
    for convert in (sparse.csc_matrix, np.asarray):
        adata = toy_counts(n=50)
        counts = adata.X.toarray()
        adata.layers["counts"] = convert(counts.astype(np.int32))
        adata.X = np.log1p(counts)
        LingshuCell.setup_anndata(adata, layer="counts", **KEYS)
        model = LingshuCell(adata, **SIZES)
        model.train(max_steps=1, accelerator="cpu", enable_progress_bar=False)
        assert model.is_trained_


def test_features_describe_targets_beyond_those_of_the_data() -> None:
    adata = toy_counts(n=50)
    LingshuCell.setup_anndata(adata, **KEYS)
    rng = np.random.default_rng(0)
    table = pd.DataFrame(rng.normal(3, 2, (4, 3)), index=["none", "x", "y", "z"])
    model = LingshuCell(adata, perturbation_features=table, **SIZES)
    assert model.levels.perturbations == ["x", "y", "z"]
    values = model.module.features.numpy()
    np.testing.assert_allclose(values.mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(values.std(axis=0), 1, rtol=1e-5)
    with pytest.raises(KeyError, match=r"no row for \['y'\]"):
        LingshuCell(adata, perturbation_features=table.drop("y"), **SIZES)
    with pytest.raises(TypeError, match="expected a DataFrame"):
        LingshuCell(adata, perturbation_features={"x": 1}, **SIZES)
    twice = table.set_axis([table.columns[0]] * table.shape[1], axis=1)
    with pytest.raises(ValueError, match="names a feature twice"):
        LingshuCell(adata, perturbation_features=twice, **SIZES)
    with pytest.raises(ValueError, match="NaN"):
        LingshuCell(adata, perturbation_features=table.replace(table.iloc[1, 1], np.nan), **SIZES)
    with pytest.raises(ValueError, match="something else than numbers"):
        LingshuCell(adata, perturbation_features=table.astype(str) + "a", **SIZES)
    LingshuCell.setup_anndata(adata)
    with pytest.raises(ValueError, match="without perturbation_key="):
        LingshuCell(adata, perturbation_features=table, **SIZES)


def test_a_described_target_can_be_asked_for_at_call_time() -> None:
    adata = toy_counts(n=50)
    LingshuCell.setup_anndata(adata, **KEYS)
    table = pd.DataFrame(np.eye(2), index=["x", "y"], columns=["f1", "f2"])
    model = LingshuCell(adata, perturbation_features=table, **SIZES)
    like_x = table.loc["x"]
    asked = {"source": "B", "n_steps": 2, "guidance": 0.0}
    found = model.generate(5, perturbation="new", features=like_x, **asked)
    known = model.generate(5, perturbation="x", **asked)
    assert (found.X != known.X).nnz == 0
    assert (found.obs["drug"] == "new").all()
    both = model.generate(5, perturbation="new+y", features=like_x, **asked)
    assert (both.X != model.generate(5, perturbation="y+x", **asked).X).nnz == 0
    with pytest.raises(KeyError, match=r"lacks \['f2'\]"):
        model.generate(5, perturbation="new", features=like_x[["f1"]], **asked)
    with pytest.raises(ValueError, match="one perturbation that the model does not have"):
        model.generate(5, perturbation="x", features=like_x, **asked)
    with pytest.raises(TypeError, match="expected a Series"):
        model.generate(5, perturbation="new", features=[1, 0], **asked)
    with pytest.raises(KeyError, match="takes others by features="):
        model.generate(5, perturbation="new", **asked)


def test_the_user_keeps_a_plain_anndata() -> None:
    adata = toy_counts(n=50)
    LingshuCell.setup_anndata(adata, **KEYS)
    assert isinstance(adata, ad.AnnData)
    assert adata.obs.columns.difference(["cell_type", "drug", "batch", "_scvi_study"]).empty
