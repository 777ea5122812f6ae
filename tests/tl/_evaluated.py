"""Evaluations of planted effects, as tests look at them."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from cfm.tl import evaluate_perturbation
from tests.tl._perturbed import ARGUMENTS, EFFECTS, perturbed_cells

BASELINES = ("control", "mean_shift", "additive", "nearest", "linear")
FIVE = ["delta_pearson", "e_distance", "mmd", "direction_accuracy", "discrimination_score"]
#: Each treatment moves five of the genes of these cells.
OPTIONS: dict[str, Any] = ARGUMENTS | {"n_top": 5, "n_halves": 4}


def simulated(
    factor: float = 1.0, n: int = 30, treatments: tuple[str, ...] = ("A", "B", "A+B"), **more: Any
) -> ad.AnnData:
    """Cells of other draws with the planted effects times a factor."""
    cells = perturbed_cells(seed=5, n=n)
    for treatment in treatments:
        rows = (cells.obs["treatment"] == treatment).to_numpy()
        cells.X[rows] += ((factor - 1) * EFFECTS[treatment]).astype(np.float32)
    kept = cells[cells.obs["treatment"].isin(treatments).to_numpy()].copy()
    kept.obs_names = kept.obs_names + "-made"
    for column, value in more.items():
        kept.obs[column] = value
    return kept


def evaluate(real: ad.AnnData, made: Any, **options: Any) -> pd.DataFrame:
    """The table, for the columns of these cells."""
    return evaluate_perturbation(real, made, **(OPTIONS | options))


def values(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Conditions by methods."""
    part = table[table["metric"] == metric]
    return part.pivot(index=["group", "perturbation"], columns="method", values="value")
