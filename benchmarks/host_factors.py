"""Do genes that carry a virus call turn up in genome-wide CRISPR screens of that virus?

``python -m benchmarks.host_factors`` ranks genes by every method of ``cfm.tl.host_factors`` for
each virus that has contrasts and a screen, and scores the rankings by the screen's hits, beside
rankings that know nothing of the model. It also times all-gene reversal.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from scvi import settings

from benchmarks._report import Report, add_arguments, data_folder
from benchmarks._studies import load_signatures
from cfm.metrics import auroc, average_precision, odds_ratio_at, permutation_interval
from cfm.models import CellPulse
from cfm.stats._gene_scores import gene_folds, guided_scores, unit_rows
from cfm.tl import host_factors

METHODS = ("attention", "integrated_gradients", "reversal", "consensus")
GUIDED = "guided by other viruses' hits"
HIT_FDR = 0.05
#: Strata of expression within which rankings are compared.
N_STRATA = 20


def load_screens(folder: Path) -> pd.DataFrame:
    """Return genes by viruses: whether it is a hit in any of the virus's screens, NaN unknown."""
    screens = pd.read_csv(folder / "host_factors" / "crispr_screens.csv").set_index("screen")
    path = folder / "host_factors" / "crispr_screens_pos_fdr.csv.gz"
    fdr = pd.read_csv(path, index_col=0)
    best = fdr.T.groupby(screens["virus"].reindex(fdr.columns)).min().T
    return (best < HIT_FDR).astype(float).where(best.notna())


def load_degree(folder: Path) -> pd.Series:
    """Return the number of interactions of each gene in the Reactome FI network."""
    edges = pd.read_csv(folder / "networks" / "reactome_fi.csv.gz", usecols=["gene1", "gene2"])
    return pd.concat([edges["gene1"], edges["gene2"]]).value_counts()


def load_network(folder: Path) -> pd.DataFrame:
    """Return the interactions themselves."""
    return pd.read_csv(folder / "networks" / "reactome_fi.csv.gz", usecols=["gene1", "gene2"])


def load_expression(folder: Path) -> pd.Series:
    """Return the mean log2 CPM of genes in uninfected human airway cells (GSE147507)."""
    counts = ad.read_h5ad(folder / "virus_counts" / "GSE147507.h5ad")
    mock = counts[(counts.obs["virus"] == "none").to_numpy()].to_df()
    return np.log2(mock.div(mock.sum(axis=1), axis=0) * 1e6 + 1).mean()


def propagate(edges: pd.DataFrame, genes: pd.Index, seeds: np.ndarray) -> np.ndarray:
    """Spread seeds over a network by random walks with restart; normalised by degree."""
    i, j = genes.get_indexer(edges["gene1"]), genes.get_indexer(edges["gene2"])
    keep = (i >= 0) & (j >= 0)
    n = len(genes)
    w = sp.coo_matrix((np.ones(keep.sum()), (i[keep], j[keep])), shape=(n, n)).tocsr()
    w = ((w + w.T) > 0).astype(float)
    degree = np.asarray(w.sum(axis=1)).ravel()
    scale = sp.diags(1 / np.sqrt(np.maximum(degree, 1)))
    step, spread = scale @ w @ scale, seeds.copy()
    for _ in range(30):
        spread = 0.5 * (step @ spread) + 0.5 * seeds
    return spread / (np.sqrt(degree) + 1)[:, None]


def guided_rankings(
    model: CellPulse, folder: Path, screens: pd.DataFrame, viruses: list[str], expression: pd.Series
) -> dict[str, pd.DataFrame]:
    """Rank genes by known hits of all *other* viruses, never by a hit in the gene's own fold."""
    genes = model.vocabulary.genes
    genes = pd.Index(genes[genes.isin(screens.index)])
    vectors = unit_rows(model.get_gene_factors()[1])[model.vocabulary.genes.get_indexer(genes)]
    fold = gene_folds(genes.tolist())
    hits = screens.reindex(genes).fillna(0.0).to_numpy() > 0
    seeds = np.column_stack([hits[:, screens.columns != v].any(axis=1) for v in viruses])
    out = {GUIDED: pd.DataFrame(guided_scores(vectors, seeds, fold), genes, viruses)}
    edges, spread = load_network(folder), np.zeros(seeds.shape)
    for k in np.unique(fold):
        start = seeds * (fold != k)[:, None]
        spread[fold == k] = propagate(edges, genes, start / start.sum(axis=0))[fold == k]
    out["network propagation of the same"] = pd.DataFrame(spread, genes, viruses)
    plane = np.column_stack([expression.reindex(genes).fillna(0.0).to_numpy(), np.ones(len(genes))])
    out["expression, fitted to the same"] = pd.DataFrame(
        guided_scores(plane, seeds, fold, ridge=1e-6), genes, viruses
    )
    known = np.column_stack([hits[:, screens.columns != v].sum(axis=1) for v in viruses]).astype(
        float
    )
    out["number of other viruses it is a hit for (not blind)"] = pd.DataFrame(known, genes, viruses)
    return out


