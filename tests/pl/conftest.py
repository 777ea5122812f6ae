"""Contrasts with the fields that ``cfm.tl`` stores, made up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

VIRUSES = ["SARS-CoV-2", "SARS-CoV", "IAV", "RSV", "HIV-1", "ZIKV", "DENV", "HCV", "HRV", "VACV"]
VIRUSES += ["KSHV", "HCMV", "EBOV", "NiV", "CHIKV", "JCPyV", "HPIV3", "HSV-2", "HBV", "MCMV"]


def make_predicted(n: int, k: int = 4, name: str = "series{i}|{virus}_vs_none") -> AnnData:
    """``n`` contrasts called among ``k`` viruses; the first is "unknown", the second a virus."""
    rng = np.random.default_rng(n)
    classes = ["uninfected", *VIRUSES[:k]]
    logits = rng.normal(scale=2, size=(n, k + 1))
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    novelty = rng.uniform(0, 0.8, size=n)
    novelty[0] = 0.99
    call = np.array(classes, dtype=object)[proba.argmax(axis=1)]
    call[0] = "unknown"
    virus = [VIRUSES[i % k] for i in range(n)]
    names = [name.format(i=i, virus=v) for i, v in enumerate(virus)]
    key = "predicted_virus"
    obs = pd.DataFrame(
        {
            "virus": pd.Categorical(virus),
            key: pd.Categorical(call),
            f"{key}_confidence": proba.max(axis=1).astype(np.float32),
            f"{key}_infected": (1 - proba[:, 0]).astype(np.float32),
            f"{key}_novelty": novelty.astype(np.float32),
            f"{key}_set": ["|".join(np.array(classes)[row > 0.2]) for row in proba],
        },
        index=names,
    )
    genes = pd.DataFrame(index=[f"GENE{i}" for i in range(30)])
    adata = AnnData(rng.normal(size=(n, 30)).astype(np.float32), obs=obs, var=genes)
    adata.obsm[f"{key}_proba"] = pd.DataFrame(proba, index=names, columns=classes)
    adata.obsm["X_cellpulse"] = rng.normal(size=(n, 8)).astype(np.float32)
    adata.uns[key] = {"params": {"alpha": 0.1, "model": "cellpulse-virus"}, "classes": classes}
    return adata


@pytest.fixture
def predicted() -> Callable[..., AnnData]:
    """Factory of called contrasts."""
    return make_predicted
