"""Arrays behind :func:`cfm.tl.gene_programs`: attention maps to a gene graph, graph to modules."""

from __future__ import annotations

import random
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import igraph
import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Passes of the Leiden algorithm; it stops improving earlier, and unbounded it may not end on ties.
_LEIDEN_PASSES = 10


@dataclass(frozen=True)
class Edges:
    """An undirected graph: ``a < b`` ``(m,)`` int64 nodes and ``weight`` ``(m,)`` float64 > 0."""

    n_nodes: int
    a: np.ndarray
    b: np.ndarray
    weight: np.ndarray

    def strength(self) -> np.ndarray:
        """Return the summed weight of each node's edges, ``(n_nodes,)`` float64."""
        out = np.bincount(self.a, self.weight, minlength=self.n_nodes)
        return out + np.bincount(self.b, self.weight, minlength=self.n_nodes)


def attention_excess(weights: np.ndarray) -> np.ndarray:
    r"""Return how much more each gene attends to each other than chance has it.

    .. math:: \bar a_{ij} = \frac{1}{LH} \sum_{lh} \left(
        \frac{a^{lh}_{ij}}{\frac{1}{n} \sum_k a^{lh}_{kj}} - 1 \right)

    with :math:`a^{lh}` the weights of a layer and head without the summary token, rows summing to
    1 again. Popular keys, which every gene attends to, come out as 0.

    Parameters
    ----------
    weights
        ``(layers, heads, n + 1, n + 1)``; position 0 is the summary.

    Returns
    -------
    ``(n, n)`` float32.
    """
    n = weights.shape[-1] - 1
    total = np.zeros((n, n), dtype=np.float32)
    maps = weights.reshape(-1, n + 1, n + 1)
    for one in maps:  # a head at a time: one n × n array besides the sum
        own = one[1:, 1:] / np.maximum(one[1:, 1:].sum(axis=1, keepdims=True), 1e-12)
        total += own / np.maximum(own.sum(axis=0) / max(n, 1), 1e-12)
    return total / max(len(maps), 1) - 1.0


class AttentionMean:
    """Mean attention over the profiles in which both genes of a pair are tokens.

    Profiles are summed in blocks, so that a bootstrap draws blocks without another pass over the
    model: the memory is ``(n_blocks + 1) · n_genes² · 4`` bytes however many profiles there are.

    Parameters
    ----------
    n_genes
        Number of genes.
    n_blocks
        Number of blocks.
    """

    def __init__(self, n_genes: int, n_blocks: int) -> None:
        self.sums = np.zeros((n_blocks, n_genes, n_genes), dtype=np.float32)
        self.present: list[list[np.ndarray]] = [[] for _ in range(n_blocks)]

    def add(self, block: int, genes: np.ndarray, excess: np.ndarray) -> None:
        """Add a profile: ``(n,)`` genes of its tokens, −1 for those left aside, and their map."""
        kept = np.flatnonzero(genes >= 0)
        place = genes[kept]
        self.sums[block][np.ix_(place, place)] += excess[np.ix_(kept, kept)]
        seen = np.zeros(self.sums.shape[1], dtype=bool)
        seen[place] = True
        self.present[block].append(seen)

    def mean(self, times: np.ndarray | None = None) -> np.ndarray:
        """Return ``(n_genes, n_genes)`` float32 with every block counted ``times[block]`` times.

        0 where two genes never meet.
        """
        n_genes = self.sums.shape[1]
        times = np.ones(len(self.sums)) if times is None else times
        total = np.zeros((n_genes, n_genes), dtype=np.float32)
        met = np.zeros((n_genes, n_genes), dtype=np.float32)
        for block in np.flatnonzero(times):
            seen = np.array(self.present[block], dtype=np.float32)  # (profiles, n_genes)
            total += np.float32(times[block]) * self.sums[block]
            met += np.float32(times[block]) * (seen.T @ seen)
        return total / np.maximum(met, 1.0)


