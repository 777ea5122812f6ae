"""AnnData to batches of log TPM in the order of the vocabulary, and to a graph of its genes."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import torch
from scipy import sparse

from cfm._adata import check_sparse, require_anndata, warn_user
from cfm.data._matrix import get_matrix, row_blocks, to_dense
from cfm.data._row_buffer import RowBuffer
from cfm.models.bulkformer._module import MISSING
from cfm.pp import coexpression_graph

if TYPE_CHECKING:
    from collections.abc import Iterator

    import pandas as pd
    from anndata import AnnData
    from torch import Tensor

    from cfm.data import GeneVocabulary

#: Least number of the model's genes that data must measure.
MIN_GENES = 50
#: Share of the vocabulary below which the reader warns.
LOW_SHARE = 0.25
#: Key of ``varp`` with the graph of :func:`cfm.pp.coexpression_graph`.
GRAPH_KEY = "coexpression"
#: Most samples that a graph is computed from: the standard error of a correlation is 0.01.
_MOST_SAMPLES = 8192
#: log1p of a million: no TPM is larger.
LARGEST_LOG_TPM = math.log1p(1e6)
#: TPM of a sample sum to a million over all genes, to less over some of them.
_LARGEST_SUM = 1.1e6
#: Sum of a sample after scanpy.pp.normalize_total(target_sum=1e4).
_PER_TEN_THOUSAND = 1e4
#: Least number of positive values, all whole, that are taken for counts.
_MIN_WHOLE = 20
_REMEDY = (
    "natural log1p of TPM is expected: make it from counts with cfm.pp.tpm(adata) and pass "
    "layer='log_tpm'."
)


def align_gene_features(table: pd.DataFrame, vocabulary: GeneVocabulary) -> np.ndarray:
    """Return gene features by gene of the vocabulary: z-scores, 0 for genes without a row.

    Raises
    ------
    ValueError
        If they contain NaN or infinite values, or no gene of the vocabulary.
    """
    alignment = vocabulary.align(table.index)
    values = table.to_numpy(dtype=np.float32)[alignment.columns]
    if not np.isfinite(values).all():
        raise ValueError("gene_features holds NaN or infinite values; drop those genes.")
    spread = values.std(axis=0)
    values = (values - values.mean(axis=0)) / np.where(spread > 0, spread, 1.0)
    if alignment.found_share < 0.5:
        warn_user(
            f"gene_features has rows for {alignment.found_share:.0%} of the model's "
            f"{len(vocabulary)} genes; the others have the same features, 0."
        )
    out = np.zeros((len(vocabulary), values.shape[1]), dtype=np.float32)
    out[alignment.positions] = values
    return out


def features_by_gene(table: pd.DataFrame, vocabulary: GeneVocabulary) -> np.ndarray:
    """Return gene features by gene of the vocabulary as they are, ``NaN`` for genes without a row.

    Raises
    ------
    ValueError
        If they contain no gene of the vocabulary.
    """
    alignment = vocabulary.align(table.index, min_genes=1)
    values = table.to_numpy(dtype=np.float32)
    out = np.full((len(vocabulary), values.shape[1]), np.nan, dtype=np.float32)
    out[alignment.positions] = values[alignment.columns]
    return out


class ExpressionReader:
    """Log TPM of samples, by gene of a vocabulary, with −10 where a gene is missing.

    Parameters
    ----------
    adata
        Samples by genes, any storage.
    vocabulary
        Genes of the model.
    layer
        Layer to read instead of ``X``.

    Attributes
    ----------
    alignment
        Columns of ``adata`` by gene of the vocabulary.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If the layer does not exist.
    ValueError
        If too few genes are found.
    """

    def __init__(
        self, adata: AnnData, vocabulary: GeneVocabulary, *, layer: str | None = None
    ) -> None:
        require_anndata(adata)
        get_matrix(adata, layer=layer)
        self.adata, self.layer = adata, layer
        self.alignment = vocabulary.align(
            adata.var_names, min_genes=min(MIN_GENES, len(vocabulary))
        )
        if self.alignment.found_share < LOW_SHARE:
            warn_user(
                f"Only {self.alignment.found_share:.0%} of the model's {len(vocabulary)} genes are "
                f"measured ({len(self.alignment.columns)}); results from so few are less certain."
            )

    def blocks(self, n_rows: int = 64) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield checked values as in ``adata``; see :func:`expression_blocks`."""
        return expression_blocks(self.adata, layer=self.layer, n_rows=n_rows)

    def batches(
        self, batch_size: int = 64, n_at_once: int = 64, mask: np.ndarray | None = None
    ) -> Iterator[tuple[slice, np.ndarray, Tensor]]:
        """Yield all samples in order, checked.

        Parameters
        ----------
        batch_size
            Samples to read at a time.
        n_at_once
            Samples to yield at a time, at most.
        mask
            ``(n_obs, n_vars)`` bool: entries to read as missing.

        Yields
        ------
        rows
            Slice of the samples.
        values
            ``(b, n_vars)`` float32, as in ``adata``, ``NaN`` where missing.
        expression
            ``(b, n_genes)`` float32, −10 where missing.
        """
        for block, values in self.blocks(batch_size):
            if mask is not None:
                values[mask[block]] = np.nan
            for start in range(0, len(values), n_at_once):
                part = values[start : start + n_at_once]
                first = block.start + start
                yield slice(first, first + len(part)), part, self._in_vocabulary(part)

    def read_all(self) -> Tensor:
        """Return all samples, checked, ``(n_obs, n_genes)`` float32."""
        return torch.cat([expression for _, _, expression in self.batches()])

    def check(self) -> None:
        """Check the values of all samples; see :func:`expression_blocks`."""
        for _ in self.blocks():
            pass

    @cached_property
    def _rows(self) -> RowBuffer:
        return RowBuffer(get_matrix(self.adata, layer=self.layer))

    def prefetch(self, rows: np.ndarray) -> None:
        """Start to read these samples from disk, in this order, before :meth:`read` needs them."""
        self._rows.prefetch(rows)

    def read(self, rows: np.ndarray) -> Tensor:
        """Return some samples, ``(b, n_genes)`` float32; the values are not checked."""
        return self._in_vocabulary(to_dense(self._rows[rows], np.float32))

    def mean(self, rows: np.ndarray) -> np.ndarray:
        """Return the mean of each gene over the samples that measure it, ``(n_genes,)``."""
        self.prefetch(rows)
        total = np.zeros((2, self.alignment.n_vocabulary))
        for start in range(0, len(rows), 64):
            values = self.read(rows[start : start + 64]).numpy()
            observed = values != MISSING
            total += [np.where(observed, values, 0.0).sum(0), observed.sum(0)]
        return (total[0] / np.maximum(total[1], 1)).astype(np.float32)

    def _in_vocabulary(self, values: np.ndarray) -> Tensor:
        return torch.from_numpy(np.nan_to_num(self.alignment.apply(values), nan=MISSING))


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
        values = np.array(to_dense(block, np.float32))  # a copy, because it is changed
        values[values == MISSING] = np.nan
        check_expression(values, where)
        yield rows, values


