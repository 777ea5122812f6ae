"""Direction-aware attention against the same formula with an explicit n × n bias."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cfm.nn import DirectionAttention

N_STATES = 5
PADDING = N_STATES


def layer(dim: int = 48, n_heads: int = 3, seed: int = 0, **arguments) -> DirectionAttention:
    torch.manual_seed(seed)
    attention = DirectionAttention(dim, n_heads, N_STATES, **arguments)
    torch.nn.init.normal_(attention.direction_bias)
    return attention.eval()


def tokens(b: int = 2, n: int = 9, dim: int = 48, seed: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(b, n, dim, generator=generator)
    return x, torch.randint(0, N_STATES, (b, n), generator=generator)


def explicit(attention: DirectionAttention, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Weights and output by the formula of the docstring, the bias written out per pair."""
    b, n, dim = x.shape
    h, d = attention.n_heads, attention.head_dim

    def heads(linear: torch.nn.Linear) -> Tensor:
        return linear(x).view(b, n, h, -1).transpose(1, 2)  # (b, h, n, width)

    logits = heads(attention.to_q) @ heads(attention.to_k).transpose(2, 3) / math.sqrt(d)
    real = state != PADDING
    known = state.clamp(max=N_STATES - 1)
    bias = attention.direction_bias[:, known[:, :, None], known[:, None, :]]  # (h, b, n, n)
    bias = bias.transpose(0, 1) * real[:, None, :, None]  # a padding query has no bias
    logits = (logits + bias).masked_fill(~real[:, None, None, :], float("-inf"))
    weights = logits.softmax(-1)
    out = (weights @ heads(attention.to_v)).transpose(1, 2).reshape(b, n, dim)
    return weights, attention.to_out(out)


def test_equals_softmax_with_the_bias_of_every_pair() -> None:
    attention = layer()
    x, state = tokens()
    weights, out = explicit(attention, x, state)
    torch.testing.assert_close(attention(x, state), out, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(attention.attention_weights(x, state), weights, rtol=1e-5, atol=1e-6)


def test_equals_the_explicit_bias_with_padding_too() -> None:
    attention = layer()
    x, state = tokens()
    state[0, 6:] = PADDING
    state[1, 3] = PADDING
    weights, out = explicit(attention, x, state)
    real = state != PADDING
    torch.testing.assert_close(attention(x, state)[real], out[real], rtol=1e-5, atol=1e-6)
    found = attention.attention_weights(x, state)
    torch.testing.assert_close(found, weights, rtol=1e-5, atol=1e-6)
    assert (found.transpose(2, 3)[(~real)[:, None, :].expand(-1, 3, -1)] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_padding_gets_exactly_no_weight_in_any_precision(dtype: torch.dtype) -> None:
    attention = layer(dim=256, n_heads=1).to(dtype)  # the widest head that is promised
    x, state = tokens(dim=256)
    state[:, 5:] = PADDING
    x = x.to(dtype)
    x[:, 5:] = 100.0  # what padding holds does not matter
    weights = attention.attention_weights(x, state)
    assert (weights[..., 5:] == 0).all()
    out = attention(x, state)
    assert torch.isfinite(out).all()
    tolerance = {torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}[dtype]
    alone = attention(x[:, :5], state[:, :5])
    torch.testing.assert_close(out[:, :5], alone, rtol=tolerance, atol=tolerance)


def test_nothing_but_padding_gives_finite_numbers() -> None:
    attention = layer()
    x, state = tokens()
    assert torch.isfinite(attention(x, torch.full_like(state, PADDING))).all()


@given(seed=st.integers(0, 1000))
def test_permuting_tokens_permutes_the_output(seed: int) -> None:
    attention = layer()
    x, state = tokens(seed=seed)
    order = torch.randperm(9, generator=torch.Generator().manual_seed(seed))
    out = attention(x, state)[:, order]
    torch.testing.assert_close(attention(x[:, order], state[:, order]), out, rtol=1e-4, atol=1e-5)


def test_directions_matter_and_only_through_the_bias() -> None:
    attention = layer()
    x, state = tokens()
    state = state % 3  # down, unchanged, up
    before = attention(x, state)
    assert (attention(x, 2 - state) - before).abs().max() > 1e-2
    torch.nn.init.zeros_(attention.direction_bias)
    torch.testing.assert_close(attention(x, 2 - state), attention(x, state))


def test_weights_sum_to_one() -> None:
    x, state = tokens()
    total = layer().attention_weights(x, state).sum(-1)
    torch.testing.assert_close(total, torch.ones_like(total))


def test_the_bias_learns() -> None:
    attention = layer()
    x, state = tokens()
    attention(x, state).square().sum().backward()
    gradient = attention.direction_bias.grad
    assert gradient is not None
    assert (gradient.abs().amax(dim=(1, 2)) > 0).all()


def test_dropout_only_in_training() -> None:
    attention = layer(dropout=0.5)
    x, state = tokens()
    torch.testing.assert_close(attention(x, state), attention(x, state))
    attention.train()
    assert not torch.equal(attention(x, state), attention(x, state))


def test_query_key_and_value_are_equally_wide() -> None:
    x, state = tokens()
    shapes = {part.shape for part in layer().queries_keys_values(x, state)}
    assert shapes == {(2, 3, 9, 16)}


@pytest.mark.parametrize(
    ("dim", "n_heads", "message"),
    [(50, 3, "divisible by n_heads"), (18, 3, "cannot reserve 6 dimensions")],
)
def test_sizes_that_cannot_be_are_refused(dim: int, n_heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DirectionAttention(dim, n_heads, N_STATES)
