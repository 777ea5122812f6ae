"""Signatures on the genes of the data."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from cfm.data import GeneVocabulary
from cfm.data._warn import warn_user
from cfm.tl._signatures import symbols

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.tl._signatures import SignatureTable

#: With fewer measured genes than these in all signatures, ranks are among all genes of the data.
MIN_BACKGROUND = 1000
#: Share of the signatures' genes below which a warning says that few are measured.
LOW_SHARE = 0.25


def on_genes(
    table: SignatureTable, adata: AnnData
) -> tuple[SignatureTable, np.ndarray, np.ndarray, float]:
    """Put signatures on the genes of the data.

    Returns the signatures with positions in the background genes, the names of these, their
    columns in ``adata``, and the share of the signatures' genes that are measured.
    """
    alignment = GeneVocabulary(table.genes.tolist()).align(adata.var_names, min_genes=0)
    if not len(alignment.columns):
        raise ValueError(
            f"None of the {len(table.genes)} genes of the signatures (such as {table.genes[0]}) is "
            f"among the {adata.n_vars} genes of the data (such as {adata.var_names[0]}); check "
            "that both hold gene symbols or Ensembl ids."
        )
    if alignment.found_share < LOW_SHARE:
        warn_user(
            f"Only {alignment.found_share:.0%} of the {len(table.genes)} genes of the signatures "
            "are in the data; reversal from so few is less certain."
        )
    columns = alignment.columns
    if len(columns) < MIN_BACKGROUND:
        others = np.setdiff1d(np.arange(adata.n_vars), columns)
        columns = np.concatenate([columns, others])
    labels = symbols(adata.var_names.astype(str))[columns]
    # By name, so that random draws do not depend on the order of the columns.
    order = np.argsort(labels.astype(str), kind="stable")
    columns, labels = columns[order], labels[order]
    place = np.full(adata.n_vars, -1, dtype=np.int64)
    place[columns] = np.arange(len(columns))
    moved = np.full(len(table.genes) + 1, -1, dtype=np.int64)  # the last entry is for "no gene"
    moved[alignment.positions] = place[alignment.columns]
    placed = replace(table, up=moved[table.up], down=moved[table.down])
    sides = ((placed.up >= 0).any(axis=1), (placed.down >= 0).any(axis=1))
    alone = int((sides[0] ^ sides[1]).sum())
    if alone:
        warn_user(
            f"{alone} of {len(table)} signatures have measured genes on one side only; they are "
            "scored by that side."
        )
    return placed, labels, columns, alignment.found_share
