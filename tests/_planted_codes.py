"""Cells of planted types with few counts, and a CellVQ that learned them."""

from __future__ import annotations

from functools import cache
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd

from cfm.models import CellVQ

N_GENES = 60
SMALL: dict[str, Any] = {
    **{"dim": 32, "n_layers": 1, "n_heads": 2, "ff_dim": 64, "n_bins": 8},
    **{"decoder_dim": 16, "decoder_layers": 1, "decoder_heads": 2},
    **{"n_bits": 5, "codebook_dim": 32, "codebook_layers": 2},
    "expression_codes": False,
}
QUIET: dict[str, Any] = {"enable_progress_bar": False, "accelerator": "cpu"}
TRAINING: dict[str, Any] = {"lr": 1e-2, "keep_share": (0.3, 0.7), **QUIET}


def planted_cells(n: int = 200, *, seed: int = 0, depth: float = 600.0) -> ad.AnnData:
    """Poisson counts of four types, each with a sixth of the genes far up; same types always."""
    fixed = np.random.default_rng(7)
    base = fixed.gamma(0.5, 1.0, N_GENES)
    up = (fixed.random((4, N_GENES)) < 0.15) * fixed.normal(2.0, 0.5, (4, N_GENES))
    share = base * np.exp(up)
    share /= share.sum(axis=1, keepdims=True)
    rng = np.random.default_rng(seed)
    kind = rng.integers(0, 4, n)
    counts = rng.poisson(share[kind] * rng.lognormal(np.log(depth), 0.3, n)[:, None])
    obs = pd.DataFrame(
        {
            "cell_type": [f"T{k}" for k in kind],
            "even": [("no", "yes")[int(k % 2 == 0)] for k in kind],
            "study": [f"s{i % 4}" for i in range(n)],
        },
        index=[f"c{i}" for i in range(n)],
    )
    genes = pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)])
    return ad.AnnData(counts.astype(np.float32), obs=obs, var=genes)


def untrained(adata: ad.AnnData | None = None, **kwargs: Any) -> CellVQ:
    """A new model of planted cells, registered with the keywords that are not sizes."""
    adata = planted_cells(60) if adata is None else adata
    setup = {
        k: kwargs.pop(k) for k in list(kwargs) if k.endswith(("keys", "key", "units", "counts"))
    }
    CellVQ.setup_anndata(adata, **setup)
    return CellVQ(adata, **(SMALL | kwargs))


@cache
def trained() -> CellVQ:
    """A model that learned types from planted cells, of some of which the type is not known."""
    adata = planted_cells()
    adata.obs["cell_type"] = adata.obs["cell_type"].astype(object)
    adata.obs.iloc[:20, 0] = np.nan
    adata.obs.iloc[20:30, 0] = ""
    model = untrained(adata, labels_keys=["cell_type"], study_key="study")
    model.train(max_steps=200, **TRAINING)
    return model
