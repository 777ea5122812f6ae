"""Programs of one group of observations: genes, their similarity, modules, and statistics."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm._fields import MEAN_COUNT
from cfm.data import GeneVocabulary
from cfm.data._matrix import get_matrix, read_rows, to_dense
from cfm.models import AttentionModel, GeneFactorModel
from cfm.stats._enrichment import benjamini_hochberg
from cfm.stats._evidence import upper_p_values
from cfm.stats._gene_modules import (
    AttentionMean,
    Edges,
    attention_excess,
    attention_similarity,
    best_jaccard,
    centrality,
    cohesion,
    concordance,
    cosine,
    leiden,
    module_effects,
    module_strengths,
    modules,
    nearest_neighbour_graph,
    standardise,
    without_size_trend,
)
from cfm.stats._gene_scores import mean_known
from cfm.tl._groups import content_hash

Source = Literal["attention", "interaction", "combined"]

#: Neighbours of each gene.
N_NEIGHBORS = 15
#: Smaller modules are dropped.
MIN_SIZE = 10
#: Bootstraps for the stability, which then varies by about a tenth of its spread.
N_BOOTSTRAPS = 20
#: Largest number of blocks of profiles in a bootstrap; each takes n_genes² numbers.
MAX_BLOCKS = 12
#: Neutral profiles added to the agreement of signs: a single profile cannot cut all ties between
#: genes of opposite signs.
PRIOR_PROFILES = 5.0
#: With fewer counts in cases and in controls a fold change is noise (``min.count`` of edgeR).
MIN_COUNT = 10.0
#: Least share of the genes of a program that move in its direction.
_DIRECTED = 0.8


@dataclass(frozen=True)
class Settings:
    """Arguments of :func:`cfm.tl.gene_programs` that determine the programs."""

    source: Source
    n_genes: int
    resolution: float
    n_permutations: int
    seed: int

    def n_steps(self, n_profiles: int) -> int:
        """Return the number of ticks for a group of so many profiles."""
        passes = 1 if self.source == "interaction" else 2 + self.n_permutations
        resamples = N_BOOTSTRAPS if n_profiles > 1 else 0
        return passes * n_profiles + resamples + self.n_permutations


@dataclass(frozen=True)
class FoundPrograms:
    """Programs of one group.

    Attributes
    ----------
    tokens
        ``(n,)`` names of the genes of the graph in the model, sorted.
    columns
        ``(n,)`` int64 columns of those genes in the data.
    effect, sign
        ``(n,)`` mean effect of each gene, float64, and its sign, int64; 1 for a mean of 0.
    has_negative
        Whether any effect is below 0.
    edges
        The graph.
    programs
        Genes of each program, positions in ``tokens``; largest effect first.
    weights
        Weight of each of those genes in its program.
    table
        A row per program: its statistics as :func:`cfm.tl.gene_programs` stores them.
    """

    tokens: np.ndarray
    columns: np.ndarray
    effect: np.ndarray
    sign: np.ndarray
    has_negative: bool
    edges: Edges
    programs: list[np.ndarray]
    weights: list[np.ndarray]
    table: pd.DataFrame

    def reordered(self, order: Sequence[int]) -> FoundPrograms:
        """Return the programs in another order."""
        return replace(
            self,
            programs=[self.programs[i] for i in order],
            weights=[self.weights[i] for i in order],
            table=self.table.iloc[list(order)],
        )


def find_programs(
    model: AttentionModel,
    adata: AnnData,
    rows: np.ndarray,
    settings: Settings,
    *,
    group: str,
    layer: str | None,
    tick: Callable[[int], object],
) -> FoundPrograms:
    """Find the programs of some observations; the result does not depend on their order.

    Raises
    ------
    ValueError
        If fewer than :data:`MIN_SIZE` genes move.
    """
    part = profiles_of(adata, rows, layer)
    tokens_of = []
    for names, _ in model.get_attention(part):
        tokens_of.append(names[1:])
        tick(1)
    tokens, columns, effects = choose_genes(part, tokens_of, settings.n_genes, group)
    graph = SimilarityOf(model, part, tokens, effects, settings.source, tick)
    edges, programs = _cut(graph(), settings)
    effect = module_effects(effects, programs)
    # Programs are sorted by size and first gene, which breaks ties of effects.
    order = np.argsort(-effect, kind="stable")
    effect, programs = effect[order], [programs[i] for i in order]
    p_value = _p_values(model, part, tokens, columns, effects, programs, settings, tick)
    mean = mean_known(effects)
    sign = np.where(mean < 0, -1, 1).astype(np.int64)
    up = np.array([(sign[m] > 0).mean() for m in programs])
    table = pd.DataFrame(
        {
            "group": np.full(len(programs), group, dtype=object),
            "size": np.array([len(m) for m in programs], dtype=np.int64),
            "direction": np.select(
                [up >= _DIRECTED, 1 - up >= _DIRECTED], ["up", "down"], "mixed"
            ).astype(object),
            "effect": effect,
            "coherence": np.array([concordance(effects[:, m]) for m in programs], dtype=np.float64),
            "stability": _stability(graph, programs, settings, tick),
            "cohesion": cohesion(edges, programs),
            "p_value": p_value,
            "fdr": benjamini_hochberg(p_value),
        }
    )
    weights = [centrality(edges, members) for members in programs]
    negative = bool((effects < 0).any())
    return FoundPrograms(tokens, columns, mean, sign, negative, edges, programs, weights, table)


def _cut(similarity: np.ndarray, settings: Settings) -> tuple[Edges, list[np.ndarray]]:
    """Return the graph of the genes and its modules, largest first."""
    edges = nearest_neighbour_graph(similarity, N_NEIGHBORS)
    membership = leiden(edges, resolution=settings.resolution, seed=settings.seed)
    return edges, modules(membership, MIN_SIZE)


def _stability(
    graph: SimilarityOf,
    programs: list[np.ndarray],
    settings: Settings,
    tick: Callable[[int], object],
) -> np.ndarray:
    """Return the mean Jaccard index of each program with the most similar one in bootstraps.

    Bootstraps draw blocks of profiles, so attention is averaged once per block.
    """
    rng = np.random.default_rng(settings.seed)
    n_blocks = graph.n_blocks
    jaccard = np.full((N_BOOTSTRAPS, len(programs)), np.nan)
    for i in range(N_BOOTSTRAPS if len(graph.block_of) > 1 else 0):
        times = rng.multinomial(n_blocks, np.full(n_blocks, 1.0 / n_blocks))
        again = nearest_neighbour_graph(graph(times), N_NEIGHBORS)
        found = leiden(again, resolution=settings.resolution, seed=settings.seed)
        jaccard[i] = best_jaccard(programs, np.where(graph.drawn(times), found, -1))
        tick(1)
    return jaccard.mean(axis=0)


def _p_values(
    model: AttentionModel,
    part: AnnData,
    tokens: np.ndarray,
    columns: np.ndarray,
    effects: np.ndarray,
    programs: list[np.ndarray],
    settings: Settings,
    tick: Callable[[int], object],
) -> np.ndarray:
    """Compare programs with those of the same steps on permuted effects, ``(n,)``.

    The genes of the graph swap their effects in all profiles together: effects stay correlated, but
    independently of the relations of genes in the model.
    """
    place = np.argsort(part.var["column"].to_numpy())[columns]
    rng = np.random.default_rng([settings.seed, 1])
    null = [np.empty((2, 0))]
    for _ in range(settings.n_permutations):
        order = rng.permutation(len(tokens))
        other = part
        if settings.source != "interaction":  # attention depends on the effects
            index = np.arange(part.n_vars)
            index[place] = place[order]
            other = AnnData(part.X[:, index], obs=part.obs, var=part.var)
        swapped = effects[:, order]
        graph = SimilarityOf(model, other, tokens, swapped, settings.source, tick)
        _, found = _cut(graph(), settings)
        null.append(np.stack([[len(m) for m in found], module_strengths(swapped, found)]))
        tick(1)
    null_sizes, null_strengths = np.concatenate(null, axis=1)
    if not len(null_sizes):
        return np.full(len(programs), np.nan)
    sizes = np.array([len(m) for m in programs], dtype=float)
    strengths = module_strengths(effects, programs)
    return upper_p_values(*without_size_trend(sizes, strengths, null_sizes, null_strengths))


def profiles_of(adata: AnnData, rows: np.ndarray, layer: str | None) -> AnnData:
    """Return the observations of a group, rows sorted by their values, genes by name.

    The output of a model then is the same to the last bit in any order of the input, which fixes
    near ties between neighbours. ``var["column"]`` is the place of a gene in ``adata``. Genes with
    few counts (``layers["mean_count"]`` of :func:`cfm.pp.contrasts`, if any) are not measured.
    """
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
        # First a hash that is independent of gene names, which order the columns.
        keys.append((content_hash(np.sort(values)), content_hash(values)))
    order = sorted(range(len(rows)), key=keys.__getitem__)
    obs = pd.DataFrame(index=np.arange(len(rows)).astype(str))
    var = pd.DataFrame({"column": by_name}, index=names[by_name])
    return AnnData(matrix[order], obs=obs, var=var)


def choose_genes(
    part: AnnData, tokens_of: list[pd.Index], n_genes: int, group: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Choose the genes that are tokens most often; ties go to the larger mean effect.

    Returns their names, sorted, their columns, and ``(profiles, n)`` effects.
    """
    names, count = np.unique(
        np.concatenate([t.astype(str).to_numpy() for t in tokens_of]), return_counts=True
    )
    if len(names):
        alignment = GeneVocabulary(names.tolist()).align(part.var_names, min_genes=0)
        names, count = names[alignment.positions], count[alignment.positions]
        columns = alignment.columns
    if len(names) < MIN_SIZE:
        raise ValueError(
            f"Group {group!r} ({part.n_obs} observations) has {len(names)} genes that move and "
            f"that the model reads ({MIN_COUNT:g} counts or more, where counts are known); a "
            f"program has at least {MIN_SIZE}. Leave the group's rows out."
        )
    effects = to_dense(part.X[:, columns], np.float32)
    known = np.isfinite(effects)
    strength = np.abs(np.where(known, effects, 0.0)).sum(axis=0, dtype=np.float64)
    strength /= np.maximum(known.sum(axis=0), 1)
    best = np.lexsort((names, -strength, -count))[:n_genes]
    best = best[np.argsort(names[best])]
    places = part.var["column"].to_numpy()[columns[best]]
    return names[best].astype(object), places, effects[:, best]


