"""Evaluations of planted effects, as tests look at them."""

from __future__ import annotations

from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd

from cfm.tl import evaluate_perturbation
from cfm.tl._perturbation import _evaluate, _scores
from tests.tl._perturbed import ARGUMENTS, EFFECTS, perturbed_cells

BASELINES = ("control", "mean_shift", "additive", "nearest", "linear")
FIVE = ["delta_pearson", "e_distance", "mmd", "direction_accuracy", "discrimination_score"]
#: Each treatment moves five of the genes of these cells.
N_TOP, N_HALVES = 5, 4


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


def evaluate(
    real: ad.AnnData,
    made: Any,
    *,
    n_top: int = N_TOP,
    n_halves: int = N_HALVES,
    max_cells: int = 1000,
    n_components: int = 50,
    **options: Any,
) -> pd.DataFrame:
    """The table, for the columns and the few genes of these cells."""
    constants = {"N_HALVES": n_halves, "MAX_CELLS": max_cells, "N_COMPONENTS": n_components}
    with mock.patch.multiple(_evaluate, **constants), mock.patch.object(_scores, "N_TOP", n_top):
        return evaluate_perturbation(real, made, **(ARGUMENTS | options))


def values(table: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Conditions by methods."""
    part = table[table["metric"] == metric]
    return part.pivot(index=["group", "perturbation"], columns="method", values="value")
