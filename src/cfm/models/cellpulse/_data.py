"""AnnData to batches: log2 fold changes on the vocabulary, their tokens, and training batches.

Embedding, training and the tools read contrasts through this module and its checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from cfm._adata import require_anndata, warn_user
from cfm.data._matrix import by_rows, get_matrix, read_rows, row_blocks, to_dense
from cfm.data._profiles import draw_part
from cfm.models._streams import Drawn, SeededStream, own_part
from cfm.models.cellpulse._module import (
    DOWN,
    PADDING,
    UNCHANGED,
    UP,
    Tokens,
    mask_tokens,
    subsample,
)
from cfm.nn._distributed import all_gather_int

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from anndata import AnnData

    from cfm.data import GeneAlignment, GeneVocabulary, ProfileSource
    from cfm.models.cellpulse._gene_factors import GeneFactors

#: Least number of vocabulary genes that a profile must measure to be read.
MIN_GENES = 50
#: Share of the vocabulary below which a warning is given.
LOW_SHARE = 0.25
#: |log2FC| below which a gene counts as unchanged.
UNCHANGED_BELOW = 0.1
#: Contrasts whose effects take more than this (1 GiB) are read when they are drawn.
MAX_HELD_BYTES = 2**30
#: Fewest observations in which scaled genes can be recognised, and how many are read for it.
_FEWEST_SCALED, _MOST_SCALED = 10, 200


def align_effects(
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
        If too few genes are found, or the values were scaled gene by gene.
    """
    require_anndata(adata)
    check_not_scaled(get_matrix(adata, layer=layer))
    alignment = vocabulary.align(adata.var_names, min_genes=min(MIN_GENES, len(vocabulary)))
    if alignment.found_share < LOW_SHARE:
        warn_user(
            f"Only {alignment.found_share:.0%} of the model's {len(vocabulary)} genes are "
            f"measured ({len(alignment.columns)}); predictions from so few are less certain."
        )
    return alignment


def effect_blocks(
    adata: AnnData, *, layer: str | None = None, n_rows: int = 256
) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield blocks of ``(rows, effects)``, effects float32 with ``NaN`` = not measured.

    Raises
    ------
    ValueError
        If a value is infinite, or the matrix looks like expression instead of fold changes.
    """
    for rows, block in row_blocks(get_matrix(adata, layer=layer), n_rows):
        effects = np.asarray(to_dense(block, np.float32))
        check_effects(effects)
        yield rows, effects


def check_effects(effects: np.ndarray) -> None:
    """Refuse infinite values, and matrices that cannot be log2 fold changes.

    A row with hundreds of positive values and no negative one is expression.
    """
    if np.isinf(effects).any():
        raise ValueError(
            "The matrix holds infinite values; log2 fold changes must be finite, or NaN where a "
            "gene is not measured. Add a pseudocount before taking logarithms, or make contrasts "
            "with cfm.pp.contrasts."
        )
    with np.errstate(invalid="ignore"):
        negative = (effects < 0).any(axis=1)
        positive = (effects > 0).sum(axis=1)
    if ((positive >= 200) & ~negative).any():
        row = int(np.flatnonzero((positive >= 200) & ~negative)[0])
        raise ValueError(
            f"Row {row} has {positive[row]} positive values and no negative one: this looks like "
            "expression or counts, while log2 fold changes of contrasts are expected. Make them "
            "with cfm.pp.contrasts(adata, groupby, control), or give groupby= and control= to "
            "cfm.tl.predict_virus."
        )


def check_not_scaled(matrix: Any) -> None:
    """Refuse values that were scaled over the observations, as by :func:`scanpy.pp.scale`.

    Two signs are checked in ten observations or more. In single cells a gene that most cells do
    not express has one value, other than 0, in all of them; fold changes seldom repeat. In samples
    every gene has mean 0 and standard deviation 1.

    Raises
    ------
    ValueError
        If so.
    """
    n = matrix.shape[0]
    if n < _FEWEST_SCALED:
        return
    rows = np.unique(np.linspace(0, n - 1, min(n, _MOST_SCALED)).astype(np.int64))
    values = np.asarray(to_dense(read_rows(matrix, rows), np.float32))
    seen = values[np.isfinite(values)]
    if (seen == np.round(seen)).all():
        return  # directions, or nothing at all
    ranked = np.sort(values, axis=0)
    window = int(np.ceil(0.5 * len(rows)))
    first, last = ranked[: len(rows) - window + 1], ranked[window - 1 :]
    constant = ranked[0] == ranked[-1]
    tied = ((first == last) & (first != 0)).any(axis=0) & ~constant
    found = ""
    if tied.mean() > 0.1:
        found = f"{tied.mean():.0%} of the genes have the same value, not 0, in most observations"
    elif len(rows) == n and not np.isnan(values).any():
        mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
        scaled = (np.abs(mean) < 0.01) & (np.abs(spread - 1.0) < 0.01)
        if (spread > 0).any() and scaled[spread > 0].mean() > 0.9:
            found = "nearly all genes have mean 0 and standard deviation 1"
    if found:
        raise ValueError(
            f"{found}: this looks like expression after scaling (sc.pp.scale, z-scores), while "
            "log2 fold changes of contrasts are expected. Make them of the counts with "
            "cfm.pp.contrasts(adata, groupby, control); for single cells name the samples with "
            "sample_key=."
        )


def read_profiles(
    adata: AnnData, tokenizer: ProfileTokenizer, *, layer: str | None = None, batch_size: int = 64
) -> Iterator[tuple[slice, np.ndarray, Tokens]]:
    """Yield ``(rows, effects on the vocabulary, tokens)`` in batches; see :func:`align_effects`."""
    alignment = align_effects(adata, tokenizer.vocabulary, layer=layer)
    empty, least = 0, min(MIN_GENES, len(alignment.columns))
    for rows, block in effect_blocks(adata, layer=layer, n_rows=batch_size):
        effects = alignment.apply(block)
        empty += int((np.isfinite(effects).sum(axis=1) < least).sum())
        yield rows, effects, tokenizer.encode(block, alignment)
    if empty:
        warn_user(
            f"{empty} of {adata.n_obs} contrasts measure fewer than {MIN_GENES} of the model's "
            "genes (the rest are NaN); their results mean nothing. Drop them."
        )


class StoredEffects:
    """Effects of contrasts on a vocabulary; rows are read, and checked, when they are indexed.

    Parameters
    ----------
    matrix
        Log2 fold changes, in memory or on disk.
    alignment
        Where its columns lie in the vocabulary.
    rows
        Row numbers of the matrix, if not all.
    """

    def __init__(
        self, matrix: Any, alignment: GeneAlignment, rows: np.ndarray | None = None
    ) -> None:
        self._matrix = by_rows(matrix)
        self._alignment = alignment
        self._rows = np.arange(matrix.shape[0]) if rows is None else rows

    @property
    def shape(self) -> tuple[int, int]:
        """Number of contrasts and of genes."""
        return len(self._rows), self._alignment.n_vocabulary

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return ``(n, n_vocabulary)`` float32 with ``NaN`` = not measured."""
        effects = to_dense(read_rows(self._matrix, self._rows[rows]), np.float32)
        check_effects(effects)
        return self._alignment.apply(effects)

    def only(self, rows: np.ndarray) -> StoredEffects:
        """Return some of the contrasts, by number or mask, without reading them."""
        return StoredEffects(self._matrix, self._alignment, self._rows[rows])


