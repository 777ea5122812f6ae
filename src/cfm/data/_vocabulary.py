"""The ordered gene list of a model, and how an AnnData's genes fall onto it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._arguments import checks_arguments
from cfm.data._gene_ids import map_identifiers

if TYPE_CHECKING:
    from collections.abc import Sequence

_ENSEMBL_VERSION = re.compile(r"^(ENSG\d+)\.\d+$")


@dataclass(frozen=True)
class GeneAlignment:
    """Where the columns of a matrix lie in a vocabulary.

    Attributes
    ----------
    columns
        ``(m,)`` int64, columns of the input that are in the vocabulary.
    positions
        ``(m,)`` int64, their positions in the vocabulary; each at most once.
    n_vocabulary
        Size of the vocabulary.

    Examples
    --------
    >>> import cfm, numpy as np
    >>> vocabulary = cfm.data.GeneVocabulary(["STAT1", "ISG15", "MX1"])
    >>> alignment = vocabulary.align(["MX1", "ISG15", "no such gene"])
    >>> round(alignment.found_share, 2)
    0.67
    >>> alignment.apply(np.array([[3.0, 5.0, 7.0]]))
    array([[nan,  5.,  3.]], dtype=float32)
    """

    columns: np.ndarray
    positions: np.ndarray
    n_vocabulary: int

    @property
    def found_share(self) -> float:
        """Share of the vocabulary that the input measures."""
        return len(self.positions) / self.n_vocabulary

    def apply(self, matrix: np.ndarray) -> np.ndarray:
        """Return ``(n, n_vocabulary)`` float32 with ``NaN`` where a gene is not measured."""
        out = np.full((matrix.shape[0], self.n_vocabulary), np.nan, dtype=np.float32)
        out[:, self.positions] = matrix[:, self.columns]
        return out


class GeneVocabulary:
    """Ordered, unique gene symbols of a model.

    Parameters
    ----------
    genes
        Gene symbols; unique and not empty.

    Raises
    ------
    ValueError
        If names are duplicated, empty or of several lines, or the list is empty.

    Examples
    --------
    >>> import cfm
    >>> vocabulary = cfm.data.GeneVocabulary(["STAT1", "ISG15", "MX1"])
    >>> vocabulary.align(["G1P2", "ENSG00000115415.20"]).positions  # old name of ISG15; STAT1
    array([1, 0])
    """

    def __init__(self, genes: Sequence[str]) -> None:
        self.genes = pd.Index([str(g) for g in genes], name="gene")
        if len(self.genes) == 0:
            raise ValueError("A gene vocabulary needs at least one gene; found an empty list.")
        if not self.genes.is_unique:
            twice = self.genes[self.genes.duplicated()].unique()[:5].tolist()
            raise ValueError(f"A gene vocabulary needs unique names; found twice: {twice}.")
        if "" in self.genes:
            raise ValueError("A gene vocabulary cannot hold an empty name; drop it.")
        broken = [g for g in self.genes if g.splitlines() != [g]]
        if broken:  # checkpoints hold a name per line
            raise ValueError(f"A gene name cannot hold a line break; found {broken[:5]}.")

    def __len__(self) -> int:
        return len(self.genes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GeneVocabulary) and self.genes.equals(other.genes)

    def __hash__(self) -> int:
        return hash(tuple(self.genes))

    def __repr__(self) -> str:
        return f"GeneVocabulary({len(self)} genes: {', '.join(self.genes[:3])}, …)"

    @checks_arguments(min_genes=0)
    def align(self, names: Sequence[str] | pd.Index, *, min_genes: int = 1) -> GeneAlignment:
        """Find names in the vocabulary, mapping Ensembl ids and previous symbols where needed.

        Names are matched as they are, or without the version of an Ensembl id; those that fail go
        through :func:`cfm.data.map_identifiers`. Where two columns fall on one gene the exact name
        wins, else the first; merge duplicates with :func:`cfm.pp.map_genes` beforehand to sum them.

        Parameters
        ----------
        names
            Gene names of the input's columns.
        min_genes
            Least number of vocabulary genes that must be found.

        Raises
        ------
        ValueError
            If fewer than ``min_genes`` are found.
        """
        index = pd.Index(self._without_versions([str(n) for n in names]))
        positions = self.genes.get_indexer(index)
        missed = np.flatnonzero(positions < 0)
        if len(missed):
            mapped = map_identifiers(index[missed].tolist())
            positions[missed] = self.genes.get_indexer(pd.Index(mapped.symbol))
        exact = np.ones(len(index), dtype=bool)
        exact[missed] = False
        # Exact names first, so that an alias never displaces the gene that bears the name.
        order = np.concatenate([np.flatnonzero(exact), missed]).astype(np.int64)
        order = order[positions[order] >= 0]
        _, first = np.unique(positions[order], return_index=True)
        columns = order[np.sort(first)]
        if len(columns) < min_genes:
            example = ", ".join(index[:3])
            known = ", ".join(self.genes[:3])
            raise ValueError(
                f"Found {len(columns)} of the model's {len(self)} genes among the {len(index)} "
                f"names given (such as {example}); at least {min_genes} are needed. The model "
                f"knows human gene symbols (such as {known}) and their Ensembl ids: check that "
                "var_names hold gene names and map them with cfm.pp.map_genes."
            )
        return GeneAlignment(columns, positions[columns].astype(np.int64), len(self))

    def _without_versions(self, names: list[str]) -> list[str]:
        """Drop versions of Ensembl ids that the vocabulary, but not the input, has without one."""
        bare = [m[1] if (m := _ENSEMBL_VERSION.match(n)) else n for n in names]
        wanted = set(self.genes[self.genes.isin(bare)]) - set(names)
        return [b if b in wanted else n for b, n in zip(bare, names, strict=True)]
