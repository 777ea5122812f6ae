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
    assert [("is 'TPM', but counts" in str(w.message)) for w in caught] == [True] * warns
    counts.layers["counts"] = counts.X
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cfm.pp.contrasts(counts, "virus", "none", by="study", layer="counts")


def samples(**columns: list[str]) -> ad.AnnData:
    n = len(columns["virus"])
    counts = np.random.default_rng(0).poisson(50, (n, 60)).astype(np.float32)
    obs = pd.DataFrame(columns, index=[f"S{i}" for i in range(n)])
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(60)]))


def quiet(adata: ad.AnnData, **options: object) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        cfm.pp.contrasts(adata, "virus", "none", **options)


VIRUS = ["none", "none", "none", "none", "IAV", "IAV"]


def test_controls_of_a_study_without_cases_are_named() -> None:
    adata = samples(virus=VIRUS, study=["a", "a", "b", "b", "a", "a"])
    with pytest.warns(
        UserWarning, match=r"differ from the cases in 'study' \(controls of 'b' for IAV"
    ):
        cfm.pp.contrasts(adata, "virus", "none")


def test_names_of_single_samples_say_nothing() -> None:
    """More levels than half the samples: a barcode or a donor, though cases share some."""
    donors = ["d1", "d2", "d3", "d4", "d1", "d5"]
    quiet(samples(virus=VIRUS, donor=donors))
    adata = samples(virus=VIRUS, donor=["d1", "d1", "d2", "d2", "d1", "d3"])
    with pytest.warns(UserWarning, match=r"'donor' \(controls of 'd2'"):
        cfm.pp.contrasts(adata, "virus", "none")


def test_matching_on_the_column_ends_it() -> None:
    adata = samples(
        virus=["none", "none", "none", "none", "IAV", "IAV", "RSV", "RSV"],
        study=["a", "a", "b", "b", "a", "a", "b", "b"],
        treatment=["x", "y"] * 4,
    )
    with pytest.warns(UserWarning, match=r"by=\['study'\]"):
        cfm.pp.contrasts(adata, "virus", "none")
    quiet(adata, by="study")


@pytest.mark.parametrize(
    "column",
    [
        ["a", "a", "a", "a", "a", "a"],  # the same everywhere
        ["a", "b", "a", "b", "a", "b"],  # in cases as in controls
        ["1", "2", "3", "4", "5", "6"],  # names of samples
        ["c", "c", "c", "c", "i", "i"],  # the condition once more
    ],
)
def test_other_columns_say_nothing(column: list[str]) -> None:
    quiet(samples(virus=VIRUS, other=column))


def test_the_bundled_study_needs_its_series() -> None:
    with pytest.warns(UserWarning, match="'series'"):
        cfm.pp.contrasts(cfm.datasets.blanco_melo(), "virus", "none")
