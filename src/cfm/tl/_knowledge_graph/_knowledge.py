"""Known relations of genes: tables of pairs, matched with the genes of data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

if TYPE_CHECKING:
    from anndata import AnnData

#: Tables of ``knowledge``, and the columns of each.
TABLES = {
    "ligand_receptor": ("ligand", "receptor"),
    "tf": ("source", "target"),
    "protein": ("gene1", "gene2"),
    "drugs": ("compound", "gene"),
}
NETWORKS = ("tf", "protein")
#: Separator of the genes of a complex.
COMPLEX = "_"


def read_knowledge(knowledge: Any) -> dict[str, pd.DataFrame]:
    """Return the rows of tables with both ends, as text.

    Raises
    ------
    TypeError
        If ``knowledge`` is no mapping, or a table is no DataFrame.
    ValueError
        If a table has another name, lacks a column or has no rows.
    """
    if not isinstance(knowledge, Mapping):
        raise TypeError(
            f"knowledge is a {type(knowledge).__name__}; expected a dictionary of DataFrames by "
            f"their names, of {list(TABLES)}."
        )
    found = {}
    for name, table in knowledge.items():
        if name not in TABLES:
            raise ValueError(f"knowledge has a table {name!r}; expected names of {list(TABLES)}.")
        columns = list(TABLES[name])
        if not isinstance(table, pd.DataFrame):
            raise TypeError(
                f"knowledge[{name!r}] is a {type(table).__name__}; expected a DataFrame with the "
                f"columns {' and '.join(columns)}."
            )
        if not len(table) or not set(columns) <= set(table):
            raise ValueError(
                f"knowledge[{name!r}] has {len(table)} rows and the columns "
                f"{table.columns.tolist()}; expected rows with {' and '.join(columns)}."
            )
        known = table.dropna(subset=columns)
        found[name] = known.astype(dict.fromkeys(columns, str))
    return found


def gene_columns(names: Iterable[str], adata: AnnData) -> dict[str, int]:
    """Find genes among the columns of data, also under previous symbols or Ensembl ids."""
    from cfm.data import GeneVocabulary

    listed = sorted(set(names) - {""})
    if not listed:
        return {}
    found = GeneVocabulary(listed).align(adata.var_names, min_genes=0)
    return {
        listed[place]: int(column)
        for place, column in zip(found.positions, found.columns, strict=True)
    }


@dataclass(frozen=True)
class Pairs:
    """Ligand-receptor pairs with all genes measured.

    Attributes
    ----------
    table
        ``ligand`` and ``receptor``, a row per pair.
    columns
        ``(m,)`` int64, columns of the data with any of their genes.
    place
        Place in ``columns`` by gene.
    """

    table: pd.DataFrame
    columns: np.ndarray
    place: dict[str, int]

    def members(self, name: str) -> list[int]:
        """Return the places in ``columns`` of the genes of a ligand or receptor."""
        return [self.place[gene] for gene in name.split(COMPLEX)]


def measured_pairs(table: pd.DataFrame, adata: AnnData) -> Pairs:
    """Find ligand-receptor pairs in data.

    Raises
    ------
    ValueError
        If no pair is measured.
    """
    known = table[["ligand", "receptor"]].drop_duplicates().sort_values(["ligand", "receptor"])
    genes_of = {name: name.split(COMPLEX) for name in pd.unique(known.to_numpy().ravel())}
    genes = sorted({gene for members in genes_of.values() for gene in members})
    column = gene_columns(genes, adata)
    whole = [name for name, members in genes_of.items() if column.keys() >= set(members)]
    pairs = known[known.isin(whole).all(axis=1)].reset_index(drop=True).astype(object)
    if not len(pairs):
        raise ValueError(
            f"None of the {len(known)} ligand-receptor pairs has all of its genes measured: "
            f"{len(column)} of {len(genes)} genes were found (such as {', '.join(genes[:3])}, "
            f"among such as {', '.join(map(str, adata.var_names[:3]))}). "
            "Pass pairs by the names that var_names has (human symbols by default, "
            "cfm.pp.map_genes) as knowledge={'ligand_receptor': pairs}, or communication=None."
        )
    used = {gene for name in pd.unique(pairs.to_numpy().ravel()) for gene in genes_of[name]}
    columns = np.unique([column[gene] for gene in used]).astype(np.int64)
    place = {gene: int(np.searchsorted(columns, column[gene])) for gene in sorted(used)}
    return Pairs(pairs, columns, place)


def read_network(table: pd.DataFrame, adata: AnnData, name: str) -> sparse.csr_matrix:
    """Find a network in data.

    Returns
    -------
    ``(n_genes, n_genes)`` symmetric CSR of 0 and 1, without the diagonal.

    Raises
    ------
    ValueError
        If no interaction has both genes measured.
    """
    ends = table[list(TABLES[name])]
    place = gene_columns(ends.to_numpy().ravel().tolist(), adata)
    a, b = (ends[column].map(place) for column in ends)
    known = (a.notna() & b.notna() & (a != b)).to_numpy()
    if not known.any():
        example = ", ".join(map(" – ".join, ends.iloc[:3].to_numpy()))
        raise ValueError(
            f"None of the {len(ends)} interactions of knowledge[{name!r}] has both genes measured, "
            f"such as {example}, among genes such as "
            f"{', '.join(map(str, adata.var_names[:3]))}; use the same kind of gene names."
        )
    row, column = a[known].to_numpy(dtype=np.int64), b[known].to_numpy(dtype=np.int64)
    shape = (adata.n_vars, adata.n_vars)
    network = sparse.csr_matrix((np.ones(len(row), dtype=np.int8), (row, column)), shape=shape)
    network = (network + network.T).tocsr()
    network.data[:] = 1
    return network


def drug_targets(table: pd.DataFrame, adata: AnnData) -> pd.DataFrame:
    """Find targets of drugs in data.

    Returns
    -------
    ``compound``, ``gene`` (column of the data) and ``action``, a row per pair.

    Raises
    ------
    ValueError
        If no target is measured.
    """
    place = gene_columns(table["gene"], adata)
    if not place:
        raise ValueError(
            f"None of the {table['gene'].nunique()} targets in knowledge['drugs'] (such as "
            f"{', '.join(table['gene'].iloc[:3])}) is measured; use the same kind of gene names."
        )
    action = table["action"].fillna("") if "action" in table else ""
    found = table.assign(gene=table["gene"].map(place), action=action).dropna(subset=["gene"])
    found = found.astype({"gene": np.int64}).drop_duplicates(["compound", "gene"])
    return found[["compound", "gene", "action"]].reset_index(drop=True)
