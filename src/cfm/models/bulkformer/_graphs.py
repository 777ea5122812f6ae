"""The gene graph of a BulkFormer: given, stored with the data, or made from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import torch
from scipy import sparse

from cfm._sparse_indices import check_sparse
from cfm.data._warn import warn_user
from cfm.models.bulkformer._reading import align_expression, expression_blocks
from cfm.pp import coexpression_graph

if TYPE_CHECKING:
    from anndata import AnnData
    from torch import Tensor

    from cfm.data import GeneVocabulary

#: Where :func:`cfm.pp.coexpression_graph` stores its graph.
GRAPH_KEY = "coexpression"
#: Samples that a graph is made of: the error of a correlation is 0.01 then.
_MOST_SAMPLES = 8192


def graph_tensors(graph: Any, n_genes: int) -> tuple[Tensor, Tensor]:
    """Return edges and weights of a graph that a user gives.

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


def graph_of_data(
    adata: AnnData, vocabulary: GeneVocabulary, *, layer: str | None = None
) -> tuple[Tensor, Tensor]:
    """Return the graph stored in ``varp["coexpression"]``, or make one of the data.

    A stored graph counts if it has an edge between genes of the vocabulary. Where none is stored,
    missing values are taken as the mean of their gene. Of more than 8,192 samples so many are
    used, spread evenly, for they are held in memory.
    """
    alignment = align_expression(adata, vocabulary, layer=layer)
    if GRAPH_KEY in adata.varp:
        stored = check_sparse(adata.varp[GRAPH_KEY], f"adata.varp[{GRAPH_KEY!r}]")
        chosen = sparse.csr_matrix(stored)[alignment.columns][:, alignment.columns]
        place = alignment.positions
    else:
        used = np.zeros(adata.n_obs, dtype=bool)
        used[np.linspace(0, adata.n_obs - 1, min(adata.n_obs, _MOST_SAMPLES)).astype(np.int64)] = (
            True
        )
        values = np.concatenate(
            [
                alignment.apply(block[used[rows]])
                for rows, block in expression_blocks(adata, layer=layer)
            ]
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
