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
    difference,
    k_means,
    k_means_from,
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
    QUANTISER,
    RESAMPLED,
    TRAINING,
    Cells,
    Recipe,
    cite_blood,
    codes_alone,
    fold_model,
    interferon,
    part_of,
    quiet,
    read_codes,
    resampled,
    sorted_blood,
)
from benchmarks._report import REPOSITORY, Report, add_arguments, data_folder
from cfm.models import CellVQ
from cfm.stats._ward import weighted_ward

MODELS = REPOSITORY / "benchmarks" / "models"
BUNDLED = "cellvq-mini"
RECIPES = (PLAIN, LABELLED)
#: Seeds of k-means beside codes.
N_CLUSTERED = 3
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
    found = {
        "k-means on PCA, as many groups": k_means(plain.obsm["X_pca"], n_used),
        "Leiden on PCA, as many groups": leiden_of(plain, n_used),
    }
    has_network = coded.run.name.endswith(QUANTISER.name)  # its codes are of the embedding
    if has_network:
        reading = {k: v for k, v in stored["params"].items() if k in ("units", "total_counts")}
        embedding = np.nan_to_num(coded.run.model.get_latent_representation(coded.adata, **reading))
        found["k-means on the same embedding"] = k_means(embedding, n_used)
    n_types = len(set(cells.truth) - {""})
    if 0 < n_types < n_used:
        size = stored["codes"]["n_cells"].to_numpy()
        group = weighted_ward(stored["vectors"].to_numpy(), size, n_types)
        place = stored["codes"].index.get_indexer(coded.codes)
        found["codes, merged to as many as types"] = np.where(place < 0, -1, group[place])
        found["k-means on PCA, as many as types"] = k_means(plain.obsm["X_pca"], n_types)
        if has_network:
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


def beside_k_means(cells: Cells, plain: ad.AnnData, read: list[Coded]) -> list[dict]:
    """Hold codes against k-means with as many groups, a mean over three seeds, cell by cell."""
    rows = []
    for coded in read:
        n_used = len(set(coded.codes) - {_UNREAD})
        others = [k_means(plain.obsm["X_pca"], n_used, seed) for seed in range(N_CLUSTERED)]
        row = {"cells": cells.name, "model": coded.run.name, "seed": coded.run.seed}
        row["groups"] = n_used
        rows.append(row | difference(coded.codes, others, cells.truth))
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


def stable(
    cells: Cells, plain: ad.AnnData, read: list[Coded], parts: dict[str, list[np.ndarray]]
) -> list[dict]:
    """Hold codes of differently seeded models against each other, and seeds of clusterings.

    ``parts`` are codes of models by name that were made from 80 % of their training cells each.
    """
    rows = []
    pca = plain.obsm["X_pca"]

    def add(method: str, trained: str, found: list[np.ndarray]) -> None:
        row = {"cells": cells.name, "method": method, "model": trained, "seeds": len(found)}
        row["perplexity"] = float(np.mean([perplexity(f) for f in found]))
        rows.append(row | stability(found))

    for name, codes in parts.items():
        n_used = round(float(np.mean([len(set(c)) for c in codes])))
        add("codes, from 80 % of the training cells", name, codes)
        drawn = [part_of(len(pca), seed) for seed in range(RESAMPLED)]
        found = [k_means_from(pca, d, n_used, seed) for seed, d in enumerate(drawn)]
        add("k-means on PCA, as many groups, from 80 % of the scored cells", name, found)
    seeds = sorted({coded.run.seed for coded in read})
    if len(seeds) < 2:
        return rows
    for name in dict.fromkeys(coded.run.name for coded in read):
        codes = [coded.codes for coded in read if coded.run.name == name]
        if len(codes) < 2:
            continue
        n_used = round(float(np.mean([len(set(c)) for c in codes])))
        add("codes", name, codes)
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
    """Put codes beside the best clusters, by the adjusted mutual information."""
    parts = []
    for cells, part in table.groupby("cells", sort=False):
        codes = part[part["method"] == "codes"].set_index("model")["AMI"]
        clusters = part[(part["model"] == "–") | part["method"].str.contains("on PCA, as many")]
        clusters = clusters[~clusters["method"].str.startswith("logistic")]
        best = clusters.sort_values("AMI").iloc[-1]
        each = ", ".join(f"{value:.2f} ({name})" for name, value in codes.items())
        text = f"{cells}: codes {each} against {best['AMI']:.2f} ({best['method']})"
        named = part[part["method"].str.startswith("logistic")]
        if len(named):
            text += f", and {named['AMI'].iloc[0]:.2f} of types named by logistic regression"
        parts.append(text)
    return f"AMI with cell types. {'; '.join(parts)}."


def against_k_means(table: pd.DataFrame) -> str:
    """Say where codes and k-means with as many groups differ by more than chance."""
    parts = []
    for name, part in table[table["seed"] == 0].groupby("model", sort=False):
        said = []
        for row in part.to_dict("records"):
            words = []
            for score in ("NMI", "ARI"):
                low, high = row[f"{score} low"], row[f"{score} high"]
                who = "ahead" if low > 0 else "behind" if high < 0 else "level"
                words.append(f"{score} {who} ({row[f'{score} difference']:+.2f})")
            said.append(f"{row['cells']}: {', '.join(words)}")
        parts.append(f"{name} – {'; '.join(said)}")
    return f"Codes against k-means with as many groups. {'. '.join(parts)}."


