"""Gene programs against gene sets, against plain correlation, and in studies left out.

``python -m benchmarks.programs`` splits the studies in two halves, trains a CellPulse for each
(without the other half and the signed sets made from it; kept in ``--models``), finds modules in
groups of contrasts of one half and reads their coherence in the other half.
"""

from __future__ import annotations

import argparse
import logging
import time
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scvi import settings as scvi_settings
from sklearn.metrics import adjusted_rand_score

from benchmarks._programs import (
    best_sets,
    correlation,
    load_gene_sets,
    matched_modules,
    mean_coherence,
    planted_contrasts,
    random_modules,
    same_direction,
    set_matrix,
)
from benchmarks._report import Report, add_arguments, data_folder
from benchmarks._studies import Signatures, load_signatures, study_folds
from benchmarks.masked_direction import MODELS, fold_model
from cfm.metrics import paired_bootstrap
from cfm.models import CellPulse
from cfm.tl import gene_programs
from cfm.tl._gene_programs._find import (
    MIN_SIZE,
    N_NEIGHBORS,
    SimilarityOf,
    choose_genes,
    profiles_of,
)
from training.pretrain import MAX_STEPS, PretrainingData, load_pretraining

#: Numbers of modules that every method is cut into, so that they can be compared.
N_MODULES = (20, 40)
N_GENES = 2000
SOURCES = ("attention", "interaction", "combined")
CORRELATION, SIGNED = "correlation", "correlation × same direction"
RANDOM = "random genes"
OURS = "interaction"
SIGNIFICANT = 0.05


def similarities(
    model: CellPulse, adata: ad.AnnData
) -> tuple[pd.Index, np.ndarray, dict[str, np.ndarray]]:
    """Return the genes that the tool takes, their effects, and similarities by method."""
    part = profiles_of(adata, np.arange(adata.n_obs), None)
    tokens_of = [tokens[1:] for tokens, _ in model.get_attention(part)]
    tokens, _, effects = choose_genes(part, tokens_of, N_GENES, "group")
    found = {s: SimilarityOf(model, part, tokens, effects, s, lambda n: None)() for s in SOURCES}
    if len(effects) > 2:
        found[CORRELATION] = correlation(effects)
        found[SIGNED] = np.maximum(found[CORRELATION], 0.0) * same_direction(effects)
    return pd.Index(tokens), effects, found


def groups_of(human: Signatures, rows: np.ndarray, least: int = 3) -> dict[str, np.ndarray]:
    """All contrasts of a half, and those of each virus with enough of them."""
    virus = human.obs["virus"].to_numpy(str)
    names, counts = np.unique(virus[rows], return_counts=True)
    each = {v: rows[virus[rows] == v] for v in names[counts >= least]}
    return {"all": rows} | each


def as_contrasts(human: Signatures, rows: np.ndarray) -> ad.AnnData:
    obs = pd.DataFrame(index=human.obs.index[rows].astype(str))
    return ad.AnnData(human.effects[rows], obs=obs, var=pd.DataFrame(index=human.var_names))


def run_group(
    model: CellPulse, human: Signatures, rows: np.ndarray, other: np.ndarray, sets: dict
) -> list[dict]:
    """Score all methods on a group, a row per method and number of modules."""
    genes, effects, found = similarities(model, as_contrasts(human, rows))
    unseen = human.effects[np.ix_(other, human.var_names.get_indexer(genes))]
    members = {name: set_matrix(genes, s)[0] for name, s in sets.items()}
    out = []
    for n in N_MODULES:
        cut = {
            k: matched_modules(s, n, n_neighbors=N_NEIGHBORS, min_size=MIN_SIZE)
            for k, s in found.items()
        }
        cut[RANDOM] = random_modules(cut[OURS], len(genes))
        for method, programs in cut.items():
            row = {"method": method, "asked": n, "modules": len(programs)}
            row["genes"] = float(np.median([len(p) for p in programs]))
            for name, member in members.items():
                row[name] = float((best_sets(programs, member)[1] < SIGNIFICANT).mean())
            row["coherence"] = mean_coherence(programs, effects)
            row["coherence, unseen studies"] = mean_coherence(programs, unseen)
            out.append(row)
    return out


