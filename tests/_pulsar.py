"""Cells of toy donors, as PULSAR reads them."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

GOLDEN = Path(__file__).parent / "golden" / "pulsar"


def donors(
    sizes: tuple[int, ...] = (30, 12, 50, 25, 40, 18), *, width: int = 48, seed: int = 0
) -> ad.AnnData:
    """Cells of two kinds; donors of the second half, which are ill, have more of the second."""
    rng = np.random.default_rng(seed)
    donor = np.repeat([f"donor{i}" for i in range(len(sizes))], sizes)
    ill = np.repeat(np.arange(len(sizes)) >= len(sizes) / 2, sizes)
    kind = rng.random(len(donor)) < np.where(ill, 0.8, 0.2)
    fixed = np.random.default_rng(99)  # what kinds of cells are like does not change with the seed
    centres = fixed.normal(size=(2, width))
    # Three programs move many columns together, so a part of a cell tells of the rest.
    programs = rng.normal(size=(len(donor), 3)) @ fixed.normal(size=(3, width))
    x = centres[kind.astype(int)] + programs + 0.3 * rng.normal(size=(len(donor), width))
    obs = pd.DataFrame(
        {
            "donor_id": pd.Categorical(donor),
            "disease": pd.Categorical(np.where(ill, "lupus", "normal")),
            "age": np.where(ill, 60.0, 30.0),
            "cell_type": pd.Categorical(np.where(kind, "B", "T")),
        },
        index=[f"cell{i}" for i in range(len(donor))],
    )
    adata = ad.AnnData(obs=obs, obsm={"X_uce": x.astype(np.float32)})
    return adata[rng.permutation(adata.n_obs)].copy()
