"""AnnData to tokens and batches: one reader of cells for embedding, tools and training."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from cfm._adata import warn_user
from cfm.data import GeneVocabulary
from cfm.data._counts import TARGET_SUM, CountReader, Units, canonical, log1p_cp10k
from cfm.models._streams import Drawn, RowStream
from cfm.models._training import held_out_rows
from cfm.nn._distributed import all_gather_int, process_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

    from cfm.models.cellvq._additions import CodeReader

#: Registry key of the column with the study.
STUDY = "study"
#: First count token, the requested depth: 10,000 counts, as in the authors' ``inference.py``.
DEPTH_ASKED = 4.0
#: Code of a cell that expresses none of the model's genes.
NO_CODE = -1
#: Cells to read, and to sort by length, at a time.
_CHUNK = 2048
#: Cells to read at a time where the values of all of them are kept.
_READ_AT_ONCE = 256


class Tokens(NamedTuple):
    """Tokens of a few cells, padded at the end to the longest.

    Attributes
    ----------
    values
        ``(b, n)`` float32: ``log1p`` of counts per 10,000 of the expressed genes, then the two
        count tokens of the cell, then 0.
    gene_ids
        ``(b, n)`` int64: positions in the vocabulary, ascending; ``n_genes`` and ``n_genes + 1``
        for the count tokens; ``n_genes + 2`` for padding.
    padding
        ``(b, n)`` bool, true where there is no token.
    """

    values: Tensor
    gene_ids: Tensor
    padding: Tensor

    def to(self, device: torch.device) -> Tokens:
        """Return them on another device."""
        return Tokens(*(t.to(device) for t in self))


class Cells(NamedTuple):
    """Expression of a few cells by gene of the model.

    Attributes
    ----------
    values
        ``(b, n_genes)`` CSR float32, ``log1p`` of counts per 10,000; only expressed genes are
        stored, ascending. Genes that are not measured are not expressed.
    depth
        ``(b,)`` float32, the second count token: log10 of the counts of a cell.
    """

    values: sparse.csr_matrix
    depth: np.ndarray

    @classmethod
    def from_counts(cls, counts: sparse.csr_matrix) -> Self:
        """Normalise counts ``(b, n_genes)``; the depth of a cell without counts is 0."""
        values, total = log1p_cp10k(counts)
        return cls(values.astype(np.float32), np.log10(np.maximum(total, 1.0)).astype(np.float32))

    @property
    def n_expressed(self) -> np.ndarray:
        """Number of genes that each cell expresses, ``(b,)``."""
        return np.diff(self.values.indptr)

    def rows(self, rows: np.ndarray) -> Cells:
        """Return some of the cells."""
        return Cells(self.values[rows], self.depth[rows])

    def part(self, share: np.ndarray, drawn: np.ndarray) -> Cells:
        """Return the cells with a random part of their genes, at least one of each cell.

        Parameters
        ----------
        share
            ``(b,)``, share of the expressed genes to keep.
        drawn
            ``(nnz,)`` random numbers from 0 to 1: a gene is kept if its number is below the share
            of the cell, or is the smallest of the cell.
        """
        values = self.values
        row = np.repeat(np.arange(values.shape[0]), self.n_expressed)
        smallest = np.full(values.shape[0], np.inf)
        np.minimum.at(smallest, row, drawn)
        return self.only((drawn < share[row]) | (drawn == smallest[row]))

    def only(self, kept: np.ndarray) -> Cells:
        """Return the cells with some of their stored values, ``(nnz,)`` bool."""
        values = self.values
        indptr = np.concatenate([[0], np.cumsum(kept)])[values.indptr]
        entries = (values.data[kept], values.indices[kept], indptr)
        return Cells(sparse.csr_matrix(entries, shape=values.shape), self.depth)

    def tokens(self) -> Tokens:
        """Return the tokens of the cells."""
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


class CellReader(CountReader):
    """Cells of an AnnData as the model reads them, a few at a time.

    The parameters are those of :class:`cfm.data._counts.CountReader`.
    """

    def cells(self, rows: np.ndarray) -> Cells:
        """Return the expression of some cells."""
        values = self.read(rows)
        if self.units == "counts":
            return Cells.from_counts(values)
        return Cells(values.astype(np.float32), self.depth(rows).astype(np.float32))

    def counts_and_cells(self, rows: np.ndarray) -> tuple[sparse.csr_matrix, Cells]:
        """Return the counts of some cells, ``(b, n_genes)`` CSR, and their expression.

        Counts from normalised data are rounded: they were whole before, up to rounding.
        """
        counts = self.counts(rows)
        if self.units == "counts":
            return counts, Cells.from_counts(counts)
        counts.data = np.rint(counts.data)
        return canonical(counts, np.float64), self.cells(rows)

    def tokens(self, rows: np.ndarray) -> Tokens:
        """Return the tokens of some cells."""
        return self.cells(rows).tokens()

    def whole_cells(self, rows: np.ndarray, batch_size: int) -> list[Tokens]:
        """Return all tokens of some cells, a few cells each."""
        starts = range(0, len(rows), batch_size)
        return [self.tokens(rows[start : start + batch_size]) for start in starts]

    def batches(
        self, batch_size: int, *, most_tokens: int | None = None
    ) -> Iterator[tuple[np.ndarray, Cells]]:
        """Yield ``(rows, cells)``, cells of similar length together and each once.

        Cells without an expressed gene are left out, with a warning at the end.

        Parameters
        ----------
        batch_size
            Cells at a time.
        most_tokens
            Tokens at a time, padding included; but always at least one cell.
        """
        empty = 0
        for chunk, cells in self._chunks():
            length = cells.n_expressed
            empty += int((length == 0).sum())
            order = np.argsort(length, kind="stable")
            for part in _cut(order[length[order] > 0], length + 2, batch_size, most_tokens):
                yield chunk[part], cells.rows(part)
        if empty:
            warn_user(
                f"{empty} of {self.n_cells} cells express none of the model's genes, so their "
                "results are missing (NaN, and no code). Drop them with "
                "sc.pp.filter_cells(adata, min_genes=1)."
            )

    def expressing(self) -> np.ndarray:
        """Return the rows of the cells that express a gene of the model, ``(m,)`` int64."""
        found = [chunk[cells.n_expressed > 0] for chunk, cells in self._chunks()]
        return np.concatenate(found)

    def dense_counts(self, rows: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return counts of some cells and genes, ``(b, n)`` float64, read a few cells at a time."""
        out = np.empty((len(rows), len(genes)))
        for start in range(0, len(rows), _READ_AT_ONCE):
            part = slice(start, start + _READ_AT_ONCE)
            out[part] = self.counts(rows[part])[:, genes].toarray()
        return out

    def positions(self, codes: CodeReader, rows: np.ndarray) -> Tensor:
        """Return where cells lie among codes that are read from expression, ``(b, code_dim)``."""
        parts = [rows[i : i + _READ_AT_ONCE] for i in range(0, len(rows), _READ_AT_ONCE)]
        return torch.cat([codes.positions(self.cells(part).values) for part in parts])

    def mean_expression(self, rows: np.ndarray) -> Tensor:
        """Return the mean counts per 10,000 of each gene over some cells, ``(n_genes,)``."""
        total = np.zeros(self.alignment.n_vocabulary)
        for start in range(0, len(rows), _CHUNK):
            counts = self.counts(rows[start : start + _CHUNK])
            share = TARGET_SUM / np.asarray(counts.sum(axis=1)).ravel()
            total += share @ counts
        return torch.from_numpy((total / len(rows)).astype(np.float32))

    def check(self) -> None:
        """Check the values of all cells."""
        for _ in self._chunks():
            pass

    def _chunks(self) -> Iterator[tuple[np.ndarray, Cells]]:
        """Yield ``(rows, cells)`` of all cells in order."""
        self.prefetch(np.arange(self.n_cells))
        for start in range(0, self.n_cells, _CHUNK):
            rows = np.arange(start, min(start + _CHUNK, self.n_cells))
            yield rows, self.cells(rows)


