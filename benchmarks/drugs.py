"""Do signatures find compounds of one mechanism, and compounds that work against viruses?

Run as ``python -m benchmarks.drugs [--data FOLDER] [--write]``, in about ten minutes on a core.
Mechanisms are retrieved drug by drug: the query is one drug, the answers are other drugs, never
instances of the same one. The bundled model has not seen the Connectivity Map; it has seen the
viral contrasts, ImmuneSigDB and CytoSig (``training/pretrain.py``).
"""

from __future__ import annotations

import argparse
import os
import time
import warnings
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import anndata as ad
import numpy as np
import pandas as pd
import torch

import cfm
from benchmarks._drug_controls import controls
from benchmarks._drug_data import (
    DIRECT_ANTIVIRALS,
    HOST_DIRECTED,
    PLATE,
    Compounds,
    load_compounds,
)
from benchmarks._drug_scores import (
    COSINE,
    FACTORS,
    Space,
    against_chance,
    joined,
    reversal_scores,
    similarities,
    tool_scores,
    unit,
)
from benchmarks._report import Report, add_arguments, data_folder
from benchmarks._studies import load_signatures
from cfm.metrics import auroc, enrichment_factor, paired_bootstrap
from training.build_cmap_signatures import consensus, strongest

COMBINED = "cosine + factor scores"
CHOSEN = "screen_drugs: readings chosen on other classes"


def retrieval(compounds: Compounds, scores: np.ndarray, *, far: bool = False) -> pd.DataFrame:
    """AUROC and enrichment of each drug's classes; ``far`` leaves out what may share its plate."""
    rows = []
    for name, members in compounds.classes.items():
        for query in members:
            candidates = compounds.known.copy()
            candidates[query] = False
            if far:
                candidates &= ~compounds.near[query]
            same = np.isin(np.arange(len(candidates)), members)[candidates]
            if not same.any():
                continue
            found = scores[query, candidates]
            rows.append((name, query, auroc(same, found), enrichment_factor(found, same, 0.01)))
    return pd.DataFrame(rows, columns=["class", "drug", "auroc", "ef"])


def combined(compounds: Compounds, first: np.ndarray, second: np.ndarray) -> pd.DataFrame:
    """Retrieval by a sum of two scores, its weight chosen on the classes of other drugs."""
    a, b = (x / x.std() for x in (first, second))
    tried = {w: retrieval(compounds, (1 - w) * a + w * b) for w in np.linspace(0, 1, 11)}
    return chosen_on_others(compounds, tried).rename(columns={"chosen": "weight"})


def chosen_on_others(compounds: Compounds, tried: dict[Any, pd.DataFrame]) -> pd.DataFrame:
    """For each class the retrieval that is best for the drugs outside it."""
    parts = []
    for name, members in compounds.classes.items():
        others = {
            key: table[(table["class"] != name) & ~table["drug"].isin(members)]["auroc"].mean()
            for key, table in tried.items()
        }
        best = max(others, key=lambda key: others[key])
        parts.append(tried[best][tried[best]["class"] == name].assign(chosen=best))
    return pd.concat(parts, ignore_index=True)


def per_drug(table: pd.DataFrame, column: str) -> pd.Series:
    return table.groupby("drug")[column].mean()


