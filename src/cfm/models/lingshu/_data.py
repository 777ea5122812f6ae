"""Inputs of Lingshu-Cell: tokens of counts, tables of cells to make, given counts."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy.stats import false_discovery_control, mannwhitneyu

from cfm._arguments import check_whole
from cfm.data._counts import check_count_values
from cfm.data._matrix import check_unique_names
from cfm.models.count_model._conditions import shown
from cfm.models.count_model._data import REMEDY
from cfm.models.count_model._module import generator_of
from cfm.models.lingshu._counts import quantise
from cfm.models.lingshu._module import MASK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

    from cfm.data import GeneVocabulary
    from cfm.models.count_model._data import DenseCountReader

#: In counts: a gene that is to be drawn.
FREE = -1

#: A gene responds if its mean count changes by more than this, by more than this factor, and at
#: this false discovery rate (arXiv 2603.25240, eq. 26).
_LEAST_CHANGE, _LEAST_FOLD, _FDR = 1.0, 2.0, 0.05
#: Largest number of cells of a condition that are compared, and genes at a time.
_MOST_CELLS, _GENES = 1000, 1000

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


def add_prior(
    frozen: CountBlock,
    reader: DenseCountReader,
    names: Sequence[str],
    source: np.ndarray,
    prior: DenseCountReader,
    conditions: pd.DataFrame,
    seed: int,
) -> CountBlock:
    """Add counts of the genes that respond to the perturbation in other sources.

    Parameters
    ----------
    frozen
        Given counts, which stay.
    reader, names, source
        Cells to perturb, their names and sources.
    prior, conditions
        Cells of other sources, with their names as index, ``"source"``, and ``"perturbed"``: 1, 0
        for controls, −1 for others.
    seed
        Of the draw of cells and of rounding.

    Raises
    ------
    ValueError
        If no other source has the perturbation.
    """
    rng = np.random.default_rng(seed)
    rows = pd.Series(np.arange(len(conditions)), index=conditions.index).sort_index()
    table = conditions.loc[rows.index]
    drawn = {
        place: rng.permutation(part.to_numpy())[:_MOST_CELLS]
        for place, part in rows.groupby([table["source"], table["perturbed"]])
    }
    complete = [str(s) for s, state in drawn if state == 1 and (s, 0) in drawn]
    known = {s: prior.counts(drawn[s, 1]) for s in complete}
    moved = {s: _responding(prior.counts(drawn[s, 0]), counts) for s, counts in known.items()}
    others = {s: sorted(known.keys() - {s}) for s in set(source)}
    if lone := sorted(s for s, found in others.items() if not found):
        raise ValueError(
            f"prior_cells= has no source other than {shown(lone, 5)} with both perturbed cells and "
            "controls, so no prior genes are known."
        )
    genes = {s: np.any([moved[o] for o in found], axis=0) for s, found in others.items()}

    def read(rows: slice) -> np.ndarray:
        out = frozen(rows)
        depths = library_sizes(reader.counts_of(rows))
        for row, depth, name, own in zip(out, depths, names[rows], source[rows], strict=True):
            rng = generator_of(f"{name} prior", seed)
            donor = rng.choice(known[rng.choice(others[own])])
            scale = depth / max(np.maximum(donor, 0).sum(), 1)
            counts = np.floor(donor * scale + rng.random(len(row))).astype(np.int64)
            given = genes[own] & (row == FREE) & (donor >= 0)
            row[given] = counts[given]
        return out

    return read


def _responding(controls: np.ndarray, perturbed: np.ndarray) -> np.ndarray:
    """Return which genes respond, ``(n_genes,)`` bool, from counts scaled to one library size."""
    depths = [np.maximum(library_sizes(c), 1.0)[:, None] for c in (controls, perturbed)]
    common = float(np.median(np.vstack(depths)))
    a, b = (
        np.maximum(c, 0) * (common / d) for c, d in zip((controls, perturbed), depths, strict=True)
    )
    low, high = np.sort([a.mean(axis=0), b.mean(axis=0)], axis=0)
    parts = [slice(i, i + _GENES) for i in range(0, a.shape[1], _GENES)]
    tests = [mannwhitneyu(a[:, g], b[:, g], method="asymptotic").pvalue for g in parts]
    p = np.nan_to_num(np.concatenate(tests), nan=1.0)  # the same value in all cells
    large = (high - low > _LEAST_CHANGE) & (high > _LEAST_FOLD * low)
    return large & (false_discovery_control(p) < _FDR)
