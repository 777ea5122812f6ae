"""Programs of one group of observations: from the model's maps to modules and their statistics."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from cfm._fields import MEAN_COUNT
from cfm.data import GeneVocabulary
from cfm.data._matrix import get_matrix, read_rows, to_dense
from cfm.models import AttentionModel, GeneFactorModel
from cfm.tl._groups import content_hash
from cfm.tl._program_graph import (
    AttentionMean,
    Edges,
    attention_excess,
    attention_similarity,
    cosine,
    leiden,
    modules,
    nearest_neighbour_graph,
    standardise,
)
from cfm.tl._program_statistics import (
    best_jaccard,
    centrality,
    cohesion,
    mean_effects,
    null_p_values,
    program_effects,
    program_strengths,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from anndata import AnnData

Source = Literal["attention", "interaction", "combined"]

#: Profiles without a say that are added to those in which two genes may move the same way: one
#: profile cannot cut every tie between genes that it has on different sides.
PRIOR_PROFILES = 5.0

#: Of fewer counts in cases and in controls a fold change is noise (``min.count`` of edgeR).
MIN_COUNT = 10.0

#: A bootstrap draws profiles in at most so many blocks, each of which takes n_genes² numbers.
MAX_BLOCKS = 12


@dataclass(frozen=True)
class ProgramSettings:
    """The arguments of :func:`cfm.tl.gene_programs` that decide what is found."""

    source: Source
    n_genes: int
    n_neighbors: int
    resolution: float
    min_size: int
    n_bootstraps: int
    n_null: int
    seed: int

    def n_steps(self, n_profiles: int) -> int:
        """Return how many ticks a group of that many profiles takes."""
        passes = 1 if self.source == "interaction" else 2 + self.n_null
        resamples = self.n_bootstraps if n_profiles > 1 else 0
        return passes * n_profiles + resamples + self.n_null


@dataclass(frozen=True)
class FoundPrograms:
    """Programs of one group.

    Attributes
    ----------
    tokens
        ``(n,)`` names of the genes of the graph, as the model has them, sorted.
    columns
        ``(n,)`` int64 columns of those genes in the data.
    effects
        ``(profiles, n)`` float32, ``NaN`` = not measured.
    edges
        The graph.
    programs
        Genes of each program, positions in ``tokens``; largest effect first.
    effect, cohesion, stability, p_value
        Of each program, ``(n_programs,)`` float64.
    """

    tokens: np.ndarray
    columns: np.ndarray
    effects: np.ndarray
    edges: Edges
    programs: list[np.ndarray]
    effect: np.ndarray
    cohesion: np.ndarray
    stability: np.ndarray
    p_value: np.ndarray

    def reordered(self, order: Sequence[int]) -> FoundPrograms:
        """Return them in another order."""
        return replace(
            self,
            programs=[self.programs[i] for i in order],
            effect=self.effect[order],
            cohesion=self.cohesion[order],
            stability=self.stability[order],
            p_value=self.p_value[order],
        )

    def signs(self) -> np.ndarray:
        """Return the sign of each gene's mean effect, ``(n,)`` int64; of a mean of 0 it is 1."""
        return np.where(mean_effects(self.effects) < 0, -1, 1).astype(np.int64)

    def signed_weights(self) -> list[np.ndarray]:
        """Return the weight times the sign of the genes of each program."""
        signs = self.signs()
        return [centrality(self.edges, members) * signs[members] for members in self.programs]


