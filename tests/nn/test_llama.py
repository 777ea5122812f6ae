"""The bidirectional trunk: its published size, its positions, and its fast path."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cfm.nn._transformers import LlamaBlock, LlamaTrunk, rotate, rotations


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


def test_every_token_sees_every_other() -> None:
    trunk = LlamaTrunk(16, 2, 2, 32)
    x = torch.randn(1, 6, 16, requires_grad=True)
    trunk(x)[0, 0].sum().backward()
    assert (x.grad[0].abs().sum(-1) > 0).all()


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
