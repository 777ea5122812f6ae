"""What a call made, as a flat table of fields, and whether data are as they were."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from scipy import sparse

SLOTS = ("obs", "var", "obsm", "varm", "obsp", "varp", "layers", "uns")
#: What says how a result was made or which AnnData was registered, not what it is.
ASIDE = ("_scvi",)


def flat(value: Any, name: str = "", *, skip: bool = False) -> dict[str, Any]:
    """Return every array of something by its place, such as ``obs/virus``."""
    if isinstance(value, Axes) or (name == "" and value is None):
        return {}
    if isinstance(value, ad.AnnData):
        found = {} if value.X is None else flat(value.X, "X", skip=skip)
        found |= flat(np.asarray(value.obs_names, dtype=str), "obs_names")
        found |= flat(np.asarray(value.var_names, dtype=str), "var_names")
        for slot in SLOTS:
            found |= flat(getattr(value, slot), slot, skip=skip)
        return found
    if hasattr(value, "to_memory"):  # of a file, or lazy
        value = value.to_memory()
    if hasattr(value, "compute"):
        value = value.compute()
    if sparse.issparse(value):
        value = value.toarray()
    if isinstance(value, pd.DataFrame):
        found = {
            f"{name}/{column}": flat(value[column], "x")["x"]
            for column in value
            if not (skip and str(column).startswith(ASIDE))
        }
        return found | {f"{name}/index": np.asarray(value.index, dtype=str)}
    if isinstance(value, pd.Series | pd.Categorical):
        value = np.asarray(value) if pd.api.types.is_numeric_dtype(value.dtype) else list(value)
    if isinstance(value, Mapping):
        found = {}
        for key in value:
            aside = key is None or (skip and str(key).startswith(ASIDE))  # layers[None] is X
            if not aside:
                found |= flat(value[key], f"{name}/{key}", skip=skip)
        return found
    array = np.asarray(value)
    if array.dtype.kind not in "biufc":
        array = np.array(["" if pd.isna(v) else str(v) for v in array.ravel()], dtype=str)
    return {name: array}


def assert_alike(found: Mapping[str, Any], expected: Mapping[str, Any], atol: float = 1e-5) -> None:
    """The same fields with the same values."""
    assert set(found) == set(expected), set(found) ^ set(expected)
    for name, value in expected.items():
        if value.dtype.kind in "biuf" and found[name].dtype.kind in "biuf":
            np.testing.assert_allclose(
                found[name].astype(float), value.astype(float), atol=atol, rtol=1e-5, err_msg=name
            )
        else:
            assert found[name].tolist() == value.tolist(), name


def changed(after: Mapping[str, Any], before: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are new or others than before."""
    return {
        name: value
        for name, value in after.items()
        if name not in before or not _equal(value, before[name])
    }


def _equal(one: np.ndarray, other: np.ndarray) -> bool:
    if one.shape != other.shape or one.dtype.kind != other.dtype.kind:
        return False
    return bool(np.array_equal(one, other, equal_nan=one.dtype.kind == "f"))


def assert_untouched(after: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    """Nothing came, went or changed."""
    assert not set(after) ^ set(before), f"fields came or went: {set(after) ^ set(before)}"
    assert not changed(after, before), f"changed: {list(changed(after, before))}"
