"""Reads log TPM out of an AnnData in the order of the model's genes, and refuses other units."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import torch

from cfm.data import GeneVocabulary, map_identifiers
from cfm.data._matrix import get_matrix, row_blocks, to_dense
from cfm.data._modality import require_anndata
from cfm.data._row_buffer import RowBuffer
from cfm.data._warn import warn_user
from cfm.models.bulkformer._constants import LARGEST_LOG_TPM, MISSING

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from cfm.data import GeneAlignment

#: Least number of the model's genes that data must measure.
MIN_GENES = 50
#: Below this share of the vocabulary a warning says so.
LOW_SHARE = 0.25
#: TPM of a sample sum to a million over all genes, to less over some of them.
_LARGEST_SUM = 1.1e6
#: What scanpy.pp.normalize_total(target_sum=1e4) makes samples sum to.
_PER_TEN_THOUSAND = 1e4
#: So many positive values are not all whole numbers by chance.
_MIN_WHOLE = 20
_REMEDY = (
    "natural log1p of TPM is expected: make it from counts with cfm.pp.tpm(adata) and pass "
    "layer='log_tpm'."
)


def vocabulary_of(ensembl_ids: Sequence[str]) -> GeneVocabulary:
    """Name genes by their current symbols, or by the id itself where it has none of its own."""
    symbols = pd.Index(map_identifiers(list(ensembl_ids), "human").symbol)
    taken = symbols.duplicated() | (symbols == "") | symbols.isin(ensembl_ids)
    return GeneVocabulary(np.where(taken, ensembl_ids, symbols).tolist())


def align_expression(
    adata: AnnData, vocabulary: GeneVocabulary, *, layer: str | None = None
) -> GeneAlignment:
    """Find the model's genes in ``var_names`` and check that the matrix can be read.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If the layer does not exist.
    ValueError
        If too few genes are found.
    """
    require_anndata(adata)
    get_matrix(adata, layer=layer)
    alignment = vocabulary.align(adata.var_names, min_genes=min(MIN_GENES, len(vocabulary)))
    if alignment.found_share < LOW_SHARE:
        warn_user(
            f"Only {alignment.found_share:.0%} of the model's {len(vocabulary)} genes are "
            f"measured ({len(alignment.columns)}); what is said of so few is less certain."
        )
    return alignment


class ExpressionReader:
    """Log TPM of samples by gene of a vocabulary, a few samples at a time.

    Parameters
    ----------
    adata
        Samples by genes, any storage.
    vocabulary
        Genes of the model.
    layer
        Layer to read instead of ``X``.

    Raises
    ------
    TypeError, KeyError, ValueError
        As :func:`align_expression`.
    """

    def __init__(
        self, adata: AnnData, vocabulary: GeneVocabulary, *, layer: str | None = None
    ) -> None:
        self.alignment = align_expression(adata, vocabulary, layer=layer)
        self._rows = RowBuffer(get_matrix(adata, layer=layer))

    def expect(self, rows: np.ndarray) -> None:
        """Say which samples will be read, in order, so that they are read ahead from a file."""
        self._rows.expect(rows)

    def read(self, rows: np.ndarray) -> torch.Tensor:
        """Return ``(b, n_genes)`` float32; −10 = missing."""
        values = self.alignment.apply(to_dense(self._rows[rows], np.float32))
        return torch.from_numpy(np.nan_to_num(values, nan=MISSING))

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Return the mean of each gene over the samples that measure it, ``(n_genes,)``."""
        self.expect(rows)
        total = np.zeros((2, self.alignment.n_vocabulary))
        for start in range(0, len(rows), 64):
            values = self.read(rows[start : start + 64]).numpy()
            observed = values != MISSING
            total += [np.where(observed, values, 0.0).sum(0), observed.sum(0)]
        return (total[0] / np.maximum(total[1], 1)).astype(np.float32)


def expression_blocks(
    adata: AnnData, *, layer: str | None = None, n_rows: int = 64
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of ``(rows, log TPM)``, float32 with ``NaN`` = missing, columns as in ``adata``.

    Raises
    ------
    ValueError
        If values are infinite or negative, or look like counts, TPM without logarithm or another
        logarithm; −10 and ``NaN`` are missing.
    """
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    for rows, block in row_blocks(get_matrix(adata, layer=layer), n_rows):
        values = np.array(to_dense(block, np.float32))  # a copy: missing values are marked in it
        values[values == MISSING] = np.nan
        check_expression(values, where)
        yield rows, values


def check_expression(values: np.ndarray, where: str) -> None:
    """Refuse what cannot be log TPM; see :func:`expression_blocks`."""
    if np.isinf(values).any():
        raise ValueError(f"{where} holds infinite values; {_REMEDY}")
    known = np.nan_to_num(values, nan=0.0)
    if (known < 0).any():
        raise ValueError(
            f"{where} holds negative values (smallest {known.min():.4g}); {_REMEDY} A gene that "
            "is not measured is NaN or −10."
        )
    largest = float(known.max(initial=0.0))
    if largest > LARGEST_LOG_TPM + 1e-3:
        raise ValueError(
            f"{where} holds values up to {largest:.6g}, which no log1p of TPM reaches "
            f"({LARGEST_LOG_TPM:.2f}): these are counts, or TPM without logarithm; {_REMEDY}"
        )
    if (known > 0).sum() >= _MIN_WHOLE and (known == np.rint(known)).all():
        raise ValueError(f"{where} holds whole numbers only, so these are counts; {_REMEDY}")
    total = np.expm1(known.astype(np.float64)).sum(axis=1)
    if (total > _LARGEST_SUM).any():
        row = int(np.argmax(total))
        raise ValueError(
            f"Undoing log1p, a sample of {where} sums to {total[row]:.4g}, but TPM sum to a "
            f"million at most: this is another logarithm (log2?) or not TPM; {_REMEDY}"
        )
    if len(total) and (np.abs(total - _PER_TEN_THOUSAND) < 1e-3 * _PER_TEN_THOUSAND).all():
        raise ValueError(
            f"Undoing log1p, every sample of {where} sums to 10,000: this is log1p of counts per "
            f"10,000, not of TPM; {_REMEDY}"
        )
