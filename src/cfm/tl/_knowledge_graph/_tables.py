"""Tables of nodes and edges, as :func:`cfm.tl.knowledge_graph` stores them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from cfm.data import map_identifiers

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.tl._knowledge_graph._codes import CodedCells, CodeExpression

#: Kinds of nodes beside the annotations, and of edges.
CODE, GENE, DRUG = "code", "gene", "drug"
IMPORTANCE, RELATION, COMMUNICATION, ENRICHMENT, TARGET = (
    "importance",
    "relation",
    "communication",
    "enrichment",
    "target",
)
RESERVED = (CODE, GENE, DRUG, IMPORTANCE, RELATION, COMMUNICATION, ENRICHMENT, TARGET)
_DIRECTED = (COMMUNICATION, TARGET)
#: Columns of the table of edges; columns of other kinds are ``""`` or ``NaN``.
_TEXTS = ("source", "target", "kind", "code", "ligand", "receptor", "support", "evidence")
_NUMBERS = (
    "weight",
    "strength",
    "p_value",
    "fdr",
    "attention",
    "attention_lift",
    "log2_fold_change",
    "share",
    "score",
    "ligand_mean",
    "receptor_mean",
    "log_odds",
    "overlap",
    "expected",
)
_ORDER = ("source", "target", "kind", "weight", "strength", "directed", "p_value", "fdr")


def node_id(kind: str, label: object) -> str:
    """Return the id of a node, such as ``"gene:STAT1"``."""
    return f"{kind}:{label}"


def importance_edges(table: pd.DataFrame, codes: list[str], genes: np.ndarray) -> pd.DataFrame:
    """Return the edges from codes to their genes."""
    evidence = []
    measured = table[["log2_fold_change", "share", "attention_lift"]].to_numpy(dtype=np.float64)
    for change, share, lift in measured:
        text = f"log2 fold change {change:.2f} against the other cells, expressed by {share:.0%}"
        if np.isfinite(lift):
            text += f", attention {2.0**lift:.2f}x that of other codes"
        evidence.append(text)
    return table.drop(columns=["code", "gene"]).assign(
        source=[node_id(CODE, codes[c]) for c in table["code"]],
        target=[node_id(GENE, genes[g]) for g in table["gene"]],
        kind=IMPORTANCE,
        evidence=evidence,
    )


def relation_edges(table: pd.DataFrame, codes: list[str], genes: np.ndarray) -> pd.DataFrame:
    """Return the edges between genes, a row per code and pair (``code``, ``a``, ``b``, …)."""
    evidence = []
    for code, weight, support in zip(
        table["code"], table["weight"].to_numpy(), table["support"], strict=True
    ):
        text = f"attention between them {1.0 + weight:.2f}x chance in code {codes[code]}"
        known = f", known from {support.replace('|', ' and ')}" if support else ""
        evidence.append(text + known)
    return pd.DataFrame(
        {
            "source": [node_id(GENE, genes[g]) for g in table["a"]],
            "target": [node_id(GENE, genes[g]) for g in table["b"]],
            "kind": RELATION,
            "weight": table["weight"].to_numpy(),
            "attention": 1.0 + table["weight"].to_numpy(),
            "code": [node_id(CODE, codes[c]) for c in table["code"]],
            "support": table["support"].to_numpy(),
            "evidence": evidence,
        }
    )


def communication_edges(table: pd.DataFrame, codes: list[str]) -> pd.DataFrame:
    """Return the edges from senders to receivers."""
    evidence = [
        f"{row.ligand} → {row.receptor}: mean {row.ligand_mean:.2f} in the sender, "
        f"{row.receptor_mean:.2f} in the receiver"
        for row in table.itertuples()
    ]
    return table.drop(columns=["sender", "receiver"]).assign(
        source=[node_id(CODE, codes[c]) for c in table["sender"]],
        target=[node_id(CODE, codes[c]) for c in table["receiver"]],
        kind=COMMUNICATION,
        evidence=evidence,
    )


def enrichment_edges(table: pd.DataFrame, codes: list[str]) -> pd.DataFrame:
    """Return the edges between codes and levels of annotations."""
    if not len(table):
        return pd.DataFrame()
    evidence = [
        f"{row.overlap} of {row.code_cells} cells of the code, {row.expected:.1f} expected"
        for row in table.itertuples()
    ]
    kept = ["p_value", "fdr", "log_odds", "overlap", "expected"]
    return table[kept].assign(
        source=[node_id(CODE, codes[c]) for c in table["code"]],
        target=[node_id(a, b) for a, b in zip(table["annotation"], table["level"], strict=True)],
        kind=ENRICHMENT,
        weight=table["log_odds"],
        evidence=evidence,
    )


def target_edges(table: pd.DataFrame, genes: np.ndarray) -> pd.DataFrame:
    """Return the edges from drugs to genes (``compound``, ``gene`` = column, ``action``)."""
    return pd.DataFrame(
        {
            "source": [node_id(DRUG, name) for name in table["compound"]],
            "target": [node_id(GENE, genes[g]) for g in table["gene"]],
            "kind": TARGET,
            "weight": 1.0,
            "evidence": [f"known target ({a})" if a else "known target" for a in table["action"]],
        }
    )


def edge_table(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Join the edges of all kinds, the strongest of each kind first.

    ``strength`` is the rank of the weight among the edges of the same kind over their number, so
    that kinds compare; equal weights share the mean of their ranks.
    """
    ready = []
    for part in parts:
        if not len(part):
            continue
        part = part.assign(
            strength=rankdata(part["weight"], method="average") / len(part),
            directed=part["kind"].isin(_DIRECTED),
        )
        ready.append(
            part.sort_values(
                ["weight", "source", "target", *(c for c in ("ligand", "code") if c in part)],
                ascending=[False, *[True] * (2 + ("ligand" in part) + ("code" in part))],
                kind="stable",
            )
        )
    table = pd.concat(ready, ignore_index=True) if ready else pd.DataFrame({"directed": []})
    for name in _TEXTS:
        filled = table[name] if name in table else pd.Series("", index=table.index)
        table[name] = filled.fillna("").astype(str).astype(object)
    for name in _NUMBERS:
        table[name] = table[name].astype(np.float64) if name in table else np.nan
    table["directed"] = table["directed"].astype(bool)
    others = [name for name in (*_NUMBERS, *_TEXTS) if name not in _ORDER]
    table = table[[*_ORDER, *others]]
    return table.set_axis(table.index.astype(str))


