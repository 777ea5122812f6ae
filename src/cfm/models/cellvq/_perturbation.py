"""Perturbations in silico: genes of a cell are changed, and it is encoded and decoded again."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfm._adata import warn_user
from cfm._fields import CODE_AFTER, CODE_BEFORE, CODE_TRANSITIONS
from cfm.data._counts import TARGET_SUM, canonical
from cfm.models.cellvq._data import NO_CODE, Cells

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import torch

    from cfm.data import GeneVocabulary
    from cfm.models.cellvq._additions import CodeReader
    from cfm.models.cellvq._data import CellReader
    from cfm.models.cellvq._module import CellVQModule

#: Change of genes; a number is a factor of their counts.
Effect = Literal["knock_out", "over_expression"]

#: Columns of a table of targets.
_COLUMNS = ("compound", "gene")
#: Positions to decode at a time; but always at least one cell.
_DECODED_AT_ONCE = 65_536


@dataclass(frozen=True)
class GeneChange:
    """A change of the expression of some genes.

    Attributes
    ----------
    places
        ``(k,)`` int64, positions of the genes in the vocabulary, ascending.
    effect
        ``"knock_out"``: they are not expressed. ``"over_expression"``: they are raised to the
        quantile of the expressed values of the cell, if they are lower. A number: their counts are
        multiplied by it.
    quantile
        For ``"over_expression"``.
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

    @property
    def adds(self) -> bool:
        """Whether genes that a cell does not express are expressed afterwards."""
        return self.effect == "over_expression"

    def apply(self, cells: Cells) -> Cells:
        """Return changed cells; the values of other genes and the depth stay."""
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
    """Return the positions of the genes that a perturbation acts on, ``(k,)`` ascending.

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
        place = vocabulary.align([name], min_genes=0).positions
        if not len(place) and targets is not None:
            place = vocabulary.align(_targets_of(name, targets), min_genes=0).positions
        if not len(place):
            raise KeyError(_unknown(name, vocabulary, targets))
        found.update(place.tolist())
    return np.array(sorted(found), dtype=np.int64)


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
            f"{name!r} is none of the model's genes, such as {genes}. For a drug, pass the genes "
            "it acts on: targets=cfm.datasets.drug_targets()."
        )
    acts_on = _targets_of(name, targets)
    if acts_on:
        return (
            f"{name!r} acts on {', '.join(acts_on[:5])}, none of the model's genes, such as "
            f"{genes}."
        )
    return (
        f"{name!r} is neither one of the model's genes ({genes}) nor a compound of targets= "
        f"({targets['compound'].nunique()} compounds)."
    )


def _quantiles(cells: Cells, quantile: float) -> np.ndarray:
    """Return a quantile of the expressed values of each cell, ``(b,)``; 0 if there are none."""
    values = cells.values
    parts = zip(values.indptr[:-1], values.indptr[1:], strict=True)
    return np.array(
        [np.quantile(values.data[a:b], quantile) if b > a else 0.0 for a, b in parts],
        dtype=np.float64,
    )


@dataclass(frozen=True)
class Simulator:
    """Predict cells after a change of some genes; see :meth:`CellVQ.simulate`.

    Attributes
    ----------
    module
        The network, in evaluation mode.
    change
        What is done to the cells.
    fold
        ``(n_genes,)`` fold of each gene, −1 = changed; each fold is decoded from the others.
    max_fold
        Largest factor by which a gene rises or falls.
    decodes_codes
        Whether the decoder was trained with the codes of cells: here it is, elsewhere not.
    measured
        ``(n_genes,)`` bool, which genes are measured.
    """

    module: CellVQModule
    change: GeneChange
    fold: np.ndarray
    max_fold: float
    decodes_codes: bool
    measured: np.ndarray

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return self.module.position_embedding.weight.device

    def run(
        self, adata: AnnData, reader: CellReader, *, batch_size: int, rounding: Rounding | None
    ) -> AnnData:
        """Return predicted cells, with their codes before and after.

        Parameters
        ----------
        adata, reader
            The cells.
        batch_size
            Cells at a time at most.
        rounding
            Of counts; ``None`` for normalised values.

        Warns
        -----
        UserWarning
            If no cell expresses a gene that is to be lowered.
        """
        places, n_genes = self.change.places, self.module.n_genes
        before, after = (np.full(adata.n_obs, NO_CODE, dtype=np.int64) for _ in range(2))
        expressed = np.zeros(len(places), dtype=bool)
        done, parts = [np.zeros(0, dtype=np.int64)], []
        at_once = max(1, min(batch_size, _DECODED_AT_ONCE // n_genes))
        for rows, cells in reader.batches(at_once):
            changed = self.change.apply(cells)
            expressed |= (cells.values[:, places] > 0).toarray().any(axis=0)
            moved = np.flatnonzero(_differ(cells, changed))
            before[rows] = self.codes(cells)
            after[rows] = before[rows]
            after[rows[moved]] = self.codes(changed.rows(moved))
            ratio = np.ones(cells.values.shape)
            ratio[moved] = self.ratio(cells.rows(moved), changed.rows(moved))
            np.clip(ratio, 1.0 / self.max_fold, self.max_fold, out=ratio)
            parts.append(_predicted(reader, rows, self.change, cells, changed, ratio, rounding))
            done.append(rows)
        if not self.change.adds and not expressed.all():
            self._warn_of_silent(reader.vocabulary, expressed)
        # in the order of the cells; those without an expressed gene come last in ``done``
        others = np.setdiff1d(np.arange(adata.n_obs), np.concatenate(done))
        order = np.argsort(np.concatenate([*done, others]))
        nothing = sparse.csr_matrix((len(others), n_genes))
        predicted = sparse.vstack([*parts, nothing], format="csr")[order]
        codes = {CODE_BEFORE: as_labels(before), CODE_AFTER: as_labels(after)}
        return AnnData(
            predicted[:, reader.alignment.positions].astype(np.float32),
            obs=pd.DataFrame(codes, index=adata.obs_names),
            var=pd.DataFrame(index=adata.var_names[reader.alignment.columns]),
            uns={CODE_TRANSITIONS: transitions(before, after)},
        )

    def codes(self, cells: Cells) -> np.ndarray:
        """Return the codes of cells, ``(b,)``; −1 for cells without an expressed gene."""
        out = np.full(len(cells.depth), NO_CODE, dtype=np.int64)
        some = np.flatnonzero(cells.n_expressed > 0)
        if len(some):
            codes = self.module.code_reader(self.measured)
            if codes is None:
                tokens = cells.rows(some).tokens().to(self.device)
                found = self.module.encode_cells(*tokens).quantised
            else:
                found = codes.positions(cells.rows(some).values).to(self.device)
            out[some] = self.module.quantize(found).code.cpu().numpy()
        return out

    def ratio(self, before: Cells, after: Cells) -> np.ndarray:
        """Return decoded means after over before, ``(b, n_genes)``, each fold from the others."""
        ratio = np.ones(before.values.shape)
        for i in range(self.fold.max() + 1):
            hidden = self.fold == i
            shown = [cells.only(~hidden[cells.values.indices]) for cells in (before, after)]
            # with no gene left to encode there is no prediction
            some = np.flatnonzero(np.minimum(*(s.n_expressed for s in shown)) > 0)
            if len(some):
                codes = self.module.code_reader(self.measured & ~hidden)
                old, new = (self.decoded_means(s.rows(some), codes)[:, hidden] for s in shown)
                ratio[np.ix_(some, hidden)] = new / old
        return ratio

    def decoded_means(self, cells: Cells, codes: CodeReader | None = None) -> np.ndarray:
        """Return the means that are decoded, ``(b, n_genes)`` float64."""
        tokens = cells.tokens().to(self.device)
        encoded = self.module.encode_cells(*tokens)
        found = encoded.quantised
        if codes is not None:
            found = codes.positions(cells.values).to(self.device)
        vector = self.module.quantize(found).vector if self.decodes_codes else None
        mean, _, _ = self.module.decode(
            encoded.states, tokens.gene_ids, tokens.padding, vector=vector
        )
        return mean.double().cpu().numpy()

    def _warn_of_silent(self, vocabulary: GeneVocabulary, expressed: np.ndarray) -> None:
        names = vocabulary.genes[self.change.places[~expressed]].tolist()
        warn_user(
            f"No cell expresses {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
            f"{'' if expressed.any() else ', so nothing changes'}; effect='over_expression' "
            "would add what is not there."
        )


def assign_folds(n_genes: int, places: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
    """Return the random fold of each gene, ``(n_genes,)``; −1 = changed, whatever is measured."""
    fold = np.random.default_rng(seed).permutation(np.arange(n_genes) % n_folds)
    fold[places] = -1
    return fold


class Rounding:
    """Round expected counts up or down at random, so that the mean stays.

    Parameters
    ----------
    names
        Of the cells. The random numbers of a cell follow from its name and the seed, so that they
        depend neither on other cells nor on their order.
    seed
        See ``names``.
    """

    def __init__(self, names: list[str], seed: int) -> None:
        self.names = names
        self.seed = seed

    def __call__(self, values: sparse.csr_matrix, rows: np.ndarray) -> sparse.csr_matrix:
        """Round ``(b, n)`` values of some cells."""
        drawn = np.concatenate([np.zeros(0), *self._draws(values, rows)])
        whole = np.floor(values.data)
        values.data = whole + (drawn < values.data - whole)
        return values

    def _draws(self, values: sparse.csr_matrix, rows: np.ndarray) -> Iterator[np.ndarray]:
        for i, row in enumerate(rows):
            key = [self.seed, zlib.crc32(self.names[row].encode())]
            drawn = np.random.default_rng(key).random(values.shape[1])
            yield drawn[values.indices[values.indptr[i] : values.indptr[i + 1]]]


def as_labels(codes: np.ndarray) -> pd.Categorical:
    """Return codes as text, by number; cells without a code are missing."""
    levels = np.unique(codes[codes != NO_CODE])
    place = np.where(codes == NO_CODE, -1, np.searchsorted(levels, codes))
    return pd.Categorical.from_codes(
        place, categories=pd.Index([str(c) for c in levels], dtype=object)
    )


def transitions(before: np.ndarray, after: np.ndarray) -> pd.DataFrame:
    """Count the cells that move from each code to each code; cells without a code are left out."""
    known = (before != NO_CODE) & (after != NO_CODE)
    pairs, n = np.unique(np.stack([before[known], after[known]]), axis=1, return_counts=True)
    order = np.argsort(-n, kind="stable")
    table: dict[str, Any] = {
        name: codes[order].astype(str).astype(object)
        for name, codes in zip(("before", "after"), pairs, strict=True)
    }
    index = [str(i) for i in range(len(order))]
    return pd.DataFrame(table | {"n_cells": n[order]}, index=index)


def _differ(one: Cells, other: Cells) -> np.ndarray:
    """Return which cells differ, ``(b,)`` bool."""
    return np.asarray((one.values != other.values).getnnz(axis=1) > 0)


def _predicted(
    reader: CellReader,
    rows: np.ndarray,
    change: GeneChange,
    cells: Cells,
    changed: Cells,
    ratio: np.ndarray,
    rounding: Rounding | None,
) -> sparse.csr_matrix:
    """Return changed expression, ``(b, n_genes)``, in the units of the input."""
    values = reader.read(rows)
    row = np.repeat(np.arange(len(rows)), np.diff(values.indptr))
    factor = ratio[row, values.indices]
    new = changed.values[:, change.places].toarray().astype(np.float64)
    if rounding is None:
        moved = factor != 1.0  # unchanged values stay bit for bit
        values.data[moved] = np.log1p(np.expm1(values.data[moved]) * factor[moved])
        return with_columns(values, change.places, new, np.float64)
    values.data *= factor
    # An unchanged count is the one that was read, not the one computed from its logarithm.
    old = cells.values[:, change.places].toarray()
    counts = np.expm1(new) * (10.0 ** cells.depth.astype(np.float64) / TARGET_SUM)[:, None]
    kept = reader.read(rows)[:, change.places].toarray()
    counts = np.where(new == old, kept, counts)
    return rounding(with_columns(values, change.places, counts, np.float64), rows)
