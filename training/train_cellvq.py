"""Training of ``cellvq-mini`` on blood cells: without labels first, then with cell types.

Codes are clusters of the cells without labels, and stay when labels are learned.

The head of cell types is then fitted on the expression of the cells of both studies, so that it
knows natural killer cells, dendritic cells and platelets too. The cells of the second study have no
labels of their authors; they are named by marker genes of their clusters (:func:`marker_types`).

``python -m training.train_cellvq --data DATA --output FOLDER``
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch

from benchmarks._report import data_folder
from cfm.models import CellVQ
from training.train_lingshu import symbols

SEED = 0
#: Optimiser steps on the cells without and with labels.
MAX_STEPS = (600, 1200)
PROPERTIES = ["cell_type", "condition"]
#: Genes by which clusters are named.
MARKERS = ["MS4A1", "CD14", "LYZ", "FCGR3A", "CD3D", "CD8A", "CD8B", "GNLY", "FCER1A", "PPBP"]
#: Rows are drawn one by one, as when the bundled weights were made.
_RUN = {
    "seed": SEED,
    "accelerator": "cpu",
    "precision": "32-true",
    "enable_progress_bar": False,
    "block_size": 1,
    "head_input": "embedding",
}


def genes(labelled: ad.AnnData, unlabelled: ad.AnnData) -> list[str]:
    """Return the genes of the model: those of the labelled cells, and more that scanpy brings.

    The second are the genes of ``scanpy.datasets.pbmc68k_reduced`` that the unlabelled cells
    measure. Its cells are not trained on.
    """
    more = set(sc.datasets.pbmc68k_reduced().raw.var_names) & set(unlabelled.var_names)
    known = symbols(labelled.var_names)
    return [*known, *sorted(more - set(known))]


def marker_types(cells: ad.AnnData) -> np.ndarray:
    """Name the cells of clear clusters by marker genes; ``""`` where a cluster is mixed."""
    cells = ad.AnnData(cells.X.copy(), obs=cells.obs[[]].copy(), var=cells.var[[]].copy())
    sc.pp.normalize_total(cells, target_sum=1e4)
    sc.pp.log1p(cells)
    sc.pp.highly_variable_genes(cells, n_top_genes=2000)
    sc.pp.pca(cells, n_comps=30, random_state=SEED)
    sc.pp.neighbors(cells, n_neighbors=10, random_state=SEED)
    sc.tl.leiden(cells, resolution=1.5, flavor="igraph", n_iterations=-1, random_state=SEED)
    values = cells[:, MARKERS].X.toarray()
    mean = pd.DataFrame(values, columns=MARKERS).groupby(cells.obs["leiden"].to_numpy()).mean()
    cd8 = mean["CD8A"] + mean["CD8B"]
    t_cell = mean["CD3D"] > 1.2
    rules = {
        "Platelets": mean["PPBP"] > 2,
        "B cells": mean["MS4A1"] > 1,
        "Dendritic cells": mean["FCER1A"] > 0.8,
        "FCGR3A+ Monocytes": (mean["FCGR3A"] > 1.5) & (mean["LYZ"] > 2),
        "CD14+ Monocytes": (mean["LYZ"] > 3) & (mean["CD14"] > 1),
        "NK cells": (mean["CD3D"] < 1) & (mean["GNLY"] > 2),
        "CD8 T cells": t_cell & (cd8 > 1),
        "CD4 T cells": t_cell & (cd8 < 0.3),
    }
    name = pd.Series("", index=mean.index)
    for kind, holds in rules.items():
        name[holds & (name == "")] = kind
    return cells.obs["leiden"].astype(str).map(name).to_numpy(dtype=str)


def fit_types(model: CellVQ, studies: list[ad.AnnData]) -> None:
    """Fit the head of cell types on the expression of the genes that all studies measure."""
    index = pd.Index(model.vocabulary.genes)
    shared = [g for g in index if all(g in cells.var_names for cells in studies)]
    types = [cells.obs["cell_type"].to_numpy(dtype=str) for cells in studies]
    model.module.property_heads.fit_expression(
        "cell_type",
        np.concatenate(
            [cells[t != "", shared].X.toarray() for cells, t in zip(studies, types, strict=True)]
        ).astype(float),
        np.concatenate([t[t != ""] for t in types]),
        genes=index.get_indexer(pd.Index(shared)),
        n_genes=len(index),
        studies=np.concatenate([np.full((t != "").sum(), i) for i, t in enumerate(types)]),
    )


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
    model.train(max_steps=max_steps[1], **_RUN)
    unlabelled.obs["cell_type"] = marker_types(unlabelled)
    fit_types(model, [labelled, unlabelled])
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
