"""How the benchmarks train Lingshu-Cell: the one place to change a recipe."""

from __future__ import annotations

from typing import Any

import anndata as ad
import numpy as np

from benchmarks._perturbation_tasks import Task, log_expression
from cfm.models import LingshuCell

#: Of the model, of its training, and of its sampler: for perturbations, and for plain generation.
MODEL: dict[str, Any] = {"size": "mini"}
TRAIN: dict[str, Any] = {}
SIMULATE: dict[str, Any] = {}
PLAIN_MODEL: dict[str, Any] = {"size": "mini"}
PLAIN_TRAIN: dict[str, Any] = {}
GENERATE: dict[str, Any] = {}
_QUIET = {"accelerator": "cpu", "enable_progress_bar": False}


def perturbed(task: Task, seed: int) -> dict[str, np.ndarray]:
    """Train on the cells of a task and simulate what it asks for: log expression by perturbation.

    Rows are those of ``task.sources(seed)``. The groups of a task that are no biology (halves of
    the cells) are not told.
    """
    train = task.train.copy()
    source = task.groupby if task.groupby == "cell_type" else None
    LingshuCell.setup_anndata(
        train, source_key=source, perturbation_key=task.key, control=task.control
    )
    model = LingshuCell(train, perturbation_features=task.features, seed=seed, **MODEL)
    model.train(seed=seed, **TRAIN, **_QUIET)
    sources = task.sources(seed)
    return {
        p: log_expression(model.simulate(sources, [p], groupby=source, seed=seed, **SIMULATE))
        for p in task.asked
    }


def generated(train: ad.AnnData, n: int, seed: int) -> np.ndarray:
    """Train on cells without any conditions and make ``n`` new ones: counts."""
    train = train.copy()
    LingshuCell.setup_anndata(train)
    model = LingshuCell(train, seed=seed, **PLAIN_MODEL)
    model.train(seed=seed, **PLAIN_TRAIN, **_QUIET)
    return model.generate(n, seed=seed, **GENERATE).X.toarray()
