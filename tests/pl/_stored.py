"""AnnData with the fields that tools store, made up from what the figures read."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pandas as pd
from anndata import AnnData

import cfm
from tests.tl.test_search_signatures import library, queries

VIRUSES = ["SARS-CoV-2", "SARS-CoV", "IAV", "RSV", "HIV-1", "ZIKV", "DENV", "HCV", "HRV", "VACV"]
VIRUSES += ["KSHV", "HCMV", "EBOV", "NiV", "CHIKV", "JCPyV", "HPIV3", "HSV-2", "HBV", "MCMV"]
KINDS = ["none", "viral", "bacterial", "interferon I/III"]
KEY = "predicted_virus"


def make_predicted(
    n: int, k: int = 4, name: str = "series{i}|{virus}_vs_none", seed: int | None = None
) -> AnnData:
    """``n`` contrasts called among ``k`` viruses; the first is ``"unresolved"``."""
    rng = np.random.default_rng(n if seed is None else seed)
    viruses = VIRUSES[:k]
    kinds_proba = rng.dirichlet(np.ones(len(KINDS)), size=n)
    virus_proba = rng.dirichlet(np.full(k, 0.5), size=n)
    response = np.array(KINDS, dtype=object)[kinds_proba.argmax(axis=1)]
    response[0] = "viral"
    virus = np.array(viruses, dtype=object)[virus_proba.argmax(axis=1)]
    call = np.select([response == "none", response == "viral"], ["uninfected", virus], "not viral")
    call[0] = "unresolved"
    shares = dict(zip(KINDS, (0.71, 0.81, 0.14, 0.33), strict=True))
    support = np.where(call == "unresolved", shares["viral"], rng.uniform(0.8, 1, size=n))
    true = [VIRUSES[i % k] for i in range(n)]
    names = [name.format(i=i, virus=v) for i, v in enumerate(true)]
    obs = pd.DataFrame(
        {
            "virus": pd.Categorical(true),
            KEY: pd.Categorical(call),
            f"{KEY}_response": pd.Categorical(response),
            f"{KEY}_infected": kinds_proba[:, 1].astype(np.float32),
            f"{KEY}_support": support.astype(np.float32),
        },
        index=names,
    )
    genes = pd.DataFrame(index=[f"GENE{i}" for i in range(30)])
    adata = AnnData(rng.normal(size=(n, 30)).astype(np.float32), obs=obs, var=genes)
    adata.obsm[f"{KEY}_response_proba"] = pd.DataFrame(
        kinds_proba, index=names, columns=[kind.replace("/", "|") for kind in KINDS]
    )
    adata.obsm[f"{KEY}_proba"] = pd.DataFrame(virus_proba, index=names, columns=viruses)
    adata.obsm["X_cellpulse"] = rng.normal(size=(n, 8)).astype(np.float32)
    table = pd.DataFrame({"level": "response", "answer": KINDS, "share": shares.values()})
    adata.uns[KEY] = {
        "params": {"model": "cellpulse-virus"},
        "classes": viruses,
        "responses": KINDS,
        "support": table.assign(n_contrasts=9, n_studies=4),
    }
    return adata


def make_graph(n_codes: int = 4, n_genes: int = 24, n_levels: int = 2, seed: int = 0) -> AnnData:
    """An AnnData with a graph: genes with one to three codes, every code with every other."""
    rng = np.random.default_rng(seed)
    codes, genes = (
        [f"{k}:{i}" for i in range(n)] for k, n in (("code", n_codes), ("gene", n_genes))
    )
    levels = [f"tissue:t{i}" for i in range(n_levels)]
    rows = [
        (codes[c], gene, "importance", False)
        for gene in genes
        for c in rng.choice(n_codes, rng.integers(1, min(4, n_codes + 1)), replace=False)
    ]
    rows += [(a, b, "communication", True) for a in codes for b in codes for _ in range(2)]
    rows += [(codes[i % n_codes], level, "enrichment", False) for i, level in enumerate(levels)]
    rows += [(genes[2 * i], genes[2 * i + 1], "relation", False) for i in range(n_genes // 4)]
    edges = pd.DataFrame(rows, columns=["source", "target", "kind", "directed"])
    edges["strength"] = edges["weight"] = rng.uniform(0.05, 1.0, len(edges))
    ids = [*codes, *genes, *levels, "gene:lonely"]
    nodes = pd.DataFrame(
        {
            "kind": [name.split(":")[0] for name in ids],
            "label": [name.replace("gene:", "GENE").split(":")[-1] for name in ids],
            "size": 10,
        },
        index=ids,
    )
    adata = AnnData(np.zeros((2, 2), dtype=np.float32))
    edges = edges.set_axis(edges.index.astype(str))
    adata.uns["knowledge_graph"] = {"params": {}, "nodes": nodes, "edges": edges}
    return adata


METRICS = ("balanced_accuracy", "auroc")


def make_probed(n_targets: int = 1, n_reps: int = 1, seed: int = 0) -> AnnData:
    """The table that the tool stores, made up: embeddings at 0.8, expression at 0.7."""
    rng = np.random.default_rng(seed)
    rows = []
    targets = ["disease"] if n_targets == 1 else ["mean over targets"]
    targets += [f"drug{i}" for i in range(n_targets if n_targets > 1 else 0)]
    methods = [(f"X_model{i}", 0.8) for i in range(n_reps)] + [("expression PCA", 0.7)]
    heads = ["logistic", "random_forest"]
    for (rep, level), head, target, metric in itertools.product(methods, heads, targets, METRICS):
        score = level + 0.02 * heads.index(head) + (target[:4] == "drug") * rng.normal() / 10
        rows.append((rep, head, target, metric, score, score - 0.1, score + 0.1, 60, 20))
    for target, metric in itertools.product(targets, METRICS):
        rows.append(("none", "majority", target, metric, 0.5, 0.5, 0.5, 60, 20))
    names = ["representation", "head", "target", "metric"]
    names += ["score", "low", "high", "n_obs", "n_groups"]
    table = pd.DataFrame(rows, columns=names)
    table.index = table.index.astype(str)
    adata = AnnData(np.zeros((4, 2)))
    adata.uns["probe"] = {
        "params": {"task": "classification", "target": ["disease"]},
        "results": table,
    }
    return adata


def make_survival(n: int = 60, seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    high = np.arange(n) % 2 == 1
    time = rng.exponential(np.where(high, 10.0, 40.0))
    end = rng.uniform(5, 80, size=n)
    obs = pd.DataFrame(
        {
            "days": np.minimum(time, end).round(1) + 0.1,
            "died": time <= end,
            "probe_risk_group": pd.Categorical(
                np.where(high, "high", "low"), categories=["low", "high"]
            ),
        },
        index=[f"p{i}" for i in range(n)],
    )
    adata = AnnData(np.zeros((n, 2)), obs=obs)
    params = {"task": "survival", "target": ["days", "died"]}
    adata.uns["probe"] = {"params": params, "results": pd.DataFrame({"score": [0.7]})}
    return adata


def make_importance(seed: int = 0) -> AnnData:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "donor": f"d{i}",
            "group": group,
            "enrichment": level * rng.uniform(0.9, 1.1),
            "removal": level + 0.01 * i,
            "removal_random": 0.3 + 0.01 * i,
        }
        for i in range(5)
        for group, level in (("T", 0.5), ("B", 2.0), ("NK", 1.0))
    ]
    table = pd.DataFrame(rows, index=[str(i) for i in range(len(rows))])
    record = {"params": {"method": "attention"}, "groups": table}
    return AnnData(obs=pd.DataFrame(index=["cell"]), uns={"cell_importance": record})


def make_donors() -> AnnData:
    rng = np.random.default_rng(0)
    obs = pd.DataFrame(
        {
            "disease": pd.Categorical(["lupus", "normal"] * 6),
            "age": np.arange(12.0),
            "X_pulsar_spread": np.r_[0.0, np.nan, np.full(10, 0.5)].astype(np.float32),
        },
        index=[f"donor{i}" for i in range(12)],
    )
    return AnnData(obs=obs, obsm={"X_pulsar": rng.normal(size=(12, 2)).astype(np.float32)})


def make_searched(**arguments: Any) -> AnnData:
    """Four contrasts with their matches in a library."""
    adata = queries()
    cfm.tl.search_signatures(adata, library(), n=50, **arguments)
    return adata
