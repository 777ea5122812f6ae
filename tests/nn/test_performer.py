"""Linear attention estimates the softmax, does not mix samples, and streams to the same numbers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfm.nn import PerformerAttention, PerformerLayer
from cfm.nn._performer import orthogonal_features, run_layers


def layers(dim: int = 32, n_heads: int = 4, n: int = 2, scale: float = 1.0) -> list[PerformerLayer]:
    torch.manual_seed(1)
    made = [PerformerLayer(dim, n_heads, attention_dropout=0.3, ff_dropout=0.3) for _ in range(n)]
    for layer in made:
        for parameter in layer.parameters():
            parameter.data.add_(0.2 * torch.randn_like(parameter)).mul_(scale)
    return [layer.eval() for layer in made]


def plain(made: list[PerformerLayer], x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        for layer in made:
            x = layer(x)
    return x


def test_features_are_orthogonal_in_blocks_and_as_long_as_normal_vectors() -> None:
    w = orthogonal_features(20, 8, torch.Generator().manual_seed(0))
    for block in (w[:8], w[8:16], w[16:]):
        cosine = torch.nn.functional.normalize(block) @ torch.nn.functional.normalize(block).T
        torch.testing.assert_close(cosine, torch.eye(len(block)), rtol=0, atol=1e-5)
    many = orthogonal_features(4000, 8, torch.Generator().manual_seed(1))
    assert abs(float(many.square().sum(1).mean()) - 8.0) < 0.3
    assert float(many.norm(dim=1).std()) > 0.3


def test_many_features_approach_softmax_attention() -> None:
    torch.manual_seed(0)
    attention = PerformerAttention(16, 2, n_features=20_000)
    x = 0.7 * torch.randn(2, 30, 16)
    with torch.no_grad():
        q, k, v = (
            layer(x).view(2, 30, 2, 8).transpose(1, 2)
            for layer in (attention.to_q, attention.to_k, attention.to_v)
        )
        exact = torch.nn.functional.scaled_dot_product_attention(q, k, v)
        exact = attention.to_out(exact.transpose(1, 2).reshape(2, 30, 16))
        found = attention(x)
    assert (found - exact).abs().max() < 0.05 * exact.abs().max()


def test_no_token_is_left_without_weight() -> None:
    attention = PerformerAttention(16, 2)
    with torch.no_grad():
        attention.to_q.weight.mul_(1e3)
        attention.to_k.weight.mul_(1e3)
        out = attention(torch.randn(1, 50, 16))
    assert torch.isfinite(out).all()


def test_genes_may_be_permuted() -> None:
    (layer,) = layers(n=1)
    x, order = torch.randn(2, 40, 32), torch.randperm(40)
    torch.testing.assert_close(
        plain([layer], x[:, order]), plain([layer], x)[:, order], rtol=1e-4, atol=1e-5
    )


def test_a_sample_does_not_depend_on_the_others() -> None:
    made = layers()
    x = torch.randn(5, 40, 32)
    x[3] *= 30.0  # its keys must not set the scale of the others'
    together = run_layers(made, x.clone(), chunk=16, dtype=torch.float32)
    alone = [run_layers(made, s[None].clone(), chunk=16, dtype=torch.float32) for s in x]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-4, atol=1e-4)


@given(
    n=st.integers(1, 70),
    chunk=st.integers(1, 80),
    b=st.integers(1, 3),
    heads=st.sampled_from([1, 4]),
)
def test_streaming_gives_the_numbers_of_the_layers(n: int, chunk: int, b: int, heads: int) -> None:
    made = layers(n_heads=heads)
    x = 2.0 * torch.randn(b, n, 32, generator=torch.Generator().manual_seed(n))
    expected = plain(made, x)
    found = run_layers(made, x.clone(), chunk=chunk, dtype=torch.float32)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_streaming_stands_large_exponents() -> None:
    """Wide heads: exp(|w|²/2) of some features is beyond float32."""
    made = layers(dim=256, n_heads=1, n=1)
    x = 3.0 * torch.randn(1, 20, 256)
    expected = plain(made, x)
    found = run_layers(made, x.clone(), chunk=7, dtype=torch.float32)
    assert torch.isfinite(found).all()
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_bfloat16_stays_close() -> None:
    made = layers(dim=64, n_heads=4)
    x = torch.randn(2, 60, 64)
    expected = plain(made, x)
    found = run_layers(made, x.clone(), chunk=32, dtype=torch.bfloat16)
    assert found.dtype == torch.float32
    assert torch.cosine_similarity(found, expected, dim=-1).min() > 0.999


def test_redrawing_changes_features_and_repeats_with_its_seed() -> None:
    attention = PerformerAttention(16, 2)
    before = attention.features.clone()
    attention.redraw(torch.Generator().manual_seed(3))
    after = attention.features.clone()
    assert not torch.equal(before, after)
    attention.redraw(torch.Generator().manual_seed(3))
    assert torch.equal(attention.features, after)


def test_gradients_reach_every_weight() -> None:
    (layer,) = layers(n=1)
    layer.train()
    layer(torch.randn(2, 9, 32)).square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_the_number_of_features_follows_the_published_rule() -> None:
    for dim, features in ((128, 44), (256, 110), (512, 266), (640, 350)):
        assert PerformerAttention(dim, 8).features.shape == (features, dim // 8)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="dim=10 must be divisible by n_heads=3"):
        PerformerAttention(10, 3)
    with pytest.raises(ValueError, match="too narrow"):
        PerformerAttention(4, 4)
