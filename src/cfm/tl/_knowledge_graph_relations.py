"""Pairs of genes that belong together: in a model's attention, and drugs with what they act on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm.tl._knowledge_graph_cells import gene_columns
from cfm.tl._knowledge_graph_networks import support_test, supported

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData
    from scipy import sparse

    from cfm.tl._knowledge_graph_attention import Attended


def relations(
    attended: Attended,
    networks: Mapping[str, sparse.csr_matrix],
    n_relations: int,
    share: np.ndarray,
    *,
    n_permutations: int,
    seed: int,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Return the strongest relations of each code, and how networks support them.

    ``share`` is the ``(n_genes,)`` share of cells that express a gene.

    Returns
    -------
    table
        ``code``, ``a``, ``b`` (columns of the data, in the order of the names), ``weight`` and
        ``support`` (names of networks joined by ``|``, ``""`` for none).
    support
        Of each network what :func:`support_test` says of the different pairs of all codes.
    """
    parts = []
    for code, found in enumerate(attended.relations):
        places = np.flatnonzero(found.weight > 0)
        order = np.lexsort((found.b[places], found.a[places], -found.weight[places]))
        best = places[order[:n_relations]]
        parts.append(
            pd.DataFrame(
                {
                    "code": code,
                    "a": found.genes[found.a[best]],
                    "b": found.genes[found.b[best]],
                    "weight": found.weight[best],
                }
            )
        )
    table = pd.concat(parts, ignore_index=True)
    a, b = table["a"].to_numpy(), table["b"].to_numpy()
    marks = {name: supported(network, a, b) for name, network in networks.items()}
    table["support"] = [
        "|".join(name for name in marks if marks[name][i]) for i in range(len(table))
    ]
    ends = np.unique(np.sort(np.column_stack([a, b]), axis=1), axis=0)
    genes = np.unique(np.concatenate([found.genes for found in attended.relations]))
    tests = {
        f"{name}_network": dict(
            support_test(
                network,
                ends[:, 0],
                ends[:, 1],
                genes,
                level=share[genes],
                n_permutations=n_permutations,
                seed=seed,
            )
        )
        for name, network in networks.items()
    }
    return table, tests


def drug_targets(table: Any, adata: AnnData) -> pd.DataFrame:
    """Find targets of drugs in data.

    Returns
    -------
    ``compound``, ``gene`` (column of the data) and ``action``, a row per pair.

    Raises
    ------
    TypeError
        If ``table`` is no DataFrame.
    ValueError
        If a column is missing, or no target is measured.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"drugs is a {type(table).__name__}; expected a DataFrame with the columns compound "
            "and gene, such as cfm.datasets.drug_targets()."
        )
    missing = [name for name in ("compound", "gene") if name not in table]
    if missing:
        raise ValueError(
            f"drugs has no column {', '.join(missing)}; it has {table.columns.tolist()}."
        )
    known = table.dropna(subset=["compound", "gene"])
    place = gene_columns(known["gene"].astype(str).tolist(), adata)
    if not place:
        raise ValueError(
            f"None of the {known['gene'].nunique()} targets in drugs (such as "
            f"{', '.join(known['gene'].astype(str).iloc[:3])}) is measured; use the same kind of "
            "gene names."
        )
    action = known["action"].fillna("") if "action" in known else ""
    found = pd.DataFrame(
        {
            "compound": known["compound"].astype(str),
            "gene": known["gene"].astype(str).map(place),
            "action": action,
        }
    ).dropna(subset=["gene"])
    found["gene"] = found["gene"].astype(np.int64)
    return found.drop_duplicates(["compound", "gene"]).reset_index(drop=True)
