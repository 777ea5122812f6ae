"""CellVQ and perturbations: genes are taken out of the sentence, and the cell is read again."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from anndata import AnnData
from scipy import sparse

from cfm._arguments import SHARE, Range, checks_arguments
from cfm._fields import CODE_AFTER, CODE_BEFORE, CODE_TRANSITIONS
from cfm.data._warn import warn_user
from cfm.models.cellvq._apply import NO_CODE, Applicable
from cfm.models.cellvq._changes import GeneChange, find_genes, with_columns
from cfm.models.cellvq._reading import TARGET_SUM, Units

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfm.models.cellvq._changes import Effect
    from cfm.models.cellvq._reading import CellReader, Cells

#: Positions that are decoded at a time; but always at least one cell.
_DECODED_AT_ONCE = 65_536


class Perturbable(Applicable):
    """A CellVQ that answers for perturbations."""

    @checks_arguments(n_folds=2, max_fold=Range(1), quantile=SHARE)
    @torch.inference_mode()
    def simulate(
        self,
        adata: AnnData,
        perturbation: Sequence[str],
        *,
        layer: str | None = None,
        groupby: str | None = None,
        batch_size: int = 64,
        seed: int = 0,
        units: Units = "counts",
        total_counts: str | None = None,
        effect: Effect | float = "knock_out",
        quantile: float = 0.95,
        targets: pd.DataFrame | None = None,
        n_folds: int = 2,
        max_fold: float = 10.0,
    ) -> AnnData:
        r"""Change genes of a cell, and say which code it moves to and how it is then expressed.

        The genes are taken out of the sentence of the cell, or put in louder; what else it says
        stays. Both sentences go through the encoder to a code, and through the decoder:

        .. math:: \hat x_g = x_g \, \mathrm{clip}(\mu'_g / \mu_g, 1 / F, F)

        with :math:`\mu_g` and :math:`\mu'_g` the means that are decoded before and after, in
        counts, and *F* = ``max_fold``. The decoder was trained on genes that it was not shown, so
        genes are cut into folds at random, and each fold is decoded from the others, and the
        perturbed genes. A gene that a cell does not express stays so, unless it is
        over-expressed.

        The model was not shown perturbed cells, unless it was trained on some: what it says is
        what goes together in cells, which need not be what causes what. Matrix products run in
        float32, because changes are small.

        Parameters
        ----------
        adata
            Unperturbed cells by genes.
        perturbation
            Genes, by any name that can be mapped, and with ``targets`` also compounds.
        layer
            Layer to read instead of ``X``.
        groupby
            Not used: each cell is predicted alone.
        batch_size
            Cells at a time; the result does not depend on it.
        seed
            Of the folds, and of rounding to counts.
        units, total_counts
            What is read; see :meth:`get_latent_representation`.
        effect
            ``"knock_out"``: the genes are not expressed. ``"over_expression"``: they are raised to
            the ``quantile`` of the values that the same cell expresses, where they are lower. A
            number: their counts are multiplied by it.
        quantile
            See ``effect``.
        targets
            Table of the genes that compounds act on, such as :func:`cfm.datasets.drug_targets`,
            columns ``compound`` and ``gene``; to them is done what ``effect`` says.
        n_folds
            Folds of the genes, at least 2. As many times the network is run.
        max_fold
            Largest factor by which a gene rises or falls.

        Returns
        -------
        AnnData, cells by the genes of ``adata`` that the model knows, in the units of what was
        read: CSR float32; counts are rounded up or down at random so that the mean stays. ``obs``:
        ``'cell_code_before'`` and ``'cell_code_after'`` (categorical of str such as ``"7"``;
        missing for cells that express none of the model's genes).
        ``uns['code_transitions']``: DataFrame of ``before``, ``after`` and ``n_cells``, the most
        frequent first.

        Raises
        ------
        TypeError
            If ``perturbation`` is one text, or ``targets`` no table.
        KeyError
            If a name is neither a gene of the model nor a compound that acts on one.
        ValueError
            If an option is out of range, or values are not in the units that are declared.

        Warns
        -----
        UserWarning
            If no cell expresses a gene that is to be changed, so that nothing changes, few of the
            model's genes are measured, or cells express none of them.
        """
        change = GeneChange(find_genes(self.vocabulary, perturbation, targets), effect, quantile)
        reader = self._reader(adata, layer, units, total_counts)
        fold = self._folds(change.places, n_folds, seed)
        rounding = Rounding([str(n) for n in adata.obs_names], seed) if units == "counts" else None
        before, after = (np.full(adata.n_obs, NO_CODE, dtype=np.int64) for _ in range(2))
        expressed = np.zeros(len(change.places), dtype=bool)
        rows_done, parts = [np.zeros(0, dtype=np.int64)], []
        at_once = max(1, min(batch_size, _DECODED_AT_ONCE // len(self.vocabulary)))
        for rows, cells in reader.batches(at_once):
            changed = change.of(cells)
            expressed |= (cells.values[:, change.places] > 0).toarray().any(axis=0)
            moved = np.flatnonzero(_differ(cells, changed))
            before[rows] = self._codes(cells)
            after[rows] = before[rows]
            after[rows[moved]] = self._codes(changed.rows(moved))
            ratio = np.ones(cells.values.shape)
            ratio[moved] = self._ratio(cells.rows(moved), changed.rows(moved), fold)
            np.clip(ratio, 1.0 / max_fold, max_fold, out=ratio)
            parts.append(_predicted(reader, rows, change, cells, changed, ratio, rounding))
            rows_done.append(rows)
        if not change.adds and not expressed.all():
            names = self.vocabulary.genes[change.places[~expressed]].tolist()
            warn_user(
                f"No cell expresses {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
                f"{'' if expressed.any() else ', so nothing changes'}; effect='over_expression' "
                "would add what is not there."
            )
        return self._result(adata, reader, np.concatenate(rows_done), parts, before, after)

    def _result(
        self,
        adata: AnnData,
        reader: CellReader,
        rows: np.ndarray,
        parts: list[sparse.csr_matrix],
        before: np.ndarray,
        after: np.ndarray,
    ) -> AnnData:
        """Put what was predicted in the order of the cells; the others express nothing."""
        n, n_genes = adata.n_obs, len(self.vocabulary)
        places = reader.alignment.positions
        stacked = sparse.vstack([*parts, sparse.csr_matrix((n - len(rows), n_genes))], format="csr")
        others = np.setdiff1d(np.arange(n), rows)
        order = np.argsort(np.concatenate([rows, others]))
        codes = {CODE_BEFORE: before, CODE_AFTER: after}
        return AnnData(
            stacked[order][:, places].astype(np.float32),
            obs=pd.DataFrame({k: as_labels(v) for k, v in codes.items()}, index=adata.obs_names),
            var=pd.DataFrame(index=adata.var_names[reader.alignment.columns]),
            uns={CODE_TRANSITIONS: transitions(before, after)},
        )

    def _folds(self, places: np.ndarray, n_folds: int, seed: int) -> np.ndarray:
        """Spread the vocabulary over folds, −1 = perturbed; what is measured has no say."""
        n = len(self.vocabulary)
        fold = np.random.default_rng(seed).permutation(np.arange(n) % n_folds)
        fold[places] = -1
        return fold

    def _codes(self, cells: Cells) -> np.ndarray:
        """Return the codes of cells; of those that express nothing any more there is none."""
        out = np.full(len(cells.depth), NO_CODE, dtype=np.int64)
        some = np.flatnonzero(cells.n_expressed > 0)
        if len(some):
            encoded = self._encode(some, cells.rows(some), torch.float32)
            out[some] = self.module.quantize(encoded.maximum).code.cpu().numpy()
        return out

    def _ratio(self, before: Cells, after: Cells, fold: np.ndarray) -> np.ndarray:
        """Return decoded means after over before, ``(b, n_genes)``, each fold from the others."""
        ratio = np.ones(before.values.shape)
        for i in range(fold.max() + 1):
            hidden = fold == i
            shown = [_without(cells, hidden) for cells in (before, after)]
            # With nothing left to read, nothing is said.
            some = np.flatnonzero(np.minimum(*(s.n_expressed for s in shown)) > 0)
            if len(some):
                old, new = (self._decoded(s.rows(some))[:, hidden] for s in shown)
                ratio[np.ix_(some, hidden)] = new / old
        return ratio

    def _decoded(self, cells: Cells) -> np.ndarray:
        """Return the means that are decoded, ``(b, n_genes)``."""
        encoded = self._encode(np.arange(len(cells.depth)), cells, torch.float32)
        vector = None
        if self._decodes_codes():
            vector = self.module.quantize(encoded.maximum).vector
        tokens = encoded.tokens
        mean, _, _ = self.module.decode(
            encoded.states, tokens.gene_ids, tokens.padding, vector=vector
        )
        return mean.double().cpu().numpy()

    def _decodes_codes(self) -> bool:
        """Whether the decoder was trained with the codes of cells: here it is, elsewhere not."""
        return self.module.code_term is not None or "training_studies" in self.provenance


class Rounding:
    """Rounds expected counts up or down at random, so that the mean stays.

    Parameters
    ----------
    names
        Of the cells: with the seed the source of what is random, so that neither other cells nor
        their order change a cell.
    seed
        See above.
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
    """Count from which code to which cells move, those without a code left out."""
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


def _without(cells: Cells, hidden: np.ndarray) -> Cells:
    """Return cells without some genes ``(n_genes,)`` bool."""
    values = cells.values.copy()
    values.data[hidden[values.indices]] = 0
    values.eliminate_zeros()
    return cells._replace(values=values)


def _predicted(
    reader: CellReader,
    rows: np.ndarray,
    change: GeneChange,
    cells: Cells,
    changed: Cells,
    ratio: np.ndarray,
    rounding: Rounding | None,
) -> sparse.csr_matrix:
    """Return the expression of cells after a change, on the genes of the model, as it was read."""
    values = reader.read(rows)
    row = np.repeat(np.arange(len(rows)), np.diff(values.indptr))
    factor = ratio[row, values.indices]
    new = changed.values[:, change.places].toarray().astype(np.float64)
    if rounding is None:
        moved = factor != 1.0  # what is not changed is as it was read, to the last digit
        values.data[moved] = np.log1p(np.expm1(values.data[moved]) * factor[moved])
        return with_columns(values, change.places, new, np.float64)
    values.data *= factor
    # Where nothing was changed the count is what it was, not what its logarithm says.
    old = cells.values[:, change.places].toarray()
    counts = np.expm1(new) * (10.0 ** cells.depth.astype(np.float64) / TARGET_SUM)[:, None]
    kept = reader.read(rows)[:, change.places].toarray()
    counts = np.where(new == old, kept, counts)
    return rounding(with_columns(values, change.places, counts, np.float64), rows)
