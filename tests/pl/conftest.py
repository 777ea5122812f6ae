"""Contrasts with the fields that ``cfm.tl`` stores, made up."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pandas as pd
import pytest
from anndata import AnnData

VIRUSES = ["SARS-CoV-2", "SARS-CoV", "IAV", "RSV", "HIV-1", "ZIKV", "DENV", "HCV", "HRV", "VACV"]
VIRUSES += ["KSHV", "HCMV", "EBOV", "NiV", "CHIKV", "JCPyV", "HPIV3", "HSV-2", "HBV", "MCMV"]
KINDS = ["none", "viral", "bacterial", "interferon I/III"]
KEY = "predicted_virus"


def make_predicted(n: int, k: int = 4, name: str = "series{i}|{virus}_vs_none") -> AnnData:
    """``n`` contrasts called among ``k`` viruses; the first is ``"unresolved"``."""
    rng = np.random.default_rng(n)
    viruses = VIRUSES[:k]
    kinds_proba = rng.dirichlet(np.ones(len(KINDS)), size=n)
    virus_proba = rng.dirichlet(np.full(k, 0.5), size=n)
    response = np.array(KINDS, dtype=object)[kinds_proba.argmax(axis=1)]
    response[0] = "viral"
    virus = np.array(viruses, dtype=object)[virus_proba.argmax(axis=1)]
    call = np.select([response == "none", response == "viral"], ["uninfected", virus], "not viral")
    call[0] = "unresolved"
    shares = dict(zip(KINDS, (0.71, 0.81, 0.14, 0.33), strict=True))
    support = np.where(call == "unresolved", shares["viral"], rng.uniform(0.8, 1, size=n))
    true = [VIRUSES[i % k] for i in range(n)]
    names = [name.format(i=i, virus=v) for i, v in enumerate(true)]
    obs = pd.DataFrame(
        {
            "virus": pd.Categorical(true),
            KEY: pd.Categorical(call),
            f"{KEY}_response": pd.Categorical(response),
            f"{KEY}_infected": kinds_proba[:, 1].astype(np.float32),
            f"{KEY}_support": support.astype(np.float32),
        },
        index=names,
    )
    genes = pd.DataFrame(index=[f"GENE{i}" for i in range(30)])
    adata = AnnData(rng.normal(size=(n, 30)).astype(np.float32), obs=obs, var=genes)
    adata.obsm[f"{KEY}_response_proba"] = pd.DataFrame(
        kinds_proba, index=names, columns=[kind.replace("/", "|") for kind in KINDS]
    )
    adata.obsm[f"{KEY}_proba"] = pd.DataFrame(virus_proba, index=names, columns=viruses)
    adata.obsm["X_cellpulse"] = rng.normal(size=(n, 8)).astype(np.float32)
    table = pd.DataFrame({"level": "response", "answer": KINDS, "share": shares.values()})
    adata.uns[KEY] = {
        "params": {"model": "cellpulse-virus"},
        "classes": viruses,
        "responses": KINDS,
        "support": table.assign(n_contrasts=9, n_studies=4),
    }
    return adata


@pytest.fixture
def predicted() -> Callable[..., AnnData]:
    """Factory of called contrasts."""
    return make_predicted
