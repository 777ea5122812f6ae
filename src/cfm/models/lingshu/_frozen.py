"""Counts that are given before cells are generated, and stay."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm.models.lingshu._levels import shown
from cfm.models.lingshu._reading import check_whole

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.data import GeneVocabulary

#: In counts: a gene that is to be drawn.
FREE = -1

Frozen = Callable[[slice], np.ndarray]


def read_frozen(frozen: Any, n: int, vocabulary: GeneVocabulary) -> Frozen:
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
            f"The model does not know the genes {shown(unknown, 5)}; it knows "
            f"{', '.join(vocabulary.genes[:3])}, … (model.vocabulary.genes)."
        )
    if len(set(names)) < len(names):
        raise ValueError("A gene is named twice among those that are given; name each once.")
    return found.astype(np.int64)


def _counts(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    check_whole(values[~np.isnan(values)], "frozen=")
    return np.where(np.isnan(values), FREE, values).astype(np.int64)
