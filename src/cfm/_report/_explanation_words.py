"""Host factors, gene programs and the drug screen in plain words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from cfm._fields import (
    ENRICHMENT,
    NO_RESPONSE,
    PROGRAM_GENES,
    PROGRAMS,
    RESPONSE,
    SET_SEPARATOR,
    VIRUS_KEY,
)
from cfm.pl._figure import SIGNIFICANT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import pandas as pd
    from anndata import AnnData

_TABLE_ROWS = 10
#: Names of a leading edge that a table shows.
_EDGE = 6

HOST_MEANING = (
    "Genes whose effects carry the answer of the model. What is explained is the virus that is "
    "named for most contrasts of a group, else that there is a response. A gene for the answer "
    "makes it more probable; a gene against it makes it less probable."
)
HOST_LIMITS = (
    "These are candidates to look at, not genes that the virus needs. Host factors read off "
    "expression rarely coincide with the host-dependency factors of CRISPR screens, because a "
    "gene that a virus depends on need not change; the benchmarks give the numbers."
)
PROGRAM_MEANING = (
    "Groups of genes that the model relates to each other and that move together in these "
    "contrasts, found in all contrasts at once."
)
PROGRAM_LIMITS = (
    "A program says which genes move together, not which one drives the others. Its p-value "
    "compares how far its genes move with programs that are found when the effects are permuted "
    "over the genes; it does not say that the infection caused it."
)
DRUG_MEANING = (
    "Compounds whose known effect on cells (Connectivity Map, build 2) is opposite to the response "
    "in the contrasts, or whose known targets (DrugCentral) are among the host factors above."
)
DRUG_LIMITS = (
    "A list of things to test, not of treatments: no statement about benefit, dose or safety in "
    "people. The signatures were measured in cancer cell lines after hours. A compound that "
    "reverses a profile may switch off the defence against the virus as well as the damage."
)


def without_response(contrasts: AnnData, groupby: str) -> list[str]:
    """Warn of groups without a response: there is little to explain or to reverse."""
    none = contrasts.obs[VIRUS_KEY + RESPONSE].astype(str) == NO_RESPONSE
    shares = none.groupby(contrasts.obs[groupby].astype(str)).mean()
    weak = [str(name) for name, share in shares.items() if share > 0.5]
    if not weak:
        return []
    return [
        f"No response is found in most contrasts of {_listed(weak)}. What is listed there rests "
        "on differences as they are found between control samples."
    ]


def host_factors(table: pd.DataFrame, params: Mapping[str, Any], groupby: str) -> list[str]:
    """Say for each group what is explained, which genes are first, what the p-values allow."""
    said = []
    for group, part in _groups(table):
        n = int(part["n_profiles"].iloc[0])
        genes = [f"{row.gene} ({row.direction})" for row in part.head(5).itertuples()]
        explained = str(part["explained"].iloc[0])
        text = f"{group} ({n} contrast{'' if n == 1 else 's'}), explained: {explained}. "
        text += f"First are {_listed(genes)}. "
        first = part.head(50)
        up, down = ((first["direction"] == word).sum() for word in ("up", "down"))
        text += f"Of the first {len(first)}, {up} rise and {down} fall. {_counted(part, 'genes')}"
        said.append(text)
    if "effects" in list(params.get("nulls", [])):
        said.append(
            f"There are too few contrasts to exchange those of one {groupby} for others: p-values "
            "compare what a gene contributes with what it would with the effect of another gene "
            "of the same contrast."
        )
    return said


def host_factor_rows(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """First genes of each group, as a table."""
    header = ["group", "explained", "rank", "gene", "direction", "log2FC", "call effect", "FDR"]
    rows = [
        [
            group,
            str(row.explained),
            str(row.rank),
            str(row.gene),
            str(row.direction),
            _number(row.effect),
            _number(row.call_effect, 3),
            _chance(row.fdr),
        ]
        for group, part in _groups(table)
        for row in part.head(_TABLE_ROWS).itertuples()
    ]
    return header, rows


def gene_programs(stored: Mapping[str, Any], n_profiles: int) -> list[str]:
    """Say how many programs there are and what the best of them may be."""
    programs = stored[PROGRAMS]
    one = len(programs) == 1
    said = [
        f"{len(programs)} program{'' if one else 's'} of {programs['size'].min()} to "
        f"{programs['size'].max()} genes in {n_profiles} contrast{'' if n_profiles == 1 else 's'}. "
        + _counted(programs, "programs")
    ]
    if ENRICHMENT in stored:
        best = _best_sets(stored)
        if best:
            parts = [f"{name} with {term}" for name, term in best.items()]
            said.append(f"Programs that share many genes with a hallmark set: {_listed(parts)}.")
        else:
            said.append(f"No program is enriched in a hallmark set (FDR ≤ {SIGNIFICANT:g}).")
    if n_profiles == 1:
        said.append("With a single contrast the stability of the programs cannot be known.")
    return said


def gene_program_rows(stored: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """One line for each program."""
    header = ["program", "genes", "direction", "coherence", "stability", "FDR", "hallmark", "first"]
    best = _best_sets(stored)
    genes = stored[PROGRAM_GENES]
    rows = []
    for name, row in stored[PROGRAMS].iterrows():
        own = genes[genes["program"].astype(str) == str(name)].sort_values("rank")
        rows.append(
            [
                str(name),
                str(row["size"]),
                str(row["direction"]),
                _number(row["coherence"], 2, sign=False),
                _number(row["stability"], 2, sign=False),
                _chance(row["fdr"]),
                best.get(str(name), "–"),
                ", ".join(own["gene"].astype(str).head(_EDGE)),
            ]
        )
    return header, rows


def drug_screen(table: pd.DataFrame) -> list[str]:
    """Say for each group which compounds come first and whether that is more than chance."""
    said = []
    for group, part in _groups(table):
        names = part["compound"].astype(str).head(5)
        text = f"{group}: first of {len(part):,} compounds are {_listed(names)}. "
        text += _counted(part, "compounds")
        if part["fdr"].notna().any() and not (part["fdr"] <= SIGNIFICANT).any():
            text += " So none stands out from random signatures and targets."
        said.append(text)
    return said


def drug_rows(table: pd.DataFrame) -> tuple[list[str], list[list[str]]]:
    """First compounds of each group with the genes behind them."""
    header = ["group", "rank", "compound", "score", "reversal", "targets", "FDR", "genes"]
    rows = []
    for group, part in _groups(table):
        for row in part.head(_TABLE_ROWS).itertuples():
            genes = [g for g in str(row.reversal_genes).split(SET_SEPARATOR) if g][:_EDGE]
            targets = [g for g in str(row.target_genes).split(SET_SEPARATOR) if g][:_EDGE]
            evidence = [f"reverses {', '.join(genes)}"] if genes else []
            evidence += [f"targets {', '.join(targets)}"] if targets else []
            rows.append(
                [
                    group,
                    str(row.rank),
                    str(row.compound),
                    _number(row.score, 2),
                    _number(row.cosine_reversal, 2),
                    _number(row.target_score, 2, sign=False),
                    _chance(row.fdr),
                    "; ".join(evidence) or "–",
                ]
            )
    return header, rows


def _best_sets(stored: Mapping[str, Any]) -> dict[str, str]:
    if ENRICHMENT not in stored:
        return {}
    table = stored[ENRICHMENT]
    table = table[table["fdr"] <= SIGNIFICANT].sort_values("p_value", kind="stable")
    first = table.drop_duplicates("program")
    terms = [str(term).removeprefix("HALLMARK_").replace("_", " ") for term in first["term"]]
    return dict(zip(first["program"].astype(str), terms, strict=True))


def _groups(table: pd.DataFrame) -> Iterable[tuple[str, pd.DataFrame]]:
    """Parts of a table by group, in stored order, sorted by rank."""
    names = table["group"].astype(str)
    for name in names.unique():
        yield str(name), table[names == name].sort_values("rank", kind="stable")


def _counted(table: pd.DataFrame, what: str) -> str:
    """Count what stands out, or say why that cannot be known."""
    fdr = table["fdr"].to_numpy(dtype=np.float64)
    if np.isnan(fdr).all():
        return "No p-values were possible."
    n = int((fdr <= SIGNIFICANT).sum())
    least = np.nanmin(fdr)
    return (
        f"{n:,} of {len(fdr):,} {what} have a false discovery rate of at most {SIGNIFICANT:g}"
        + ("." if n else f" (lowest: {least:.2g}).")
    )


def _number(value: Any, digits: int = 1, *, sign: bool = True) -> str:
    if np.isnan(value):
        return "–"
    rounded = round(float(value), digits) + 0.0  # no −0.0
    return f"{rounded:{'+' if sign else ''}.{digits}f}".replace("-", "−")


def _chance(value: Any) -> str:
    return "–" if np.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.2g}"


def _listed(names: Iterable[str]) -> str:
    parts = list(names)
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"
