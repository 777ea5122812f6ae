"""A graph of genes, the modules that it falls into, and what is measured of them.

Similarity of genes, from attention maps (:func:`attention_excess`, :class:`AttentionMean`,
:func:`attention_similarity`) or from vectors (:func:`cosine`); the graph of nearest neighbours
(:class:`Edges`); its modules (:func:`leiden`); and their statistics.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import igraph
import numpy as np

from cfm.stats._gene_scores import mean_known

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
    r"""Return how much more each gene attends to each other than by chance.

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
    n_genes, n_blocks
        Numbers of genes and of blocks.
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
    side. The attention *between* two genes carries little: tokens attend to what they lack, not to
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
    """Link every gene to those most like it; an edge stands if it is among those of either end.

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
    a, b = np.nonzero(np.triu(chosen | chosen.T, 1))
    return Edges(n, a, b, values[a, b].astype(np.float64))


def leiden(edges: Edges, *, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    r"""Find modules by the Leiden algorithm (Traag, Waltman & van Eck 2019).

    Maximises the modularity :math:`Q = \frac{1}{2m} \sum_{ij} \left( w_{ij} - \gamma
    \frac{k_i k_j}{2m} \right) \delta(c_i, c_j)` with weights :math:`w`, strengths :math:`k`, total
    weight :math:`m` and resolution :math:`\gamma`.

    Returns
    -------
    ``(n_nodes,)`` int64 module of each node: 0 is the largest, ties by the smallest node.
    """
    if not len(edges.a):
        return np.arange(edges.n_nodes)
    graph = igraph.Graph(n=edges.n_nodes, edges=np.column_stack([edges.a, edges.b]))
    igraph.set_random_number_generator(random.Random(seed))
    try:
        found = graph.community_leiden(
            objective_function="modularity",
            weights=edges.weight.tolist(),
            resolution=resolution,
            n_iterations=_LEIDEN_PASSES,
        )
    finally:
        igraph.set_random_number_generator(random)
    _, first, inverse, count = np.unique(
        found.membership, return_index=True, return_inverse=True, return_counts=True
    )
    number = np.empty(len(first), dtype=np.int64)
    number[np.lexsort((first, -count))] = np.arange(len(first))
    return number[inverse]


def modules(membership: np.ndarray, min_size: int) -> list[np.ndarray]:
    """Return the nodes of each module of at least ``min_size``, largest first."""
    sizes = np.bincount(membership)
    return [np.flatnonzero(membership == m) for m in np.flatnonzero(sizes >= min_size)]


def centrality(edges: Edges, members: np.ndarray) -> np.ndarray:
    """Return the summed weight of each member's edges to other members, the largest scaled to 1."""
    inside = np.zeros(edges.n_nodes, dtype=bool)
    inside[members] = True
    own = inside[edges.a] & inside[edges.b]
    among = replace(edges, a=edges.a[own], b=edges.b[own], weight=edges.weight[own])
    weight = among.strength()[members]
    return weight / max(float(weight.max(initial=0.0)), 1e-300)


def cohesion(edges: Edges, modules: Sequence[np.ndarray]) -> np.ndarray:
    """Return the share of the weight of each module's edges that stays inside, ``(n,)``."""
    number = np.full(edges.n_nodes, -1, dtype=np.int64)
    for i, members in enumerate(modules):
        number[members] = i
    same = (number[edges.a] == number[edges.b]) & (number[edges.a] >= 0)
    inside = np.bincount(number[edges.a][same], edges.weight[same], minlength=len(modules))
    strength = edges.strength()
    total = np.array([strength[members].sum() for members in modules])
    return 2.0 * inside / np.maximum(total, 1e-300)


def best_jaccard(modules: Sequence[np.ndarray], membership: np.ndarray) -> np.ndarray:
    """Return the Jaccard index of each module with the one most like it in another partition.

    Parameters
    ----------
    modules
        Nodes of each module.
    membership
        ``(n_nodes,)`` module of each node in the other partition; −1 for nodes that are not in it.
    """
    sizes = np.bincount(membership[membership >= 0], minlength=1)
    out = np.zeros(len(modules))
    for i, members in enumerate(modules):
        there = membership[members]
        shared = np.bincount(there[there >= 0], minlength=len(sizes))
        out[i] = (shared / (sizes + len(members) - shared)).max()
    return out


