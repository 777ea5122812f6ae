"""A small trained CellPulse and its data, made once and shared by the tests of models and tools."""

from __future__ import annotations

import tempfile
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import cfm
from cfm.models import CellPulse

#: Sizes that train in seconds.
SIZES = {"dim": 32, "n_heads": 2, "n_tokens": 96, "n_factors": 12}
#: Quick settings of a training run.
TRAINING = {"batch_size": 12, "tokens_per_profile": 64, "enable_progress_bar": False}


@cache
def _contrasts(seed: int) -> ad.AnnData:
    counts = cfm.datasets.toy_infection(seed=seed, stimulus=True)
    made = cfm.pp.contrasts(counts, "virus", "none", by=["study", "donor", "time_h"])
    truth = counts.uns["truth"].drop(columns="programme")
    # The genes that a virus or the stimulus changes, and as many others.
    changed = truth.index[(truth != 0).any(axis=1)]
    others = truth.index.difference(changed, sort=False)[: len(changed)]
    made = made[:, made.var_names.isin(changed.union(others))].copy()
    virus = made.obs["virus"].astype(str)
    made.obs["label"] = pd.Categorical(virus.replace({"IFN-beta": "uninfected"}))
    made.obs["sample"] = made.obs_names
    made.uns = {}
    made.varm["truth"] = truth.reindex(made.var_names)
    return made


def toy_contrasts(seed: int = 0) -> ad.AnnData:
    """Contrasts of four studies: two viruses and a stimulus ("uninfected") in each."""
    return _contrasts(seed).copy()


@cache
def toy_model() -> CellPulse:
    """Pretrained on the toy contrasts, with a virus classifier. Not to be changed by a test."""
    adata = toy_contrasts()
    CellPulse.setup_anndata(adata, labels_key="label", study_key="study", sample_key="sample")
    model = CellPulse(adata, size="mini", **SIZES)
    model.train(max_steps=40, n_linear_steps=20, **TRAINING)
    model.train_classifier()
    return model


@cache
def toy_checkpoint() -> Path:
    """Folder in which that model is saved."""
    return toy_model().save(
        Path(tempfile.mkdtemp()) / "toy", card="# Toy\n\nA toy model. For tests."
    )


def hide_half(effects: np.ndarray, n_top: int, seed: int = 0) -> np.ndarray:
    """Mark a random half of the strongest effects of each row."""
    rng = np.random.default_rng(seed)
    strength = np.nan_to_num(np.abs(effects))
    top = np.argsort(-strength, axis=1)[:, :n_top]
    hidden = np.zeros(effects.shape, dtype=bool)
    for row, genes in zip(hidden, top, strict=True):
        row[rng.permutation(genes)[: n_top // 2]] = True
    return hidden
