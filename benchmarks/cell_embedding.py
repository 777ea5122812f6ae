"""What can be read off the cell embeddings of ``lingshu-pbmc-mini``, beside principal components.

``python -m benchmarks.cell_embedding --data DATA [--write]``: the bundled model embeds the cells of
its two donors by their counts alone. Logistic regression learns cell types and stimulation from one
donor and names those of the other. The model was trained on both donors, with their labels;
principal components are those of the training donor.
"""

from __future__ import annotations

import argparse

import anndata as ad
import numpy as np
import pandas as pd
import torch
from sklearn.decomposition import PCA
from sklearn.dummy import DummyClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

import cfm
from benchmarks._perturbation_tasks import log_expression
from benchmarks._report import Report, add_arguments, data_folder
from training.train_lingshu import symbols

OURS = "lingshu-pbmc-mini"
N_COMPONENTS = 50
TARGETS = ("cell_type", "condition")


def heads() -> dict[str, tuple[str, Pipeline]]:
    """Return what reads which representation, by name; each is fitted on the training donor."""

    def logistic() -> LogisticRegression:
        return LogisticRegression(max_iter=5000)

    pca = PCA(N_COMPONENTS, svd_solver="full")
    return {
        OURS: ("embedding", make_pipeline(StandardScaler(), logistic())),
        f"PCA of log counts, {N_COMPONENTS}": (
            "expression",
            make_pipeline(pca, StandardScaler(), logistic()),
        ),
        "all genes, log counts": ("expression", make_pipeline(StandardScaler(), logistic())),
        "most frequent class": ("expression", make_pipeline(DummyClassifier())),
    }


def compare(adata: ad.AnnData, spaces: dict[str, np.ndarray]) -> pd.DataFrame:
    """Score every representation, target and direction."""
    donor = adata.obs["donor"].astype(str).to_numpy()
    rows = []
    for target in TARGETS:
        truth = adata.obs[target].astype(str).to_numpy()
        for tested in np.unique(donor):
            test = donor == tested
            for name, (space, head) in heads().items():
                x = spaces[space]
                called = head.fit(x[~test], truth[~test]).predict(x[test])
                rows.append(
                    {
                        "target": target,
                        "test donor": tested,
                        "representation": name,
                        "accuracy": accuracy_score(truth[test], called),
                        "balanced accuracy": balanced_accuracy_score(truth[test], called),
                    }
                )
    return pd.DataFrame(rows)


def main() -> None:
    """Score and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = data_folder(args.data) / "single_cell" / "kang_ifnb_muscat.h5ad"
    adata = ad.read_h5ad(path)
    adata.var_names = symbols(adata.var_names)
    cfm.tl.embed(adata, OURS, key_added="embedding")
    spaces = {"embedding": adata.obsm["embedding"], "expression": log_expression(adata)}
    report = Report("cell_embedding", "Cell embeddings of lingshu-pbmc-mini")
    report.text(
        f"{adata.n_obs:,} cells of Kang 2018, two donors: logistic regression learns from the "
        "cells of one and names those of the other. Embeddings are made from counts alone, by a "
        "model that has seen both donors and their labels; scales and principal components are "
        "those of the training donor. Nothing is tuned."
    )
    report.table("scores", compare(adata, spaces), "Cell type and stimulation of the other donor")
    report.finish(args.write)


if __name__ == "__main__":
    main()
