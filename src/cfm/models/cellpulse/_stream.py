"""Batches for pretraining: draw profiles, tokenise, hide a part."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cfm.data._profiles import draw_part
from cfm.models._streams import Drawn, SeededStream, own_part
from cfm.models.cellpulse._masking import hide, subsample
from cfm.models.cellpulse._module import Tokens

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.data import GeneAlignment, ProfileSource
    from cfm.models.cellpulse._factors import GeneFactors
    from cfm.models.cellpulse._tokens import ProfileTokenizer


class Batch(NamedTuple):
    """A pretraining batch; see :meth:`CellPulseModule.losses`."""

    hidden: Tokens
    target: Tokens
    asked: Tensor
    groups: Tensor
    factor_mask: Tensor


@dataclass(frozen=True)
class Ingredient:
    """A source of profiles and how it is used.

    ``share`` is the probability of a batch coming from it; ``study`` names the study of all its
    profiles where the source does not say; ``knows_magnitude`` is ``False`` for signed sets.
    """

    source: ProfileSource
    alignment: GeneAlignment
    share: float
    study: str = ""
    knows_magnitude: bool = True


class ProfileStream(SeededStream):
    """An endless, seeded stream of pretraining batches.

    Each batch comes from one source. Half of the batches that know magnitudes hide all of them,
    so that the model can do without (signed sets have none).

    Parameters
    ----------
    ingredients
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
        The first batches of all hold few profiles with all their tokens and only sources that
        know studies: they are for the linear term.
    seed
        Seed; epoch ``i`` of a seed is always the same.
    fixed
        See :class:`cfm.models._streams.SeededStream`.
    n_processes
        Processes that share each batch: each draws the random numbers of all, and makes its part.
    """

    def __init__(
        self,
        ingredients: Sequence[Ingredient],
        tokenizer: ProfileTokenizer,
        factors: GeneFactors,
        *,
        batch_size: int,
        n_tokens: int,
        n_unchanged: int,
        n_batches: int,
        n_linear_batches: int = 0,
        seed: int,
        fixed: bool = False,
        n_processes: int = 1,
    ) -> None:
        super().__init__(seed=seed, fixed=fixed)
        if not ingredients:
            raise ValueError("Pretraining needs at least one source of profiles; found none.")
        self.ingredients = list(ingredients)
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
        """Make a batch from one of the sources."""
        size = self.batch_size * self.n_processes
        if self.epoch * self.n_batches + number < self.n_linear_batches:
            of_studies = [i for i in self.ingredients if i.knows_magnitude] or self.ingredients
            ingredient = of_studies[rng.integers(len(of_studies))]
            n = max(4, self.n_processes, size // 3)
            return self.batch(ingredient, n, self.tokenizer.n_tokens, rng, generator)
        share = np.array([i.share for i in self.ingredients], dtype=np.float64)
        ingredient = self.ingredients[rng.choice(len(share), p=share / share.sum())]
        return self.batch(ingredient, size, self.n_tokens, rng, generator)

    def batch(
        self,
        ingredient: Ingredient,
        n: int,
        n_tokens: int,
        rng: np.random.Generator,
        generator: torch.Generator,
    ) -> Batch:
        """Make one batch of ``n`` profiles from one source: the part of this process."""
        part = slice(0, n) if self.n_processes == 1 else own_part(n)
        drawn = None if self.n_processes == 1 else Drawn(np.arange(n), part)
        draw = draw_part(ingredient.source, n, rng, part)
        known = draw.has_magnitude and rng.random() < 0.5
        tokens = self.tokenizer.encode(
            draw.effects,
            ingredient.alignment,
            has_magnitude=known,
            n_unchanged=self.n_unchanged if draw.has_magnitude else 0,
            rng=rng,
            drawn=drawn,
        )
        target = subsample(tokens, n_tokens, generator, drawn)
        share = 0.3 + 0.4 * torch.rand(n, generator=generator)[part]
        hidden, asked = hide(target, share, generator, drawn)
        study = draw.study if draw.study is not None else [ingredient.study] * len(draw.group)
        mask = torch.from_numpy(self.factors.without(list(study)))
        return Batch(hidden, target, asked, torch.from_numpy(draw.group), mask)
