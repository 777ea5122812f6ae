"""Few-step sampling of cells, tensor side: each cell by its own random numbers alone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cfm.models.count_model._module import generator_of
from cfm.models.lingshu._counts import N_VALUES
from cfm.models.lingshu._module import MASK, LingshuModule, place_scores
from cfm.nn._diffusion import draw_tokens, guided, reveal_counts
from cfm.nn._kernels import one_thread_if_small

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.models.count_model._module import Conditions

#: Tokens of the trunk that are worked on at a time. The numbers are fixed: what a matrix product
#: rounds to depends on its shape, and a cell must not depend on how many others are made.
_TOKENS_CPU, _TOKENS_GPU = 1024, 65_536
#: Conditions whose first states are kept.
_MOST_FIRST = 256
#: Scores that are held at a time on a GPU.
_SCORES_GPU = 2**28


class Draws(NamedTuple):
    """Random numbers of ``b`` cells.

    Attributes
    ----------
    uniform
        ``(b, n_genes)`` float64, which value a gene gets.
    key
        ``(b, n_genes)`` float64: genes are revealed in ascending order of it.
    inside
        ``(b, n_genes)`` float64, where in the bin of its value a count lies.
    rank
        ``(b,)`` float64, how deep a cell is among the others of its source.
    least
        ``(b, n_genes)`` int64: a gene may be given this value, also where it is larger than any
        that was seen in training. ``None`` for new cells.
    """

    uniform: np.ndarray
    key: np.ndarray
    inside: np.ndarray
    rank: np.ndarray
    least: np.ndarray | None = None


class Guidance(NamedTuple):
    """How far cells are led away from the null condition; see :func:`cfm.nn._diffusion.guided`."""

    weight: float = 0.0
    floor: float = 0.0


def draw_numbers(names: Sequence[str], n_genes: int, seed: int) -> Draws:
    """Draw the random numbers of cells from their names and a seed."""
    made = []
    for name in names:
        rng = generator_of(name, seed)
        made.append((rng.random(), rng.random((3, n_genes))))
    table = np.stack([numbers for _, numbers in made], axis=1)
    uniform, key, inside = table
    return Draws(uniform, key, inside, np.array([rank for rank, _ in made]))


def reveal_steps(hidden: np.ndarray, key: np.ndarray, n_steps: int) -> np.ndarray:
    """Return the step in which each gene is revealed, ``(b, n_genes)`` int64; −1 if it is there."""
    order = np.argsort(np.where(hidden, key, np.inf), axis=1, kind="stable")
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, np.arange(order.shape[1])[None], axis=1)
    steps = np.full(hidden.shape, -1, dtype=np.int64)
    for i, free in enumerate(hidden):
        ends = np.cumsum(reveal_counts(int(free.sum()), n_steps))
        steps[i, free] = np.searchsorted(ends, rank[i, free], side="right")
    return steps


def place_in(scores: Tensor, values: Tensor, uniform: Tensor) -> Tensor:
    """Return numbers for which :func:`cfm.nn._diffusion.draw_tokens` gives known values.

    Parameters
    ----------
    scores
        ``(m, 281)``.
    values
        ``(m,)`` int64; 281 where nothing is known.
    uniform
        ``(m,)`` float64: where in the span of its value a number lies; kept for 281.
    """
    weight = (scores - scores.amax(-1, keepdim=True)).exp().cumsum(-1, dtype=torch.float64)
    below = F.pad(weight / weight[:, -1:], (1, 0))
    known = values.clamp(max=N_VALUES - 1).unsqueeze(1)
    low, high = below.gather(1, known).squeeze(1), below.gather(1, known + 1).squeeze(1)
    inside = torch.lerp(low, high, uniform)
    return torch.where(values == MASK, uniform, inside)


class Sampler:
    """A trained network, ready to make cells.

    Parameters
    ----------
    module
        The network, on its device.
    dtype
        Of the trunk's matrix products; scores are float32.

    Attributes
    ----------
    cells_at_once
        Cells that go through the trunk together; fewer are filled up.
    """

    @torch.inference_mode()
    def __init__(self, module: LingshuModule, dtype: torch.dtype) -> None:
        self.module = module
        self.device = module.embedding.weight.device
        #: An untrained head adds nothing to the count term: genes are then independent, and neither
        #: the trunk nor the number of steps changes what is drawn.
        self._counts_alone = module.count_term is not None and not bool(module.head.weight.any())
        self._trunk: Any = None if self._counts_alone else module.trunk.prepare(dtype)
        self._table = module.value_table().float()
        self._heads = module.group.heads(module.head.weight).float()
        #: Whether to score in few large products, rather than in as little memory as possible.
        self.on_gpu = self.device.type != "cpu"
        n = module.n_prefix + module.group.n_groups
        self.cells_at_once = max(1, (_TOKENS_GPU if self.on_gpu else _TOKENS_CPU) // n)
        self._first: dict[tuple[int, ...], Tensor] = {}

    @torch.inference_mode()
    def states(self, tokens: Tensor, conditions: Conditions) -> Tensor:
        """Run the trunk on at most ``cells_at_once`` cells; see :meth:`LingshuModule.encode`."""
        n, lacking = len(tokens), self.cells_at_once - len(tokens)
        prefix = F.pad(self.module.prefix(conditions), (0, 0, 0, 0, 0, lacking))
        tokens = F.pad(tokens, (0, 0, 0, lacking), value=MASK)
        x = self.module.inputs(tokens, prefix, self._table)
        return self._trunk(x)[:n, self.module.n_prefix :].float()

    def _states(self, tokens: Tensor, conditions: Conditions) -> Tensor | None:
        """Run the trunk; for fully masked cells only once per condition."""
        if self._counts_alone:
            return None
        if self.module.has_depth or not bool((tokens == MASK).all()):
            return self.states(tokens, conditions)
        levels = torch.cat([conditions.source[:, None], conditions.parts, conditions.covariates], 1)
        keys = [tuple(row) for row in levels.tolist()]
        if any(key not in self._first for key in keys):
            if len(self._first) > _MOST_FIRST:
                self._first.clear()
            self._first |= dict(zip(keys, self.states(tokens, conditions), strict=True))
        return torch.stack([self._first[key] for key in keys])

    @torch.inference_mode()
    def sample(
        self,
        tokens: np.ndarray,
        conditions: Conditions,
        draws: Draws,
        *,
        n_steps: int,
        guidance: Guidance,
    ) -> np.ndarray:
        """Fill in hidden genes in a few steps.

        Parameters
        ----------
        tokens
            ``(b, n_genes)`` int64, 281 where a gene is to be drawn; the rest stays.
        conditions
            Of the cells, on the device.
        draws
            Their random numbers.
        n_steps
            Steps; in each a share of the genes, as a cosine has it, is drawn at once.
        guidance
            Away from the control of the same source.

        Returns
        -------
        ``(b, n_genes)`` int64, 0 to 280.
        """
        with one_thread_if_small(self.module.dim, self.device):
            return self._run(tokens, None, conditions, draws, n_steps, guidance)[0]

    @torch.inference_mode()
    def explain(
        self,
        tokens: np.ndarray,
        observed: np.ndarray,
        conditions: Conditions,
        draws: Draws,
        *,
        n_steps: int,
    ) -> Draws:
        """Return the random numbers with which :meth:`sample` would have made cells that exist.

        The values of a cell are revealed in the order of ``draws``; where the chance of a smaller
        value was ``a``, and of the value itself ``b``, its number lies between ``a`` and
        ``a + b``. Drawn again with these numbers under other conditions, a cell keeps what was
        its own: where it lay high, it lies high. (Abduction in the sense of Pearl, with the
        monotone coupling of each gene's distributions.)

        Parameters
        ----------
        tokens
            As for :meth:`sample`: 281 where a gene is to be drawn.
        observed
            ``(b, n_genes)`` int64 values of the cells; 281 where a gene was not measured, whose
            number stays as it is.
        conditions, draws, n_steps
            As for :meth:`sample`, of the cells as they are.
        """
        draws = draws._replace(least=np.where(observed == MASK, 0, observed))
        with one_thread_if_small(self.module.dim, self.device):
            uniform = self._run(tokens, observed, conditions, draws, n_steps, Guidance())[1]
        return draws._replace(uniform=uniform)

    def _run(
        self,
        tokens: np.ndarray,
        observed: np.ndarray | None,
        conditions: Conditions,
        draws: Draws,
        n_steps: int,
        guidance: Guidance,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Reveal genes step by step; return their values, and the numbers that stand for them."""
        hidden = tokens == MASK
        if self._counts_alone:
            n_steps = 1
        step = torch.from_numpy(reveal_steps(hidden, draws.key, n_steps)).to(self.device)
        if observed is not None:  # what stays is as it was
            tokens = np.where(hidden, tokens, observed)
        current = torch.from_numpy(tokens.copy()).to(self.device)
        truth = None if observed is None else torch.from_numpy(observed).to(self.device)
        uniform = torch.from_numpy(draws.uniform.copy()).to(self.device)
        null = conditions.control() if guidance.weight else None
        values = torch.arange(N_VALUES, device=self.device)
        largest = self.module.largest.long().expand_as(current)
        if draws.least is not None:
            largest = torch.maximum(largest, torch.from_numpy(draws.least).to(self.device))
        for i in range(n_steps):
            rows, genes = (step == i).nonzero(as_tuple=True)
            if not len(rows):
                continue
            states = self._states(current, conditions)
            null_states = None if null is None else self._states(current, null)
            for part in self._parts(rows):
                row, gene = rows[part], genes[part]
                scores = self._scores(states, conditions, row, gene)
                if null is not None:
                    scores = guided(scores, self._scores(null_states, null, row, gene), *guidance)
                scores = scores.masked_fill(values > largest[row, gene].unsqueeze(1), -torch.inf)
                if truth is not None:
                    uniform[row, gene] = place_in(scores, truth[row, gene], uniform[row, gene])
                drawn = draw_tokens(scores, uniform[row, gene])
                if truth is not None:  # rounding must not change what was measured
                    drawn = torch.where(truth[row, gene] == MASK, drawn, truth[row, gene])
                current[row, gene] = drawn
        return current.cpu().numpy(), uniform.cpu().numpy()

    def _parts(self, rows: Tensor) -> list[slice]:
        """Cut sorted cell numbers into pieces that are scored together."""
        per = 1
        if self.on_gpu:
            per = max(1, _SCORES_GPU // (self.module.group.n_groups * self._heads[..., 0].numel()))
        ends = torch.bincount(rows // per).cumsum(0).tolist()
        return [slice(a, b) for a, b in zip([0, *ends[:-1]], ends, strict=True) if b > a]

    def _scores(
        self, states: Tensor | None, conditions: Conditions, rows: Tensor, genes: Tensor
    ) -> Tensor:
        """Score some genes of some cells, ``(m, 281)`` float32 in the order given."""
        if states is None:
            counted: Tensor = self.module.count_term(conditions, rows, genes).float()
            return counted
        group = self.module.group
        if not self.on_gpu:  # one cell, so that shapes are its own
            sorted_scores, order = place_scores(states, group, self._heads, rows, genes)
            scores = torch.empty_like(sorted_scores)
            scores[order] = sorted_scores
        else:  # all places at once: few large products, and again the same shape always
            first, last = int(rows[0]), int(rows[-1]) + 1
            heads = self._heads.view(-1, states.shape[-1])
            every = F.linear(states[first:last], heads).view(last - first, -1, N_VALUES)
            scores = every[rows - first, group.positions()[genes]]
        if self.module.count_term is not None:
            scores = scores + self.module.count_term(conditions, rows, genes).float()
        return scores
