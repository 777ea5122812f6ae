"""Cells with planted perturbation effects, and a model that simulates them by a rule."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

N_GENES = 40
#: Effects in natural log units: A raises the first five genes, B lowers the next five.
EFFECT_A, EFFECT_B = np.zeros(N_GENES), np.zeros(N_GENES)
EFFECT_A[:5], EFFECT_B[5:10] = 1.5, -1.0
EFFECTS = {"ctrl": 0 * EFFECT_A, "A": EFFECT_A, "B": EFFECT_B, "A+B": EFFECT_A + EFFECT_B}
ARGUMENTS = {"key": "treatment", "control": "ctrl", "groupby": "cell_type"}


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
