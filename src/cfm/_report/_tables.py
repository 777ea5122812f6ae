"""Tables for readers, from what the tools stored."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from cfm import get
from cfm._fields import (
    ENRICHMENT,
    PROGRAM_GENES,
    PROGRAMS,
    SET_SEPARATOR,
)
from cfm.pl._figure import SIGNIFICANT

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
    Those of :func:`cfm.get.virus_calls`, with ``similar_to``: the first matches beyond chance,
    joined by ``"; "``.
    """
    table = get.virus_calls(contrasts, key=key)
    matches = _matches(get.similar_contrasts(contrasts, key=key))
    similar = [matches.get(name, "") for name in table["contrast"]]
    table.insert(list(table).index("call"), "similar_to", similar)
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
