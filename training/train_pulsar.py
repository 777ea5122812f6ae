"""Training of ``pulsar-mini`` on pseudo-donors, drawn from blood cells of two studies.

``python -m training.train_pulsar --data DATA --output FOLDER``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from benchmarks._report import data_folder
from cfm.models import CellProjection, Pulsar
from cfm.models.pulsar._published import BLOOD

SEED = 0
MAX_STEPS = 600
#: Pseudo-donors, cells of each, and cells of a draw, of which the encoder sees 15 %.
N_DONORS, N_CELLS, N_DRAWN = 400, 200, 100
N_CLUSTERS = 10
DONOR = "donor_id"


def read_cells(folder: Path) -> ad.AnnData:
    """Read counts of blood cells of two studies on the genes that both measure.

    ``obs`` says the ``study``, and the ``source``: the study, and where known the condition.
    """
    parts = []
    for name, study in (("kang_ifnb_muscat", "Kang 2018"), ("hao_pbmc_1000", "Hao 2021")):
        part = ad.read_h5ad(folder / "single_cell" / f"{name}.h5ad")
        part.obs = part.obs.astype(str).assign(study=study)
        parts.append(part)
    cells = ad.concat(parts, join="inner")
    outer = pd.concat([part.obs for part in parts])
    source = (outer["study"] + " " + outer["condition"].fillna("")).str.strip()
    cells.obs = outer.assign(source=source)
    cells.uns["source"] = [part.uns["source"] for part in parts]
    return cells


def clusters(cells: ad.AnnData, projection: CellProjection) -> np.ndarray:
    """Cluster cells by their components."""
    model = KMeans(N_CLUSTERS, n_init=4, random_state=SEED)
    return model.fit_predict(projection.transform(cells).astype(np.float64))


def pseudo_donors(
    cells: ad.AnnData,
    kind: np.ndarray,
    source: np.ndarray,
    *,
    n_donors: int = N_DONORS,
    n_cells: int = N_CELLS,
    seed: int = SEED,
) -> ad.AnnData:
    """Draw donors from cells, with replacement.

    Each has shares of the kinds of cells (Dirichlet, 1) and of the sources (Dirichlet, 0.5, so
    that many are of one source nearly).
    """
    rng = np.random.default_rng(seed)
    kinds, kind = np.unique(kind, return_inverse=True)
    sources, source = np.unique(source, return_inverse=True)
    size = np.zeros((len(sources), len(kinds)))
    np.add.at(size, (source, kind), 1)
    rows = []
    for _ in range(n_donors):
        share = np.outer(
            rng.dirichlet(np.full(len(sources), 0.5)), rng.dirichlet(np.ones(len(kinds)))
        )
        weight = (share / np.maximum(size, 1))[source, kind]
        rows.append(rng.choice(cells.n_obs, n_cells, p=weight / weight.sum()))
    return donors_of(cells, np.array(rows))


def donors_of(cells: ad.AnnData, rows: np.ndarray) -> ad.AnnData:
    """Return the cells of donors, given by rows ``(n_donors, n_cells)``; some may be repeated."""
    names = [f"pseudo{i:04d}" for i in range(len(rows))]
    obs = pd.DataFrame(
        {DONOR: pd.Categorical(np.repeat(names, rows.shape[1]))},
        index=[f"cell{i}" for i in range(rows.size)],
    )
    return ad.AnnData(cells.X[rows.ravel()], obs=obs, var=cells.var)


def train(
    cells: ad.AnnData,
    *,
    max_steps: int = MAX_STEPS,
    seed: int = SEED,
    reconstruction_weight: float = 1.0,
    contrastive_weight: float = 1.0,
) -> Pulsar:
    """Train a mini PULSAR from nothing and without labels on pseudo-donors of ``cells``."""
    projection = CellProjection.fit(cells, study_key="study")
    kind = clusters(cells, projection)
    donors = pseudo_donors(cells, kind, cells.obs["source"].to_numpy(), seed=seed)
    Pulsar.setup_anndata(donors, donor_key=DONOR)
    model = Pulsar(donors, size="mini", projection=projection, seed=seed)
    model.train(
        max_steps=max_steps,
        n_cells=N_DRAWN,
        reconstruction_weight=reconstruction_weight,
        contrastive_weight=contrastive_weight,
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
        "training_data": cells.uns.get("source", []),
        "n_cells": cells.n_obs,
        "scope": list(BLOOD),
        # In a new laboratory the network alone is behind: benchmarks.pseudo_donors.
        "pooling": "both",
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
    cells = read_cells(data_folder(args.data))
    with threadpool_limits(1):
        model = train(cells, max_steps=args.max_steps)
    model.save(args.output, overwrite=True, compact=True)


if __name__ == "__main__":
    main()