def read_signed_sets(signed_sets: AnnData) -> sp.csr_matrix:
    """Signed sets in memory, ``(sets, genes)`` of −1, 0 and 1, whatever their storage."""
    blocks = [
        sp.csr_matrix(np.sign(np.nan_to_num(to_dense(block, np.float32))))
        for _, block in row_blocks(get_matrix(signed_sets))
    ]
    return sp.vstack(blocks, format="csr")


def aligned_sets(signed_sets: AnnData, vocabulary: GeneVocabulary) -> sp.csr_matrix:
    """Signed sets over the vocabulary, ``(sets, n_vocabulary)``."""
    alignment = vocabulary.align(signed_sets.var_names)
    matrix = read_signed_sets(signed_sets)[:, alignment.columns].tocoo()
    columns = alignment.positions[matrix.col]
    shape = (matrix.shape[0], len(vocabulary))
    return sp.csr_matrix((matrix.data, (matrix.row, columns)), shape=shape)


class ProfileTokenizer:
    """Turn each profile into its strongest effects: gene, direction and magnitude.

    A profile is read as the ``n_tokens`` genes with the largest ``|log2FC|``; genes that are not
    measured (``NaN``) or do not move (0) give no token. The tokens depend on that profile alone:
    not on the rest of the batch, and not on the order of the genes (of equally strong effects at
    the edge, those of genes that come first in the vocabulary are taken).

    Parameters
    ----------
    vocabulary
        Genes of the model.
    n_tokens
        Largest number of tokens per profile.
    """

    def __init__(self, vocabulary: GeneVocabulary, n_tokens: int = 1024) -> None:
        if n_tokens < 1:
            raise ValueError(f"n_tokens must be at least 1; found {n_tokens}.")
        self.vocabulary = vocabulary
        self.n_tokens = n_tokens

    def encode(
        self,
        effects: np.ndarray,
        alignment: GeneAlignment | None = None,
        *,
        has_magnitude: bool = True,
        n_unchanged: int = 0,
        rng: np.random.Generator | None = None,
        drawn: Drawn | None = None,
    ) -> Tokens:
        """Tokenise profiles.

        Parameters
        ----------
        effects
            ``(n, n_genes)`` log2 fold changes; ``NaN`` = not measured. Columns follow the
            vocabulary, or ``alignment``.
        alignment
            From :meth:`cfm.data.GeneVocabulary.align`.
        has_magnitude
            ``False`` for signed gene sets: magnitudes are marked unknown.
        n_unchanged
            Number of measured genes with ``|log2FC|`` < 0.1 to add as *unchanged* tokens, drawn
            with ``rng`` (pretraining only).
        drawn
            Part of the batch in ``effects``, if processes share it. Each must call this; random
            numbers and width are those of the whole batch.

        Returns
        -------
        Tokens as wide as the longest profile of the batch; their order has no meaning.
        """
        columns = slice(None) if alignment is None else alignment.columns
        values = np.asarray(effects, dtype=np.float32)[:, columns]
        strength = np.abs(values)
        strength[np.isnan(strength)] = 0.0
        n_genes = strength.shape[1]
        k = min(self.n_tokens, n_genes)
        positions = np.arange(n_genes) if alignment is None else alignment.positions
        top = _strongest(strength, k, positions)
        effect = np.take_along_axis(values, top, axis=1)
        moves = np.take_along_axis(strength, top, axis=1) > 0
        state = np.where(effect > 0, UP, DOWN)
        if n_unchanged:
            if rng is None:
                raise ValueError("n_unchanged needs rng, the random generator that draws them.")
            free = np.ones(strength.shape, dtype=bool)
            np.put_along_axis(free, top, ~moves, axis=1)  # a gene has one token
            n_rows, part = (
                (len(values), slice(None)) if drawn is None else (len(drawn.rows), drawn.part)
            )
            tried = rng.integers(0, n_genes, size=(n_rows, 4 * n_unchanged))[part]
            still = _draw_unchanged(values, free, n_unchanged, tried)  # (n, n_unchanged), -1 = none
            top = np.concatenate([top, np.maximum(still, 0)], axis=1)
            effect = np.concatenate([effect, np.take_along_axis(values, still, axis=1)], axis=1)
            moves = np.concatenate([moves, still >= 0], axis=1)
            state = np.concatenate([state, np.full(still.shape, UNCHANGED)], axis=1)
        state = np.where(moves, state, PADDING)
        # the tokens of short profiles are moved to the left, so that the batch is narrow
        width = max(1, int(moves.sum(axis=1).max(initial=0)))
        if drawn is not None:
            width = max(all_gather_int(width))
        if width < state.shape[1]:
            order = np.argsort(~moves, axis=1, kind="stable")[:, :width]
            top, effect, state = (
                np.take_along_axis(a, order, axis=1) for a in (top, effect, state)
            )
        gene = positions[top]
        padding = state == PADDING
        magnitude = np.log1p(np.abs(effect))
        magnitude[padding | (not has_magnitude)] = np.nan
        return Tokens(
            torch.from_numpy(np.where(padding, 0, gene).astype(np.int64)),
            torch.from_numpy(state.astype(np.int64)),
            torch.from_numpy(magnitude.astype(np.float32)),
        )


