"""Cells with planted perturbation effects, a model that follows a rule, and evaluations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from unittest import mock

import anndata as ad
import numpy as np
import pandas as pd

from cfm.tl import evaluate_perturbation
from cfm.tl._perturbation import _evaluate, _scores

N_GENES = 40
#: Effects in natural log units: A raises the first five genes, B lowers the next five.
EFFECT_A, EFFECT_B = np.zeros(N_GENES), np.zeros(N_GENES)
EFFECT_A[:5], EFFECT_B[5:10] = 1.5, -1.0
EFFECTS = {"ctrl": 0 * EFFECT_A, "A": EFFECT_A, "B": EFFECT_B, "A+B": EFFECT_A + EFFECT_B}
ARGUMENTS = {"key": "treatment", "control": "ctrl", "groupby": "cell_type"}
BASELINES = ("control", "mean_shift", "additive", "nearest", "linear")
FIVE = ["delta_pearson", "e_distance", "mmd", "direction_accuracy", "discrimination_score"]
#: Each treatment moves five of the genes of these cells.
N_TOP, N_HALVES = 5, 4


def perturbed_cells(seed: int = 0, n: int = 30) -> ad.AnnData:
    """Log expression of three cell types, ``n`` cells of each with each treatment."""
    truth = np.random.default_rng(7)
    base = {t: truth.uniform(2, 5, N_GENES) for t in ("T", "B", "NK")}
    rng = np.random.default_rng(seed)
    rows, obs = [], []
    for cell_type, level in base.items():
        for treatment, effect in EFFECTS.items():
            rows.append(level + effect + 0.1 * rng.normal(size=(n, N_GENES)))
            obs += [(cell_type, treatment)] * n
    table = pd.DataFrame(obs, columns=["cell_type", "treatment"]).astype("category")
    table.index = [f"cell{i}" for i in range(len(table))]
    var = pd.DataFrame({"note": "x"}, index=[f"GENE{i}" for i in range(N_GENES)])
    x = np.concatenate(rows).clip(0).astype(np.float32)
    # as scanpy.pp.log1p records it; sums of these values tell nothing of their units
    return ad.AnnData(x[::1], obs=table, var=var, uns={"log1p": {"base": None}})


def without(adata: ad.AnnData, cell_type: str, treatment: str) -> ad.AnnData:
    """The same without what is to be predicted."""
    drop = (adata.obs["cell_type"] == cell_type) & (adata.obs["treatment"] == treatment)
    return adata[~drop.to_numpy()].copy()


def effect_of(simulated: ad.AnnData, adata: ad.AnnData) -> np.ndarray:
    """Mean simulated change of each gene."""
    sources = adata[simulated.obs["simulated_from"].to_numpy()]
    return np.asarray(simulated.X - sources.X).mean(axis=0)


class AddsOne:
    """Adds one to the genes that it is told, knows all but the last gene, and one of its own."""

    def simulate(
        self,
        adata: ad.AnnData,
        perturbation: Sequence[str],
        *,
        layer: str | None = None,
        groupby: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        **options: Any,
    ) -> ad.AnnData:
        """Keep what was given, for the test to look at; ``strength`` is the change."""
        self.seen = {"adata": adata, "groupby": groupby, "seed": seed, "batch_size": batch_size}
        absent = [g for g in perturbation if g not in adata.var_names]
        if absent:
            raise KeyError(f"unknown genes {absent}")
        table = adata.to_df().iloc[:, -2::-1]  # not in the order of adata
        table[list(perturbation)] += options.get("strength", 1.0)
        table["OWN"] = 7.0
        return ad.AnnData(table.to_numpy(), obs=table[[]], var=pd.DataFrame(index=table.columns))


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