def _cut(
    order: np.ndarray, length: np.ndarray, batch_size: int, most_tokens: int | None
) -> Iterator[np.ndarray]:
    """Cut cells, sorted by length, into batches, longest last."""
    start = 0
    for end in range(1, len(order) + 1):
        full = end == len(order) or end - start == batch_size
        if not full and most_tokens is not None:
            full = (end - start + 1) * length[order[end]] > most_tokens
        if full:
            yield order[start:end]
            start = end


def labels_of(adata: AnnData, key: str) -> np.ndarray:
    """Return a column of ``obs`` as text, ``(n,)`` object; missing labels are ``""``."""
    column = pd.Series(adata.obs[key].to_numpy(dtype=object))
    return np.where(column.isna(), "", column.astype(str)).astype(object)


def levels_of(labels: np.ndarray) -> list[str]:
    """Return the levels of a property, sorted, without the missing one."""
    return sorted(set(labels.tolist()) - {""})


def check_labels(adata: AnnData, key: str) -> None:
    """Check that a column of ``obs`` contains labels.

    Raises
    ------
    KeyError, ValueError
        If it does not exist, or no cell has a label.

    Warns
    -----
    UserWarning
        If it has one level only.
    """
    if key not in adata.obs:
        raise KeyError(f"adata.obs has no column {key!r}; it has {adata.obs.columns.tolist()}.")
    levels = levels_of(labels_of(adata, key))
    if not levels:
        raise ValueError(
            f"adata.obs[{key!r}] has no label in any of {adata.n_obs} cells; leave it out of "
            "labels_keys, or fill it in."
        )
    if len(levels) == 1:
        warn_user(
            f"adata.obs[{key!r}] has one level only ({levels[0]!r}), which its head will predict "
            "for every cell; leave it out of labels_keys, or add cells of another kind."
        )


