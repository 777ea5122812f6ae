"""What pretraining takes away from a profile: a random part of its tokens, and of what they say."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cfm.models.cellpulse._constants import HIDDEN, PADDING
from cfm.models.cellpulse._module import Tokens

if TYPE_CHECKING:
    from cfm.models._streams import Drawn


def subsample(
    tokens: Tokens, n: int, generator: torch.Generator, drawn: Drawn | None = None
) -> Tokens:
    """Keep ``n`` random tokens of each profile, padding last; ``drawn`` as in :func:`hide`."""
    if tokens.gene.shape[1] <= n:
        return tokens
    order = _draw(tokens, generator, drawn) + (tokens.state == PADDING) * 2.0
    keep = order.argsort(dim=1)[:, :n]
    return Tokens(*(t.gather(1, keep) for t in tokens))


def hide(
    tokens: Tokens,
    share: Tensor,
    generator: torch.Generator | None = None,
    drawn: Drawn | None = None,
) -> tuple[Tokens, Tensor]:
    """Hide the state and magnitude of a random part of each profile's tokens.

    Parameters
    ----------
    tokens
        Tokens with nothing hidden.
    share
        ``(b,)`` share of tokens to hide per profile.
    generator
        Source of randomness.
    drawn
        Which part of a batch these are, if processes share it; the numbers are drawn for all.

    Returns
    -------
    The tokens with the hidden part replaced, and ``(b, n)`` bool, the hidden ones.
    """
    real = tokens.state != PADDING
    draw = _draw(tokens, generator, drawn).to(tokens.state.device)
    asked = real & (draw < share.unsqueeze(1))
    state = torch.where(asked, torch.full_like(tokens.state, HIDDEN), tokens.state)
    magnitude = tokens.magnitude.masked_fill(asked, float("nan"))
    return Tokens(tokens.gene, state, magnitude), asked


def _draw(tokens: Tokens, generator: torch.Generator | None, drawn: Drawn | None) -> Tensor:
    """Draw a number for each token, ``(b, n)``."""
    if drawn is None:
        return torch.rand(tokens.state.shape, generator=generator)
    whole = torch.rand(len(drawn.rows), tokens.state.shape[1], generator=generator)
    return whole[drawn.part]
