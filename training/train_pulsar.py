"""Training of ``pulsar-mini`` on the blood cells of donors with and without COVID-19.

``python -m training.train_pulsar --data DATA --output FOLDER``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import torch

from benchmarks._report import data_folder
from cfm.models import Pulsar
from cfm.models.pulsar._scope import BLOOD

SEED = 0
MAX_STEPS = 150
#: Cells of a draw: the encoder sees 15 of them, as many as it takes to tell donors apart at all.
N_CELLS = 100
DONOR, DISEASE = "donor", "disease"
#: Where the standardised components are put; the model remembers the name.
REPRESENTATION = "X_pca_scaled"


def read_cells(folder: Path) -> ad.AnnData:
    """Read the cells of 20 donors, components standardised."""
    adata = ad.read_h5ad(folder / "donors" / "covid_pbmc_gloscope.h5ad")
    adata.obsm[REPRESENTATION] = standardised(adata.obsm["X_pca"], adata.obs[DONOR].to_numpy())
    return adata


def standardised(components: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """Bring each column to mean 0 and variance 1, donors weighing the same.

    Nothing of another data set is needed, so that new data can be brought to the same scale.
    """
    _, number, times = np.unique(donor.astype(str), return_inverse=True, return_counts=True)
    weight = 1.0 / times[number] / len(times)
    mean = weight @ components
    spread = np.sqrt(weight @ (components - mean) ** 2)
    return ((components - mean) / np.where(spread > 0, spread, 1.0)).astype(np.float32)


def train(adata: ad.AnnData, *, max_steps: int = MAX_STEPS, seed: int = SEED) -> Pulsar:
    """Train a mini PULSAR from nothing and without labels on all donors of ``adata``."""
    Pulsar.setup_anndata(adata, donor_key=DONOR, use_rep=REPRESENTATION)
    model = Pulsar(adata, size="mini", seed=seed, standardised=False)
    model.train(
        max_steps=max_steps,
        n_cells=N_CELLS,
        validation_share=0.0,
        batch_size=20,
        lr=1e-3,
        seed=seed,
        accelerator="cpu",
        precision="32-true",
        enable_progress_bar=False,
    )
    model.provenance |= {
        "training_command": "python -m training.train_pulsar",
        "training_data": str(adata.uns["source"]),
        "n_cells": adata.n_obs,
        "scope": list(BLOOD),
    }
    return model


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order would be other weights
    adata = read_cells(data_folder(args.data))
    train(adata, max_steps=args.max_steps).save(args.output, overwrite=True, compact=True)


if __name__ == "__main__":
    main()
