"""Batches of cells for training: some of what they express is shown, the rest is asked."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from cfm.data._warn import warn_user
from cfm.models._streams import Drawn, RowStream
from cfm.models._training import held_out_studies
from cfm.models.cellvq._reading import TARGET_SUM, CellReader, Cells, Tokens, canonical
from cfm.nn._distributed import numbers_of_all, process_number


class Batch(NamedTuple):
    """Cells of which a part is shown.

    Attributes
    ----------
    values, gene_ids, padding
        Sentences of what is shown, see :class:`cfm.models.cellvq._reading.Tokens`.
    counts
        ``(b, n_genes)`` float32, all counts.
    asked
        ``(b, n_genes)`` bool: measured, and not shown.
    total
        ``(b,)`` float32, counts of the cell.
    alone
        ``(b,)`` bool: the decoder is to see the code of the cell, and none of its genes.
    labels
        ``(b, n_properties)`` int64; −1 = unknown.
    """

    values: Tensor
    gene_ids: Tensor
    padding: Tensor
    counts: Tensor
    asked: Tensor
    total: Tensor
    alone: Tensor
    labels: Tensor


class CellStream(RowStream):
    """Batches of cells in random order, of each of which a random part is shown.

    Parameters
    ----------
    reader
        Of the cells.
    labels
        ``(n_cells, n_properties)`` int64; −1 = unknown.
    rows, batch_size, seed, **kwargs
        See :class:`cfm.models._streams.RowStream`.
    keep_share
        Smallest and largest share of the expressed genes that is shown; each cell has its own,
        drawn evenly between them. At least one gene is shown.
    alone_share
        Probability that the decoder sees the code alone.
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
        alone_share: float,
        **kwargs: Any,
    ) -> None:
        super().__init__(rows, batch_size=batch_size, seed=seed, **kwargs)
        self.reader = reader
        self.labels = labels
        self.keep_share = keep_share
        self.alone_share = alone_share

    def batch(self, drawn: Drawn, generator: torch.Generator) -> Batch:
        """Make the batch of some cells."""
        rows = drawn.own
        counts, cells = read_counts(self.reader, rows)
        n, own = len(drawn.rows), drawn.part
        least, most = self.keep_share
        share = least + (most - least) * _draw(n, generator)[own]
        of_entries = _draw_entries(cells.values.nnz, drawn, generator)
        shown = part_of(cells, share, of_entries)
        seen = np.zeros(counts.shape, dtype=bool)
        seen[np.repeat(np.arange(len(rows)), shown.n_expressed), shown.values.indices] = True
        dense = counts.toarray().astype(np.float32)
        return Batch(
            *shown.tokens(),
            torch.from_numpy(dense),
            torch.from_numpy(self.reader.measured & ~seen),
            torch.from_numpy(dense.sum(axis=1)),
            torch.from_numpy(_draw(n, generator)[own] < self.alone_share),
            torch.from_numpy(self.labels[rows]),
        )


def read_counts(reader: CellReader, rows: np.ndarray) -> tuple[sparse.csr_matrix, Cells]:
    """Read the counts of cells, ``(b, n_genes)`` CSR, and their expression.

    Counts of normalised data are rounded: they were whole before, up to rounding.
    """
    counts = reader.counts(rows)
    if reader.units == "counts":
        return counts, Cells.from_counts(counts)
    cells = reader.cells(rows)
    counts.data = np.rint(counts.data)
    return canonical(counts, np.float64), cells


def part_of(cells: Cells, share: np.ndarray, drawn: np.ndarray) -> Cells:
    """Return cells with a part of what they express, at least one gene of each.

    Parameters
    ----------
    cells
        All that they express.
    share
        ``(b,)``, how much of it is kept.
    drawn
        ``(nnz,)`` from 0 to 1: what lies below the share of its cell is kept, and the smallest.
    """
    values = cells.values
    row = np.repeat(np.arange(values.shape[0]), cells.n_expressed)
    smallest = np.full(values.shape[0], np.inf)
    np.minimum.at(smallest, row, drawn)
    kept = (drawn < share[row]) | (drawn == smallest[row])
    indptr = np.concatenate([[0], np.cumsum(kept)])[values.indptr]
    part = sparse.csr_matrix((values.data[kept], values.indices[kept], indptr), shape=values.shape)
    return Cells(part, cells.depth)


def whole_cells(reader: CellReader, rows: np.ndarray, batch_size: int) -> list[Tokens]:
    """Return the whole sentences of cells, a few cells each."""
    return [
        reader.tokens(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)
    ]


def cells_that_express(reader: CellReader, n_cells: int, block: int = 2048) -> np.ndarray:
    """Return the rows of the cells that express a gene of the model, ``(m,)`` int64."""
    found = []
    for start in range(0, n_cells, block):
        rows = np.arange(start, min(start + block, n_cells))
        found.append(rows[reader.cells(rows).n_expressed > 0])
    return np.concatenate(found)


def split_rows(
    usable: np.ndarray, studies: np.ndarray, share: float, most: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on, and those to judge by.

    Parameters
    ----------
    usable
        Rows of the cells that express a gene of the model.
    studies
        ``(n_cells,)``; all ``""`` if there are none: cells are held out then.
    share
        Of the studies, or of the cells, that are held out.
    most
        Cells to judge by, at most.
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
    if (studies != "").any():
        groups = studies[usable]
    else:
        groups = np.arange(len(usable)).astype(str).astype(object)
    # np.isin compares each with each where they are objects
    held_out = pd.Index(groups).isin(held_out_studies(groups, share, seed))
    return usable[~held_out], spread_rows(usable[held_out], most)


def spread_rows(rows: np.ndarray, most: int) -> np.ndarray:
    """Return at most so many rows, spread over all of them."""
    if len(rows) <= most:
        return rows
    return rows[np.linspace(0, len(rows) - 1, most).astype(np.int64)]


def mean_expression(reader: CellReader, rows: np.ndarray, block: int = 2048) -> Tensor:
    """Return the mean counts per 10,000 of each gene over cells, ``(n_genes,)`` float32."""
    total = np.zeros(reader.alignment.n_vocabulary)
    for start in range(0, len(rows), block):
        counts = reader.counts(rows[start : start + block])
        share = TARGET_SUM / np.asarray(counts.sum(axis=1)).ravel()
        total += share @ counts
    return torch.from_numpy((total / len(rows)).astype(np.float32))


def _draw_entries(n: int, drawn: Drawn, generator: torch.Generator) -> np.ndarray:
    """Draw a number for each of ``n`` entries of the rows of this process, and for the others'."""
    if len(drawn.own) == len(drawn.rows):
        return _draw(n, generator)
    n_entries = numbers_of_all(n)
    start = sum(n_entries[: process_number()[0]])
    return _draw(sum(n_entries), generator)[start : start + n]


def _draw(n: int, generator: torch.Generator) -> np.ndarray:
    drawn: np.ndarray = torch.rand(n, generator=generator, dtype=torch.float64).numpy()
    return drawn