def check_expression(values: np.ndarray, where: str) -> None:
    """Raise an error for values that cannot be log TPM; see :func:`expression_blocks`."""
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


def check_mask(mask: np.ndarray | None, adata: AnnData) -> np.ndarray | None:
    """Return a mask of entries as an array.

    Raises
    ------
    ValueError
        If it has another shape than ``adata`` or is not bool.
    """
    if mask is None:
        return None
    mask = np.asarray(mask)
    if mask.shape != adata.shape or mask.dtype != bool:
        raise ValueError(
            f"mask= is {mask.shape} of {mask.dtype}; expected {adata.shape} of bool, True where "
            "an entry is hidden."
        )
    return mask


def graph_tensors(graph: Any, n_genes: int) -> tuple[Tensor, Tensor]:
    """Return edges and weights of a given graph.

    Parameters
    ----------
    graph
        A sparse matrix, genes by genes in the order of the vocabulary, row = target; or a pair of
        ``(2, n_edges)`` edges (targets, sources) and ``(n_edges,)`` weights.
    n_genes
        Size of the vocabulary.

    Raises
    ------
    TypeError
        If it is neither.
    ValueError
        If its size differs from the vocabulary's.
    """
    if sparse.issparse(graph):
        if graph.shape != (n_genes, n_genes):
            raise ValueError(
                f"graph= is {graph.shape[0]} × {graph.shape[1]}; the vocabulary has {n_genes} "
                "genes. Make it from data with the model's genes, in their order."
            )
        entries = sparse.coo_matrix(check_sparse(graph, "graph="))
        edges = np.stack([entries.row, entries.col]).astype(np.int64)
        weights = entries.data.astype(np.float32)
    elif isinstance(graph, tuple | list) and len(graph) == 2:
        edges, weights = np.asarray(graph[0], dtype=np.int64), np.asarray(graph[1], np.float32)
    else:
        raise TypeError(
            f"graph= is a {type(graph).__name__}; expected a sparse matrix of genes by genes, or "
            "a pair of edges and weights."
        )
    return torch.from_numpy(edges), torch.from_numpy(weights)


def graph_of_data(reader: ExpressionReader) -> tuple[Tensor, Tensor]:
    """Return edges and weights of the graph in ``varp["coexpression"]``, or of a new one.

    A stored graph is used if it has an edge between genes of the vocabulary. A new graph is
    computed in memory from at most 8,192 samples, spread evenly; missing values are replaced by
    the mean of their gene.
    """
    adata, alignment = reader.adata, reader.alignment
    if GRAPH_KEY in adata.varp:
        stored = check_sparse(adata.varp[GRAPH_KEY], f"adata.varp[{GRAPH_KEY!r}]")
        chosen = sparse.csr_matrix(stored)[alignment.columns][:, alignment.columns]
        place = alignment.positions
    else:
        used = np.zeros(adata.n_obs, dtype=bool)
        n = min(adata.n_obs, _MOST_SAMPLES)
        used[np.linspace(0, adata.n_obs - 1, n).astype(np.int64)] = True
        values = np.concatenate(
            [alignment.apply(block[used[rows]]) for rows, block in reader.blocks()]
        )
        place = np.flatnonzero(np.isfinite(values).any(axis=0))
        values = values[:, place]
        rows, columns = np.nonzero(np.isnan(values))
        values[rows, columns] = np.nanmean(values, axis=0)[columns]
        made = ad.AnnData(values)
        coexpression_graph(made)
        chosen = made.varp[GRAPH_KEY]
    entries = sparse.coo_matrix(chosen)
    if not entries.nnz:
        warn_user(
            "No two genes are correlated enough for the co-expression graph; each gene is linked "
            "to itself only. Give more samples, or a graph= of other data."
        )
        entries = sparse.identity(len(place), dtype=np.float32, format="coo")
    edges = np.stack([place[entries.row], place[entries.col]]).astype(np.int64)
    return torch.from_numpy(edges), torch.from_numpy(entries.data.astype(np.float32))
