"""Reads cells out of an AnnData as sentences: what they express, and two tokens of their counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, NamedTuple, Self, get_args

import numpy as np
import torch
from scipy import sparse

from cfm._arguments import check_choice
from cfm.data._matrix import get_matrix, in_memory_frame
from cfm.data._modality import require_anndata
from cfm.data._row_buffer import RowBuffer
from cfm.data._units import check_single_cells
from cfm.data._warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch.types
    from anndata import AnnData

    from cfm.data import GeneAlignment, GeneVocabulary

#: What is read: raw counts, or the natural ``log1p`` of counts per 10,000.
Units = Literal["counts", "log1p_cp10k"]

#: Counts that a cell is scaled to before the logarithm.
TARGET_SUM = 1e4
#: First count token, the depth that is asked for: 10,000 counts, as the authors' ``inference.py``.
DEPTH_ASKED = 4.0
#: Least number of the model's genes that data must measure.
MIN_GENES = 10
#: Below this share of the vocabulary a warning says so.
LOW_SHARE = 0.25
#: Cells that are read, and put in order of length, at a time.
_CHUNK = 2048
#: So many positive values are not all whole numbers by chance.
_MIN_WHOLE = 20
_NORMALISED = "pass the layer that holds the counts with layer=, or declare units='log1p_cp10k'."
_COUNTS = "pass units='counts', or a layer with such values with layer=."


class Tokens(NamedTuple):
    """Sentences of a few cells, padded at the end to the longest.

    Attributes
    ----------
    values
        ``(b, n)`` float32: ``log1p`` of counts per 10,000 of the expressed genes, then the two
        count tokens of the cell, then 0.
    gene_ids
        ``(b, n)`` int64: places in the vocabulary, ascending; ``n_genes`` and ``n_genes + 1`` for
        the count tokens; ``n_genes + 2`` for padding.
    padding
        ``(b, n)`` bool, True where there is no token.
    """

    values: torch.Tensor
    gene_ids: torch.Tensor
    padding: torch.Tensor

    def to(self, device: torch.device) -> Tokens:
        """Return them on another device."""
        return Tokens(*(t.to(device) for t in self))


class Cells(NamedTuple):
    """Expression of a few cells on the genes of the model.

    Attributes
    ----------
    values
        ``(b, n_genes)`` CSR float32, ``log1p`` of counts per 10,000; only what is expressed is
        stored, by ascending gene. Genes that are not measured are not expressed.
    depth
        ``(b,)`` float32, the second count token: log10 of the counts of a cell.
    """

    values: sparse.csr_matrix
    depth: np.ndarray

    @classmethod
    def from_counts(cls, counts: sparse.csr_matrix) -> Self:
        """Normalise counts ``(b, n_genes)``; of a cell without any the depth is 0."""
        counts = canonical(counts, np.float64)
        total = np.asarray(counts.sum(axis=1)).ravel()
        scale = np.repeat(total, np.diff(counts.indptr))
        values = np.log1p(counts.data / scale * TARGET_SUM).astype(np.float32)
        depth = np.log10(np.maximum(total, 1.0)).astype(np.float32)
        return cls(_like(counts, values), depth)

    @property
    def n_expressed(self) -> np.ndarray:
        """Genes that each cell expresses, ``(b,)``."""
        return np.diff(self.values.indptr)

    def rows(self, rows: np.ndarray) -> Cells:
        """Return some of the cells."""
        return Cells(self.values[rows], self.depth[rows])

    def tokens(self) -> Tokens:
        """Return the sentences of the cells."""
        n_cells, n_genes = self.values.shape
        length = self.n_expressed
        longest = int(length.max(initial=0)) + 2
        values = np.zeros((n_cells, longest), dtype=np.float32)
        gene_ids = np.full((n_cells, longest), n_genes + 2, dtype=np.int64)
        row = np.repeat(np.arange(n_cells), length)
        column = np.arange(len(row)) - np.repeat(self.values.indptr[:-1], length)
        values[row, column] = self.values.data
        gene_ids[row, column] = self.values.indices
        cell = np.arange(n_cells)
        for i, token in enumerate((DEPTH_ASKED, self.depth)):
            values[cell, length + i] = token
            gene_ids[cell, length + i] = n_genes + i
        padding = np.arange(longest) >= (length + 2)[:, None]
        return Tokens(*(torch.from_numpy(a) for a in (values, gene_ids, padding)))


class CellReader:
    """Cells of an AnnData as the model reads them, a few at a time.

    Parameters
    ----------
    adata
        Cells by genes, any storage.
    vocabulary
        Genes of the model.
    layer
        Layer to read instead of ``X``.
    units
        What it holds: ``"counts"``, or ``"log1p_cp10k"``. Declared, and checked.
    total_counts
        Column of ``obs`` with the counts of each cell, for ``"log1p_cp10k"``; without it cells
        are taken to have 10,000.
    min_genes
        Least number of the genes that must be found.
    remedy
        What to do if values are no counts, for the error.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If the layer or column does not exist.
    ValueError
        If there are no cells, these are bulk samples, too few of the genes are found, ``units`` is
        none of the above, or total counts are not positive numbers, now; if values are not what
        they should be, when they are read.

    Warns
    -----
    UserWarning
        If few of the model's genes are measured.
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
        self._totals = _read_totals(adata, total_counts, units)
        found = vocabulary.align(adata.var_names, min_genes=min(min_genes, len(vocabulary)))
        self.alignment: GeneAlignment = found
        if found.found_share < LOW_SHARE:
            warn_user(
                f"Only {found.found_share:.0%} of the model's {len(vocabulary)} genes are measured "
                f"({len(found.columns)}); what is said of so few is less certain."
            )
        # Where each column goes; −1 = a gene that the model does not know.
        self._place = np.full(adata.n_vars, -1, dtype=np.int64)
        self._place[found.columns] = found.positions

    @property
    def measured(self) -> np.ndarray:
        """Which genes of the vocabulary are measured, ``(n_genes,)`` bool."""
        out = np.zeros(self.alignment.n_vocabulary, dtype=bool)
        out[self.alignment.positions] = True
        return out

    def expect(self, rows: np.ndarray) -> None:
        """Say which cells will be read, in order, so that they are read ahead from a file."""
        self._rows.expect(rows)

    def read(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return values as they are stored, checked, on the genes of the model."""
        block = sparse.csr_matrix(self._rows[rows])
        if self.units == "counts":
            check_whole(block.data, self._where, self._remedy)
        else:
            check_log_cp10k(block, self._where)
        known = self._place[block.indices] >= 0
        kept = np.concatenate([[0], np.cumsum(known)])[block.indptr]
        shape = (block.shape[0], self.alignment.n_vocabulary)
        values = (block.data[known], self._place[block.indices[known]], kept)
        return canonical(sparse.csr_matrix(values, shape=shape), np.float64)

    def counts(self, rows: np.ndarray) -> sparse.csr_matrix:
        """Return ``(b, n_genes)`` CSR float64 counts.

        Of normalised data they are taken back to counts, which need not be whole: to the total
        of the cell where it is known, else to 10,000.
        """
        values = self.read(rows)
        if self.units == "counts":
            return values
        total = np.repeat(10.0 ** self._depth(rows), np.diff(values.indptr))
        return _like(values, np.expm1(values.data) * total / TARGET_SUM)

    def cells(self, rows: np.ndarray) -> Cells:
        """Return the expression of cells."""
        values = self.read(rows)
        if self.units == "counts":
            return Cells.from_counts(values)
        return Cells(values.astype(np.float32), self._depth(rows).astype(np.float32))

    def tokens(self, rows: np.ndarray) -> Tokens:
        """Return the sentences of cells."""
        return self.cells(rows).tokens()

    def batches(
        self, batch_size: int, *, most_tokens: int | None = None
    ) -> Iterator[tuple[np.ndarray, Cells]]:
        """Yield ``(rows, cells)``, cells of like length together and each once.

        Cells without an expressed gene are left out, which is warned of at the end.

        Parameters
        ----------
        batch_size
            Cells at a time.
        most_tokens
            Tokens at a time, padding included; but always at least one cell.
        """
        empty = 0
        self.expect(np.arange(self.n_cells))
        for start in range(0, self.n_cells, _CHUNK):
            chunk = np.arange(start, min(start + _CHUNK, self.n_cells))
            cells = self.cells(chunk)
            length = cells.n_expressed
            empty += int((length == 0).sum())
            order = np.argsort(length, kind="stable")
            for part in _cut(order[length[order] > 0], length + 2, batch_size, most_tokens):
                yield chunk[part], cells.rows(part)
        if empty:
            warn_user(
                f"{empty} of {self.n_cells} cells express none of the model's genes, so nothing "
                "can be said of them: their results are missing (NaN, and no code). Drop them "
                "with sc.pp.filter_cells(adata, min_genes=1)."
            )

    def _depth(self, rows: np.ndarray) -> np.ndarray:
        if self._totals is None:
            return np.full(len(rows), np.log10(TARGET_SUM))
        return np.log10(self._totals[rows])


def canonical(matrix: sparse.csr_matrix, dtype: type) -> sparse.csr_matrix:
    """Return a CSR matrix with each value once, by ascending column, and no zeros."""
    matrix = matrix.astype(dtype)
    matrix.sum_duplicates()
    matrix.eliminate_zeros()
    return matrix


def _like(matrix: sparse.csr_matrix, values: np.ndarray) -> sparse.csr_matrix:
    """Return other values in the places of a matrix."""
    return sparse.csr_matrix((values, matrix.indices, matrix.indptr), shape=matrix.shape)


def _cut(
    order: np.ndarray, length: np.ndarray, batch_size: int, most_tokens: int | None
) -> Iterator[np.ndarray]:
    """Cut cells in order of length into batches, longest last."""
    start = 0
    for end in range(1, len(order) + 1):
        full = end == len(order) or end - start == batch_size
        if not full and most_tokens is not None:
            full = (end - start + 1) * length[order[end]] > most_tokens
        if full:
            yield order[start:end]
            start = end


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


def check_whole(values: np.ndarray, where: str, remedy: str = _NORMALISED) -> None:
    """Refuse what are no counts.

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
    """Refuse what cannot be ``log1p`` of counts per 10,000, cells by genes.

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
    total = np.asarray(_like(block, np.expm1(values.astype(np.float64))).sum(axis=1)).ravel()
    if (total > 1.01 * TARGET_SUM).any():
        raise ValueError(
            f"Undoing log1p, a cell of {where} sums to {total.max():.6g}, but counts per 10,000 "
            "sum to 10,000 at most, so this is another logarithm or was scaled to another sum; "
            f"make it with sc.pp.normalize_total(adata, target_sum=1e4), or {_COUNTS}"
        )


def _check_positive(values: np.ndarray, where: str, remedy: str) -> None:
    """Refuse what is not finite or below 0."""
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise ValueError(f"{where} holds NaN or infinite values; {remedy}")
    if values.size and values.min() < 0:
        raise ValueError(
            f"{where} holds negative values (smallest {values.min():.4g}), as after centring or "
            f"scaling; {remedy}"
        )
