"""The magnitude embedding."""

from __future__ import annotations

import torch

from cfm.nn import MagnitudeEmbedding


def test_what_is_unknown_is_not_read() -> None:
    embed = MagnitudeEmbedding(16)
    torch.nn.init.normal_(embed.unknown)
    magnitude = torch.tensor([[0.5, float("nan"), 2.0]])
    known = torch.tensor([[True, False, False]])
    out = embed(magnitude, known)
    assert out.shape == (1, 3, 16)
    torch.testing.assert_close(out[0, 1], embed.unknown)
    torch.testing.assert_close(out[0, 2], embed.unknown)
    assert not torch.equal(out[0, 0], out[0, 1])


def test_unknown_values_leave_gradients_finite() -> None:
    embed = MagnitudeEmbedding(8)
    embed(torch.tensor([1.0, float("nan")]), torch.tensor([True, False])).sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in embed.parameters() if p.grad is not None)


def test_magnitudes_are_told_apart_over_the_whole_range() -> None:
    """From hardly anything to 2**12-fold, neighbours differ: no two look the same."""
    embed = MagnitudeEmbedding(64)
    magnitude = torch.linspace(0.05, torch.log1p(torch.tensor(12.0)).item(), 40)
    out = embed(magnitude, torch.ones(40, dtype=torch.bool)).detach()
    distance = torch.cdist(out, out) + torch.eye(40) * 1e3
    assert distance.min() > 1e-2


def test_frequencies_are_no_weights() -> None:
    assert "frequencies" not in MagnitudeEmbedding(8).state_dict()
