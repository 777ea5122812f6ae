"""Graph convolution over a fixed graph, as one sparse product."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn


def normalised_adjacency(edges: Tensor, weights: Tensor, n_nodes: int) -> Tensor:
    r"""Return :math:`D^{-1/2} A D^{-1/2}` as a sparse CSR matrix.

    :math:`A_{ts}` is the weight of the edge from source :math:`s` to target :math:`t`, and
    :math:`D` the diagonal of its row sums (Kipf & Welling 2017, without self-loops). Weights of
    repeated edges add up; a node without edges has a row of zeros.

    Parameters
    ----------
    edges
        ``(2, n_edges)`` int64: row 0 holds targets, row 1 sources.
    weights
        ``(n_edges,)`` non-negative.
    n_nodes
        Number of nodes.

    Returns
    -------
    ``(n_nodes, n_nodes)`` sparse CSR, in the dtype and on the device of ``weights``.

    Raises
    ------
    ValueError
        If shapes differ, an edge leaves the graph, or a weight is negative or not finite.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import normalised_adjacency
    >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    >>> normalised_adjacency(edges, torch.ones(4), n_nodes=3).to_dense().round(decimals=3)
    tensor([[0.0000, 0.7070, 0.0000],
            [0.7070, 0.0000, 0.7070],
            [0.0000, 0.7070, 0.0000]])
    """
    check_graph(edges, weights, n_nodes)
    target, source = edges
    degree = torch.zeros(n_nodes, dtype=weights.dtype, device=weights.device)
    degree.index_add_(0, target, weights)
    scale = torch.where(degree > 0, degree, torch.ones_like(degree)).rsqrt()
    values = weights * scale[target] * scale[source]
    with warnings.catch_warnings():
        # Said once a process: that CSR is young, and that its invariants can be checked.
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
        made = torch.sparse_coo_tensor(edges, values, (n_nodes, n_nodes), device=weights.device)
        return made.coalesce().to_sparse_csr()


def check_graph(edges: Tensor, weights: Tensor, n_nodes: int) -> None:
    """Check a graph before it is used; parameters and errors as for the function above."""
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        raise ValueError(
            f"Edges are {tuple(edges.shape)} of {edges.dtype}; expected (2, n_edges) of "
            "torch.int64, row 0 the target and row 1 the source of each edge."
        )
    if weights.shape != edges.shape[1:]:
        raise ValueError(
            f"There are {edges.shape[1]} edges and {tuple(weights.shape)} weights; expected one "
            "weight per edge."
        )
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= n_nodes):
        raise ValueError(
            f"The graph has edges between nodes {int(edges.min())} and {int(edges.max())}, but "
            f"there are {n_nodes} genes (numbered from 0); it belongs to another gene list."
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueError("Edge weights must be finite and not negative.")


class GraphConvolution(nn.Module):
    r"""Linear map of each node's neighbourhood, :math:`\hat{A} X W^\top + b`.

    Parameters
    ----------
    dim
        Width of the nodes, in and out.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import GraphConvolution, normalised_adjacency
    >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    >>> adjacency = normalised_adjacency(edges, torch.ones(4), n_nodes=3)
    >>> GraphConvolution(dim=8)(torch.randn(2, 3, 8), adjacency).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Map ``(b, n, dim)`` nodes; ``adjacency`` from :func:`normalised_adjacency`."""
        # The product over the graph first: what is left works on every node by itself.
        return self.linear(neighbours(x, adjacency)) + self.bias


def neighbours(x: Tensor, adjacency: Tensor) -> Tensor:
    """Sum over neighbours, ``(b, n, dim)``; float32 at least, whatever autocast says."""
    b, n, dim = x.shape
    flat = x.transpose(0, 1).reshape(n, b * dim).to(adjacency.dtype)  # (n, b·dim)
    with torch.autocast(x.device.type, enabled=False):
        summed = adjacency @ flat
    return summed.view(n, b, dim).transpose(0, 1)
