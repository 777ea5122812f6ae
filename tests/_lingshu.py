"""Small counts with planted effects, and small Lingshu-Cells trained on them."""

from __future__ import annotations

from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse

from cfm.models import LingshuCell
from cfm.models.count_model._data import DenseCountReader
from cfm.models.lingshu._data import to_tokens
from cfm.models.lingshu._sampler import Sampler

#: Sizes that train in seconds.
SIZES = {"dim": 32, "n_layers": 2, "n_heads": 2, "ff_dim": 64, "group_size": 4}
#: Quick settings of a training run.
TRAINING = {
    "batch_size": 64,
    "lr": 4e-3,
    "accelerator": "cpu",
    "enable_progress_bar": False,
}
KEYS = {"source_key": "cell_type", "perturbation_key": "drug", "control": "none"}
N_GENES = 42
#: Genes that mark the first and the second cell type, those that either drug raises or lowers,
#: and those of a programme that half of the cells run: either these or those.
MARKERS = {"B": slice(0, 5), "T": slice(5, 10)}
EFFECTS = {"x": (slice(10, 15), 4.0), "y": (slice(15, 20), 0.2)}
PROGRAM = (slice(20, 25), slice(25, 30))


def toy_counts(seed: int = 0, n: int = 900, *, held_out: bool = True) -> ad.AnnData:
    """Counts of two cell types under two drugs and both; drug y of T cells is held out.

    Parameters
    ----------
    seed, n
        Of the draw, and number of cells before some are held out.
    held_out
        Leave out T cells under y.
    """
    base = np.random.default_rng(5).uniform(2.0, 6.0, N_GENES)
    rng = np.random.default_rng(seed)
    obs = pd.DataFrame(
        {
            "cell_type": rng.choice(["B", "T"], n),
            "drug": rng.choice(["none", "x", "y", "x+y"], n, p=[0.4, 0.25, 0.25, 0.1]),
            "batch": rng.choice(["b1", "b2"], n),
        },
        index=[f"cell{i}" for i in range(n)],
    )
    mean = np.tile(base, (n, 1))
    for name, genes in MARKERS.items():
        mean[obs["cell_type"] == name, genes] *= 4.0
    for name, (genes, factor) in EFFECTS.items():
        mean[[name in d.split("+") for d in obs["drug"]], genes] *= factor
    on = rng.random(n) < 0.5
    mean[on, PROGRAM[0]] *= 5.0
    mean[~on, PROGRAM[1]] *= 5.0
    counts = rng.poisson(mean).astype(np.float32)
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(N_GENES)])
    adata = ad.AnnData(sparse.csr_matrix(counts), obs=obs.astype("category"), var=var)
    if held_out:
        adata = adata[~((obs["cell_type"] == "T") & (obs["drug"] == "y"))].copy()
    return adata


def untrained(adata: ad.AnnData | None = None, **arguments) -> LingshuCell:
    """A model of the toy data, not trained yet."""
    adata = toy_counts() if adata is None else adata
    LingshuCell.setup_anndata(adata, **KEYS)
    return LingshuCell(adata, **(SIZES | arguments))


@cache
def toy_lingshu() -> LingshuCell:
    """Trained on the toy data, the network alone. Not to be changed by a test."""
    model = untrained()
    model.train(max_steps=350, count_term=False, **TRAINING)
    return model


def mean_log(adata: ad.AnnData) -> np.ndarray:
    """Mean of log1p counts, ``(genes,)``."""
    x = adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)
    return np.log1p(x.astype(np.float64)).mean(axis=0)


def states(model: LingshuCell, adata: ad.AnnData) -> np.ndarray:
    """Return the mean final state of each cell, ``(n, dim)``, with nothing hidden."""
    reader = DenseCountReader(adata, model.vocabulary, None)
    model.module.eval()
    sampler = Sampler(model.module, torch.float32)
    parts = np.arange(adata.n_obs)
    made = []
    for rows in np.split(parts, parts[sampler.cells_at_once :: sampler.cells_at_once]):
        tokens = torch.from_numpy(to_tokens(reader.counts(rows)))
        made.append(sampler.states(tokens, model.levels.conditions(len(rows))).mean(1).numpy())
    return np.concatenate(made)
