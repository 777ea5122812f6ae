"""Counts of cells out of an AnnData, by gene of a vocabulary, and checks of their units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
from scipy import sparse

from cfm._adata import require_anndata, warn_user
from cfm._arguments import check_choice
from cfm.data._matrix import LOG_CEILING, get_matrix, in_memory_frame, read_rows, row_blocks
from cfm.data._row_buffer import RowBuffer

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.data import GeneAlignment, GeneVocabulary


#: Rows that the kind of a matrix is judged by.
_N_ROWS = 32
#: Counts that no single cell has in the median, and those that one has only with deep sequencing.
_MOST_COUNTS, _MANY_COUNTS = 1e6, 1e5
#: Share of the genes that bulk samples express and single cells do not; for so many genes.
_MOST_GENES, _LEAST_GENES = 0.5, 2000


def looks_like_counts(matrix: Any) -> bool:
    """Whether all values are whole, none is negative and some are beyond any logarithm (30).

    Parameters
    ----------
    matrix
        What :func:`cfm.data._matrix.get_matrix` returned.
    """
    maximum = 0.0
    for _, block in row_blocks(matrix):
        values = block.data if sparse.issparse(block) else block.ravel()
        values = values[np.isfinite(values)]
        if not values.size:
            continue
        if values.min() < 0 or (values.dtype.kind == "f" and (values != np.rint(values)).any()):
            return False
        maximum = max(maximum, float(values.max()))
    return maximum > LOG_CEILING


def check_single_cells(matrix: Any, where: str) -> None:
    """Refuse counts of bulk samples, judged by 32 rows spread over the matrix.

    Of about 40 public data sets, those of bulk samples have medians of 1 to 70 million counts, and
    those of single cells at most 300,000 (Smart-seq2), on a third of the measured genes. A
    pseudobulk of few cells has as many counts as a cell, and is not distinguished from one.

    Parameters
    ----------
    matrix
        What :func:`cfm.data._matrix.get_matrix` returned, counts.
    where
        Its name in messages.

    Raises
    ------
    ValueError
        If the median library has more than 1,000,000 counts; or more than 100,000 and half of the
        genes are expressed.
    """
    n_rows, n_genes = matrix.shape
    if not n_rows:
        return
    rows = np.unique(np.linspace(0, n_rows - 1, min(n_rows, _N_ROWS)).astype(np.int64))
    block = read_rows(matrix, rows)
    total = float(np.median(np.asarray(block.sum(axis=1), dtype=np.float64)))
    share = float(np.median(np.asarray((block > 0).sum(axis=1)))) / max(n_genes, 1)
    many = total > _MANY_COUNTS and share > _MOST_GENES and n_genes >= _LEAST_GENES
    if total > _MOST_COUNTS or many:
        raise ValueError(
            f"{where} holds {total:,.0f} counts a row in the median, and {share:.0%} of the genes "
            "are expressed: these are bulk samples, and the model reads single cells. Pass bulk "
            "samples to cfm.models.BulkFormer or CellPulse; of cells that were sequenced this "
            "deeply draw fewer counts first (sc.pp.downsample_counts)."
        )


#: Units of a matrix: raw counts, or the natural ``log1p`` of counts per 10,000.
Units = Literal["counts", "log1p_cp10k"]

#: Sum that a cell is scaled to before the logarithm.
TARGET_SUM = 1e4
#: Least number of genes of the vocabulary that must be measured.
MIN_GENES = 10
#: Share of the vocabulary below which the reader warns.
LOW_SHARE = 0.25
#: Least number of positive values, all whole, that are taken for counts.
_MIN_WHOLE = 20
_NORMALISED = "pass the layer that holds the counts with layer=, or declare units='log1p_cp10k'."
_COUNTS = "pass units='counts', or a layer with such values with layer=."


class CountReader:
    """Counts of an AnnData by gene of a vocabulary, a few cells at a time.

    Genes that are not measured have no counts; see :attr:`measured`.

    Parameters
    ----------
    adata
        Cells by genes, any storage.
    vocabulary
        Genes to read.
    layer
        Layer to read instead of ``X``.
    units
        Units of the matrix: ``"counts"``, or ``"log1p_cp10k"``. Declared, and checked.
    total_counts
        Column of ``obs`` with the counts of each cell, for ``"log1p_cp10k"``; without it cells
        are taken to have 10,000.
    min_genes
        Least number of the genes that must be measured.
    remedy
        What to do if values are no counts, for the error.

    Attributes
    ----------
    n_cells
        Number of cells.
    units
        See above.
    vocabulary
        See above.
    alignment
        Columns of ``adata`` by gene of the vocabulary.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If the layer or column does not exist.
    ValueError
        If there are no cells, these are bulk samples, too few of the genes are measured, ``units``
        is none of the above, or total counts are not positive numbers, now; if values are not in
        their units, when they are read.

    Warns
    -----
    UserWarning
        If few of the genes are measured.
    """

    def __init__(
        self,
        adata: AnnData,
        vocabulary: GeneVocabulary,
        *,
        layer: str | None = None,
        units: Units = "counts",
        total_counts: str | None = None,
        min_genes: int = MIN_GENES,
        remedy: str = _NORMALISED,
    ) -> None:
        require_anndata(adata)
        check_choice("units", units, get_args(Units))
        self._rows = RowBuffer(get_matrix(adata, layer=layer))
        self._where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
        self._remedy = remedy
        self.units = units
        if units == "counts":
            check_single_cells(self._rows.matrix, self._where)
        self.n_cells: int = adata.n_obs
        self.vocabulary = vocabulary
        self._totals = _read_totals(adata, total_counts, units)
        found = vocabulary.align(adata.var_names, min_genes=min(min_genes, len(vocabulary)))
        self.alignment: GeneAlignment = found
        if found.found_share < LOW_SHARE:
            warn_user(
                f"Only {found.found_share:.0%} of the model's {len(vocabulary)} genes are measured "
                f"({len(found.columns)}); results from so few are less certain."
            )
        # Place of each column in the vocabulary; −1 = not in it.
        self._place = np.full(adata.n_vars, -1, dtype=np.int64)
        self._place[found.columns] = found.positions

    @property
    def measured(self) -> np.ndarray:
        """Which genes of the vocabulary are measured, ``(n_genes,)`` bool."""
        out = np.zeros(self.alignment.n_vocabulary, dtype=bool)
        out[self.alignment.positions] = True
        return out

    def prefetch(self, rows: np.ndarray) -> None:
        """Start to read these cells from disk, in this order, before they are needed."""
        self._rows.prefetch(rows)

    def read(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return ``(b, n_genes)`` CSR float64 values as they are stored, checked."""
        block = sparse.csr_matrix(self._rows[rows])
        if self.units == "counts":
            check_count_values(block.data, self._where, self._remedy)
        else:
            check_log_cp10k(block, self._where)
        known = self._place[block.indices] >= 0
        kept = np.concatenate([[0], np.cumsum(known)])[block.indptr]
        shape = (block.shape[0], self.alignment.n_vocabulary)
        entries = (block.data[known], self._place[block.indices[known]], kept)
        return canonical(sparse.csr_matrix(entries, shape=shape), np.float64)

    def counts(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return ``(b, n_genes)`` CSR float64 counts.

        Normalised values are turned back into counts, which need not be whole, with the total
        of the cell if it is known, else 10,000.
        """
        values = self.read(rows)
        if self.units == "counts":
            return values
        total = np.repeat(10.0 ** self.depth(rows), np.diff(values.indptr))
        return with_values(values, np.expm1(values.data) * total / TARGET_SUM)

    def depth(self, rows: np.ndarray) -> np.ndarray:
        """Return log10 of the counts of cells that come normalised, ``(b,)`` float64."""
        if self._totals is None:
            return np.full(len(rows), np.log10(TARGET_SUM))
        return np.log10(self._totals[rows])


def canonical(matrix: sparse.csr_matrix, dtype: type) -> sparse.csr_matrix:
    """Return a CSR matrix with each value once, by ascending column, and no zeros."""
    matrix = matrix.astype(dtype)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def with_values(matrix: sparse.csr_matrix, values: np.ndarray) -> sparse.csr_matrix:
    """Return a CSR matrix with other values at the same places."""
    return sparse.csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape)


def log1p_cp10k(counts: sparse.csr_matrix) -> tuple[sparse.csr_matrix, np.ndarray]:
    """Normalise counts of cells.

    Returns
    -------
    values
        ``(b, n_genes)`` CSR float64, natural ``log1p`` of counts per 10,000.
    total
        ``(b,)`` float64, counts of each cell.
    """
    counts = canonical(counts, np.float64)
    total = np.asarray(counts.sum(axis=1)).ravel()
    scale = np.repeat(total, np.diff(counts.indptr))
    return with_values(counts, np.log1p(counts.data / scale * TARGET_SUM)), total


def _read_totals(adata: AnnData, total_counts: str | None, units: Units) -> np.ndarray | None:
    """Return the counts of each cell from a column of ``obs``."""
    if total_counts is None:
        return None
    if units == "counts":
        raise ValueError(
            f"total_counts={total_counts!r} only goes with units='log1p_cp10k'; of counts the "
            "totals are summed, so leave it out."
        )
    obs = in_memory_frame(adata.obs)
    if total_counts not in obs:
        raise KeyError(
            f"adata.obs has no column {total_counts!r} (total_counts=); it has "
            f"{obs.columns.tolist()}."
        )
    column = obs[total_counts]
    if column.dtype.kind not in "iuf":
        raise ValueError(
            f"adata.obs[{total_counts!r}] holds {column.dtype} values; expected the number of "
            "counts of each cell."
        )
    totals = column.to_numpy(dtype=np.float64)
    wrong = ~(np.isfinite(totals) & (totals >= 1))
    if wrong.any():
        raise ValueError(
            f"adata.obs[{total_counts!r}] holds {totals[wrong][0]:.4g} for the cell "
            f"{adata.obs_names[wrong][0]!r}; expected the number of its counts, at least 1 and not "
            "its logarithm."
        )
    return totals


def check_count_values(values: np.ndarray, where: str, remedy: str = _NORMALISED) -> None:
    """Raise an error for values that are no counts.

    Raises
    ------
    ValueError
        If a value is not finite, negative or not whole.
    """
    _check_positive(values, where, remedy)
    if values.dtype.kind == "f":
        broken = values[values != np.rint(values)]
        if broken.size:
            raise ValueError(
                f"{where} holds values that are not whole (such as {broken[0]:.4g}), so these are "
                f"not raw counts; {remedy}"
            )


def check_log_cp10k(block: sparse.csr_matrix, where: str) -> None:
    """Raise an error for cells by genes that cannot be ``log1p`` of counts per 10,000.

    Raises
    ------
    ValueError
        If a value is not finite or negative, if all are whole, or if a cell sums to more than
        10,000 without the logarithm.
    """
    values = block.data
    _check_positive(values, where, f"log1p of counts per 10,000 is expected: {_COUNTS}")
    largest = float(values.max(initial=0.0))
    if largest > np.log1p(TARGET_SUM) + 1e-3:
        raise ValueError(
            f"{where} holds values up to {largest:.6g}, which no log1p of counts per 10,000 "
            f"reaches ({np.log1p(TARGET_SUM):.2f}); {_COUNTS}"
        )
    positive = values[values > 0]
    if positive.size >= _MIN_WHOLE and (positive == np.rint(positive)).all():
        raise ValueError(f"{where} holds whole numbers only, so these are counts; {_COUNTS}")
    total = np.asarray(with_values(block, np.expm1(values.astype(np.float64))).sum(axis=1)).ravel()
    if (total > 1.01 * TARGET_SUM).any():
        raise ValueError(
            f"Undoing log1p, a cell of {where} sums to {total.max():.6g}, but counts per 10,000 "
            "sum to 10,000 at most, so this is another logarithm or was scaled to another sum; "
            f"make it with sc.pp.normalize_total(adata, target_sum=1e4), or {_COUNTS}"
        )


def _check_positive(values: np.ndarray, where: str, remedy: str) -> None:
    """Raise an error for values that are not finite or below 0."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{where} holds NaN or infinite values; {remedy}")
    if values.size and values.min() < 0:
        raise ValueError(
            f"{where} holds negative values (smallest {values.min():.4g}), as after centring or "
            f"scaling; {remedy}"
        )