def real(
    report: Report, data: PretrainingData, human: Signatures, args: argparse.Namespace
) -> None:
    """Compare methods in groups of real contrasts."""
    studies = human.obs["study"].astype(str).to_numpy()
    half = study_folds(studies, 2)
    sets = load_gene_sets(data_folder(args.data))
    rows = []
    for h in (0, 1):
        own, other = np.flatnonzero(half == h), np.flatnonzero(half != h)
        rest = data.without(set(studies[other]))
        folder = args.models / "halves"
        model = fold_model(rest, h, folder, max_steps=args.max_steps, seed=args.seed)
        for name, group in groups_of(human, own).items():
            scored = run_group(model, human, group, other, sets)
            rows += [r | {"unit": f"{name}, half {h + 1}", "profiles": len(group)} for r in scored]
            print(f"half {h + 1}, {name}: {len(group)} contrasts", flush=True)
    table = pd.DataFrame(rows)
    units = table.drop_duplicates("unit")
    scores = [*sets, "coherence", "coherence, unseen studies"]
    report.text(
        f"The {len(set(studies))} studies of {len(human)} human contrasts fall in two halves; each "
        "half has a CellPulse that never saw the other, nor signed sets made from it. In "
        f"{len(units)} groups of contrasts of one half (all, and each virus with at least three: "
        f"{'; '.join(f'{u}: {n}' for u, n in zip(units['unit'], units['profiles'], strict=True))}) "
        f"every method gets the same up to {N_GENES:,} genes, the same graph builder "
        f"({N_NEIGHBORS} neighbours) and Leiden, at the resolution that gives the same number of "
        f"modules of at least {MIN_SIZE} genes. `Hallmark`, `Reactome`, `TF regulons`: share of "
        f"modules with a set at FDR < {SIGNIFICANT}. Coherence: share of gene pairs of a module "
        "that move the same way in a profile, in the group itself and in all contrasts of the "
        "other half. The model also knows signed gene sets (ImmuneSigDB, CytoSig), in which "
        "correlation has no part."
    )
    order = [*SOURCES, CORRELATION, SIGNED, RANDOM]
    for n in N_MODULES:
        means = table[table["asked"] == n].groupby("method")[["modules", "genes", *scores]].mean()
        digits = {c: 1 if c in ("modules", "genes") else 3 for c in means.columns}
        shown = means.loc[order].reset_index()
        report.table(f"modules_{n}", shown, f"{n} modules, mean over groups", digits)
    compared = []
    for n in N_MODULES:
        wide = table[table["asked"] == n].set_index(["unit", "method"])
        for name in [m for m in order if m not in (OURS, RANDOM)]:
            for score in [*sets, "coherence, unseen studies"]:
                both = wide[score].unstack("method")[[OURS, name]].dropna()
                result = paired_bootstrap(both[OURS], both[name], both.index.to_numpy())
                compared.append({"modules": n, f"{OURS} minus": name, "score": score} | result)
    report.table(
        "paired",
        pd.DataFrame(compared).astype({"n_units": int}),
        "Paired over groups (95 % bootstrap interval)",
    )


