"""Compare whole AnnData objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp


def assert_same(found: Any, expected: Any) -> None:
    """Equal in value and type, down to the last element."""
    assert type(found) is type(expected)
    if isinstance(expected, pd.DataFrame):
        pd.testing.assert_frame_equal(found, expected)
    elif isinstance(expected, Mapping):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif sp.issparse(expected):
        assert_same(found.toarray(), expected.toarray())
    elif isinstance(expected, np.ndarray):
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    else:
        assert found == expected


def assert_unchanged(adata: ad.AnnData, before: ad.AnnData) -> None:
    """Every part of an AnnData is as it was."""
    assert_same(adata.X, before.X)
    assert_same(adata.obs, before.obs)
    assert_same(adata.var, before.var)
    for part in ("obsm", "varm", "obsp", "varp", "uns", "layers"):
        assert_same(dict(getattr(adata, part)), dict(getattr(before, part)))
