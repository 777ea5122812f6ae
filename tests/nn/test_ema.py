"""Power-function averages of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cfm.nn._diffusion import PowerAverage, power_exponent


def test_published_widths() -> None:
    assert power_exponent(0.05) == pytest.approx(16.97, abs=0.005)
    assert power_exponent(0.10) == pytest.approx(6.94, abs=0.005)
    for width in (0.03, 0.05, 0.1, 0.2):
        g = power_exponent(width)
        assert ((g + 1) / (g + 2) ** 2 / (g + 3)) ** 0.5 == pytest.approx(width)
    for width in (0.0, -0.1, 0.5):
        with pytest.raises(ValueError, match="between 0 and"):
            power_exponent(width)


def test_steps_count_by_a_power_of_their_number() -> None:
    layer = nn.Linear(1, 1, bias=False)
    average = PowerAverage(layer, 0.1)
    n = 200
    values = torch.randn(n)
    for value in values:
        with torch.no_grad():
            layer.weight.fill_(value)
        average.update()
    weight = torch.arange(1, n + 1).double() ** average.exponent
    average.swap()
    expected = float((weight * values.double()).sum() / weight.sum())
    assert layer.weight.item() == pytest.approx(expected, abs=0.01)


def test_the_start_is_forgotten_and_swapping_twice_changes_nothing() -> None:
    layer = nn.Linear(3, 2)
    layer.bias.requires_grad_(False)
    average = PowerAverage(layer, 0.05)
    with torch.no_grad():
        layer.weight.fill_(7.0)
    average.update()
    with torch.no_grad():
        layer.weight.fill_(-1.0)
        layer.bias.fill_(5.0)
    average.swap()
    assert (layer.weight == 7.0).all()  # one step: itself, nothing of the start
    average.swap()
    assert (layer.weight == -1.0).all()
    assert (layer.bias == 5.0).all()
