"""Compounds with planted effects: what each does follows from its features."""

from __future__ import annotations

from functools import cache

import anndata as ad
import numpy as np
import pandas as pd

from cfm.models import BulkFormer
from tests._bulk import N_GENES, toy_bulkformer, toy_log_tpm, untrained

N_COMPOUNDS, N_FEATURES = 60, 4
#: Quick settings of a training run.
TRAINING = {"n_steps": 150, "weight_decay": 0.01, "rank": 8}


def toy_compounds(seed: int = 0) -> tuple[ad.AnnData, pd.DataFrame]:
    """Changes of log TPM by 60 compounds (the last ten genes are not measured), and features."""
    rng = np.random.default_rng(seed)
    names = [f"drug{i}" for i in range(N_COMPOUNDS)]
    features = rng.normal(size=(N_COMPOUNDS, N_FEATURES))
    effect = rng.normal(size=(N_FEATURES, N_GENES))
    x = 0.5 + features @ effect + 0.2 * rng.normal(size=(N_COMPOUNDS, N_GENES))
    x[:, -10:] = np.nan
    made = ad.AnnData(x.astype(np.float32))
    made.obs_names, made.var_names = names, [f"GENE{i}" for i in range(N_GENES)]
    columns = [f"f{i}" for i in range(N_FEATURES)]
    return made, pd.DataFrame(features, index=names, columns=columns)


def up_and_down(changes: ad.AnnData, n: int = 8) -> pd.DataFrame:
    """The ``n`` genes that each compound raises and lowers most."""
    rows = []
    for name, row in changes.to_df().iterrows():
        order = row.dropna().sort_values().index
        rows += [(name, g, -1) for g in order[:n]] + [(name, g, 1) for g in order[-n:]]
    return pd.DataFrame(rows, columns=["compound", "gene", "direction"])


def fresh_model() -> BulkFormer:
    """The trained toy model, a copy of its own."""
    model = untrained()
    model.module.load_state_dict(toy_bulkformer().module.state_dict())
    model.is_trained_ = True
    return model


@cache
def taught() -> tuple[BulkFormer, dict[str, float]]:
    """A model that knows the first 50 compounds. Not to be changed by a test."""
    changes, features = toy_compounds()
    model = fresh_model()
    scores = model.train_compounds(
        changes[:50].copy(), toy_log_tpm(), features=features, **TRAINING
    )
    return model, scores
