"""What a plot cannot draw is refused in words that name it, and no figure stays open."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import cfm
from tests.pl._plots import DATA
from tests.pl._stored import with_host_factors
from tests.tl.test_search_signatures import queries

pytestmark = pytest.mark.filterwarnings("ignore:The library has:UserWarning")

#: By plot, the tool that stores what it draws; what is asked for where nothing is stored.
TOOLS = {
    "cell_codes": "cell_codes",
    "cell_importance": "cell_importance",
    "classification": "predict_virus",
    "drug_screen": "screen_drugs",
    "embedding": "embed",
    "gene_programs": "gene_programs",
    "host_factor_enrichment": "host_factors",
    "host_factors": "host_factors",
    "knowledge_graph": "knowledge_graph",
    "probe": "probe",
    "signature_search": "search_signatures",
    "survival": "probe",
    "virus_probabilities": "predict_virus",
    "volcano": "search_signatures",
}


@pytest.mark.parametrize("plot", TOOLS)
def test_where_nothing_is_stored_the_tool_to_run_is_named(plot: str) -> None:
    _, *rest = DATA[plot]()
    with pytest.raises(KeyError, match=rf"run cfm\.tl\.{TOOLS[plot]}"):
        getattr(cfm.pl, plot)(queries(), *rest, show=False)


def _without(slot: str, *names: str) -> Callable[[ad.AnnData], None]:
    """Leave out a field, or a part of one in ``uns``."""

    def change(adata: ad.AnnData) -> None:
        fields = getattr(adata, slot)
        for name in names[:-1]:
            fields = fields[name]
        del fields[names[-1]]

    return change


def _table(key: str, name: str, value: Any) -> Callable[[ad.AnnData], None]:
    """Other values in a column of a stored table."""

    def change(adata: ad.AnnData) -> None:
        adata.uns[key]["groups" if key == "cell_importance" else "results"][name] = value

    return change


def _no_rows(key: str, table: str) -> Callable[[ad.AnnData], None]:
    def change(adata: ad.AnnData) -> None:
        adata.uns[key][table] = adata.uns[key][table].iloc[:0]

    return change


def _no_codes(adata: ad.AnnData) -> None:
    adata.obs["cell_code"] = pd.Categorical([None] * adata.n_obs, categories=["1"])


def _not_finite(adata: ad.AnnData) -> None:
    adata.obsm["X_cellpulse"][0, 0] = np.nan


def _no_frame(adata: ad.AnnData) -> None:
    name = "predicted_virus_response_proba"
    adata.obsm[name] = adata.obsm[name].to_numpy()


def _no_groups(adata: ad.AnnData) -> None:
    adata.obs["probe_risk_group"] = np.nan


def _of_numbers(adata: ad.AnnData) -> None:
    adata.uns["probe"]["params"]["task"] = "regression"


def _one_class(adata: ad.AnnData) -> None:
    adata.obs["disease"] = "case"


def _no_truth(adata: ad.AnnData) -> None:
    adata.obs["virus"] = np.nan


def _other_truth(adata: ad.AnnData) -> None:
    adata.obs["virus"] = "measles"


def _under_other_keys(adata: ad.AnnData) -> None:
    adata.uns["a"] = adata.uns["b"] = adata.uns.pop("probe")
    del adata.uns["other"]


MARKERS, MAP, SCATTER, NETWORK = ({"kind": k} for k in ("markers", "map", "scatter", "network"))
Row = tuple[Callable[[ad.AnnData], Any] | None, dict[str, Any], type[Exception], str]
#: By plot: a change of the data or what is drawn instead, arguments, error, words.
REFUSED: dict[str, list[Row]] = {
    "cell_codes": [
        (None, {"kind": "pie"}, ValueError, "kind='pie'"),
        (None, {"n_codes": 0}, ValueError, "n_codes=0"),
        (None, MARKERS | {"n_genes": 0}, ValueError, "n_genes=0"),
        (None, {"codes": []}, ValueError, "code is an empty list"),
        (None, {"codes": ["-3"]}, KeyError, "code '-3' is not in"),
        (None, {"groupby": "tissue"}, KeyError, "obs has no column 'tissue'"),
        (None, {"groupby": "cell_code_margin"}, ValueError, "holds fractional numbers"),
        (None, {"key": "x"}, KeyError, r"run cfm\.tl\.cell_codes\(adata, key_added='x'\)"),
        (lambda a: a[:, 1:].copy(), MARKERS, KeyError, "genes GENE0"),
        (_no_rows("cell_code", "markers"), MARKERS, ValueError, "has markers: all have fewer"),
        (_without("uns", "cell_code", "vectors"), MAP, KeyError, r"\['vectors'\] not found"),
        (_no_codes, {}, ValueError, "is missing in all 400 cells"),
    ],
    "cell_importance": [
        (None, {"kind": "both"}, ValueError, "kind='both'"),
        (None, {"groups": ["X"]}, KeyError, "group 'X' is not in"),
        (None, {"key": "x"}, KeyError, r"cell_importance\(adata, groupby=…, key_added="),
        (_table("cell_importance", "removal", np.nan), {"kind": "removal"}, ValueError,
         "no finite removal"),
    ],
    "donors": [
        (None, {"basis": "X_none"}, KeyError, "obsm"),
        (None, {"color": "sex"}, KeyError, "color 'sex'"),
    ],
    "classification": [
        (None, {"kind": "pie"}, ValueError, "kind='pie'"),
        (None, {"key": "call"}, KeyError, r"run cfm\.tl\.predict_virus\(adata\) or"),
        (None, {"label": "RSV"}, ValueError, "label='RSV' is not for kind='confusion'"),
        (None, {"kind": "roc", "label": "flu"}, KeyError, "label 'flu' is not in"),
        (_no_truth, {}, ValueError, r"No observation has a class in obs\['virus'\]"),
        (_other_truth, {"kind": "roc"}, ValueError, "has none of the classes"),
    ],
    "drug_screen": [
        (None, {"kind": "bars"}, ValueError, "kind='bars'"),
        (None, {"n_compounds": -1}, ValueError, "at least 0"),
        (None, SCATTER | {"x": "compound"}, KeyError, "of numbers 'compound' is not in"),
        (_table("drug_screen", ["cosine_reversal", "target_score"], np.nan), SCATTER, ValueError,
         "no compound of group 'IAV' has a value"),
    ],
    "embedding": [
        (None, {"basis": "X_none"}, KeyError, r"run cfm\.tl\.embed"),
        (None, {"color": "strain"}, KeyError, "neither a column of obs"),
        (None, {"color": []}, ValueError, "empty list"),
        (None, {"label": "strain"}, KeyError, "obs has no column 'strain'"),
        (_not_finite, {}, ValueError, "NaN or infinite"),
    ],
    "gene_programs": [
        (None, {"kind": "tree"}, ValueError, "kind='tree'"),
        (None, {"programs": ["P9"]}, KeyError, "'P9' is not in"),
        (None, {"programs": []}, ValueError, "empty list"),
        (None, {"groupby": "strain"}, KeyError, "obs has no column 'strain'"),
        (None, {"layer": "stat"}, KeyError, "no layer 'stat'"),
        (None, {"n_genes": 0}, ValueError, "at least 1"),
        (None, {"n_programs": 0}, ValueError, "at least 1"),
        (lambda a: a[:, :3].copy(), {}, KeyError, "16 of 19 genes of the programs are not in"),
        (lambda a: a[:0].copy(), {}, ValueError, "no profiles"),
        (_without("uns", "gene_programs", "edges"), NETWORK, KeyError, r"\['edges'\] not found"),
    ],
    "host_factor_enrichment": [
        (None, {"reference": "GENE1"}, TypeError, "is the text 'GENE1'"),
        (None, {"reference": {"a": []}}, ValueError, "list 'a' is empty"),
        (None, {"reference": {}}, ValueError, "empty dict"),
        (None, {"reference": ["Ifit1"]}, ValueError, "none of the 40 ranked genes"),
        (None, {"reference": [f"GENE{i}" for i in range(40)]}, ValueError, "has all 40 ranked"),
        (None, {"n_permutations": 0}, ValueError, "at least 1"),
        (lambda a: with_host_factors(tied=True), {}, ValueError, "have the same score"),
    ],
    "host_factors": [
        (None, {"group": "HIV-1"}, KeyError, r"'HIV-1' is not in .*expected one of IAV, RSV"),
        (None, {"n_genes": 0}, ValueError, "at least 1"),
        (_without("uns", "host_factors", "results", "explained"), {}, KeyError,
         r"no column explained; run cfm\.tl\.host_factors"),
        (_without("uns", "host_factors", "results", "call_effect"), {}, KeyError,
         "no column call_effect"),
        (_no_rows("host_factors", "results"), {}, ValueError, "has no rows"),
    ],
    "knowledge_graph": [
        (None, {"node": "gene:00"}, KeyError, "no node 'gene:00'; near matches are .*gene:0"),
        (None, {"kinds": ["drug"]}, KeyError, "kinds 'drug' is not in"),
        (None, {"edge_kinds": "target"}, KeyError, "edge_kinds 'target' is not in"),
        (None, {"max_nodes": 1}, ValueError, "max_nodes=1"),
        (None, {"node": "gene:lonely"}, ValueError, "no edge at gene:lonely"),
        (None, {"kinds": ["tissue"]}, ValueError, "no edge between these kinds"),
        (_no_rows("knowledge_graph", "edges"), {}, ValueError, "found nothing"),
    ],
    "perturbation_metrics": [
        (lambda t: t.drop(columns="value"), {}, KeyError, "has no column value"),
        (lambda t: t.iloc[:0], {}, ValueError, "no rows"),
        (lambda t: t["value"], {}, TypeError, "scores is a Series; expected the table"),
        (None, {"metric": "auc"}, KeyError, "metric 'auc' is not in scores"),
        (None, {"group": "NK"}, KeyError, "group 'NK' is not in scores"),
        (None, {"perturbation": "EPO"}, KeyError, "perturbation 'EPO' is not in scores"),
    ],
    "probe": [
        (None, {"metric": "c_index"}, KeyError, "metric 'c_index' is not in"),
        (None, {"metric": []}, ValueError, "metric is an empty list"),
        (None, {"target": "drug"}, KeyError, "target 'drug' is not in"),
        (None, {"kind": "pie"}, ValueError, "kind='pie'"),
        (None, {"kind": "roc", "metric": "auroc"}, ValueError, "metric= does not go with"),
        (None, {"kind": "confusion", "label": "case"}, ValueError, "label= does not go with"),
        (None, {"kind": "roc", "label": "ill"}, KeyError, "label 'ill' is not in .*case, healthy"),
        (None, {"head": "svm"}, KeyError, "head 'svm' is not in"),
        (None, {"use_rep": "X_none"}, KeyError, "use_rep 'X_none' is not in"),
        (None, {"kind": "predicted"}, ValueError,
         "draws a regression, but uns.* is a classification; see kind='scores'"),
        (_of_numbers, {"kind": "roc"}, ValueError,
         "draws a classification, but .* is a regression"),
        (_without("obsm", "probe_method_proba"), {"kind": "roc"}, KeyError,
         r"\['probe_method_proba'\] not found; run cfm\.tl\.probe"),
        (_without("obs", "disease"), {"kind": "roc"}, KeyError, "the target of the probe 'probe'"),
        (_one_class, {"kind": "roc"}, ValueError, "has one class, 'case', among"),
        (_under_other_keys, {}, KeyError, "Found such tables with key='a' and 'b'"),
    ],
    "signature_search": [(None, {"query": "nothing"}, KeyError, "'nothing'")],
    "survival": [
        (None, {"groupby": "site"}, KeyError, "no column 'site'"),
        (None, {"groupby": "days"}, ValueError, r"\d+ groups; expected at most 6"),
        (_no_groups, {}, ValueError, "no observation has"),
        (_of_numbers, {}, KeyError, "probe of a regression target"),
    ],
    "top_genes": [
        (None, {"contrast": "nothing"}, KeyError, "not in obs_names"),
        (None, {"contrast": 6}, KeyError, "out of range"),
        (None, {"layer": "stat"}, KeyError, "no layer"),
        (None, {"n_genes": 0}, ValueError, "at least 1"),
    ],
    "training": [
        (None, {"metric": "accuracy"}, KeyError, "expected one of loss, size"),
        (lambda h: SimpleNamespace(history=None), {}, KeyError, r"call its train\(\) first"),
        (lambda h: 3, {}, TypeError, "without a history"),
    ],
    "virus_probabilities": [
        (None, {"truth": "strain"}, KeyError, "no column 'strain'"),
        (lambda a: a[:0], {}, ValueError, "no contrasts"),
        (_no_frame, {}, TypeError, "expected the DataFrame"),
        (_without("obsm", "predicted_virus_response_proba"), {}, KeyError,
         r"obsm\['\w+_response_proba'\] not found"),
    ],
    "volcano": [
        (None, {argument: "nothing"}, KeyError, "'nothing'")
        for argument in ("query", "match", "layer", "p_layer", "mean_key")
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("plot", "row"),
    [(plot, row) for plot, rows in REFUSED.items() for row in rows],
    ids=lambda part: part if isinstance(part, str) else part[3],
)
def test_what_cannot_be_drawn_is_said(plot: str, row: Row) -> None:
    change, arguments, error, words = row
    first, *rest = DATA[plot]()
    if "reference" in arguments:
        arguments = dict(arguments)
        rest = [arguments.pop("reference")]
    changed = None if change is None else change(first)
    with pytest.raises(error, match=words):
        getattr(cfm.pl, plot)(first if changed is None else changed, *rest, show=False, **arguments)
    assert plt.get_fignums() == []
