"""Small bulk data with a planted signal, a small BulkFormer trained on it, and published files."""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

from cfm.models import BulkFormer

GOLDEN = Path(__file__).parent / "golden" / "bulkformer"
#: Sizes that train in seconds.
SIZES = {"dim": 16, "n_layers": 1, "n_heads": 2, "attention_dropout": 0.0, "ff_dropout": 0.0}
#: Quick settings of a training run.
TRAINING = {"batch_size": 16, "lr": 4e-3, "enable_progress_bar": False}
N_GENES = 80


def toy_log_tpm(seed: int = 0, n: int = 96) -> ad.AnnData:
    """Log TPM of 80 genes in ``n`` samples of four studies, driven by three hidden factors.

    ``varm["loadings"]`` says how each gene follows the factors.
    """
    truth = np.random.default_rng(1)
    loadings = truth.normal(size=(N_GENES, 3)).astype(np.float32)
    base = truth.uniform(2.0, 6.0, N_GENES)
    rng = np.random.default_rng(seed)
    factors = rng.normal(size=(n, 3))
    x = base + 0.6 * factors @ loadings.T + 0.15 * rng.normal(size=(n, N_GENES))
    obs = pd.DataFrame(
        {"study": np.repeat(["s1", "s2", "s3", "s4"], n // 4)},
        index=[f"sample{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(N_GENES)])
    adata = ad.AnnData(np.clip(x, 0.0, None).astype(np.float32), obs=obs, var=var)
    adata.varm["loadings"] = loadings
    return adata


def untrained(adata: ad.AnnData | None = None, **arguments) -> BulkFormer:
    """A model of the toy data, not trained yet."""
    adata = toy_log_tpm() if adata is None else adata
    BulkFormer.setup_anndata(adata, study_key="study")
    return BulkFormer(adata, **(SIZES | arguments))


@cache
def toy_bulkformer() -> BulkFormer:
    """Trained on the toy data. Not to be changed by a test."""
    model = untrained()
    model.train(max_steps=400, **TRAINING)
    return model


def published(folder: Path, *, genes: bool = True) -> Path:
    """The golden checkpoint as its authors lay it out, with a gene list unless told otherwise."""
    shutil.copytree(GOLDEN, folder)
    if genes:
        ids = [f"ENSG{10**6 + i:011d}" for i in range(160)]
        table = pd.DataFrame({"ensg_id": ids, "gene_symbol": [f"X{i}" for i in range(160)]})
        table.to_csv(folder / "bulkformer_gene_info.csv", index=False)
    return folder
