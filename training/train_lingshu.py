"""Training of ``lingshu-pbmc-mini`` on blood cells with and without interferon-beta.

``python -m training.train_lingshu --data DATA --output FOLDER``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import pandas as pd
import torch

from benchmarks._report import data_folder
from cfm.models import LingshuCell

SEED = 0
MAX_STEPS = 1500
#: Registered columns of the cells.
KEYS = {
    "source_key": "cell_type",
    "perturbation_key": "condition",
    "control": "ctrl",
    "covariate_keys": ["donor"],
}


def symbols(names: pd.Index) -> pd.Index:
    """Drop the Ensembl ids that the source appended to some symbols, where that is unambiguous."""
    bare = names.str.replace(r"_ENSG\d+$", "", regex=True)
    return names.where(bare.duplicated(keep=False), bare)


def train(adata: ad.AnnData, *, max_steps: int = MAX_STEPS, seed: int = SEED) -> LingshuCell:
    """Train a mini Lingshu-Cell from nothing: count term, then network."""
    adata.var_names = symbols(adata.var_names)
    LingshuCell.setup_anndata(adata, **KEYS)
    model = LingshuCell(adata, size="mini", seed=seed)
    model.train(
        max_steps=max_steps,
        balanced=True,
        block_size=1,  # rows are drawn as when the bundled weights were made
        seed=seed,
        accelerator="cpu",
        enable_progress_bar=False,
    )
    model.provenance["training_command"] = "python -m training.train_lingshu"
    model.provenance["training_data"] = str(adata.uns["source"])
    model.provenance["n_cells"] = adata.n_obs
    return model


def main() -> None:
    """Train and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    args = parser.parse_args()
    torch.set_num_threads(1)  # sums in another order would be other weights
    adata = ad.read_h5ad(data_folder(args.data) / "single_cell" / "kang_ifnb_muscat.h5ad")
    train(adata, max_steps=args.max_steps).save(args.output, overwrite=True, compact=True)


if __name__ == "__main__":
    main()