def mechanisms(report: Report, compounds: Compounds, found: dict[str, np.ndarray]) -> None:
    tables = {name: retrieval(compounds, scores) for name, scores in found.items()}
    own = {name: table for name, table in tables.items() if name.startswith("screen_drugs")}
    tables[CHOSEN] = chosen_on_others(compounds, own)
    tables[COMBINED] = combined(compounds, found[COSINE], found[FACTORS])
    far = {name: retrieval(compounds, scores, far=True) for name, scores in found.items()}
    rows, pairs = [], []
    for name, table in tables.items():
        by_class = table.groupby("class")[["auroc", "ef"]].mean()
        row = {
            "method": name,
            "AUROC": per_drug(table, "auroc").mean(),
            "EF 1 %": per_drug(table, "ef").mean(),
            "AUROC, mean of classes": by_class["auroc"].mean(),
            "EF 1 %, mean of classes": by_class["ef"].mean(),
        }
        row["AUROC, other plates"] = (
            per_drug(far[name], "auroc").mean() if name in far else float("nan")
        )
        rows.append(row)
        if name != COSINE:
            for column, label in (("auroc", "AUROC"), ("ef", "EF 1 %")):
                a, b = per_drug(table, column), per_drug(tables[COSINE], column)
                test = paired_bootstrap(a, b, a.index.to_numpy())
                pairs.append({"minus cosine": name, "score": label, **test})
    n_drugs = tables[COSINE]["drug"].nunique()
    report.table(
        "retrieval",
        pd.DataFrame(rows),
        f"Mechanism retrieval: {n_drugs} drugs in {len(compounds.classes)} classes, among "
        f"{int(compounds.known.sum())} drugs with a known mechanism; means over drugs",
    )
    report.table("retrieval_paired", pd.DataFrame(pairs), "Paired bootstrap over drugs")
    columns = {
        "cosine": COSINE,
        "screen_drugs": joined(("cosine",)),
        "KS": "Kolmogorov–Smirnov (Lamb)",
        "weighted": "weighted connectivity",
        "factor scores": FACTORS,
    }
    ahead = [
        f"{row['minus cosine']} ({row['diff']:+.3f}, {row['low']:+.3f} to {row['high']:+.3f})"
        for row in pairs
        if row["score"] == "AUROC" and row["low"] > 0
    ]
    behind = [row["minus cosine"] for row in pairs if row["score"] == "AUROC" and row["high"] < 0]
    report.text(
        f"Significantly above plain cosine in AUROC: {', '.join(ahead) or 'nothing'}. Below it: "
        f"{', '.join(behind) or 'nothing'}."
    )
    by_class = pd.DataFrame(
        {c: tables[name].groupby("class")["auroc"].mean() for c, name in columns.items()}
    )
    by_class.insert(0, "drugs", [len(compounds.classes[c]) for c in by_class.index])
    best = by_class.sort_values("cosine", ascending=False).head(12).reset_index()
    report.table("classes", best, "AUROC of the classes that plain cosine finds best")
    picked = tables[CHOSEN].groupby("class")["chosen"].first().value_counts()
    counted = ", ".join(f"{name} for {count} classes" for name, count in picked.items())
    report.text(
        "`screen_drugs` is its score with the readings named, cosine being the default; 200 random "
        "signatures instead of 1,000, and the query turned round, so that reversal is retrieval. "
        "Its cosine projects the library's mean signature out of the profile: to take it off the "
        "signatures alone changes no order. Readings chosen for each class on the drugs of the "
        f"others: {counted}."
    )
    chosen = tables[COMBINED].groupby("class")["weight"].first()
    report.text(
        f"The sum of {COMBINED}, its weight chosen for each class on the drugs of the others, put "
        f"{chosen.median():.1f} of its weight (median) on the factor scores."
    )


def ceiling(report: Report, data, compounds: Compounds) -> None:
    """How well a drug finds itself: half of its instances against the other half."""
    instances = pd.read_csv(data / "signed_sets" / "cmap_instances.csv.gz")
    rng = np.random.default_rng(0)
    instances["draw"] = rng.random(len(instances))
    place = instances.groupby("drug")["draw"].rank()
    halves = []
    for part in (0, 1):
        chosen = pd.Index(instances.loc[place % 2 == part, "instance"])
        halves.append(consensus(data / "signed_sets", chosen))
    size = instances["drug"].value_counts()
    enough = set(size.index[size >= 4])
    drugs = [d for d in halves[0].index if d in enough and d in halves[1].index]
    genes = halves[0].columns.union(halves[1].columns)
    first = halves[0].reindex(drugs, columns=genes, fill_value=0.0)
    lists = strongest(halves[1].reindex(drugs))
    signed = pd.DataFrame(0.0, index=drugs, columns=genes)
    for i, sides in enumerate(lists.values()):
        for genes_of, sign in zip(sides, (1.0, -1.0), strict=True):
            signed.values[i, genes.get_indexer(pd.Index(genes_of))] = sign
    scores = unit(first.to_numpy()) @ unit(signed.to_numpy()).T
    own = np.diag(scores)
    share = [(own[i] > np.delete(scores[i], i)).mean() for i in range(len(own))]
    pair = np.triu_indices(len(compounds.near), 1)
    cosine = unit(compounds.signed())
    values = (cosine @ cosine.T)[pair]
    near = compounds.near[pair]
    report.value("self_retrieval_auroc", float(np.mean(share)))
    report.text(
        f"The ceiling is low. Of {len(drugs)} drugs with at least four instances, one half of the "
        f"instances finds the other half of the same drug with AUROC {np.mean(share):.3f} (cosine "
        f"to the consensus sets, among all drugs). Pairs of drugs with instances less than {PLATE} "
        f"numbers apart, which may share a plate, have a mean cosine of {values[near].mean():.4f}, "
        f"others of {values[~near].mean():.4f}: part of any similarity is the plate."
    )


