"""The transformer block around direction-aware attention."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from cfm.nn import DirectionBlock

N_STATES = 5


def block(dropout: float = 0.0) -> DirectionBlock:
    return DirectionBlock(24, 2, N_STATES, ff_mult=2, dropout=dropout)


def inputs() -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(3, 7, 24), torch.randint(0, N_STATES, (3, 7))


def test_pre_norm_residual_formula() -> None:
    layer = block().eval()
    x, state = inputs()
    inner = layer.feed_forward
    middle = x + layer.attention(layer.attention_norm(x), state)
    hidden = F.gelu(F.linear(inner[0](middle), inner[1].weight, inner[1].bias))
    expected = middle + F.linear(hidden, inner[3].weight, inner[3].bias)
    torch.testing.assert_close(layer(x, state), expected)


def test_attention_weights_are_those_of_the_normalised_input() -> None:
    layer = block().eval()
    x, state = inputs()
    expected = layer.attention.attention_weights(layer.attention_norm(x), state)
    torch.testing.assert_close(layer.attention_weights(x, state), expected)
    # normalised: the scale of the input is not seen
    torch.testing.assert_close(
        layer.attention_weights(10 * x, state), expected, rtol=1e-3, atol=1e-4
    )


def test_dropout_only_in_training() -> None:
    layer = block(dropout=0.5).eval()
    x, state = inputs()
    torch.testing.assert_close(layer(x, state), layer(x, state))
    layer.train()
    assert not torch.equal(layer(x, state), layer(x, state))