def _strongest(strength: np.ndarray, k: int, positions: np.ndarray) -> np.ndarray:
    """Return the columns of the ``k`` largest values per row; ``positions`` decide between ties."""
    n, n_genes = strength.shape
    if k >= n_genes:
        return np.broadcast_to(np.arange(n_genes), (n, n_genes))
    top = np.argpartition(strength, n_genes - k, axis=1)[:, n_genes - k :]
    edge = np.take_along_axis(strength, top, axis=1).min(axis=1, keepdims=True)
    tied = ((strength >= edge).sum(axis=1) > k) & (edge[:, 0] > 0)
    for row in np.flatnonzero(tied):
        above = np.flatnonzero(strength[row] > edge[row])
        level = np.flatnonzero(strength[row] == edge[row])
        level = level[np.argsort(positions[level], kind="stable")]
        top[row] = np.concatenate([above, level[: k - len(above)]])
    return top


def _draw_unchanged(values: np.ndarray, free: np.ndarray, n: int, tried: np.ndarray) -> np.ndarray:
    """Take up to ``n`` free columns per row with a known effect below the threshold, else −1."""
    with np.errstate(invalid="ignore"):
        candidate = free & (np.abs(values) < UNCHANGED_BELOW)  # NaN compares as False
    # from a random sample of columns: to draw exactly n would sort every row
    tried = np.sort(tried, axis=1)
    fresh = np.ones_like(tried, dtype=bool)
    fresh[:, 1:] = tried[:, 1:] != tried[:, :-1]
    hit = np.take_along_axis(candidate, tried, axis=1) & fresh
    # 0 may mean unchanged or seen in no sample; only genes that were seen have another value
    hit &= np.take_along_axis(values, tried, axis=1) != 0
    order = np.argsort(~hit, axis=1, kind="stable")[:, :n]
    drawn = np.take_along_axis(tried, order, axis=1)
    return np.where(np.take_along_axis(hit, order, axis=1), drawn, -1)


