"""Stand-ins for the tools of a report, so that a run takes a second."""

from __future__ import annotations

import numpy as np
import pandas as pd

from tests.pl._stored import with_drug_screen, with_gene_programs, with_host_factors


def stand_in_host_factors(adata, groupby, *, model, n_permutations):
    """Host factors made up for the groups of ``adata``."""
    groups = sorted(adata.obs[groupby].astype(str).unique())
    made = with_host_factors(40, tuple(groups)).uns["host_factors"]
    genes = {f"GENE{i}": name for i, name in enumerate(adata.var_names[:40])}
    made["results"]["gene"] = made["results"]["gene"].map(genes)
    made["results"]["explained"] = made["results"]["explained"].replace({"KSHV": "response"})
    made["params"] = {
        "model": model,
        "n_permutations": n_permutations,
        "groups": groups,
        "targets": [g if g != "KSHV" else "response" for g in groups],
        "nulls": ["effects"] * len(groups),
    }
    adata.uns["host_factors"] = made


def stand_in_gene_programs(adata, model, *, gene_sets):
    """Three programs of the first genes of ``adata``; one is enriched in a set."""
    made = with_gene_programs((8, 6, 5)).uns["gene_programs"]
    genes = {f"GENE{i}": name for i, name in enumerate(adata.var_names)}
    made["genes"]["gene"] = made["genes"]["gene"].map(genes)
    for end in ("gene_a", "gene_b"):
        made["edges"][end] = made["edges"][end].map(genes)
    made["enrichment"] = pd.DataFrame(
        {
            "program": ["P1", "P2"],
            "term": [next(iter(gene_sets)), "HALLMARK_NOTHING"],
            "p_value": [0.001, 0.5],
            "fdr": [0.01, 0.9],
        },
        index=["0", "1"],
    )
    made["params"] = {"model": model}
    adata.uns["gene_programs"] = made


def stand_in_screen_drugs(adata, signatures, targets, *, groupby, model):
    """A screen of 60 compounds for the groups of ``adata``; without targets no such evidence."""
    groups = sorted(adata.obs[groupby].astype(str).unique())
    made = with_drug_screen(60, tuple(groups)).uns["drug_screen"]
    if targets is None:
        made["results"]["target_score"] = np.nan
        made["results"]["n_targets"] = 0
        made["results"]["target_genes"] = ""
    made["params"] = {"model": model, "signatures": signatures["compound"].nunique()}
    adata.uns["drug_screen"] = made


def put_in_place(monkeypatch) -> None:
    """Replace the three tools."""
    monkeypatch.setattr("cfm.tl.host_factors", stand_in_host_factors)
    monkeypatch.setattr("cfm.tl.gene_programs", stand_in_gene_programs)
    monkeypatch.setattr("cfm.tl.screen_drugs", stand_in_screen_drugs)


def refuse_all(monkeypatch) -> None:
    """Replace the three tools by ones that refuse any input, for tests of the rest."""

    def refuse(*args, **kwargs):
        raise ValueError("the stand-in refuses any input.")

    for name in ("host_factors", "gene_programs", "screen_drugs"):
        monkeypatch.setattr(f"cfm.tl.{name}", refuse)
