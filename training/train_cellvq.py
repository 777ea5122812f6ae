"""Training of ``cellvq-mini`` on blood cells: without labels first, then with cell types.

``python -m training.train_cellvq --data DATA --output FOLDER``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import scanpy as sc
import torch

from benchmarks._report import data_folder
from cfm.models import CellVQ
from training.train_lingshu import symbols

SEED = 0
#: Optimiser steps on the cells without and with labels.
MAX_STEPS = (600, 1200)
PROPERTIES = ["cell_type", "condition"]
#: Rows are drawn one by one, as when the bundled weights were made.
_RUN = {
    "seed": SEED,
    "accelerator": "cpu",
    "precision": "32-true",
    "enable_progress_bar": False,
    "block_size": 1,
}


def genes(labelled: ad.AnnData, unlabelled: ad.AnnData) -> list[str]:
    """Return the genes of the model: those of the labelled cells, and more that scanpy brings.

    The second are the genes of ``scanpy.datasets.pbmc68k_reduced`` that the unlabelled cells
    measure. Its cells are not trained on.
    """
    more = set(sc.datasets.pbmc68k_reduced().raw.var_names) & set(unlabelled.var_names)
    known = symbols(labelled.var_names)
    return [*known, *sorted(more - set(known))]


def train(
    labelled: ad.AnnData, unlabelled: ad.AnnData, *, max_steps: tuple[int, int] = MAX_STEPS
) -> CellVQ:
    """Train a mini CellVQ from nothing on cells without labels, then on those with labels."""
    vocabulary = genes(labelled, unlabelled)
    CellVQ.setup_anndata(unlabelled)
    model = CellVQ(unlabelled, vocabulary=vocabulary, seed=SEED)
    model.train(max_steps=max_steps[0], **_RUN)
    labelled.var_names = symbols(labelled.var_names)
    CellVQ.setup_anndata(labelled, labels_keys=PROPERTIES)
    model.attach(labelled)
    model.train(max_steps=max_steps[1], code_label_weight=1.0, **_RUN)
    model.provenance |= {
        "training_command": "python -m training.train_cellvq",
        "training_data": [str(unlabelled.uns["source"]), str(labelled.uns["source"])],
        "n_cells": [unlabelled.n_obs, labelled.n_obs],
        "max_steps": list(max_steps),
        # "condition" is interferon-beta in the labelled cells, and nothing in others
        "default_properties": ["cell_type"],
    }
    return model


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--max-steps", type=int, nargs=2, default=MAX_STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order would be other weights
    cells = data_folder(args.data) / "single_cell"
    model = train(
        ad.read_h5ad(cells / "kang_ifnb_muscat.h5ad"),
        ad.read_h5ad(cells / "hao_pbmc_1000.h5ad"),
        max_steps=tuple(args.max_steps),
    )
    model.save(args.output, overwrite=True, compact=True)


if __name__ == "__main__":
    main()
