"""Each argument of each plot changes the figure; none is without an entry here."""

from __future__ import annotations

import inspect
from functools import cache
from typing import Any

import matplotlib.pyplot as plt
import pytest

import cfm
from tests.pl._plots import DATA, digest, draw

pytestmark = pytest.mark.filterwarnings("ignore:The library has:UserWarning")

SCATTER = {"kind": "scatter"}
_CELLS: dict[str, Any] = {
    "key": "swapped",
    "control": "TNF",
    "perturbation": "TNF",
    "groupby": "cell_type",
    "layer": "half",
    "units": "counts",
}
#: By plot: another value of each argument, with what else is given before and after.
ARGUMENTS: dict[str, dict[str, Any]] = {
    "cell_codes": {
        "key": "other",
        "kind": "map",
        "groupby": "donor",
        "codes": ["@first"],
        "n_codes": 2,
        "n_genes": (2, {"kind": "markers"}),
    },
    "cell_importance": {"key": "other", "kind": "removal", "groups": ["T", "B"], "n_groups": 2},
    "classification": {
        "truth": "predicted_virus_response",
        "key": "predicted_virus_response",
        "kind": "calibration",
        "label": ("SARS-CoV", {"kind": "calibration"}),
    },
    "code_transitions": {
        "key": ("other", {"groupby": "cell_type"}),
        "groupby": "donor",
        "n_codes": 2,
    },
    "donors": {
        "basis": "other",
        "color": "disease",
        "spread": False,
        "label": "disease",
        "size": 9.0,
    },
    "drug_screen": {
        "key": "other",
        "kind": "scatter",
        "group": "RSV",
        "n_compounds": 3,
        "x": ("reversal", SCATTER),
        "y": ("score", SCATTER),
    },
    "embedding": {
        "basis": "X_other",
        "color": "virus",
        "label": "virus",
        "size": 9.0,
        "kwargs": ({"alpha": 0.3}, {}),
    },
    "gene_programs": {
        "key": "other",
        "kind": "network",
        "programs": ["P2"],
        "n_programs": 2,
        "n_genes": 3,
        "layer": "half",
        "groupby": "virus",
        "label": "name",
    },
    "host_factor_enrichment": {
        "reference": ["GENE2"],
        "key": "other",
        "group": "RSV",
        "weight": 0.0,
        "n_permutations": 3,
        "seed": 1,
    },
    "host_factors": {"key": "other", "group": "RSV", "n_genes": 3},
    "knowledge_graph": {
        "key": "other",
        "node": "code:1",
        "kinds": ["code", "gene"],
        "edge_kinds": ["importance"],
        "max_nodes": 5,
    },
    "perturbation_effect": _CELLS | {"gene_symbols": "symbol"},
    "perturbation_metrics": {
        "metric": "e_distance",
        "perturbation": "TNF",
        "group": "T cell",
    },
    "perturbation_umap": _CELLS | {"n_cells": 6},
    "probe": {
        "kind": "roc",
        "key": "other",
        "metric": "auroc",
        "target": "drug1",
        "label": ("case", {"kind": "roc"}),
        "use_rep": "X_model0",
        "head": "random_forest",
    },
    "signature_search": {"query": "x", "key": "other", "n_matches": 2, "n_genes": 4},
    "survival": {"key": "other", "groupby": "stage", "confidence": 0.5},
    "top_genes": {"contrast": 1, "n_genes": 3, "layer": "half"},
    "training": {"metric": "size", "log": True},
    "virus_probabilities": {"key": "other", "label": "virus", "truth": "virus", "cmap": "Purples"},
    "volcano": {
        "query": "x",
        "key": "other",
        "match": "@match",
        "layer": "half",
        "p_layer": "p",
        "mean_key": "level",
        "n_genes": 2,
    },
}
#: Of every plot: tested in test_figure.py; and what is drawn.
SHARED = {"ax", "show", "save", "adata", "real", "simulated", "scores", "model"}
ROWS = [(plot, argument) for plot, table in ARGUMENTS.items() for argument in table]


@cache
def _data(plot: str) -> tuple[Any, ...]:
    return DATA[plot]()


@cache
def _digest(plot: str, given: tuple[tuple[str, Any], ...]) -> str:
    found = digest(draw(plot, _data(plot), show=False, **dict(given)))
    plt.close("all")
    return found


@pytest.mark.parametrize("plot", cfm.pl.__all__)
def test_every_argument_is_here(plot: str) -> None:
    assert set(inspect.signature(getattr(cfm.pl, plot)).parameters) - SHARED == set(ARGUMENTS[plot])


@pytest.mark.parametrize("plot", cfm.pl.__all__)
def test_at_most_twelve_and_all_documented(plot: str) -> None:
    function = getattr(cfm.pl, plot)
    names = inspect.signature(function).parameters
    assert len(names) <= 12
    assert "%(" not in function.__doc__
    lines = {word for line in function.__doc__.splitlines() for word in line.strip().split(", ")}
    assert {f"**{name}" if name == "kwargs" else name for name in names} <= lines


@pytest.mark.parametrize(("plot", "argument"), ROWS)
def test_the_figure_changes(plot: str, argument: str) -> None:
    entry = ARGUMENTS[plot][argument]
    value, base = entry if isinstance(entry, tuple) else (entry, {})
    data = _data(plot)
    if value == ["@first"]:
        value = [data[0].obs["cell_code"].astype(str).iloc[0]]
    if value == "@match":
        value = data[0].uns["signature_search"]["evidence"]["match"].iloc[0]
    if argument == "reference" or (plot, argument) == ("classification", "truth"):
        changed = digest(draw(plot, (data[0], value), show=False))
    else:
        given = value if argument == "kwargs" else {argument: value}
        changed = digest(draw(plot, data, show=False, **base | given))
    assert changed != _digest(plot, tuple(base.items()))


@pytest.mark.parametrize("plot", sorted(set(cfm.pl.__all__) - {"perturbation_umap"}))
def test_the_same_call_draws_the_same(plot: str) -> None:
    assert digest(draw(plot, show=False)) == _digest(plot, ())
