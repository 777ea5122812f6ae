"""Genes that the cells of a code express more than all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import false_discovery_control, ttest_ind_from_stats

from cfm.data._matrix import row_blocks

if TYPE_CHECKING:
    from collections.abc import Iterator

_TARGET_SUM = 1e4
#: A variance below this share of the squared mean is what rounding leaves of none.
_ROUNDING = 1e-12
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


@dataclass(frozen=True)
class _Sums:
    """Sums over groups of cells: ``(groups, genes)``; number of cells ``(groups, 1)``."""

    n: np.ndarray
    total: np.ndarray
    squares: np.ndarray
    positive: np.ndarray

    def mean_and_spread(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the mean and the standard deviation of each gene."""
        mean = self.total / self.n
        variance = (self.squares - self.n * mean**2) / (self.n - 1)
        variance[variance < _ROUNDING * mean**2] = 0.0
        return mean, np.sqrt(variance)

    def part(self, rows: slice) -> _Sums:
        return _Sums(self.n[rows], self.total[rows], self.squares[rows], self.positive[rows])

    def less(self, other: _Sums) -> _Sums:
        return _Sums(
            self.n - other.n,
            self.total - other.total,
            self.squares - other.squares,
            self.positive - other.positive,
        )


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
        ``(n_cells,)`` place of the code of a cell in ``names``; −1 = none, such cells are left out.
    names
        Codes, ``(n_codes,)`` text.
    genes
        Names of the columns.
    counts
        Whether the matrix holds counts, which are read as ``log1p`` of counts per 10,000; else it
        holds such values.
    n_markers
        At most so many genes of a code, those with the largest statistic above 0.
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
    sums = _group_sums(matrix, np.where(place < 0, -1, row_of[place]), len(tested) + 1, counts)
    everything = _Sums(
        *(part.sum(axis=0, keepdims=True) for part in vars(sums).values())
    )  # also of codes that are too small to be tested themselves
    parts = []
    for row, code in enumerate(tested):
        inside = sums.part(slice(row, row + 1))
        parts.append(_markers(str(names[code]), inside, everything.less(inside), genes, n_markers))
    return _frame(parts)


def _group_sums(matrix: Any, group: np.ndarray, n_groups: int, counts: bool) -> _Sums:
    """Sum values, squares and positive values of each gene over groups of cells."""
    shape = (n_groups, matrix.shape[1])
    total, squares, positive = np.zeros(shape), np.zeros(shape), np.zeros(shape)
    for rows, values in _log_blocks(matrix, counts):
        own = group[rows]
        known = np.flatnonzero(own >= 0)
        member = sparse.csr_matrix(
            (np.ones(len(known)), (own[known], known)), shape=(n_groups, len(own))
        )
        for out, part in (
            (total, values),
            (squares, values.power(2)),
            (positive, values > 0),
        ):
            out += (member @ part).toarray()
    n = np.bincount(group[group >= 0], minlength=n_groups).astype(np.float64)[:, None]
    return _Sums(n, total, squares, positive)


def _log_blocks(matrix: Any, counts: bool) -> Iterator[tuple[slice, sparse.csr_matrix]]:
    """Yield ``log1p`` of counts per 10,000, float64, a block of cells at a time."""
    for rows, block in row_blocks(matrix):
        values = sparse.csr_matrix(block, dtype=np.float64, copy=True)
        if counts:
            of_cell = np.asarray(values.sum(axis=1)).ravel()
            scale = np.repeat(_TARGET_SUM / np.maximum(of_cell, 1.0), np.diff(values.indptr))
            values.data = np.log1p(values.data * scale)
        yield rows, values


def _markers(
    code: str, inside: _Sums, outside: _Sums, genes: pd.Index, n_markers: int
) -> pd.DataFrame:
    """Return the first genes of a code by Welch's t statistic."""
    mean, spread = inside.mean_and_spread()
    other_mean, other_spread = outside.mean_and_spread()
    with np.errstate(divide="ignore", invalid="ignore"):  # genes without any spread
        score, p_value = ttest_ind_from_stats(
            mean[0], spread[0], inside.n[0],
            other_mean[0], other_spread[0], outside.n[0],
            equal_var=False, alternative="greater",
        )  # fmt: skip
    unlike = mean[0] > other_mean[0]
    flat = (spread[0] == 0) & (other_spread[0] == 0)
    score = np.where(flat, np.where(unlike, np.inf, 0.0), score)
    p_value = np.where(flat, np.where(unlike, 0.0, 1.0), p_value)
    fdr = false_discovery_control(p_value)
    # Sums in another order of cells differ in the last bit, which must not decide.
    order = np.lexsort((np.arange(len(score)), -score.astype(np.float32)))
    first = order[score[order] > 0][:n_markers]
    return pd.DataFrame(
        {
            "code": code,
            "rank": np.arange(1, len(first) + 1),
            "gene": genes[first].astype(str),
            "score": score[first],
            "log_fold_change": (mean[0] - other_mean[0])[first] / np.log(2.0),
            "share_inside": (inside.positive / inside.n)[0, first],
            "share_outside": (outside.positive / outside.n)[0, first],
            "p_value": p_value[first],
            "fdr": fdr[first],
        }
    )


def _frame(parts: list[pd.DataFrame]) -> pd.DataFrame:
    """Join tables of codes; without any, a table of the same columns without rows."""
    parts = [part for part in parts if len(part)]
    table = pd.concat(parts) if parts else pd.DataFrame(columns=list(_COLUMNS))
    return table.astype(_COLUMNS).set_axis([str(i) for i in range(len(table))], axis=0)