def node_table(
    adata: AnnData,
    cells: CodedCells,
    expression: CodeExpression,
    annotations: dict[str, np.ndarray],
    edges: pd.DataFrame,
) -> pd.DataFrame:
    """Return the nodes: all codes, all levels of the annotations, and genes and drugs with an edge.

    Raises
    ------
    ValueError
        If two nodes have the same id.
    """
    rows: list[tuple[str, str, str, int]] = []
    for name, size in zip(cells.names, cells.sizes, strict=True):
        rows.append((node_id(CODE, name), CODE, name, int(size)))
    ends = pd.unique(edges[["source", "target"]].to_numpy().ravel())
    place = {node_id(GENE, name): i for i, name in enumerate(adata.var_names.astype(str))}
    columns = [place[end] for end in sorted(ends) if end in place]
    expressed = (expression.share * cells.sizes[:, None]).sum(axis=0)
    symbols = map_identifiers(adata.var_names[columns].astype(str)).symbol
    for column, symbol in zip(columns, symbols.tolist(), strict=True):
        name = str(adata.var_names[column])
        # Symbols are readable, Ensembl ids are not; other names are kept.
        label = symbol if name.upper().startswith("ENSG") and symbol else name
        rows.append((node_id(GENE, name), GENE, label, round(float(expressed[column]))))
    for name, labels in annotations.items():
        levels, counts = np.unique(labels[cells.rows].astype(str), return_counts=True)
        rows += [
            (node_id(name, level), name, level, int(n))
            for level, n in zip(levels.tolist(), counts, strict=True)
            if level != ""
        ]
    drugs = sorted(end for end in ends if end.startswith(f"{DRUG}:") and end not in place)
    targets = edges.loc[edges["kind"] == TARGET, "source"].value_counts()
    rows += [(end, DRUG, end.removeprefix(f"{DRUG}:"), int(targets[end])) for end in drugs]
    table = pd.DataFrame(rows, columns=["id", "kind", "label", "size"]).set_index("id")
    table.index.name = None
    if not table.index.is_unique:
        twice = table.index[table.index.duplicated()].unique()[:5].tolist()
        raise ValueError(
            f"Several nodes would be called {twice}; rename the columns or levels of annotations "
            "with the same joined names."
        )
    degree = pd.Series(edges[["source", "target"]].to_numpy().ravel()).value_counts()
    table["n_edges"] = degree.reindex(table.index).fillna(0).astype(np.int64)
    kinds: dict[str, Any] = {"kind": object, "label": object, "size": np.int64}
    return table.astype(kinds)
