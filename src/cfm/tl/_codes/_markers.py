"""Statistics of genes in groups of cells, and the marker genes of codes.

One pass in blocks works for every storage. :func:`scanpy.tl.rank_genes_groups` gives the same
ranking for cells in memory, but passes through all cells for each group: for 20,000 cells by 2,000
genes in 100 groups it takes 11 s, this code 0.5 s and half the memory.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import false_discovery_control

from cfm.data._counts import log1p_cp10k
from cfm.data._matrix import row_blocks
from cfm.stats._welch import Sums, welch_greater

if TYPE_CHECKING:
    from collections.abc import Iterable

_COLUMNS = {
    "code": object,
    "rank": np.int64,
    "gene": object,
    "score": np.float64,
    "log_fold_change": np.float64,
    "share_inside": np.float64,
    "share_outside": np.float64,
    "p_value": np.float64,
    "fdr": np.float64,
}


def group_sums(
    blocks: Iterable[tuple[slice, sparse.csr_matrix]],
    group: np.ndarray,
    n_groups: int,
    n_genes: int,
) -> Sums:
    """Sum values over groups of cells.

    Parameters
    ----------
    blocks
        Rows of the matrix, and their values.
    group
        ``(n_cells,)`` group of each cell, −1 for none.
    n_groups, n_genes
        Shape of the sums.
    """
    total, squares, positive = (np.zeros((n_groups, n_genes)) for _ in range(3))
    for rows, values in blocks:
        member = membership(group[rows], n_groups)
        total += (member @ values).toarray()
        squares += (member @ values.power(2)).toarray()
        positive += (member @ (values > 0)).toarray()
    n = np.bincount(group[group >= 0], minlength=n_groups).astype(np.float64)[:, None]
    return Sums(n, total, squares, positive)


def membership(group: np.ndarray, n_groups: int) -> sparse.csr_matrix:
    """Return ``(n_groups, n_cells)`` CSR, 1 where a cell is in a group; −1 is none."""
    known = np.flatnonzero(group >= 0)
    entries = (np.ones(len(known)), (group[known], known))
    return sparse.csr_matrix(entries, shape=(n_groups, len(group)))


def marker_table(
    matrix: Any,
    place: np.ndarray,
    names: np.ndarray,
    genes: pd.Index,
    *,
    counts: bool,
    n_markers: int,
    min_cells: int,
) -> pd.DataFrame:
    """Test the genes of each code against all other cells, in one pass through the matrix.

    Parameters
    ----------
    matrix
        Cells by genes, any storage; not changed.
    place
        ``(n_cells,)`` place of the code of a cell in ``names``; cells with −1 (none) are left out.
    names
        Codes, ``(n_codes,)`` text.
    genes
        Names of the columns.
    counts
        Whether the matrix holds counts, which are read as ``log1p`` of counts per 10,000; else it
        holds such values.
    n_markers
        Largest number of genes of a code, those of the largest statistics above 0.
    min_cells
        Codes with fewer cells, or with fewer cells outside, are not tested.

    Returns
    -------
    DataFrame, a row per code and gene, as :func:`cfm.tl.cell_codes` stores it.
    """
    size = np.bincount(place[place >= 0], minlength=len(names))
    tested = np.flatnonzero((size >= min_cells) & (size.sum() - size >= min_cells))
    if not len(tested) or not n_markers:
        return _frame([])
    row_of = np.full(len(names) + 1, len(tested))  # the last row is for the other codes
    row_of[tested] = np.arange(len(tested))
    group = np.where(place < 0, -1, row_of[place])
    blocks = ((rows, _log_counts(block, counts)) for rows, block in row_blocks(matrix))
    sums = group_sums(blocks, group, len(tested) + 1, matrix.shape[1])
    everything = sums.all()
    parts = []
    for row, code in enumerate(tested):
        inside = sums.of(slice(row, row + 1))
        outside = everything.minus(inside)
        parts.append(_markers(inside, outside, genes, n_markers).assign(code=str(names[code])))
    return _frame(parts)


def _log_counts(block: Any, counts: bool) -> sparse.csr_matrix:
    values = sparse.csr_matrix(block, dtype=np.float64)
    return log1p_cp10k(values)[0] if counts else values


def _markers(inside: Sums, outside: Sums, genes: pd.Index, n_markers: int) -> pd.DataFrame:
    """Return the first genes of a code by Welch's t statistic."""
    score, p_value = (values[0] for values in welch_greater(inside, outside))
    # Rounded: sums in another order of cells differ in the last bit.
    order = np.lexsort((np.arange(len(score)), -score.astype(np.float32)))
    first = order[score[order] > 0][:n_markers]
    return pd.DataFrame(
        {
            "rank": np.arange(1, len(first) + 1),
            "gene": genes[first].astype(str),
            "score": score[first],
            "log_fold_change": (inside.mean - outside.mean)[0, first] / np.log(2.0),
            "share_inside": (inside.positive / inside.n)[0, first],
            "share_outside": (outside.positive / outside.n)[0, first],
            "p_value": p_value[first],
            "fdr": false_discovery_control(p_value)[first],
        }
    )


def _frame(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Join tables of codes; without any, a table of the same columns without rows."""
    parts = [part for part in parts if len(part)]
    table = pd.concat(parts)[list(_COLUMNS)] if parts else pd.DataFrame(columns=list(_COLUMNS))
    return table.astype(_COLUMNS).set_axis([str(i) for i in range(len(table))], axis=0)
