"""Sentences of a cell: genes drawn by expression, laid out along the chromosomes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cfm.models.uce._module import CELL, CHROMOSOME_END

if TYPE_CHECKING:
    import pandas as pd

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


def _digest(genes: np.ndarray, counts: np.ndarray) -> int:
    """Return a number that stands for the expression of a cell."""
    content = hashlib.blake2b(genes.tobytes(), digest_size=8)
    content.update(counts.tobytes())
    return int.from_bytes(content.digest(), "little")
