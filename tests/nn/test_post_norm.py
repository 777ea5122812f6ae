"""Post-norm layers: the same as torch's, and the same for a set whatever lies beside it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cfm.nn import TransformerEncoderLayer
from cfm.nn._transformers import TORCH_NAMES, PreparedStack


def stack(n: int = 2, activation: str = "gelu") -> nn.ModuleList:
    torch.manual_seed(1)
    return nn.ModuleList(
        TransformerEncoderLayer(16, 4, 24, activation=activation, eps=1e-12) for _ in range(n)
    ).eval()


@pytest.mark.parametrize("activation", ["gelu", "relu"])
def test_it_is_the_layer_of_torch(activation: str) -> None:
    theirs = nn.TransformerEncoderLayer(
        16, 4, 24, activation=activation, layer_norm_eps=1e-12, batch_first=True
    ).eval()
    ours = TransformerEncoderLayer(16, 4, 24, activation=activation, eps=1e-12).eval()
    ours.load_state_dict({TORCH_NAMES[k]: v for k, v in theirs.state_dict().items()})
    x = torch.randn(3, 7, 16)
    hidden = torch.zeros(3, 7, dtype=torch.bool)
    hidden[1, 4:] = True
    bias = torch.zeros(3, 7).masked_fill(hidden, -torch.inf)
    with torch.no_grad():
        expected = theirs(x, src_key_padding_mask=hidden)
        found = ours(x, bias)
    assert torch.allclose(found[~hidden], expected[~hidden], atol=1e-5)


@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=4), first_only=st.booleans())
def test_prepared_layers_give_the_same_for_every_set(lengths: list[int], first_only: bool) -> None:
    layers = stack()
    x = torch.randn(sum(lengths), 16, generator=torch.Generator().manual_seed(0))
    prepared = PreparedStack(layers, torch.float32, first_only=first_only)
    with torch.no_grad():
        found = prepared(x, lengths)
        parts = []
        for part in x.split(lengths):
            alone = part[None]
            for layer in layers:
                alone = layer(alone)
            parts.append(alone[0, :1] if first_only else alone[0])
    assert torch.allclose(found, torch.cat(parts), atol=1e-5)


def test_bfloat16_is_close_and_float32_comes_out() -> None:
    layers, x = stack(), torch.randn(12, 16)
    with torch.no_grad():
        exact = PreparedStack(layers, torch.float32)(x, [5, 7])
        rough = PreparedStack(layers, torch.bfloat16)(x, [5, 7])
    assert rough.dtype == torch.float32
    assert torch.cosine_similarity(exact, rough).min() > 0.999


def test_bfloat16_keeps_to_the_first_token() -> None:
    layers, x = stack(), torch.randn(12, 16)
    with torch.no_grad():
        exact = PreparedStack(layers, torch.float32, first_only=True)(x, [5, 7])
        rough = PreparedStack(layers, torch.bfloat16, first_only=True)(x, [5, 7])
    assert exact.shape == rough.shape == (2, 16)
    assert torch.cosine_similarity(exact, rough).min() > 0.999


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_long_sets_go_through_other_kernels_to_the_same_numbers(dtype: torch.dtype) -> None:
    """Sets of 700 tokens are attended to by products, in two steps with one thread."""
    layers, lengths = stack(), [700, 3, 700, 200]
    x = torch.randn(sum(lengths), 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = PreparedStack(layers, dtype)(x, lengths)
        for i, part in enumerate(x.split(lengths)):
            alone = part[None]
            for layer in layers:
                alone = layer(alone)
            rows = slice(sum(lengths[:i]), sum(lengths[: i + 1]))
            if dtype == torch.float32:
                assert torch.allclose(found[rows], alone[0], atol=1e-5)
            else:
                assert torch.cosine_similarity(found[rows], alone[0]).min() > 0.999


def test_attention_weights_are_those_that_are_used() -> None:
    layer = stack(1)[0]
    x, bias = torch.randn(2, 5, 16), torch.zeros(2, 5)
    bias[0, 3:] = -torch.inf
    with torch.no_grad():
        weights = layer.attention_weights(x, bias)
        first = layer.attention_weights(x, bias, first_only=True)
        v = layer.qkv(x).chunk(3, -1)[2].unflatten(-1, (4, 4)).transpose(1, 2)
        attended = (weights @ v).transpose(1, 2).flatten(2)
        x1 = layer.attention_norm(x + layer.out(attended))
        again = layer.ff_norm(x1 + layer.ff_out(nn.functional.gelu(layer.ff_in(x1))))
        assert torch.allclose(again, layer(x, bias), atol=1e-5)
    assert torch.allclose(weights.sum(-1), torch.ones(2, 4, 5))
    assert (weights[0, :, :, 3:] == 0).all()
    assert torch.equal(first, weights[:, :, :1])


def test_gradients_flow_and_dropout_is_for_training_only() -> None:
    layer = TransformerEncoderLayer(16, 4, 24, dropout=0.5)
    x = torch.randn(2, 5, 16, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    assert not torch.equal(layer(x), layer(x))
    layer.eval()
    assert torch.equal(layer(x), layer(x))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="divisible"):
        TransformerEncoderLayer(10, 4, 8)
    with pytest.raises(ValueError, match="activation='tanh'"):
        TransformerEncoderLayer(8, 4, 8, activation="tanh")
