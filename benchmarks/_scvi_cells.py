"""Counts from scVI: what the benchmarks of perturbation and of generation compare with."""

from __future__ import annotations

import logging
import warnings

import anndata as ad
import numpy as np
import scvi
import torch

#: Steps that scVI is trained for at most (by its own rule it gets 400 epochs of few cells), and
#: epochs without a gain on a tenth of the cells after which it stops.
SCVI_STEPS, PATIENCE = 4000, 30


def train_scvi(adata: ad.AnnData, seed: int, **options: object) -> scvi.model.SCVI:
    """Train scVI on counts, at most 400 epochs and :data:`SCVI_STEPS` steps."""
    scvi.settings.seed = seed
    scvi.settings.verbosity = 30
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    batch_key = options.pop("batch_key", None)
    adata = adata.copy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scvi.model.SCVI.setup_anndata(adata, batch_key=batch_key)
        model = scvi.model.SCVI(adata, **options)
        epochs = min(400, round(SCVI_STEPS * 128 / (0.9 * adata.n_obs)))
        model.train(
            max_epochs=max(1, epochs),
            early_stopping=True,
            early_stopping_patience=PATIENCE,
            accelerator="cpu",
            enable_progress_bar=False,
            logger=False,
        )
    return model


@torch.no_grad()
def scvi_counts(
    model: scvi.model.SCVI, latent: np.ndarray, library: np.ndarray, batch: int = 0, seed: int = 0
) -> np.ndarray:
    """Decode places in latent space and draw counts from the likelihood there.

    Parameters
    ----------
    model
        A trained scVI model.
    latent
        ``(n, n_latent)``.
    library
        ``(n,)`` counts per cell, the observed ones.
    batch
        Number of the batch to decode for.
    seed
        Of the draw.
    """
    torch.manual_seed(seed)
    model.module.eval()
    found = model.module.generative(
        z=torch.as_tensor(latent, dtype=torch.float32),
        library=torch.log(torch.as_tensor(library, dtype=torch.float32))[:, None],
        batch_index=torch.full((len(latent), 1), batch),
    )
    return found["px"].sample().numpy()
