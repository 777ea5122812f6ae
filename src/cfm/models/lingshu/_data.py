"""Inputs of Lingshu-Cell: tokens of counts, tables of cells to make, given counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._arguments import check_whole
from cfm.data._counts import check_count_values
from cfm.data._matrix import check_unique_names
from cfm.models.count_model._conditions import shown
from cfm.models.count_model._data import REMEDY
from cfm.models.lingshu._counts import quantise
from cfm.models.lingshu._module import MASK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from cfm.data import GeneVocabulary
    from cfm.models.count_model._data import DenseCountReader

#: In counts: a gene that is to be drawn.
FREE = -1

#: From cells to counts of them, ``(b, n_genes)`` int64.
CountBlock = Callable[[slice], np.ndarray]


def to_tokens(counts: np.ndarray, absent: int = MASK) -> np.ndarray:
    """Return tokens, int64; ``absent`` for −1, a gene that is not measured or to be drawn."""
    return np.where(counts < 0, absent, quantise(np.maximum(counts, 0))).astype(np.int64)


def library_sizes(counts: np.ndarray) -> np.ndarray:
    """Return the counts of cells over the measured genes, ``(b,)`` float32."""
    return np.maximum(counts, 0).sum(axis=1).astype(np.float32)


def wanted_cells(cells: int | pd.DataFrame) -> pd.DataFrame:
    """Return a table with a row per cell to make, named and with its conditions.

    Raises
    ------
    TypeError, ValueError
        If it is neither a number nor a table with a row.
    """
    if isinstance(cells, pd.DataFrame):
        if not len(cells):
            raise ValueError("cells= has no row; at least one cell is needed.")
        table = cells.set_axis(cells.index.astype(str), axis=0)
        check_unique_names(table.index, axis="obs")
        return table
    if isinstance(cells, bool) or not isinstance(cells, int | np.integer):
        raise TypeError(
            f"cells= is a {type(cells).__name__}; expected a number of cells, or a table with a "
            "row for each."
        )
    return pd.DataFrame(index=pd.Index([f"cell{i}" for i in range(check_whole("cells", cells))]))


def read_frozen(frozen: Any, n: int, vocabulary: GeneVocabulary) -> CountBlock:
    """Return a function from cells to their given counts, ``(b, n_genes)`` int64, −1 = free.

    Parameters
    ----------
    frozen
        ``None``; counts by gene for all cells (mapping or Series); a DataFrame, ``n`` cells by
        genes; or an array, ``n`` cells by all genes of the vocabulary. ``NaN`` is free.
    n
        Number of cells.
    vocabulary
        Genes of the model.

    Raises
    ------
    KeyError
        If a gene is unknown.
    TypeError, ValueError
        If it is something else, of another shape, or holds no counts.
    """
    n_genes = len(vocabulary)
    if frozen is None:
        return lambda rows: np.full((rows.stop - rows.start, n_genes), FREE, dtype=np.int64)
    if isinstance(frozen, Mapping | pd.Series):
        named = pd.Series(dict(frozen), dtype=np.float64)
        positions = gene_positions(named.index.tolist(), vocabulary)
        row = np.full(n_genes, FREE, dtype=np.int64)
        row[positions] = _counts(named.to_numpy())
        return lambda rows: np.tile(row, (rows.stop - rows.start, 1))
    if isinstance(frozen, pd.DataFrame):
        positions = gene_positions(frozen.columns.tolist(), vocabulary)
        values = frozen.to_numpy(dtype=np.float64)
    elif isinstance(frozen, np.ndarray) and frozen.ndim == 2 and frozen.shape[1] == n_genes:
        positions, values = np.arange(n_genes), frozen
    else:
        raise TypeError(
            f"frozen= is a {type(frozen).__name__}; expected counts by gene, a DataFrame of cells "
            f"by genes, or an array of cells by the model's {n_genes} genes."
        )
    if len(values) != n:
        raise ValueError(f"frozen= has {len(values)} rows for {n} cells; expected one for each.")
    counts = _counts(values)

    def read(rows: slice) -> np.ndarray:
        out = np.full((rows.stop - rows.start, n_genes), FREE, dtype=np.int64)
        out[:, positions] = counts[rows]
        return out

    return read


def gene_positions(genes: Sequence[str], vocabulary: GeneVocabulary) -> np.ndarray:
    """Return the places of genes in the vocabulary, ``(m,)`` int64.

    Raises
    ------
    KeyError, TypeError, ValueError
        If one is unknown or named twice, or ``genes`` is one text.
    """
    if isinstance(genes, str):
        raise TypeError(f"genes={genes!r} is a single string; give a list of gene names.")
    names = [str(g) for g in genes]
    found = vocabulary.genes.get_indexer(pd.Index(names, dtype=object))
    unknown = [g for g, i in zip(names, found, strict=True) if i < 0]
    if unknown:
        raise KeyError(
            f"The model does not have the genes {shown(unknown, 5)}; it has "
            f"{', '.join(vocabulary.genes[:3])}, … (model.vocabulary.genes)."
        )
    if len(set(names)) < len(names):
        raise ValueError("A gene is named twice among those that are given; name each once.")
    return found.astype(np.int64)


def _counts(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    check_count_values(values[~np.isnan(values)], "frozen=", REMEDY)
    return np.where(np.isnan(values), FREE, values).astype(np.int64)


def keep_counts(
    frozen: CountBlock, reader: DenseCountReader, adata: AnnData, genes: Sequence[str]
) -> CountBlock:
    """Add the counts of some genes in ``adata`` to the given counts.

    Raises
    ------
    KeyError, TypeError
        If a gene is not measured or not one of the model's, or ``genes`` is one text.
    """
    if isinstance(genes, str):
        raise TypeError(f"keep_genes={genes!r} is a single string; give a list of gene names.")
    alignment = reader.alignment
    place = dict(zip(adata.var_names[alignment.columns], alignment.positions, strict=True))
    unknown = [g for g in genes if g not in place]
    if unknown:
        raise KeyError(
            f"keep_genes names {unknown[:5]}, which are not measured or not genes of the model."
        )
    kept = np.array([place[g] for g in genes], dtype=np.int64)

    def read(rows: slice) -> np.ndarray:
        out = frozen(rows)
        if rows.stop > rows.start and len(kept):
            counts = reader.counts(np.arange(rows.start, rows.stop))[:, kept]
            out[:, kept] = np.where(out[:, kept] == FREE, counts, out[:, kept])
        return out

    return read
