"""Counts of cells as sentences of tokens: genes drawn by expression, laid out by chromosome."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse

from cfm.data._counts import check_single_cells
from cfm.data._matrix import check_counts, get_matrix, row_blocks
from cfm.models.uce._module import CELL, CHROMOSOME_END

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.data import GeneAlignment

#: Columns of a table of genes.
GENE_COLUMNS = ("token", "chromosome", "start")
#: Genes drawn for a cell in the published model, with replacement.
SAMPLE_SIZE = 1024


@dataclass(frozen=True)
class SentenceMaker:
    """Turns the counts of a cell into tokens.

    Attributes
    ----------
    tokens
        ``(n_genes,)`` int64, token of each gene of the vocabulary.
    chromosomes
        ``(n_genes,)`` int64, token of its chromosome.
    starts
        ``(n_genes,)`` int64, where on it the gene starts.
    sample_size
        Genes to draw for a cell.
    """

    tokens: np.ndarray
    chromosomes: np.ndarray
    starts: np.ndarray
    sample_size: int = SAMPLE_SIZE

    @classmethod
    def from_table(cls, genes: pd.DataFrame, sample_size: int = SAMPLE_SIZE) -> SentenceMaker:
        """Make it from a table with the columns ``token``, ``chromosome`` and ``start``."""
        token, chromosome, start = (
            genes[column].to_numpy(np.int64) for column in ("token", "chromosome", "start")
        )
        return cls(token, chromosome, start, sample_size)

    def sentence(self, genes: np.ndarray, counts: np.ndarray, seed: int = 0) -> np.ndarray:
        """Draw the sentence of one cell.

        Genes are drawn with replacement with a probability proportional to log1p of their
        counts. The sentence is the cell's token, then for each chromosome, in random order, its
        token, the genes drawn on it by where they start, and the token that ends it.

        Parameters
        ----------
        genes
            ``(m,)`` places in the vocabulary, in any order, each once.
        counts
            ``(m,)`` counts; genes with 0 are never drawn.
        seed
            Seed. The draw depends on it and on the cell's own counts, so that neither the order
            of the cells nor that of the genes changes it.

        Returns
        -------
        ``(n,)`` int64 tokens.

        Raises
        ------
        ValueError
            If all counts are 0.
        """
        expressed = np.flatnonzero(counts > 0)
        order = expressed[np.argsort(genes[expressed])]
        genes = np.asarray(genes, dtype=np.int64)[order]
        counts = np.asarray(counts, dtype=np.float64)[order]
        if not len(genes):
            raise ValueError("none of the model's genes is expressed")
        rng = np.random.default_rng([seed, _digest(genes, counts)])
        weights = np.log1p(counts)
        times = rng.multinomial(self.sample_size, weights / weights.sum())
        drawn, times = genes[times > 0], times[times > 0]
        chromosomes = self.chromosomes[drawn]
        here = rng.permutation(np.unique(chromosomes))
        sentence = [np.array([CELL])]
        for chromosome in here:
            on = np.flatnonzero(chromosomes == chromosome)
            on = on[np.argsort(self.starts[drawn[on]], kind="stable")]
            sentence += [np.array([chromosome]), np.repeat(self.tokens[drawn[on]], times[on])]
            sentence.append(np.array([CHROMOSOME_END]))
        return np.concatenate(sentence).astype(np.int64)


def read_sentences(
    adata: AnnData, layer: str | None, alignment: GeneAlignment, maker: SentenceMaker, seed: int
) -> list[np.ndarray]:
    """Draw the sentence of each cell of an AnnData; see :meth:`cfm.models.UCE.get_sentences`.

    Raises
    ------
    KeyError, ValueError
        If the layer does not exist, the matrix does not hold counts of single cells, or a cell
        expresses none of the genes.
    """
    matrix = get_matrix(adata, layer=layer)
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    check_counts(matrix, where=where)
    check_single_cells(matrix, where)
    sentences = []
    for rows, block in row_blocks(matrix):
        counts = sparse.csr_matrix(block)[:, alignment.columns]
        counts.sum_duplicates()
        for i in range(counts.shape[0]):
            part = slice(counts.indptr[i], counts.indptr[i + 1])
            genes = alignment.positions[counts.indices[part]]
            try:
                sentences.append(maker.sentence(genes, counts.data[part], seed))
            except ValueError as error:
                raise ValueError(
                    f"In the cell {adata.obs_names[rows.start + i]!r} {error}; drop such "
                    "cells: sc.pp.filter_cells(adata, min_genes=200)."
                ) from error
    return sentences


def check_genes(genes: pd.DataFrame, n_tokens: int, where: str) -> pd.DataFrame:
    """Check a table of genes and return it with whole numbers, ordered by token.

    Raises
    ------
    TypeError, ValueError
        If it is no table, lacks a column, names a gene or token twice, or points at tokens that
        the model does not have.
    """
    if not isinstance(genes, pd.DataFrame):
        raise TypeError(f"{where} is a {type(genes).__name__}; expected a DataFrame.")
    lacking = [c for c in GENE_COLUMNS if c not in genes]
    if lacking or genes.empty:
        raise ValueError(
            f"{where} has {len(genes)} rows and the columns {genes.columns.tolist()}; expected a "
            f"row per gene, named by its symbol, and the columns {list(GENE_COLUMNS)}."
        )
    table = genes.loc[:, list(GENE_COLUMNS)]
    if table.isna().any().any() or not all(pd.api.types.is_numeric_dtype(t) for t in table.dtypes):
        raise ValueError(f"{where} holds missing values or text; expected whole numbers.")
    table = table.astype(np.int64).sort_values("token", kind="stable")
    table.index = pd.Index(table.index.astype(str), name="gene")
    if table.index.has_duplicates or table["token"].duplicated().any():
        raise ValueError(f"{where} names a gene or a token more than once.")
    for column in ("token", "chromosome"):
        low, high = int(table[column].min()), int(table[column].max())
        if low <= 3 or high >= n_tokens:
            raise ValueError(
                f"{where} has {column} tokens from {low} to {high}; the model has tokens up to "
                f"{n_tokens - 1}, and the first four are no genes: the files belong to different "
                "releases."
            )
    return table


def _digest(genes: np.ndarray, counts: np.ndarray) -> int:
    """Return a number that stands for the expression of a cell."""
    content = hashlib.blake2b(genes.tobytes(), digest_size=8)
    content.update(counts.tobytes())
    return int.from_bytes(content.digest(), "little")
