"""Codes of cells beside clusters: agreement with cell types, use of the codebook, stability.

``python -m benchmarks.cell_codes --data DATA`` trains CellVQ on the cells of one donor and gives
codes to those of the other, and to two further datasets with the codebook frozen. Models are kept
in ``--models``, so that a second run only scores.
"""

from __future__ import annotations

import argparse
import logging
import warnings
from pathlib import Path
from typing import NamedTuple

import anndata as ad
import numpy as np
import pandas as pd
import torch

import cfm
from benchmarks._code_clusters import (
    agreement,
    k_means,
    leiden,
    leiden_of,
    log_cells,
    logistic,
    perplexity,
    stability,
)
from benchmarks._code_recipe import (
    LABEL,
    LABELLED,
    PLAIN,
    TRAINING,
    Cells,
    Recipe,
    cite_blood,
    fold_model,
    interferon,
    quiet,
    read_codes,
    sorted_blood,
)
from benchmarks._report import REPOSITORY, Report, add_arguments, data_folder
from cfm.models import CellVQ
from cfm.stats._ward import weighted_ward

MODELS = REPOSITORY / "benchmarks" / "models"
BUNDLED = "cellvq-mini"
RECIPES = (PLAIN, LABELLED)
_UNREAD = "-1"


class Run(NamedTuple):
    """A model, where it comes from (a recipe and a seed, or bundled), and its training cells."""

    name: str
    seed: int
    model: CellVQ
    reference: ad.AnnData | None


class Coded(NamedTuple):
    """Cells with the codes of one model."""

    run: Run
    adata: ad.AnnData

    @property
    def codes(self) -> np.ndarray:
        """Codes as text."""
        found = self.adata.obs["cell_code"].astype("string")
        return found.fillna(_UNREAD).to_numpy(dtype=object)


def read_all(cells: Cells, runs: list[Run], *, named: bool) -> list[Coded]:
    """Give codes to cells by each model; ``named`` adds the types that codes had in training."""
    return [
        Coded(run, read_codes(run.model, cells, reference=run.reference if named else None))
        for run in runs
    ]


def rivals(cells: Cells, plain: ad.AnnData, coded: Coded) -> dict[str, np.ndarray]:
    """Return groupings of as many groups as cells have codes, and merged codes, by name."""
    stored = coded.adata.uns["cell_code"]
    n_used = int(stored["params"]["n_used"])
    embedding = np.nan_to_num(coded.adata.obsm["X_cellvq"])
    found = {
        "k-means on PCA, as many groups": k_means(plain.obsm["X_pca"], n_used),
        "Leiden on PCA, as many groups": leiden_of(plain, n_used),
        "k-means on the same embedding": k_means(embedding, n_used),
    }
    n_types = len(set(cells.truth) - {""})
    if 0 < n_types < n_used:
        size = stored["codes"]["n_cells"].to_numpy()
        group = weighted_ward(stored["vectors"].to_numpy(), size, n_types)
        place = stored["codes"].index.get_indexer(coded.codes)
        found["codes, merged to as many as types"] = np.where(place < 0, -1, group[place])
        found["k-means on PCA, as many as types"] = k_means(plain.obsm["X_pca"], n_types)
        found["k-means on the same embedding, as many as types"] = k_means(embedding, n_types)
    return found


def score_cells(
    cells: Cells, plain: ad.AnnData, read: list[Coded], training: Cells | None
) -> list[dict]:
    """Score codes of the first seed of each recipe, and what stands beside them."""
    rows = []

    def add(method: str, trained: str, groups: np.ndarray) -> None:
        row = {"cells": cells.name, "method": method, "model": trained}
        rows.append(row | agreement(groups, cells.truth))

    add("Leiden on PCA", "–", leiden(plain))
    for coded in read:
        if coded.run.seed:
            continue
        add("codes", coded.run.name, coded.codes)
        for method, groups in rivals(cells, plain, coded).items():
            add(method, coded.run.name, groups)
        if f"cell_code_{LABEL}" in coded.adata.obs:
            called = coded.adata.obs[f"cell_code_{LABEL}"].astype("string").fillna(_UNREAD)
            called = called.to_numpy(dtype=object)
            add("type of the code in the training donor", coded.run.name, called)
    if training is not None:
        both = ad.concat([training.adata, cells.adata])
        space = log_cells(both, counts=True).obsm["X_pca"]
        n = training.adata.n_obs
        called = logistic(space[:n], training.truth, space[n:])
        add("logistic regression on PCA, learned from the training donor", "–", called)
    return rows


def use_of_codes(cells: Cells, read: list[Coded]) -> list[dict]:
    """Count codes of cells by model."""
    rows = []
    for coded in read:
        params = coded.adata.uns["cell_code"]["params"]
        if coded.run.seed == 0:
            rows.append(
                {
                    "cells": cells.name,
                    "model": coded.run.name,
                    "number of cells": cells.adata.n_obs,
                    "codes": params["n_codes"],
                    "in use": params["n_used"],
                    "perplexity": params["perplexity"],
                    "genes found": params["vocabulary_share"],
                }
            )
    return rows


def stable(cells: Cells, plain: ad.AnnData, read: list[Coded]) -> list[dict]:
    """Hold codes of differently seeded models against each other, and seeds of clusterings."""
    rows = []

    def add(method: str, trained: str, found: list[np.ndarray]) -> None:
        row = {"cells": cells.name, "method": method, "model": trained, "seeds": len(found)}
        row["perplexity"] = float(np.mean([perplexity(f) for f in found]))
        rows.append(row | stability(found))

    seeds = sorted({coded.run.seed for coded in read})
    if len(seeds) < 2:
        return rows
    for name in dict.fromkeys(coded.run.name for coded in read):
        codes = [coded.codes for coded in read if coded.run.name == name]
        if len(codes) < 2:
            continue
        n_used = round(float(np.mean([len(set(c)) for c in codes])))
        add("codes", name, codes)
        pca = plain.obsm["X_pca"]
        add("k-means on PCA, as many groups", name, [k_means(pca, n_used, s) for s in seeds])
    add("Leiden on PCA", "–", [leiden(plain, seed=seed) for seed in seeds])
    return rows