def within_strata(score: pd.Series, expression: pd.Series) -> np.ndarray:
    """Rank a score among genes of like expression."""
    stratum = pd.qcut(expression.rank(method="first"), N_STRATA, labels=False)
    return score.groupby(stratum.to_numpy()).rank(pct=True).to_numpy()


def evaluate(
    rankings: dict[str, pd.Series], hit: pd.Series, expression: pd.Series, draws: int
) -> pd.DataFrame:
    """Score rankings of genes by the hits of one screen."""
    hits = hit.to_numpy() > 0
    scores: dict[str, Callable[..., float]] = {
        "AUPRC": average_precision,
        "OR 100": lambda s, h: odds_ratio_at(s, h, 100),
        "OR 500": lambda s, h: odds_ratio_at(s, h, 500),
    }
    rows = []
    for name, ranking in rankings.items():
        values = ranking.reindex(hit.index).fillna(ranking.min()).astype(float)
        row: dict[str, float | str] = {"ranking": name}
        for label, score in scores.items():
            found = permutation_interval(score, values, hits, n_permutations=draws)
            row[label] = found["value"]
            row[f"{label} chance"] = f"{found['low']:.3f}–{found['high']:.3f}"
            row[f"{label} p"] = found["p"]
        row["AUPRC / share"] = row["AUPRC"] / hits.mean()
        row["AUROC"] = auroc(hits, values)
        row["AUROC, like expression"] = auroc(hits, within_strata(values, expression))
        rows.append(row)
    return pd.DataFrame(rows)


def shared_or_own(
    rankings: dict[str, pd.Series], hit: pd.Series, shared: np.ndarray
) -> pd.DataFrame:
    """Score rankings by hits that other viruses have too, and by hits of this virus alone.

    Parameters
    ----------
    rankings
        Scores of genes.
    hit
        Whether a gene is a hit of the virus.
    shared
        Whether a gene is a hit of another virus.
    """
    hits = hit.to_numpy() > 0
    rows = []
    for name, ranking in rankings.items():
        values = ranking.reindex(hit.index).fillna(ranking.min()).to_numpy(dtype=float)
        row: dict[str, float | str] = {"ranking": name}
        for label, kind in (("shared hits", shared), ("own hits", ~shared)):
            taken = ~hits | kind
            row[label] = auroc(hits[taken], values[taken]) if (hits & kind).any() else np.nan
        rows.append(row)
    return pd.DataFrame(rows)


def time_reversal(model: CellPulse, adata: ad.AnnData, n: int = 50) -> dict[str, float]:
    """Time all-gene reversal of one group of ``n`` contrasts through the public tool."""
    rows = np.resize(np.arange(adata.n_obs), n)
    group = adata[rows].copy()
    group.obs_names_make_unique()
    group.obs["group"] = "SARS-CoV-2"
    times = []
    for _ in range(3):
        start = time.perf_counter()
        options = {"explain": "SARS-CoV-2", "null": "effects", "n_permutations": 0}
        host_factors(group, "group", "reversal", model=model, **options)
        times.append(time.perf_counter() - start)
    seconds = {"cfm.tl.host_factors, reversal": float(np.median(times))}
    effects = np.concatenate([e for _, e, _ in model.encode_blocks(group)])[:1]
    genes = np.flatnonzero(~np.isnan(effects[0]))[:512]
    start = time.perf_counter()
    for first in range(0, len(genes), 64):  # one classifier run per gene, in batches
        batch = np.tile(effects, (64, 1))
        batch[np.arange(64), genes[first : first + 64]] = 0.0
        model.target_log_odds(batch, "SARS-CoV-2")
    per_gene = (time.perf_counter() - start) / len(genes)
    measured = int((~np.isnan(effects)).sum())
    seconds["classifier once per gene (extrapolated)"] = per_gene * measured * n
    return seconds


