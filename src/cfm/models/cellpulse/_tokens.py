"""From log2 fold changes to CellPulse tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cfm.models.cellpulse._constants import DOWN, HIDDEN, PADDING, UNCHANGED, UNCHANGED_BELOW, UP
from cfm.models.cellpulse._module import Tokens
from cfm.nn._distributed import numbers_of_all

if TYPE_CHECKING:
    from cfm.data import GeneAlignment, GeneVocabulary
    from cfm.models._streams import Drawn


class ProfileTokenizer:
    """Turn each profile into its strongest effects: gene, direction and magnitude.

    A profile is read as the ``n_tokens`` genes with the largest ``|log2FC|``; genes that are not
    measured (``NaN``) or do not move (0) give no token. What a profile becomes depends on that
    profile alone: not on the rest of the batch, and not on the order of the genes (of equally
    strong effects at the edge, those of genes that stand first in the vocabulary are taken).

    Parameters
    ----------
    vocabulary
        Genes that the model knows.
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
            vocabulary, or ``alignment`` says where they lie.
        alignment
            From :meth:`cfm.data.GeneVocabulary.align`.
        has_magnitude
            ``False`` for signed gene sets: magnitudes are marked unknown.
        n_unchanged
            Number of measured genes with ``|log2FC|`` < 0.1 to add as *unchanged* tokens, drawn
            with ``rng`` (pretraining only).
        drawn
            Where processes share a batch: which part of it ``effects`` are. Each must call this;
            random numbers and width are then those of the whole batch.

        Returns
        -------
        Tokens as wide as the longest profile of the batch; order within a profile carries no
        meaning.
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
        # Short profiles first have their tokens gathered, so that a batch is no wider than it must.
        width = max(1, int(moves.sum(axis=1).max(initial=0)))
        if drawn is not None:
            width = max(numbers_of_all(width))
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


def ask(tokens: Tokens, genes: np.ndarray) -> Tokens:
    """Append hidden tokens that ask for the direction of ``genes``, last and in their order."""
    n = len(tokens.gene)
    gene = torch.from_numpy(np.asarray(genes, dtype=np.int64)).expand(n, -1)
    return Tokens(
        torch.cat([tokens.gene, gene], dim=1),
        torch.cat([tokens.state, torch.full_like(gene, HIDDEN)], dim=1),
        torch.cat([tokens.magnitude, torch.full(gene.shape, float("nan"))], dim=1),
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
    # Candidates are looked for in a random sample of columns: drawing exactly would mean sorting
    # every row, and training does not need exactly n.
    tried = np.sort(tried, axis=1)
    fresh = np.ones_like(tried, dtype=bool)
    fresh[:, 1:] = tried[:, 1:] != tried[:, :-1]
    hit = np.take_along_axis(candidate, tried, axis=1) & fresh
    # Zero is either exactly unchanged or never seen in any sample; only seen genes are told apart
    # by a non-zero value.
    hit &= np.take_along_axis(values, tried, axis=1) != 0
    order = np.argsort(~hit, axis=1, kind="stable")[:, :n]
    drawn = np.take_along_axis(tried, order, axis=1)
    return np.where(np.take_along_axis(hit, order, axis=1), drawn, -1)
