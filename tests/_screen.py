"""A toy screen of cell types by perturbations, and what tests of count models ask of it."""

from __future__ import annotations

from functools import cache

import anndata as ad
import numpy as np

import cfm
from cfm.models.count_model._module import LIBRARY

KEYS = {"source_key": "cell_type", "perturbation_key": "perturbation", "control": "control"}


@cache
def screen() -> ad.AnnData:
    """The whole screen; copy it before changing it."""
    return cfm.datasets.toy_perturbation(n_cells=3000)


def of(adata: ad.AnnData, cell_type: str, perturbation: str) -> np.ndarray:
    """Which cells are of a type and under a perturbation."""
    obs = adata.obs
    return ((obs["cell_type"] == cell_type) & (obs["perturbation"] == perturbation)).to_numpy()


def seen() -> ad.AnnData:
    """All but T cells under IFNB1 and the pair of IFNG and TNF in any cell."""
    adata = screen()
    hidden = of(adata, "T cell", "IFNB1") | (adata.obs["perturbation"] == "IFNG+TNF").to_numpy()
    return adata[~hidden].copy()


def log_mean(adata: ad.AnnData, rows: np.ndarray | None = None) -> np.ndarray:
    """Mean log1p of counts per 10,000."""
    x = adata.X.toarray() if rows is None else adata.X[rows].toarray()
    x = x.astype(np.float64)
    return np.log1p(x * (LIBRARY / x.sum(axis=1, keepdims=True))).mean(axis=0)