def viruses(report: Report, data, compounds: Compounds, space: Space) -> None:
    """Known drugs against viral contrasts, and how long a screen takes."""
    signatures = load_signatures(data)
    adata = ad.AnnData(
        signatures.effects,
        obs=signatures.obs[["virus", "study"]].astype(str),
        var=pd.DataFrame(index=signatures.var_names),
    )
    table = cfm.datasets.cmap_signatures()
    five = ["SARS-CoV-2", "IAV", "RSV", "HIV-1", "ZIKV"]
    theirs = adata[adata.obs["virus"].isin(five)].copy()
    torch.set_num_threads(1)
    seconds = {}
    for label, model in (("with the model", "cellpulse-mini"), ("without", None)):
        start = time.perf_counter()
        cfm.tl.screen_drugs(theirs, table, model=model)
        seconds[label] = time.perf_counter() - start
    report.value("seconds", seconds)
    cfm.tl.screen_drugs(adata, table)
    results = adata.uns["drug_screen"]["results"]
    names = pd.Index(compounds.sets.compounds)
    wide = results.pivot(index="group", columns="compound", values="score")[names]
    groups = wide.index
    queries = pd.DataFrame(
        {
            g: np.nanmean(np.where(enough(x), x, np.nan), axis=0)
            for g in groups
            for x in [signatures.effects[(adata.obs["virus"] == g).to_numpy()]]
        },
        index=signatures.var_names,
    ).T
    queries = queries.loc[:, ~queries.columns.duplicated()]
    found = reversal_scores(queries, compounds, space)
    found["screen_drugs: score"] = wide.to_numpy()
    steroids = compounds.mechanism("NR3C1 agonist")
    lists = {
        f"direct antivirals ({len(DIRECT_ANTIVIRALS)})": compounds.members(DIRECT_ANTIVIRALS),
        f"glucocorticoids ({steroids.sum()})": steroids,
        f"host-directed ({len(HOST_DIRECTED)})": compounds.members(HOST_DIRECTED),
    }
    rows = [
        {"compounds": label, "method": name, **against_chance(scores, members)}
        for label, members in lists.items()
        for name, scores in found.items()
    ]
    report.table(
        "viruses",
        pd.DataFrame(rows),
        f"Reversal of {len(groups)} viruses ({adata.n_obs} contrasts) by known drugs: mean AUROC; "
        "chance: as many random compounds, two-sided p; below 0.5 they mimic infection",
    )
    outside = [
        f"{row['compounds']}, {row['method']} ({row['AUROC']:.2f})"
        for row in rows
        if row["p"] < 0.01
    ]
    report.text(
        f"Outside chance (p < 0.01): {'; '.join(outside) or 'nothing'}. Below 0.5 a list moves "
        "genes as the infections do, and a search for compounds that reverse a profile ranks it "
        "last."
    )
    first = results[results["rank"] <= 5].groupby("group")["compound"].agg(", ".join)
    counts = results.groupby("group")["fdr"].agg(lambda x: int((x <= 0.05).sum()))
    report.table(
        "first",
        pd.DataFrame({"virus": first.index, "FDR ≤ 0.05": counts.to_numpy(), "first five": first}),
        "First compounds of cfm.tl.screen_drugs(contrasts, cmap_signatures())",
    )
    report.text(
        f"screen_drugs on {len(names):,} compounds and {len(five)} viruses took "
        f"{seconds['with the model']:.1f} s with the model and {seconds['without']:.1f} s without, "
        "on one core with 1,000 permutations."
    )


def enough(effects: np.ndarray) -> np.ndarray:
    """Genes that at least half of the contrasts measure."""
    return (np.isfinite(effects).mean(axis=0) >= 0.5)[None]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    arguments = parser.parse_args(argv)
    data = data_folder(arguments.data)
    warnings.filterwarnings("ignore", message="Mean of empty slice")
    torch.set_num_threads(1)
    report = Report("drugs", "Drug screen")
    report.text(
        "Signatures of 1,309 compounds (Connectivity Map build 2, consensus of 50 up and 50 down "
        "genes, `cfm.datasets.cmap_signatures`), mechanisms of DrugCentral. The bundled "
        "`cellpulse-mini` has not seen the Connectivity Map; the viral contrasts, ImmuneSigDB and "
        "CytoSig were in its pretraining, so the model's rows on those are not held out."
    )
    compounds = load_compounds(data)
    space = Space(compounds.weights.columns)
    ceiling(report, data, compounds)
    queries = np.unique(np.concatenate(list(compounds.classes.values())))
    found = similarities(compounds, space) | tool_scores(compounds, space, queries)
    mechanisms(report, compounds, found)
    controls(report, data, compounds, space)
    viruses(report, data, compounds, space)
    report.finish(arguments.write)


if __name__ == "__main__":
    main()