def find_programs(
    model: AttentionModel,
    adata: AnnData,
    rows: np.ndarray,
    settings: ProgramSettings,
    *,
    group: str,
    layer: str | None,
    tick: Callable[[int], None],
) -> FoundPrograms:
    """Find the programs of some observations; the result does not depend on their order.

    Raises
    ------
    ValueError
        If fewer than ``min_size`` genes move in them.
    """
    part = profiles_of(adata, rows, layer)
    tokens_of = []
    for names, _ in model.get_attention(part):
        tokens_of.append(names[1:])
        tick(1)
    tokens, columns, effects = choose_genes(part, tokens_of, settings, group)
    graph = SimilarityOf(model, part, tokens, effects, settings, tick)
    edges, programs = _cut(graph(), settings)
    effect = program_effects(effects, programs)
    # Equal effects go by size, then by the first gene, in which order the programs are already.
    order = np.argsort(-effect, kind="stable")
    effect, programs = effect[order], [programs[i] for i in order]

    # Profiles are resampled in blocks, so that no map has to be kept or made again.
    rng = np.random.default_rng(settings.seed)
    n_blocks = graph.n_blocks
    jaccard = np.full((settings.n_bootstraps, len(programs)), np.nan)
    for i in range(settings.n_bootstraps if len(rows) > 1 else 0):
        times = rng.multinomial(n_blocks, np.full(n_blocks, 1.0 / n_blocks))
        again = nearest_neighbour_graph(graph(times), settings.n_neighbors)
        found = leiden(again, resolution=settings.resolution, seed=settings.seed)
        jaccard[i] = best_jaccard(programs, np.where(graph.drawn(times), found, -1))
        tick(1)
    stability = jaccard.mean(axis=0) if settings.n_bootstraps else np.full(len(programs), np.nan)
    permuted = list(_permuted(model, part, tokens, columns, effects, settings, tick))
    null_sizes, null_strengths = np.concatenate([np.empty((2, 0)), *permuted], axis=1)
    sizes = np.array([len(m) for m in programs], dtype=float)
    strengths = program_strengths(effects, programs)
    p_value = null_p_values(sizes, strengths, null_sizes, null_strengths)
    own = cohesion(edges, programs)
    return FoundPrograms(tokens, columns, effects, edges, programs, effect, own, stability, p_value)


def _cut(similarity: np.ndarray, settings: ProgramSettings) -> tuple[Edges, list[np.ndarray]]:
    """Return the graph of the genes and its modules, largest first."""
    edges = nearest_neighbour_graph(similarity, settings.n_neighbors)
    membership = leiden(edges, resolution=settings.resolution, seed=settings.seed)
    return edges, modules(membership, settings.min_size)


def _permuted(
    model: AttentionModel,
    part: AnnData,
    tokens: np.ndarray,
    columns: np.ndarray,
    effects: np.ndarray,
    settings: ProgramSettings,
    tick: Callable[[int], None],
) -> Iterator[np.ndarray]:
    """Yield the sizes and strengths of the programs that the same steps find in permuted effects.

    The genes of the graph swap their effects in all profiles together: effects that go together
    in the data stay so, but have nothing to do with what the model knows of the genes.
    """
    from anndata import AnnData

    place = np.argsort(part.var["column"].to_numpy())[columns]
    rng = np.random.default_rng([settings.seed, 1])
    for _ in range(settings.n_null):
        order = rng.permutation(len(tokens))
        other = part
        if settings.source != "interaction":  # attention is made from the effects too
            index = np.arange(part.n_vars)
            index[place] = place[order]
            other = AnnData(part.X[:, index], obs=part.obs, var=part.var)
        swapped = effects[:, order]
        similarity = SimilarityOf(model, other, tokens, swapped, settings, tick)()
        _, programs = _cut(similarity, settings)
        tick(1)
        yield np.stack([[len(m) for m in programs], program_strengths(swapped, programs)])


def profiles_of(adata: AnnData, rows: np.ndarray, layer: str | None) -> AnnData:
    """Return observations by themselves: rows in an order that their values decide, genes by name.

    What a model makes of them is then the same to the last digit, however they were ordered;
    near ties between neighbours would else fall either way. ``var["column"]`` says where the genes
    were. Genes of few counts (``layers["mean_count"]`` of :func:`cfm.pp.contrasts`, if it is there)
    are not measured.
    """
    from anndata import AnnData

    names = adata.var_names.astype(str)
    by_name = np.argsort(names.to_numpy(), kind="stable")
    matrix = read_rows(get_matrix(adata, layer=layer), rows)[:, by_name]
    if MEAN_COUNT in adata.layers:
        counts = read_rows(get_matrix(adata, layer=MEAN_COUNT), rows)[:, by_name]
        counts = to_dense(counts, np.float32)
        matrix = np.where(counts < MIN_COUNT, np.nan, to_dense(matrix, np.float32))
    keys = []
    for i in range(len(rows)):
        values = to_dense(matrix[i : i + 1], np.float32)
        # Whatever the genes are called first: their names decide the order of the columns.
        keys.append((content_hash(np.sort(values)), content_hash(values)))
    order = sorted(range(len(rows)), key=keys.__getitem__)
    obs = pd.DataFrame(index=np.arange(len(rows)).astype(str))
    var = pd.DataFrame({"column": by_name}, index=names[by_name])
    return AnnData(matrix[order], obs=obs, var=var)