def main() -> None:
    """Rank, score, report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--draws", type=int, default=300, help="permutations of the hits")
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=UserWarning)
    settings.verbosity = 30
    folder = data_folder(args.data)
    model = CellPulse.from_pretrained("cellpulse-virus")
    signatures = load_signatures(folder)
    adata = ad.AnnData(
        signatures.effects,
        obs=signatures.obs.astype({"virus": str}),
        var=pd.DataFrame(index=signatures.var_names.astype(str)),
    )
    screens, degree = load_screens(folder), load_degree(folder)
    expression = load_expression(folder)
    text = (folder / "host_factors" / "isg_list.txt").read_text()
    interferon = set(text.split())
    viruses = sorted(set(adata.obs["virus"]) & set(screens.columns))
    parts = []
    known = model.require_classifier().classes
    for virus in viruses:
        explain = virus if virus in known else "response"
        host_factors(adata, "virus", model=model, explain={virus: explain}, n_permutations=0)
        parts.append(adata.uns["host_factors"]["results"])
    table = pd.concat(parts, ignore_index=True)
    guided = guided_rankings(model, folder, screens, viruses, expression)
    rng = np.random.default_rng(0)
    parts, sizes, kinds = [], [], []
    for virus in viruses:
        genes = table[table["group"] == virus].set_index("gene")
        hit = screens[virus].reindex(genes.index).dropna()
        genes = genes.loc[hit.index]
        column = {m: "score" if m == "consensus" else f"score_{m}" for m in METHODS}
        rankings = {f"cfm {m}": genes[column[m]] for m in METHODS}
        rankings |= {
            "cfm reversal, signed": genes["call_effect"],
            "|log2FC|": genes["effect"].abs(),
            "log2FC": genes["effect"],
            "interferon-gene list": pd.Series(genes.index.isin(interferon) * 1.0, genes.index),
            "degree in Reactome FI": degree.reindex(genes.index).fillna(0.0),
            "expression in mock cells": expression.reindex(genes.index).fillna(0.0),
            "random": pd.Series(rng.random(len(genes)), genes.index),
        }
        for name, frame in guided.items():
            rankings[("cfm " if name == GUIDED else "") + name] = frame[virus].reindex(genes.index)
        level = expression.reindex(genes.index).fillna(0.0)
        parts.append(evaluate(rankings, hit, level, args.draws).assign(virus=virus))
        others = screens.drop(columns=virus).reindex(hit.index).max(axis=1).fillna(0).to_numpy() > 0
        kinds.append(shared_or_own(rankings, hit, others))
        n = int((adata.obs["virus"] == virus).sum())
        hits = hit.to_numpy() > 0
        counts = {"hits": int(hits.sum()), "of another virus, too": int((hits & others).sum())}
        sizes.append({"virus": virus, "contrasts": n, "genes": len(hit)} | counts)
        print(f"{virus}: done", flush=True)
    result = pd.concat(parts, ignore_index=True)
    report = Report("host_factors", "Host factors against CRISPR screens")
    report.text(
        "For each virus that has contrasts and a genome-wide CRISPR screen, genes ranked by the "
        f"bundled `cellpulse-virus` are scored by the screen's pro-viral hits (FDR < {HIT_FDR} in "
        "any screen of the virus). The classifier was trained on these contrasts, never on a "
        "screen. *Guided* rankings learn from the hits of all other viruses and score a gene only "
        "by a rule that was fitted without the fifth of genes that it is in; the number of other "
        "viruses that a gene is a hit for is not blind in this way. Chance: central 95 % of "
        f"{args.draws} permutations of the hits. `like expression`: AUROC of ranks among genes of "
        f"like expression in mock cells ({N_STRATA} strata); it takes away what expression alone "
        "says."
    )
    report.table("sizes", pd.DataFrame(sizes), "What is compared")
    columns = ["AUPRC / share", "AUROC", "AUROC, like expression", "OR 100", "OR 500"]
    means = result.groupby("ranking", sort=False)[columns].mean().reset_index()
    report.table("means", means, "Means over viruses", digits=2)
    report.text(
        "*Shared hits* are hits of another virus, too; *own hits* of this virus alone; each "
        "against genes that are no hit of it."
    )
    by_kind = pd.concat(kinds).groupby("ranking", sort=False).mean().reset_index()
    report.table("kinds", by_kind, "AUROC of hits by kind, means over viruses", digits=2)
    report.table(
        "per_virus",
        result[
            [
                "virus",
                "ranking",
                "AUPRC",
                "AUPRC chance",
                "OR 100",
                "OR 100 chance",
                "OR 500",
                "OR 500 chance",
                "AUROC",
                "AUROC, like expression",
            ]
        ],
        "Each virus",
    )
    report.value("p_values", result[["virus", "ranking", "AUPRC p", "OR 100 p"]].to_dict("records"))
    seconds = time_reversal(model, adata[(adata.obs["virus"] == "SARS-CoV-2").to_numpy()].copy())
    times = pd.DataFrame({"run": list(seconds), "seconds": list(seconds.values())})
    times["relative"] = times["seconds"] / times["seconds"].iloc[-1]
    report.table(
        "reversal",
        times,
        f"All-gene reversal of 50 contrasts at `mini` size, medians of 3, "
        f"{torch.get_num_threads()} torch threads",
        digits={"seconds": 1, "relative": 5},
    )
    report.finish(args.write)


if __name__ == "__main__":
    main()