class Batch(NamedTuple):
    """A pretraining batch; see :meth:`CellPulseModule.losses`."""

    tokens: Tokens
    target: Tokens
    masked: Tensor
    groups: Tensor
    factor_mask: Tensor

    def to(self, device: torch.device) -> Batch:
        """Move all tensors."""
        tokens, target, *rest = self
        return Batch(tokens.to(device), target.to(device), *(part.to(device) for part in rest))


@dataclass(frozen=True)
class WeightedSource:
    """A source of profiles, and how it is used.

    ``share`` is the probability that a batch comes from it; ``study`` names the study of all its
    profiles where the source does not; ``has_magnitude`` is ``False`` for signed sets.
    """

    source: ProfileSource
    alignment: GeneAlignment
    share: float
    study: str = ""
    has_magnitude: bool = True


class ProfileStream(SeededStream):
    """An endless, seeded stream of pretraining batches, each from one source.

    Half of the batches from sources with magnitudes are read without them, as signed sets are.

    Parameters
    ----------
    sources
        Where profiles come from.
    tokenizer, factors
        Of the model that is trained.
    batch_size
        Profiles per batch and process.
    n_tokens
        Tokens per profile: a random part of the strongest effects.
    n_unchanged
        Genes that do not move, added per profile.
    n_batches
        Batches per epoch.
    n_linear_batches
        The first batches of all hold few profiles with all their tokens, and only of sources that
        name their studies: they are for the linear term.
    seed
        Seed; epoch ``i`` of a seed is always the same.
    n_processes
        Processes that share each batch: each draws the random numbers of all, and makes its part.
    """

    def __init__(
        self,
        sources: Sequence[WeightedSource],
        tokenizer: ProfileTokenizer,
        factors: GeneFactors,
        *,
        batch_size: int,
        n_tokens: int,
        n_unchanged: int,
        n_batches: int,
        n_linear_batches: int = 0,
        seed: int,
        n_processes: int = 1,
    ) -> None:
        super().__init__(seed=seed)
        if not sources:
            raise ValueError("Pretraining needs at least one source of profiles; found none.")
        self.sources = list(sources)
        self.tokenizer = tokenizer
        self.factors = factors
        self.batch_size = batch_size
        self.n_tokens = n_tokens
        self.n_unchanged = n_unchanged
        self._n_batches = n_batches
        self.n_linear_batches = n_linear_batches
        self.n_processes = n_processes

    @property
    def n_batches(self) -> int:
        """Batches of an epoch."""
        return self._n_batches

    def make(
        self, content: Any, number: int, rng: np.random.Generator, generator: torch.Generator
    ) -> Batch:
        """Make a batch from one of the sources: the part of this process."""
        n, n_tokens = self.batch_size * self.n_processes, self.n_tokens
        if self.epoch * self.n_batches + number < self.n_linear_batches:
            of_studies = [s for s in self.sources if s.has_magnitude] or self.sources
            chosen = of_studies[rng.integers(len(of_studies))]
            n, n_tokens = max(4, self.n_processes, n // 3), self.tokenizer.n_tokens
        else:
            share = np.array([s.share for s in self.sources], dtype=np.float64)
            chosen = self.sources[rng.choice(len(share), p=share / share.sum())]
        part = slice(0, n) if self.n_processes == 1 else own_part(n)
        drawn = None if self.n_processes == 1 else Drawn(np.arange(n), part)
        draw = draw_part(chosen.source, n, rng, part)
        visible = draw.has_magnitude and rng.random() < 0.5
        tokens = self.tokenizer.encode(
            draw.effects,
            chosen.alignment,
            has_magnitude=visible,
            n_unchanged=self.n_unchanged if draw.has_magnitude else 0,
            rng=rng,
            drawn=drawn,
        )
        target = subsample(tokens, n_tokens, generator, drawn)
        share_masked = 0.3 + 0.4 * torch.rand(n, generator=generator)[part]
        masked_tokens, masked = mask_tokens(target, share_masked, generator, drawn)
        study = draw.study if draw.study is not None else [chosen.study] * len(draw.group)
        mask = torch.from_numpy(self.factors.without(list(study)))
        return Batch(masked_tokens, target, masked, torch.from_numpy(draw.group), mask)
