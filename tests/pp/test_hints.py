"""What is accepted but looks like something else is said in a warning."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp

import cfm


def _cells(rng: np.random.Generator, n: int = 120) -> ad.AnnData:
    obs = pd.DataFrame(
        {
            "virus": np.tile(["none", "IAV"], n // 2),
            "sample": np.tile(["a", "b", "c", "d"], n // 4),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    return ad.AnnData(sp.csr_matrix(rng.poisson(2.0, (n, 50)).astype(np.float32)), obs=obs)


def test_cells_that_are_taken_for_samples(rng):
    cells = _cells(rng)
    with pytest.warns(UserWarning, match=r"look like single cells.*sample_key="):
        cfm.pp.contrasts(cells, "virus", "none")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cfm.pp.contrasts(cells, "virus", "none", sample_key="sample")
        cfm.pp.contrasts(cells[:40], "virus", "none")


@pytest.mark.parametrize(("stated", "warns"), [("TPM", True), ("counts", False), (3, False)])
def test_units_that_the_data_state(counts, stated, warns):
    counts.uns["units"] = stated
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cfm.pp.contrasts(counts, "virus", "none", by="study")
    assert [("calls the values of X 'TPM'" in str(w.message)) for w in caught] == [True] * warns
    counts.layers["counts"] = counts.X
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cfm.pp.contrasts(counts, "virus", "none", by="study", layer="counts")
