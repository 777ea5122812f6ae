"""Tables for readers, from what the tools stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._fields import (
    ENRICHMENT,
    MATCHES,
    NO_RESPONSE,
    NOT_VIRAL,
    PROGRAM_GENES,
    PROGRAMS,
    SET_SEPARATOR,
    UNINFECTED,
    UNRESOLVED,
)
from cfm.pl._figure import SIGNIFICANT
from cfm.pl._virus import answer_support, stored_prediction

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

#: Matches, rows of a group and genes of a row that are shown.
_MATCHES, _RANKS, _GENES = 3, 10, 6


def calls_table(contrasts: AnnData, key: str) -> pd.DataFrame:
    """Return the answers of :func:`cfm.tl.predict_virus`, a row per contrast.

    Parameters
    ----------
    contrasts
        With the fields of the tool.
    key
        Its ``key_added``.

    Returns
    -------
    Columns ``contrast``; ``response`` and the ``most_probable`` kind, which is another where the
    response is ``"unresolved"``, with ``probability``, ``support`` (share of such answers that were
    right in studies left out of training; NaN where it was never given) and ``studies`` (their
    number); ``similar_to``: the first matches beyond chance, joined by ``"; "``; ``call``, the
    virus or what is said instead, with ``call_support`` and ``call_studies``; ``cases`` and
    ``controls`` where their numbers are stored.
    """
    stored = stored_prediction(contrasts, key)
    support = answer_support(contrasts.uns[key])
    matches = _matches(contrasts.uns[key][MATCHES])
    rows = []
    for i, name in enumerate(contrasts.obs_names):
        call, response = str(stored.call[i]), str(stored.response[i])
        kinds = stored.response_proba.iloc[i]
        kind = response if response != UNRESOLVED else str(kinds.drop(NO_RESPONSE).idxmax())
        level = {UNINFECTED: ("response", kind), NOT_VIRAL: (NOT_VIRAL, kind)}
        unknown = (np.nan, 0)
        share, studies = support.get(("response", kind), unknown)
        call_share, call_studies = support.get(level.get(call, ("virus", call)), unknown)
        first = [str(name), response, kind, float(kinds[kind]), share, studies]
        rows.append([*first, matches.get(str(name), ""), call, call_share, call_studies])
    columns = ["contrast", "response", "most_probable", "probability", "support", "studies"]
    columns += ["similar_to", "call", "call_support", "call_studies"]
    table = pd.DataFrame(rows, columns=columns)
    for column in ("cases", "controls"):
        if f"n_{column}" in contrasts.obs:
            table[column] = contrasts.obs[f"n_{column}"].to_numpy()
    return table


def _matches(table: pd.DataFrame) -> dict[str, str]:
    """Return short descriptions of the first matches of each contrast that are beyond chance."""
    found: dict[str, dict[str, str]] = {}
    for row in table[table["fdr"] <= SIGNIFICANT].sort_values("rank", kind="stable").itertuples():
        what = f"{row.stimulus} in {row.tissue}" if str(row.tissue) else str(row.stimulus)
        # a study may have the same contrast of several donors
        texts = found.setdefault(str(row.query), {})
        texts.setdefault(f"{what}, {row.study}", f", similarity {row.similarity:.2f}")
    return {
        name: "; ".join([text + end for text, end in texts.items()][:_MATCHES])
        for name, texts in found.items()
    }


def host_factor_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the first genes of each group."""
    names = {"effect": "log2FC", "call_effect": "effect on the answer", "fdr": "FDR"}
    columns = ["group", "explained", "rank", "gene", "direction", *names]
    return _first(table)[columns].rename(columns=names)


def drug_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the first compounds of each group, with the genes behind them."""
    first = _first(table)
    for column in ("reversal_genes", "target_genes"):
        genes = first[column].astype(str).str.split(SET_SEPARATOR, regex=False)
        first[column] = [", ".join(filter(None, some[:_GENES])) for some in genes]
    names = {
        "cosine_reversal": "reversal",
        "target_score": "targets",
        "fdr": "FDR",
        "reversal_genes": "reverses",
        "target_genes": "targets among host factors",
    }
    return first[["group", "rank", "compound", "score", *names]].rename(columns=names)


def _first(table: pd.DataFrame) -> pd.DataFrame:
    """Return the first rows of each group, the groups in stored order."""
    order = {name: i for i, name in enumerate(table["group"].astype(str).unique())}
    first = table[table["rank"] <= _RANKS]
    places = first["group"].astype(str).map(order)
    return first.assign(place=places).sort_values(["place", "rank"]).drop(columns="place")


def program_table(stored: Mapping[str, Any]) -> pd.DataFrame:
    """Return a row for each gene program: its numbers, best gene set and first genes."""
    programs = stored[PROGRAMS][["size", "direction", "coherence", "stability", "fdr"]]
    table = programs.rename(columns={"size": "genes", "fdr": "FDR"})
    table.insert(0, "program", programs.index.astype(str))
    if ENRICHMENT in stored:
        sets = stored[ENRICHMENT]
        sets = sets[sets["fdr"] <= SIGNIFICANT].sort_values("p_value", kind="stable")
        best = sets.drop_duplicates("program").set_index("program")["term"].astype(str)
        best = best.str.removeprefix("HALLMARK_").str.replace("_", " ")
        best.index = best.index.astype(str)
        table["hallmark"] = table["program"].map(best).fillna("")
    genes = stored[PROGRAM_GENES].sort_values("rank")
    first = genes.groupby(genes["program"].astype(str))["gene"].agg(
        lambda names: ", ".join(names.astype(str)[:_GENES])
    )
    table["first genes"] = table["program"].map(first)
    return table.reset_index(drop=True)