def train_runs(
    training: Cells, recipes: tuple[Recipe, ...], n_seeds: int, folder: Path
) -> list[Run]:
    """Train the models of a donor, and read its own cells with each as a reference."""
    runs = []
    for recipe in recipes:
        for seed in range(n_seeds):
            model = fold_model(recipe, training, seed, folder)
            reference = None if seed else read_codes(model, training)
            runs.append(Run(f"{training.name}, {recipe.name}", seed, model, reference))
    return runs


def bundled_run() -> list[Run]:
    """Return the checkpoint that ships, if there is one."""
    if BUNDLED not in cfm.hub.list_checkpoints().index:
        return []
    return [Run(f"{BUNDLED} (bundled)", 0, CellVQ.from_pretrained(BUNDLED, device="cpu"), None)]


def summary(table: pd.DataFrame) -> str:
    """Say on which cells codes are ahead of clusters, by the adjusted mutual information."""
    parts = []
    for cells, part in table.groupby("cells", sort=False):
        codes = part[part["method"] == "codes"].set_index("model")["AMI"]
        clusters = part[(part["model"] == "–") | part["method"].str.contains("on PCA, as many")]
        clusters = clusters[~clusters["method"].str.startswith("logistic")]
        best = clusters.sort_values("AMI").iloc[-1]
        each = ", ".join(f"{value:.2f} ({name})" for name, value in codes.items())
        who = "codes are ahead" if codes.max() > best["AMI"] else "clusters are ahead"
        text = f"{cells}: {who}, {each} against {best['AMI']:.2f} ({best['method']})"
        named = part[part["method"].str.startswith("logistic")]
        if len(named):
            text += f", and {named['AMI'].iloc[0]:.2f} of types named by logistic regression"
        parts.append(text)
    return f"AMI with cell types. {'; '.join(parts)}."


def main() -> None:
    """Train, score and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--models", type=Path, default=MODELS, help="where models are kept")
    parser.add_argument("--seeds", type=int, default=2, help="models of each recipe, first donor")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    data = data_folder(args.data)
    kang = interferon(data)
    donor = kang.adata.obs["donor"].astype(str).to_numpy()
    others = [sorted_blood(), sorted_blood(counts=True), cite_blood(data)]
    scores, use, steady = [], [], []
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundled = bundled_run()
        by_donor = {}
        for name in sorted(set(donor)):
            training = kang.part(donor == name, f"donor {name}")
            seeds = 1 if by_donor else args.seeds
            by_donor[name] = (training, train_runs(training, RECIPES, seeds, args.models))
        for name, (training, runs) in by_donor.items():
            (other,) = set(donor) - {name}
            cells = kang.part(donor == other, f"donor {other}")
            plain = log_cells(cells.adata, counts=True)
            read = read_all(cells, runs, named=True)
            scores += score_cells(cells, plain, read, training)
            own = [Coded(run, run.reference) for run in runs if run.reference is not None]
            use += use_of_codes(training, own) + use_of_codes(cells, read)
            steady += stable(cells, plain, read)
        first = next(iter(by_donor.values()))[1]
        for cells in others:
            plain = log_cells(cells.adata, counts=cells.units == "counts")
            read = read_all(cells, [*first, *bundled], named=False)
            if (cells.truth != "").any():
                scores += score_cells(cells, plain, read, None)
            use += use_of_codes(cells, read)
            steady += stable(cells, plain, read)
    write(pd.DataFrame(scores), pd.DataFrame(use), pd.DataFrame(steady), args)


def write(
    scores: pd.DataFrame, use: pd.DataFrame, steady: pd.DataFrame, args: argparse.Namespace
) -> None:
    """Report the tables."""
    report = Report("cell_codes", "Codes of cells beside clusters")
    report.text(
        f"CellVQ is trained for {TRAINING['max_steps']} steps, which is short, on the cells of one "
        "donor of Kang 2018 (interferon-beta and control, 1,267 genes), without labels or with "
        "its cell types, and gives codes to those of the "
        "other donor, then, as it is, to Zheng 2017 (scanpy's pbmc68k_reduced: 700 cells, 765 "
        "genes, 323 of them in common; log values as they are, and taken back to counts) and to "
        "1,000 cells of Hao 2021, which have no cell types. Codes are nearest codes; nothing of "
        "the cells that are scored was seen. The bundled cellvq-mini learned from both donors with "
        "their labels and from Hao 2021 without, so only Zheng 2017 is new to it, most of whose "
        "genes it knows. Leiden and k-means cluster the scored cells "
        "themselves: 50 principal components of log1p of counts per 10,000, 15 neighbours, "
        "resolution 1 or the one that gives as many groups as cells have codes. NMI and purity "
        "grow with the number of groups, AMI and ARI are adjusted for it. *Merged* codes are "
        "grouped by Ward's method on the code vectors, weighted by their use."
    )
    report.table("scores", scores, "Groups and cell types", {"groups": 0})
    report.text(summary(scores))
    report.table("use", use, "Codes in use", {"genes found": 2, "perplexity": 1})
    report.table("stability", steady, "Agreement between seeds: mean over pairs", {"perplexity": 1})
    report.finish(args.write)


if __name__ == "__main__":
    main()