class SimilarityOf:
    """Similarity of genes in a group, also for bootstraps of its profiles.

    Parameters
    ----------
    model, part, source, tick
        As in :func:`find_programs`; profiles are of :func:`profiles_of`.
    tokens, effects
        Names of the genes and their effects, of :func:`choose_genes`.
    """

    def __init__(
        self,
        model: AttentionModel,
        part: AnnData,
        tokens: np.ndarray,
        effects: np.ndarray,
        source: Source,
        tick: Callable[[int], object],
    ) -> None:
        self.source = source
        self.n_blocks = min(part.n_obs, MAX_BLOCKS)
        self.block_of = np.arange(part.n_obs) % self.n_blocks
        self.signs = np.sign(np.nan_to_num(effects))
        index = pd.Index(tokens)
        if source != "attention" and isinstance(model, GeneFactorModel):
            genes, factors = model.get_gene_factors()
            place = genes.get_indexer(index)
            own = np.where((place >= 0)[:, None], factors[place], 0.0)
            self.interaction = cosine(own - own.mean(axis=0))
        if source != "interaction":
            self.attention = AttentionMean(len(tokens), self.n_blocks)
            for i, (names, weights) in enumerate(model.get_attention(part)):
                node = index.get_indexer(names[1:].astype(str))
                self.attention.add(int(self.block_of[i]), node, attention_excess(weights))
                tick(1)

    def __call__(self, times: np.ndarray | None = None) -> np.ndarray:
        """Return ``(n, n)`` float32 similarities, with each block counted ``times`` times."""
        if self.source != "interaction":
            similarity = attention = attention_similarity(self.attention.mean(times))
        if self.source == "interaction":
            similarity = self.interaction
        elif self.source == "combined":
            similarity = standardise(attention) + standardise(self.interaction)
        weight = self._profile_weight(times).astype(np.float32)
        # Weight 1 for pairs that always move the same way, near 0 for opposite ones.
        same = (self.signs * weight[:, None]).T @ self.signs / (weight.sum() + PRIOR_PROFILES)
        out = np.maximum(similarity, 0.0) * (1.0 + same) / 2.0
        if times is not None:
            absent = ~self.drawn(times)
            out[absent] = 0.0
            out[:, absent] = 0.0
        return out

    def drawn(self, times: np.ndarray) -> np.ndarray:
        """Return ``(n,)`` bool, the genes that move in a drawn profile."""
        return (self.signs[self._profile_weight(times) > 0] != 0).any(axis=0)

    def _profile_weight(self, times: np.ndarray | None) -> np.ndarray:
        return np.ones(len(self.block_of)) if times is None else times[self.block_of]
