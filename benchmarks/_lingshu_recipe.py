"""How the benchmarks train Lingshu-Cell and the count model: the one place to change a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc

from benchmarks._perturbation_tasks import Task, log_expression
from cfm.models import LingshuCell, PerturbationCountModel

_QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


@dataclass(frozen=True)
class Recipe:
    """How a Lingshu-Cell is trained and asked.

    Attributes
    ----------
    steps
        Optimiser steps of the network; 0 fits the count term alone.
    count_term
        Whether the network stands beside the count term.
    ask
        Arguments of ``simulate``, or of ``generate``.
    prior
        Whether genes that respond in the other sources are given (``prior_cells=``).
    """

    steps: int
    count_term: bool = True
    ask: dict[str, Any] = field(default_factory=dict)
    prior: bool = False

    def fit(self, model: LingshuCell, seed: int) -> None:
        """Train a new model."""
        if self.steps:
            model.train(max_steps=self.steps, count_term=self.count_term, seed=seed, **_QUIET)
        else:
            model.fit_count_term()


#: The recipe of the main rows, then what it consists of, one thing left out at a time.
PERTURBED = {
    "Lingshu-Cell": Recipe(100),
    "Lingshu-Cell, prior genes": Recipe(100, prior=True),
    "Lingshu-Cell, as published": Recipe(
        400, False, {"start": "noise", "guidance": 2.0, "n_steps": 3}
    ),
}
GENERATED = {
    "Lingshu-Cell": Recipe(100, ask={"n_steps": 8}),
    "Lingshu-Cell, count term alone": Recipe(0, ask={"n_steps": 1}),
    "Lingshu-Cell, as published": Recipe(400, False, {"n_steps": 32}),
}
#: Columns of tasks with groups that are sources of cells; halves of the cells are not.
GROUPS = ("cell_type", "patient_id")
#: Of Leiden clusters, which stand in for cell types where cells have no labels.
RESOLUTION = 2.0
_TRAINED: dict[tuple[Any, ...], LingshuCell] = {}


def perturbed(recipe: Recipe, task: Task, seed: int) -> dict[str, np.ndarray]:
    """Train on the cells of a task and simulate what it asks for: log expression by perturbation.

    Rows are those of ``task.sources(seed)``. Groups that are no biology (halves of the cells) are
    not told.
    """
    train = task.train.copy()
    source = task.groupby if task.groupby in GROUPS else None
    LingshuCell.setup_anndata(
        train, source_key=source, perturbation_key=task.key, control=task.control
    )
    # recipes that only ask otherwise share the trained model
    key = (id(task), seed, recipe.steps, recipe.count_term)
    if key not in _TRAINED:
        model = LingshuCell(train, perturbation_features=task.features, size="mini", seed=seed)
        recipe.fit(model, seed)
        _TRAINED.clear()
        _TRAINED[key] = model
    model, sources = _TRAINED[key], task.sources(seed)
    ask = recipe.ask | ({"prior_cells": train} if recipe.prior else {})
    return {
        p: log_expression(model.simulate(sources, [p], groupby=source, seed=seed, **ask))
        for p in task.asked
    }


def counted(task: Task, seed: int) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Train the count model as :func:`perturbed` does Lingshu-Cell; return cells and effects."""
    train = task.train.copy()
    source = task.groupby if task.groupby in GROUPS else None
    PerturbationCountModel.setup_anndata(
        train, source_key=source, perturbation_key=task.key, control=task.control
    )
    model = PerturbationCountModel(train, perturbation_features=task.features)
    model.train()
    sources = task.sources(seed)
    cells = {
        p: log_expression(model.simulate(sources, [p], groupby=source, seed=seed))
        for p in task.asked
    }
    place = "all" if source is None else task.group
    return cells, {p: model.predict_effects(p).loc[place].to_numpy() for p in task.asked}


def generated(recipe: Recipe, train: ad.AnnData, n: int, seed: int) -> np.ndarray:
    """Train on cells without labels and make ``n`` new ones: counts.

    Clusters of the training cells are the sources, where the recipe has a count term, and are
    drawn as often as in training.
    """
    train = train.copy()
    cells: int | pd.DataFrame = n
    source = None
    if recipe.count_term:
        source = "cluster"
        train.obs[source] = clusters(train)
        drawn = np.random.default_rng(seed).choice(train.obs[source].to_numpy(str), size=n)
        cells = pd.DataFrame({source: drawn}, index=[f"cell{i}" for i in range(n)])
    LingshuCell.setup_anndata(train, source_key=source)
    model = LingshuCell(train, size="mini", seed=seed)
    recipe.fit(model, seed)
    return model.generate(cells, seed=seed, **recipe.ask).X.toarray()


def clusters(adata: ad.AnnData) -> np.ndarray:
    """Cluster cells as scanpy's tutorial does."""
    cells = ad.AnnData(log_expression(adata), obs=adata.obs[[]])
    sc.pp.pca(cells, n_comps=30)
    sc.pp.neighbors(cells, n_neighbors=10)
    sc.tl.leiden(cells, RESOLUTION, flavor="igraph", n_iterations=2, directed=False)
    return cells.obs["leiden"].astype(str).to_numpy()
