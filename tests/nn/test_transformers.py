"""Attention and layers of transformers: formulas, and fast paths to the same numbers."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.nn import DirectionAttention, DirectionBlock, TransformerEncoderLayer
from cfm.nn._transformers import (
    TORCH_NAMES,
    LlamaBlock,
    LlamaTrunk,
    PreparedStack,
    rotate,
    rotations,
)

# The transformer block around direction-aware attention


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


# Post-norm layers: the same as torch's, and the same for a set whatever lies beside it


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


@pytest.mark.parametrize("first_only", [False, True])
def test_bfloat16_is_close_and_float32_comes_out(first_only: bool) -> None:
    layers, x = stack(), torch.randn(12, 16)
    with torch.no_grad():
        exact, rough = (
            PreparedStack(layers, dtype, first_only=first_only)(x, [5, 7])
            for dtype in (torch.float32, torch.bfloat16)
        )
    assert exact.shape == rough.shape == ((2, 16) if first_only else (12, 16))
    assert rough.dtype == torch.float32
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


@pytest.mark.parametrize(
    "make",
    [
        lambda: block(dropout=0.5),
        lambda: layer(dim=24, dropout=0.5),
        lambda: TransformerEncoderLayer(24, 4, 24, dropout=0.5),
    ],
)
def test_dropout_is_for_training_only(make: Callable[[], nn.Module]) -> None:
    made, (x, state) = make().eval(), inputs()
    arguments = (x,) if isinstance(made, TransformerEncoderLayer) else (x, state)
    assert torch.equal(made(*arguments), made(*arguments))
    made.train()
    assert not torch.equal(made(*arguments), made(*arguments))


def test_settings_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="divisible"):
        TransformerEncoderLayer(10, 4, 8)
    with pytest.raises(ValueError, match="activation='tanh'"):
        TransformerEncoderLayer(8, 4, 8, activation="tanh")


# Direction-aware attention against the same formula with an explicit n × n bias


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


@pytest.mark.parametrize("padded", [False, True])
def test_equals_softmax_with_the_bias_of_every_pair(padded: bool) -> None:
    attention = layer()
    x, state = tokens()
    if padded:
        state[0, 6:] = state[1, 3] = PADDING
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


@pytest.mark.parametrize(
    ("dim", "n_heads", "message"),
    [(50, 3, "divisible by n_heads"), (18, 3, "cannot reserve 6 dimensions")],
)
def test_sizes_that_cannot_be_are_refused(dim: int, n_heads: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DirectionAttention(dim, n_heads, N_STATES)


# The bidirectional trunk: its published size, its positions, and its fast path


def test_the_published_trunk_has_85_214_080_parameters() -> None:
    with torch.device("meta"):
        trunk = LlamaTrunk(640, 13, 10, 2560)
    assert sum(p.numel() for p in trunk.parameters()) == 85_214_080
    assert not any(name.endswith("bias") for name, _ in trunk.named_parameters())


def test_a_block_is_what_its_equations_say() -> None:
    block = LlamaBlock(8, 2, 12)
    nn.init.normal_(block.attention_norm.weight)
    x = torch.randn(3, 5, 8)
    rotation = rotations(5, 4, x.device)

    def norm(values: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return values / (values.square().mean(-1, keepdim=True) + 1e-6).sqrt() * weight

    q, k, v = (norm(x, block.attention_norm.weight) @ block.to_qkv.weight.T).chunk(3, -1)
    mixed = torch.empty_like(x)
    for head in range(2):
        part = slice(4 * head, 4 * head + 4)
        turned = [rotate(t[..., part], rotation) for t in (q, k)]
        weights = (turned[0] @ turned[1].transpose(1, 2) / math.sqrt(4)).softmax(-1)
        mixed[..., part] = weights @ v[..., part]
    y = x + mixed @ block.to_out.weight.T
    gate, value = (norm(y, block.ff_norm.weight) @ block.ff_in.weight.T).chunk(2, -1)
    expected = y + (F.silu(gate) * value) @ block.ff_out.weight.T
    torch.testing.assert_close(block(x, rotation), expected, rtol=1e-4, atol=1e-5)


def test_rotation_depends_on_distance_alone_and_keeps_length() -> None:
    q, k = torch.randn(8), torch.randn(8)
    turned_q, turned_k = (rotate(t.expand(20, 8), rotations(20, 8, t.device)) for t in (q, k))
    torch.testing.assert_close(turned_q.norm(dim=-1), q.norm().expand(20))
    products = turned_q @ turned_k.T
    torch.testing.assert_close(products[3, 7], products[10, 14], rtol=1e-4, atol=1e-4)
    assert not torch.isclose(products[3, 7], products[3, 8], rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_prepared_trunk_gives_the_same(dtype: torch.dtype) -> None:
    trunk = LlamaTrunk(32, 3, 4, 64)
    x = torch.randn(2, 9, 32)
    with torch.inference_mode():
        found, expected = trunk.prepare(dtype)(x), trunk(x)
    assert found.dtype == torch.float32
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)


def test_recomputing_changes_no_gradient() -> None:
    trunk = LlamaTrunk(16, 2, 2, 32)
    x, made = torch.randn(2, 5, 16), []
    for recompute in (False, True):
        trunk.recompute = recompute
        trunk.zero_grad()
        trunk(x).square().sum().backward()
        made.append([p.grad.clone() for p in trunk.parameters()])
    for a, b in zip(*made, strict=True):
        torch.testing.assert_close(a, b)


def test_heads_of_odd_width_are_refused() -> None:
    with pytest.raises(ValueError, match="even width"):
        LlamaBlock(30, 10, 8)