def check_training_units(
    adata: AnnData, layer: str | None, units: Units, total_counts: str | None
) -> None:
    """Check, in one pass, that cells are in the declared units and can be trained on.

    Raises
    ------
    KeyError
        If the layer or the column of ``total_counts`` does not exist.
    ValueError
        If values are not in these units, or cannot be turned into counts.
    """
    if units == "log1p_cp10k" and total_counts is None:
        raise ValueError(
            "Training is on counts, and units='log1p_cp10k' lacks the counts per cell; name the "
            "column of obs that holds them with total_counts=, or register a layer with counts."
        )
    all_genes = GeneVocabulary(list(adata.var_names))
    CellReader(adata, all_genes, layer=layer, units=units, total_counts=total_counts).check()


class Batch(NamedTuple):
    """Cells, and the part of them that the encoder sees.

    Attributes
    ----------
    values, gene_ids, padding
        Tokens of that part, see :class:`Tokens`.
    counts
        ``(b, n_genes)`` float32, all counts.
    hidden
        ``(b, n_genes)`` bool: measured, and not seen by the encoder.
    total
        ``(b,)`` float32, counts of the cell.
    code_only
        ``(b,)`` bool: the decoder sees the code of the cell, and none of its genes.
    labels
        ``(b, n_properties)`` int64; −1 = unknown.
    position
        ``(b, code_dim)``, where the whole cells lie among codes that are read from expression;
        ``None`` for other codes.
    """

    values: Tensor
    gene_ids: Tensor
    padding: Tensor
    counts: Tensor
    hidden: Tensor
    total: Tensor
    code_only: Tensor
    labels: Tensor
    position: Tensor | None = None


class CellStream(RowStream):
    """Batches of cells in random order, with a random part of each cell for the encoder.

    Parameters
    ----------
    reader
        Of the cells.
    labels
        ``(n_cells, n_properties)`` int64; −1 = unknown.
    rows, batch_size, seed, **kwargs
        See :class:`cfm.models._streams.RowStream`.
    keep_share
        Smallest and largest share of the expressed genes that the encoder sees; each cell has its
        own, drawn uniformly between them. At least one gene is seen.
    code_only_share
        Probability that the decoder sees the code alone.
    codes
        Reader of the codes, where they are read from expression.
    """

    def __init__(
        self,
        reader: CellReader,
        labels: np.ndarray,
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        keep_share: tuple[float, float],
        code_only_share: float,
        codes: CodeReader | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(rows, batch_size=batch_size, seed=seed, prefetch=reader.prefetch, **kwargs)
        self.reader = reader
        self.labels = labels
        self.keep_share = keep_share
        self.code_only_share = code_only_share
        self.codes = codes

    def batch(self, drawn: Drawn, generator: torch.Generator) -> Batch:
        """Return the batch of some cells."""
        rows = drawn.own
        counts, cells = self.reader.counts_and_cells(rows)
        n, own = len(drawn.rows), drawn.part
        least, most = self.keep_share
        share = least + (most - least) * _draw(n, generator)[own]
        seen = cells.part(share, _draw_entries(cells.values.nnz, drawn, generator))
        is_seen = np.zeros(counts.shape, dtype=bool)
        is_seen[np.repeat(np.arange(len(rows)), seen.n_expressed), seen.values.indices] = True
        dense = counts.toarray().astype(np.float32)
        return Batch(
            *seen.tokens(),
            torch.from_numpy(dense),
            torch.from_numpy(self.reader.measured & ~is_seen),
            torch.from_numpy(dense.sum(axis=1)),
            torch.from_numpy(_draw(n, generator)[own] < self.code_only_share),
            torch.from_numpy(self.labels[rows]),
            None if self.codes is None else self.codes.positions(cells.values),
        )


def _draw_entries(n: int, drawn: Drawn, generator: torch.Generator) -> np.ndarray:
    """Draw a number for each of ``n`` entries of the rows of this process, and for the others'."""
    if len(drawn.own) == len(drawn.rows):
        return _draw(n, generator)
    n_entries = all_gather_int(n)
    start = sum(n_entries[: process_number()[0]])
    return _draw(sum(n_entries), generator)[start : start + n]


def _draw(n: int, generator: torch.Generator) -> np.ndarray:
    drawn: np.ndarray = torch.rand(n, generator=generator, dtype=torch.float64).numpy()
    return drawn


def split_rows(
    usable: np.ndarray, studies: np.ndarray, share: float, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows for training, and those for validation.

    Parameters
    ----------
    usable
        Rows of the cells that express a gene of the model.
    studies
        ``(n_cells,)``; all ``""`` if there are none: cells are held out then.
    share
        Of the studies, or of the cells, that are held out.
    most
        Validation cells at most.
    seed
        Of the choice.

    Raises
    ------
    ValueError
        If no cell is usable.

    Warns
    -----
    UserWarning
        If some are not.
    """
    empty = len(studies) - len(usable)
    if not len(usable):
        raise ValueError(
            f"None of {empty} cells expresses a gene of the model; there is nothing to train on: "
            "check that var_names hold the genes and X (or layer=) the counts."
        )
    if empty:
        warn_user(
            f"{empty} of {len(studies)} cells express none of the model's genes and are left out "
            "of training."
        )
    held_out = held_out_rows(studies[usable], share, seed)
    return usable[~held_out], spread_rows(usable[held_out], most)


def spread_rows(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many rows, spread over all of them."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]