def choose_genes(
    part: AnnData, tokens_of: list[pd.Index], settings: ProgramSettings, group: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose the genes that are tokens most often, the stronger mean effect first among equals.

    Returns their names, sorted, their columns, and ``(profiles, n)`` effects.
    """
    names, count = np.unique(
        np.concatenate([t.astype(str).to_numpy() for t in tokens_of]), return_counts=True
    )
    if len(names):
        alignment = GeneVocabulary(names.tolist()).align(part.var_names, min_genes=0)
        names, count = names[alignment.positions], count[alignment.positions]
        columns = alignment.columns
    if len(names) < settings.min_size:
        raise ValueError(
            f"Group {group!r} ({part.n_obs} observations) has {len(names)} genes that move and "
            f"that the model reads ({MIN_COUNT:g} counts or more, where counts are known); a "
            f"program has at least min_size={settings.min_size}. Lower min_size, or leave the "
            "group out with groups=."
        )
    effects = to_dense(part.X[:, columns], np.float32)
    known = np.isfinite(effects)
    strength = np.abs(np.where(known, effects, 0.0)).sum(axis=0, dtype=np.float64)
    strength /= np.maximum(known.sum(axis=0), 1)
    best = np.lexsort((names, -strength, -count))[: settings.n_genes]
    best = best[np.argsort(names[best])]
    places = part.var["column"].to_numpy()[columns[best]]
    return names[best].astype(object), places, effects[:, best]


class SimilarityOf:
    """Similarity of genes in a group, also with its profiles drawn anew."""

    def __init__(
        self,
        model: AttentionModel,
        part: AnnData,
        tokens: np.ndarray,
        effects: np.ndarray,
        settings: ProgramSettings,
        tick: Callable[[int], None],
    ) -> None:
        self.source = settings.source
        self.n_blocks = min(part.n_obs, MAX_BLOCKS)
        self.block_of = np.arange(part.n_obs) % self.n_blocks
        self.signs = np.sign(np.nan_to_num(effects))
        if self.source != "attention":
            genes, factors = _factors(model)
            place = genes.get_indexer(pd.Index(tokens))
            own = np.where((place >= 0)[:, None], factors[place], 0.0)
            self.interaction = cosine(own - own.mean(axis=0))
        if self.source != "interaction":
            self.attention = AttentionMean(len(tokens), self.n_blocks)
            index = pd.Index(tokens)
            for i, (names, weights) in enumerate(model.get_attention(part)):
                node = index.get_indexer(names[1:].astype(str))
                self.attention.add(int(self.block_of[i]), node, attention_excess(weights))
                tick(1)

    def __call__(self, times: np.ndarray | None = None) -> np.ndarray:
        """Return ``(n, n)`` float32 similarities, with each block counted ``times`` times."""
        if self.source != "interaction":
            attention = attention_similarity(self.attention.mean(times))
        if self.source == "attention":
            similarity = attention
        elif self.source == "interaction":
            similarity = self.interaction
        else:
            similarity = standardise(attention) + standardise(self.interaction)
        weight = self._profile_weight(times).astype(np.float32)
        # Pairs that always move the same way count fully, those that never do hardly.
        same = (self.signs * weight[:, None]).T @ self.signs / (weight.sum() + PRIOR_PROFILES)
        out = np.maximum(similarity, 0.0) * (1.0 + same) / 2.0
        if times is not None:
            absent = ~self.drawn(times)
            out[absent] = 0.0
            out[:, absent] = 0.0
        return out

    def drawn(self, times: np.ndarray) -> np.ndarray:
        """Return which genes move in a profile that was drawn, ``(n,)`` bool."""
        return (self.signs[self._profile_weight(times) > 0] != 0).any(axis=0)

    def _profile_weight(self, times: np.ndarray | None) -> np.ndarray:
        return np.ones(len(self.block_of)) if times is None else times[self.block_of]


def _factors(model: AttentionModel) -> tuple[pd.Index, np.ndarray]:
    if not isinstance(model, GeneFactorModel):  # checked before, see gene_programs
        raise TypeError(f"{type(model).__name__} has no linear gene-gene term.")
    return model.get_gene_factors()