def concordance(effects: np.ndarray) -> float:
    r"""Return the share of gene pairs that move the same way, a mean over profiles.

    With :math:`u` genes up and :math:`d` down in a profile it is
    :math:`(\binom{u}{2} + \binom{d}{2}) / \binom{u + d}{2}`. Genes drawn at random give about
    :math:`p^2 + (1 - p)^2`, with :math:`p` the share of genes that go up, not 0.

    Parameters
    ----------
    effects
        ``(n, genes)`` signed effects; 0 and ``NaN`` do not move.

    Returns
    -------
    0 to 1; ``NaN`` if in no profile two genes move.
    """
    with np.errstate(invalid="ignore"):
        up = (effects > 0).sum(axis=1).astype(np.float64)
        down = (effects < 0).sum(axis=1).astype(np.float64)
    pairs = (up + down) * (up + down - 1) / 2
    same = (up * (up - 1) + down * (down - 1)) / 2
    moving = pairs > 0
    return float((same[moving] / pairs[moving]).mean()) if moving.any() else float("nan")


def module_effects(effects: np.ndarray, modules: Sequence[np.ndarray]) -> np.ndarray:
    """Return how far the genes of each module move together, ``(n,)`` float64.

    The absolute mean effect of its genes in a profile, a mean over the profiles that measure any:
    near 0 where genes go up and down in the same profile.
    """
    out = np.zeros(len(modules))
    for i, members in enumerate(modules):
        own = effects[:, members]
        measured = np.isfinite(own).any(axis=1)
        out[i] = np.abs(mean_known(own[measured].T)).mean() if measured.any() else 0.0
    return out


def module_strengths(effects: np.ndarray, modules: Sequence[np.ndarray]) -> np.ndarray:
    r"""Return how far modules move in units of what as many unrelated genes would, ``(n,)``.

    .. math:: \frac{1}{n} \sum_{i=1}^{n} \frac{\left| \sum_a e_{ia} \right|}{\sigma_i \sqrt{k_i}}

    over the :math:`k_i` genes of a module that profile :math:`i` measures, with the root mean
    square :math:`\sigma_i` of all effects of the profile.
    """
    known = np.isfinite(effects)
    values = np.where(known, effects, 0.0).astype(np.float64)
    scale = np.sqrt((values**2).sum(axis=1) / np.maximum(known.sum(axis=1), 1))
    out = np.zeros(len(modules))
    for i, members in enumerate(modules):
        n = np.maximum(known[:, members].sum(axis=1), 1)
        moved = np.abs(values[:, members].sum(axis=1))
        out[i] = (moved / np.maximum(scale * np.sqrt(n), 1e-300)).mean()
    return out


def without_size_trend(
    sizes: np.ndarray, strengths: np.ndarray, null_sizes: np.ndarray, null_strengths: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    r"""Return strengths of modules and of a null without what their size brings.

    Large modules are stronger by chance. The trend :math:`\log s = a + b \log k` of the null is
    taken off both, :math:`s / k^b`, with :math:`k` held within the sizes of the middle 90 % of the
    null: what is larger gains by its size.

    Parameters
    ----------
    sizes, strengths
        ``(n,)`` of the modules; sizes above 0.
    null_sizes, null_strengths
        ``(m,)`` of the modules that the same steps find under the null, at least one.
    """
    ends = np.quantile(np.log(null_sizes), [0.05, 0.95])
    of_null, own = (np.clip(np.log(x), *ends) for x in (null_sizes, sizes))
    moving = null_strengths > 0
    centred = of_null[moving] - of_null[moving].mean() if moving.any() else np.zeros(0)
    squares = float(centred @ centred)
    slope = centred @ np.log(null_strengths[moving]) / squares if squares > 0 else 0.0
    return strengths / np.exp(slope * own), null_strengths / np.exp(slope * of_null)
