"""Knock-outs that were never seen, from vectors of genes: a target left out of a screen.

``python -m benchmarks.gene_vectors``. The effect of a target is predicted by ridge regression
(``"linear"``) on the vectors of the other targets, or taken from the most similar (``"nearest"``).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import cfm
from benchmarks._code_recipe import interferon, quiet
from benchmarks._perturbation_tasks import log_expression, network_features, read_screen
from benchmarks._report import Report, add_arguments, data_folder
from cfm.metrics import linear_shift, mean_shift, nearest_shift

CONTROL = "control"
#: Cells of Kang 2018 whose mean output is the vector of a gene in context.
N_CELLS = 300
Effects = dict[str, np.ndarray]


def read_effects(adata: ad.AnnData, seed: int = 0) -> tuple[Effects, Effects]:
    """Return the effect of each target, to learn from and to judge by: the controls differ."""
    x, name = log_expression(adata), adata.obs["perturbation"].astype(str).to_numpy()
    rows = np.random.default_rng(seed).permutation(np.flatnonzero(name == CONTROL))
    targets = sorted(set(name) - {CONTROL})
    means = {t: np.asarray(x[name == t].mean(axis=0)).ravel() for t in targets}
    first, second = (np.asarray(x[half].mean(axis=0)).ravel() for half in np.array_split(rows, 2))
    return {t: m - first for t, m in means.items()}, {t: m - second for t, m in means.items()}


def score(vectors: pd.DataFrame, learned: Effects, observed: Effects) -> pd.DataFrame:
    """Score each target that has a vector, left out; lengths of vectors are 1 on average."""
    table = vectors.loc[[t for t in learned if t in vectors.index]]
    table = table - table.mean()
    table /= np.linalg.norm(table, axis=1).mean()
    rows = []
    for target in table.index:
        others = [t for t in table.index if t != target]
        query, cases = table.loc[target].to_numpy(), list(table.loc[others].to_numpy())
        effects = [learned[t] for t in others]
        predicted = {
            "mean_shift": mean_shift([learned[t] for t in learned if t != target]),
            "linear": linear_shift(query, cases, effects),
            "nearest": nearest_shift(query, cases, effects),
        }
        truth = observed[target]
        rows.append({m: np.corrcoef(p, truth)[0, 1] for m, p in predicted.items()})
    return pd.DataFrame(rows, index=table.index)


def model_vectors(folder: Path, targets: list[str]) -> dict[str, pd.DataFrame]:
    """Return vectors of the targets that each bundled model has."""
    found = {}
    bulk = cfm.models.BulkFormer.from_pretrained("bulkformer-mini")
    cell = cfm.models.CellVQ.from_pretrained("cellvq-mini")
    for name, model, weight in (
        ("BulkFormer mini, gene embeddings", bulk, bulk.module.gene_embedding.weight),
        ("CellVQ mini, genes of the linear term", cell, cell.module.expression_term.genes),
    ):
        known = model.vocabulary.align(targets, min_genes=0)
        rows = weight.detach().cpu().numpy()[known.positions]
        found[name] = pd.DataFrame(rows, index=[targets[i] for i in known.columns])
    blood = interferon(folder).adata
    blood = blood[np.random.default_rng(0).permutation(blood.n_obs)[:N_CELLS]].copy()
    cfm.tl.embed(blood, cell, level="gene", key_added="genes")
    table = pd.DataFrame(blood.varm["genes"], index=blood.var_names).dropna()
    found["CellVQ mini, mean output in blood cells"] = table[~table.index.duplicated()]
    return found


def main() -> None:
    """Score and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    folder = data_folder(args.data)
    learned, observed = read_effects(read_screen(folder))
    with quiet():
        sources = model_vectors(folder, list(learned))
    sources["random walks in Reactome"] = network_features(folder, list(learned))
    rng, rows = np.random.default_rng(0), []
    for name, vectors in sources.items():
        found = score(vectors, learned, observed)
        drawn = rng.integers(len(found), size=(5000, len(found)))
        row = {"vectors": name, "targets": len(found)} | found.mean().to_dict()
        for method in ("linear", "nearest"):
            less = (found[method] - found["mean_shift"]).to_numpy()
            low, high = np.percentile(less[drawn].mean(axis=1), [2.5, 97.5])
            row[f"{method} less mean shift"] = f"{less.mean():+.3f} ({low:+.3f} to {high:+.3f})"
        rows.append(row)
    report = Report("gene_vectors", "Knock-outs that were never seen, by vectors of genes")
    report.text(
        "Papalexi 2021 (25 targets, at most 300 cells of each), a target left out at a time; "
        "correlation of predicted and observed effect over 299 genes, mean over the targets that "
        "have a vector. Half of the controls serve predictions, half the observed effects. "
        "*Mean shift* is the mean effect of all other targets; intervals are of draws of targets."
    )
    table = pd.DataFrame(rows)
    report.table("scores", table, "Correlation of effects (95 % interval of the difference)")
    report.finish(args.write)


if __name__ == "__main__":
    main()
