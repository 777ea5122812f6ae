"""Registering data: what is taken, what is refused, and what is left alone."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from cfm.models import LingshuCell
from tests._lingshu import KEYS, SIZES, toy_counts, untrained
from tests._same import assert_unchanged


def test_levels_are_read_from_obs() -> None:
    levels = untrained().levels
    assert levels.sources == ["B", "T"]
    assert levels.perturbations == ["x", "y"]  # the parts of "x+y" and no more
    assert levels.control == "none"


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
