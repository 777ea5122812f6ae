"""What a perturbation does to the sentence of a cell: genes that are left out, or said louder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from cfm.data import map_identifiers
from cfm.models.cellvq._reading import TARGET_SUM, Cells, canonical

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.data import GeneVocabulary

#: What is done to genes; a number multiplies their counts.
Effect = Literal["knock_out", "over_expression"]

_COLUMNS = ("compound", "gene")


@dataclass(frozen=True)
class GeneChange:
    """What is done to which genes.

    Attributes
    ----------
    places
        ``(k,)`` int64, the genes by their place in the vocabulary, ascending.
    effect
        ``"knock_out"``: they are not expressed. ``"over_expression"``: they are raised to the
        quantile of what the cell expresses, where they are lower. A number: their counts are
        multiplied by it.
    quantile
        Of the expressed values of the same cell, for ``"over_expression"``.
    """

    places: np.ndarray
    effect: Effect | float
    quantile: float

    def __post_init__(self) -> None:
        if isinstance(self.effect, str):
            if self.effect not in ("knock_out", "over_expression"):
                raise ValueError(
                    f"effect={self.effect!r}; expected 'knock_out', 'over_expression', or a "
                    "number that counts are multiplied by."
                )
        elif not (np.isfinite(self.effect) and self.effect >= 0):
            raise ValueError(f"effect={self.effect!r}; counts are multiplied by 0 or more.")
        if not 0.0 <= self.quantile <= 1.0:
            raise ValueError(f"quantile={self.quantile!r}; expected a number from 0 to 1.")

    @property
    def adds(self) -> bool:
        """Whether genes that a cell does not express are expressed afterwards."""
        return self.effect == "over_expression"

    def of(self, cells: Cells) -> Cells:
        """Return changed cells; the values of other genes and the depth stay as they are."""
        old = cells.values[:, self.places].toarray().astype(np.float64)
        if self.effect == "knock_out":
            new = np.zeros_like(old)
        elif self.effect == "over_expression":
            new = np.maximum(old, _quantiles(cells, self.quantile)[:, None])
        else:
            new = np.log1p(np.minimum(np.expm1(old) * float(self.effect), TARGET_SUM))
        return Cells(with_columns(cells.values, self.places, new, np.float32), cells.depth)


def with_columns(
    matrix: sparse.csr_matrix, columns: np.ndarray, values: np.ndarray, dtype: type
) -> sparse.csr_matrix:
    """Return a matrix with other values ``(b, k)`` in some columns."""
    kept = matrix.copy()
    kept.data[np.isin(kept.indices, columns)] = 0
    row, column = np.nonzero(values)
    new = (values[row, column], (row, columns[column]))
    return canonical(kept + sparse.csr_matrix(new, shape=matrix.shape), dtype)


def find_genes(
    vocabulary: GeneVocabulary, perturbation: Sequence[str], targets: pd.DataFrame | None
) -> np.ndarray:
    """Return the places of the genes that a perturbation acts on, ``(k,)`` ascending.

    Parameters
    ----------
    vocabulary
        Genes of the model.
    perturbation
        Genes, by any name that can be mapped, and compounds.
    targets
        Table of the genes that compounds act on, columns ``compound`` and ``gene``.

    Raises
    ------
    TypeError
        If the perturbation is one text, or the table is none.
    KeyError
        If a name is neither a gene of the model nor a compound that acts on one, or the table
        lacks a column.
    ValueError
        If there is no name.
    """
    if isinstance(perturbation, str):
        raise TypeError(f"perturbation={perturbation!r} is one text; expected a list of parts.")
    if not len(perturbation):
        raise ValueError("perturbation= is empty; expected at least one gene or compound.")
    found: set[int] = set()
    for name in perturbation:
        place = _place(vocabulary, [name])
        if place[0] < 0 and targets is not None:
            place = _place(vocabulary, _targets_of(name, targets))
        place = place[place >= 0]
        if not len(place):
            raise KeyError(_unknown(name, vocabulary, targets))
        found.update(place.tolist())
    return np.array(sorted(found), dtype=np.int64)


def _place(vocabulary: GeneVocabulary, names: list[str]) -> np.ndarray:
    """Return places of names in the vocabulary, −1 = not there."""
    place = vocabulary.genes.get_indexer(pd.Index(names, dtype=object))
    missed = np.flatnonzero(place < 0)
    if len(missed):
        mapped = map_identifiers([names[i] for i in missed]).symbol
        place[missed] = vocabulary.genes.get_indexer(pd.Index(mapped))
    return np.asarray(place, dtype=np.int64)


def _targets_of(name: str, targets: pd.DataFrame) -> list[str]:
    """Return the genes that a compound acts on; none if it is not in the table."""
    if not isinstance(targets, pd.DataFrame):
        raise TypeError(
            f"targets= is a {type(targets).__name__}; expected a table such as "
            "cfm.datasets.drug_targets()."
        )
    missing = [c for c in _COLUMNS if c not in targets]
    if missing:
        raise KeyError(
            f"targets= has no columns {missing}; it has {targets.columns.tolist()}, and a table "
            "such as cfm.datasets.drug_targets() is expected."
        )
    compound = targets["compound"].astype(str).str.casefold()
    return sorted(set(targets.loc[compound == name.casefold(), "gene"].astype(str)))


def _unknown(name: str, vocabulary: GeneVocabulary, targets: pd.DataFrame | None) -> str:
    genes = f"{', '.join(vocabulary.genes[:3])}, … (model.vocabulary.genes)"
    if targets is None:
        return (
            f"{name!r} is none of the model's genes; it knows {genes}. For a drug, pass the genes "
            "it acts on: targets=cfm.datasets.drug_targets()."
        )
    acts_on = _targets_of(name, targets)
    if acts_on:
        return (
            f"{name!r} acts on {', '.join(acts_on[:5])}, none of which the model knows; it knows "
            f"{genes}."
        )
    return (
        f"{name!r} is neither one of the model's genes ({genes}) nor a compound of targets= "
        f"({targets['compound'].nunique()} compounds)."
    )


def _quantiles(cells: Cells, quantile: float) -> np.ndarray:
    """Return the quantile of what each cell expresses, ``(b,)``; 0 where that is nothing."""
    values = cells.values
    parts = zip(values.indptr[:-1], values.indptr[1:], strict=True)
    return np.array(
        [np.quantile(values.data[a:b], quantile) if b > a else 0.0 for a, b in parts],
        dtype=np.float64,
    )
