"""Kinds of input: how data are stored, of which dtype, and what can be wrong with them."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import mudata as md
import numpy as np
import pandas as pd

from tests._storages import stored
from tests.matrix._data import genes

#: Ways to hold the same values; what a tool gives does not depend on them.
STORAGES = [
    "csr",
    "csc",
    "view",
    "dask",
    "backed_csr",
    "backed_csc",
    "backed_dense",
    "lazy",
]
DTYPES = ["float64", "int32", "int64", "uint16"]


def with_values(adata: ad.AnnData, change: Callable[[np.ndarray], np.ndarray]) -> ad.AnnData:
    """A copy with ``X`` and its layer changed."""
    adata = adata.copy()
    if adata.X is not None:
        adata.X = change(adata.X.copy())
        adata.layers["same"] = change(adata.layers["same"].copy())
    return adata


def _at(value: float) -> Callable[[ad.AnnData], ad.AnnData]:
    """One value of the matrix, and one of each representation."""

    def change(adata: ad.AnnData) -> ad.AnnData:
        def put(x: np.ndarray) -> np.ndarray:
            x[0, 2] = value
            return x

        adata = with_values(adata, put)
        for key in adata.obsm:
            if isinstance(adata.obsm[key], np.ndarray):
                adata.obsm[key] = put(adata.obsm[key].copy())
        return adata

    return change


def _named(axis: str, change: Callable[[list[str]], list[str]]) -> Callable:
    def rename(adata: ad.AnnData) -> ad.AnnData:
        adata = adata.copy()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that names are not unique
            setattr(adata, f"{axis}_names", change(list(getattr(adata, f"{axis}_names"))))
        return adata

    return rename


def _zero_row(x: np.ndarray) -> np.ndarray:
    x[0] = 0
    return x


def _one_class(adata: ad.AnnData) -> ad.AnnData:
    adata = adata.copy()
    for column in ("virus", "study", "donor_id", "cell_type", "cell_code"):
        adata.obs[column] = pd.Categorical(["none"] * adata.n_obs)
    return adata


def _twice(names: list[str]) -> list[str]:
    return [*names[:-1], names[0]]


BAD: dict[str, Callable[[ad.AnnData], ad.AnnData]] = {
    "no rows": lambda adata: adata[:0].copy(),
    "one row": lambda adata: adata[:1].copy(),
    "NaN": _at(np.nan),
    "infinite": _at(np.inf),
    "negative": _at(-3.0),
    "all-zero row": lambda adata: with_values(adata, _zero_row),
    "logarithms": lambda adata: with_values(adata, lambda x: np.log1p(np.abs(x))),
    "duplicate obs names": _named("obs", _twice),
    "duplicate genes": _named("var", _twice),
    "empty gene name": _named("var", lambda names: [*names[:-1], ""]),
    "no known gene": _named("var", lambda names: [f"nothing{i}" for i in range(len(names))]),
    "Ensembl ids": _named("var", lambda names: [genes().get(n, n) for n in names]),
    "versioned ids": _named("var", lambda names: [f"{genes().get(n, n)}.7" for n in names]),
    "mixed ids": _named(
        "var", lambda names: [genes().get(n, n) if i % 2 else n for i, n in enumerate(names)]
    ),
    "one class": _one_class,
}


def in_storage(adata: ad.AnnData, kind: str, folder: Path) -> ad.AnnData:
    """The data in one of :data:`STORAGES`; what has no matrix has nothing to be changed."""
    return stored(adata, kind, folder)


def in_mudata(adata: ad.AnnData) -> md.MuData:
    """Beside another modality."""
    other = ad.AnnData(
        np.ones((adata.n_obs, 2), dtype=np.float32),
        obs=pd.DataFrame(index=adata.obs_names),
        var=pd.DataFrame(index=["p1", "p2"]),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "From 0.4", FutureWarning)  # of mudata 0.3
        return md.MuData({"rna": adata, "prot": other})


def in_file(adata: ad.AnnData, folder: Path) -> Path:
    """Path of a file that holds the data."""
    adata.write_h5ad(folder / "input.h5ad")
    return folder / "input.h5ad"