def cosine(rows: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of all pairs of rows, float32; 0 for rows of zeros."""
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    unit = (rows / np.maximum(length, 1e-12)).astype(np.float32)
    return unit @ unit.T


def attention_similarity(mean: np.ndarray) -> np.ndarray:
    """Return how alike two genes attend and are attended to, ``(n, n)`` float32 in −1 to 1.

    Cosine of the centred rows (what a gene attends to) and columns (what attends to it), side by
    side. The attention *between* two genes says little: tokens attend to what they lack, not to
    what they are like.
    """
    centred = mean - mean.mean(axis=0)
    centred -= centred.mean(axis=1, keepdims=True)
    return cosine(np.hstack([centred, centred.T]))


def standardise(similarity: np.ndarray) -> np.ndarray:
    """Return a similarity scaled to mean 0 and standard deviation 1 over its pairs, float32."""
    pairs = similarity[~np.eye(len(similarity), dtype=bool)]
    spread = float(pairs.std())
    return ((similarity - pairs.mean()) / (spread if spread > 0 else 1.0)).astype(np.float32)


def nearest_neighbour_graph(similarity: np.ndarray, n_neighbors: int) -> Edges:
    """Link every gene to those most like it; an edge stands if either end asks for it.

    Parameters
    ----------
    similarity
        ``(n, n)`` symmetric; pairs at 0 or below are never linked.
    n_neighbors
        Neighbours of a gene; equal similarities go by node number.
    """
    values = np.array(similarity, dtype=np.float32)
    n = len(values)
    np.fill_diagonal(values, -np.inf)
    chosen = np.zeros((n, n), dtype=bool)
    k = min(n_neighbors, n - 1)
    if k > 0:
        edge = -np.partition(-values, k - 1, axis=1)[:, k - 1 : k]  # k-th largest of a row
        chosen = values > edge
        for row in range(n):
            level = np.flatnonzero(values[row] == edge[row, 0])
            chosen[row, level[: k - int(chosen[row].sum())]] = True
    chosen &= values > 0
    linked = np.triu(chosen | chosen.T, 1)
    a, b = np.nonzero(linked)
    return Edges(n, a, b, values[a, b].astype(np.float64))


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Let igraph draw from a generator of its own."""
    igraph.set_random_number_generator(random.Random(seed))
    try:
        yield
    finally:
        igraph.set_random_number_generator(random)


def _as_igraph(edges: Edges) -> igraph.Graph:
    return igraph.Graph(n=edges.n_nodes, edges=np.column_stack([edges.a, edges.b]))


def leiden(edges: Edges, *, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    """Find modules by the Leiden algorithm (Traag et al. 2019), objective modularity.

    Returns
    -------
    ``(n_nodes,)`` int64 module of each node: 0 is the largest, ties by the smallest node.
    """
    if not len(edges.a):
        return np.arange(edges.n_nodes)
    with _seeded(seed):
        found = _as_igraph(edges).community_leiden(
            objective_function="modularity",
            weights=edges.weight.tolist(),
            resolution=resolution,
            n_iterations=_LEIDEN_PASSES,
        )
    return by_size(np.asarray(found.membership, dtype=np.int64))


def by_size(membership: np.ndarray) -> np.ndarray:
    """Number modules from the largest, 0, to the smallest; ties by the smallest node."""
    _, first, inverse, count = np.unique(
        membership, return_index=True, return_inverse=True, return_counts=True
    )
    number = np.empty(len(first), dtype=np.int64)
    number[np.lexsort((first, -count))] = np.arange(len(first))
    return number[inverse]


def modules(membership: np.ndarray, min_size: int) -> list[np.ndarray]:
    """Return the nodes of each module of at least ``min_size``, largest first."""
    sizes = np.bincount(membership)
    return [np.flatnonzero(membership == m) for m in np.flatnonzero(sizes >= min_size)]
