"""Rotary embedding of expression values."""

from __future__ import annotations

import pytest
import torch

from cfm.nn import RotaryExpressionEmbedding


def test_sines_then_cosines_at_falling_frequencies() -> None:
    layer = RotaryExpressionEmbedding(4)
    torch.testing.assert_close(layer.frequencies.data, torch.tensor([1.0, 0.1]))
    out = layer(torch.tensor([0.0, 2.0]), torch.zeros(2, dtype=torch.bool))
    torch.testing.assert_close(out[0], torch.tensor([0.0, 0.0, 1.0, 1.0]))
    angle = torch.tensor([2.0, 0.2])
    torch.testing.assert_close(out[1], torch.cat([angle.sin(), angle.cos()]))


def test_missing_values_are_zeros_and_nothing_is_trained() -> None:
    layer = RotaryExpressionEmbedding(6)
    missing = torch.tensor([[True, False]])
    out = layer(torch.tensor([[-10.0, 1.0]]), missing)
    assert not out[0, 0].any()
    assert out[0, 1].any()
    assert not layer.frequencies.requires_grad


def test_odd_widths_are_refused() -> None:
    with pytest.raises(ValueError, match="dim=5 must be even"):
        RotaryExpressionEmbedding(5)