def main() -> None:
    """Train, score and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--models", type=Path, default=MODELS, help="where models are kept")
    parser.add_argument("--quantiser", action="store_true", help="learned codes, too (minutes)")
    parser.add_argument("--seeds", type=int, default=2, help="models of each recipe, first donor")
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    data = data_folder(args.data)
    kang = interferon(data)
    donor = kang.adata.obs["donor"].astype(str).to_numpy()
    others = [sorted_blood(), sorted_blood(counts=True), cite_blood(data)]
    scores, paired, use, steady = [], [], [], []
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        bundled = bundled_run()
        by_donor = {}
        for name in sorted(set(donor)):
            training = kang.part(donor == name, f"donor {name}")
            runs = train_runs(training, RECIPES, args.seeds, args.models)
            if args.quantiser and not by_donor:
                runs += train_runs(training, (QUANTISER,), args.seeds, args.models)
            by_donor[name] = (training, runs)
        unlabelled = cite_blood(data)
        parts = {
            f"{training.name}, {PLAIN.name}": resampled(training)
            for training, _ in by_donor.values()
        }
        if bundled:
            genes = list(bundled[0].model.vocabulary.genes)
            parts[bundled[0].name] = resampled(unlabelled, genes)
        for name, (training, runs) in by_donor.items():
            (other,) = set(donor) - {name}
            cells = kang.part(donor == other, f"donor {other}")
            plain = log_cells(cells.adata, counts=True)
            read = [*read_all(cells, runs, named=True), *read_all(cells, bundled, named=False)]
            scores += score_cells(cells, plain, read, training)
            paired += beside_k_means(cells, plain, read)
            own = [Coded(run, run.reference) for run in runs if run.reference is not None]
            use += use_of_codes(training, own) + use_of_codes(cells, read)
            drawn = {k: v for k, v in parts.items() if not k.startswith(cells.name)}
            found = {k: [codes_alone(m, cells) for m in v] for k, v in drawn.items()}
            steady += stable(cells, plain, read, found)
        first, second = (runs for _, runs in by_donor.values())
        for cells in others:
            plain = log_cells(cells.adata, counts=cells.units == "counts")
            read = read_all(cells, [*first, *bundled], named=False)
            if (cells.truth != "").any():
                scores += score_cells(cells, plain, read, None)
                more = read_all(cells, second, named=False)
                paired += beside_k_means(cells, plain, read + more)
            use += use_of_codes(cells, read)
            drawn = {} if cells.name == unlabelled.name else parts
            found = {k: [codes_alone(m, cells) for m in v] for k, v in drawn.items()}
            steady += stable(cells, plain, read, found)
    tables = (pd.DataFrame(rows) for rows in (scores, paired, use, steady))
    write(*tables, args)


def write(
    scores: pd.DataFrame,
    paired: pd.DataFrame,
    use: pd.DataFrame,
    steady: pd.DataFrame,
    args: argparse.Namespace,
) -> None:
    """Report the tables."""
    report = Report("cell_codes", "Codes of cells beside clusters")
    report.text(
        "CellVQ makes its codes of the cells of one "
        "donor of Kang 2018 (interferon-beta and control, 1,267 genes), and gives codes to those "
        "of the other donor, then, as it is, to Zheng 2017 (scanpy's pbmc68k_reduced: 700 cells, "
        "765 genes, 323 of them in common; log values as they are, and taken back to counts) and "
        "to 1,000 cells of Hao 2021, which have no cell types. Codes are clusters of the training "
        "cells, by expression alone (*without labels*) or with their types (*with labels*); they "
        "are made before the network is trained. With --quantiser there are codes that are "
        f"learned, too, as published, in {TRAINING['max_steps']} steps. Nothing of the cells that "
        "are scored was seen. The codes of the bundled cellvq-mini are clusters of the cells of "
        "Hao 2021, without labels, so both donors and Zheng 2017 are new to them; its network and "
        "its head of cell types learned from both donors. The number of codes, and how they are "
        "made, were chosen on donor 107 with codes of donor 101; codes of which dataset to bundle "
        "on both donors. Leiden and k-means cluster the scored cells "
        "themselves: 50 principal components of log1p of counts per 10,000, 15 neighbours, "
        "resolution 1 or the one that gives as many groups as cells have codes. NMI and purity "
        "grow with the number of groups, AMI and ARI are adjusted for it. *Merged* codes are "
        "grouped by Ward's method on the code vectors, weighted by their use."
    )
    report.table("scores", scores, "Groups and cell types", {"groups": 0})
    report.text(summary(scores))
    report.text(against_k_means(paired))
    report.table(
        "paired",
        paired,
        "Codes less k-means on PCA with as many groups, mean over three seeds of k-means; "
        "95 % intervals over cells",
        {"groups": 0, "seed": 0},
    )
    report.table("use", use, "Codes in use", {"genes found": 2, "perplexity": 1})
    report.text(
        "Codes that are clusters depend on the seed of training only by the tenth of the cells "
        "that is held out. Codes from 80 % of the training cells, drawn five times, differ by the "
        "cells at hand; k-means is then fitted to 80 % of the scored cells."
    )
    report.table(
        "stability",
        steady,
        "Agreement between seeds, and between parts of the cells: mean over pairs",
        {"perplexity": 1},
    )
    report.finish(args.write)


if __name__ == "__main__":
    main()