def defaults(report: Report, human: Signatures, sets: dict) -> None:
    """Run the tool as it is on all contrasts, and time it on 50."""
    adata = as_contrasts(human, np.arange(len(human)))
    gene_programs(adata)
    stored = adata.uns["gene_programs"]
    programs, genes = stored["programs"], stored["genes"]
    names = pd.Index(genes["gene"].unique())
    lists = [names.get_indexer(g["gene"]) for _, g in genes.groupby("program", sort=False)]
    shown = programs[["size", "direction", "coherence", "stability", "fdr"]].copy()
    for name, listed in sets.items():
        member, terms = set_matrix(names, listed)
        best, fdr = best_sets(lists, member)
        short = [terms[b].removeprefix("HALLMARK_").removeprefix("REACTOME_") for b in best]
        hit = fdr < SIGNIFICANT
        shown[name] = [t if h else "–" for t, h in zip(short, hit, strict=True)]
    order = genes.groupby("program", sort=False)["gene"].agg(lambda g: ", ".join(g[:4]))
    shown["first genes"] = order.reindex(shown.index)
    shown = shown.rename_axis("program").reset_index()
    fifty = as_contrasts(human, np.arange(50))
    start, cpu = time.perf_counter(), time.process_time()
    gene_programs(fifty)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    report.value("seconds_50_profiles", {"wall": seconds, "cpu": cpu})
    report.text(
        f"`cfm.tl.gene_programs` at its defaults, with `cellpulse-mini` (which has seen all "
        f"studies), on all {len(human)} contrasts: {len(programs)} programs, the best set of each "
        f"where FDR < {SIGNIFICANT}. On 50 contrasts it takes {seconds:.0f} s "
        f"({cpu:.0f} s of CPU time; {torch.get_num_threads()} thread)."
    )
    report.table("defaults", shown, "Programs of all human contrasts", 2)


def planted(report: Report, seed: int) -> None:
    """Recover modules planted in simulated contrasts."""
    train, module = planted_contrasts(60, seed=seed + 1)
    CellPulse.setup_anndata(train, study_key="study")
    model = CellPulse(train, size="mini", n_tokens=256, n_factors=64, seed=seed)
    model.train(max_steps=120, n_linear_steps=40, seed=seed, enable_progress_bar=False)
    rows = []
    for n in (1, 5, 20, 60):
        for repeat in range(3):
            test, _ = planted_contrasts(n, seed=1000 + 10 * repeat + n)
            genes, _, found = similarities(model, test)
            place = train.var_names.get_indexer(genes)
            truth = module[place]
            for method, similarity in found.items():
                programs = matched_modules(
                    similarity, 8, n_neighbors=N_NEIGHBORS, min_size=MIN_SIZE
                )
                label = np.full(len(genes), -1)
                for i, p in enumerate(programs):
                    label[p] = i
                ari = adjusted_rand_score(truth[truth >= 0], label[truth >= 0])
                rows.append({"method": method, "profiles": n, "ari": ari})
    table = pd.DataFrame(rows).groupby(["method", "profiles"])["ari"].mean().unstack("profiles")
    table = table.reindex([*SOURCES, CORRELATION, SIGNED])
    report.text(
        "Eight modules of 40 genes planted among 180 genes of noise (effect = 0.6 × activity × "
        "loading + noise). CellPulse is trained on 60 simulated contrasts; modules are found in "
        "new ones. Adjusted Rand index over the planted genes, mean over three draws. Best by "
        f"number of profiles: {', '.join(f'{n}: {table[n].idxmax()}' for n in table)}. That "
        "directions count with five neutral profiles was chosen on these simulations."
    )
    shown = table.rename(columns=lambda n: f"{n} profile{'s' if n > 1 else ''}").reset_index()
    report.table("planted", shown, "Planted modules, adjusted Rand index")


def main() -> None:
    """Run all parts and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--models", type=Path, default=MODELS, help="where models are kept")
    parser.add_argument("--max-steps", type=int, default=MAX_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    scvi_settings.verbosity = logging.ERROR
    torch.set_num_threads(1)
    folder = data_folder(args.data)
    data = load_pretraining(folder)
    human = load_signatures(folder, ("human",)).reindex(data.contrasts.var_names)
    report = Report("programs", "Gene programs")
    real(report, data, human, args)
    defaults(report, human, load_gene_sets(folder))
    planted(report, args.seed)
    report.finish(args.write)


if __name__ == "__main__":
    main()
