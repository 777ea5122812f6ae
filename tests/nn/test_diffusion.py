"""Hiding and drawing tokens; power-function averages of weights."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cfm.nn._diffusion import (
    PowerAverage,
    absorbing_loss,
    draw_times,
    draw_tokens,
    guided,
    power_exponent,
    reveal_counts,
)

# Hiding, the weighted loss, the cosine schedule, guidance, and drawing tokens


@given(n=st.integers(0, 500), steps=st.integers(1, 300))
def test_the_schedule_reveals_everything_and_follows_the_cosine(n: int, steps: int) -> None:
    counts = reveal_counts(n, steps)
    assert len(counts) == steps
    assert sum(counts) == n
    assert min(counts) >= 0
    left = n
    for i, count in enumerate(counts[:-1]):
        left -= count
        assert abs(left - n * math.cos(math.pi / 2 * (i + 1) / steps)) <= 0.5 + 1e-9


def test_three_steps_reveal_13_37_and_50_percent() -> None:
    assert reveal_counts(1000, 3) == [134, 366, 500]
    with pytest.raises(ValueError, match="at least 1"):
        reveal_counts(10, 0)


def test_times_are_uniform_and_spread_over_each_batch() -> None:
    generator = torch.Generator().manual_seed(0)
    times = torch.stack([draw_times(10, generator, least=0.01) for _ in range(400)])
    assert times.min() >= 0.01
    assert times.max() <= 1.0
    assert abs(float(times.mean()) - 0.505) < 0.01
    counted = ((times - 0.01) / 0.99 * 10).floor().clamp(max=9).long()
    assert (counted.sort(dim=1).values == torch.arange(10)).all()
    # Which one an observation gets is as uniform as if it were drawn alone.
    assert abs(float(times[:, 0].std()) - 0.99 / math.sqrt(12)) < 0.03
    plain = torch.stack([draw_times(10, generator, stratified=False) for _ in range(50)])
    assert plain.mean(1).std() > 3 * times.mean(1).std()


def test_the_loss_is_the_weighted_cross_entropy() -> None:
    time, n_tokens = torch.tensor([0.5, 0.1]), torch.tensor([4, 10])
    row = torch.tensor([0, 1, 0])
    nll = torch.tensor([1.0, 2.0, 3.0])
    expected = 0.5 * ((1.0 + 3.0) / (0.5 * 4) + 2.0 / (0.1 * 10))
    assert float(absorbing_loss(nll, row, time, n_tokens)) == pytest.approx(expected)
    nothing = torch.zeros(0)
    assert float(absorbing_loss(nothing, nothing.long(), time, n_tokens)) == 0.0


def test_guidance() -> None:
    conditional, null = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(guided(conditional, null, 0.0), conditional)
    torch.testing.assert_close(guided(conditional, null, -1.0), null)
    torch.testing.assert_close(guided(conditional, null, 2.0), null + 3.0 * (conditional - null))


def test_guidance_with_a_floor_leaves_improbable_values_alone() -> None:
    conditional = torch.tensor([[2.0, 1.0, -20.0, -18.0, -20.0]])
    null = torch.tensor([[1.0, 2.0, -30.0, -18.0, 0.5]])
    plain = guided(conditional, null, 2.0).softmax(-1)
    found = guided(conditional, null, 2.0, 1e-3).softmax(-1)
    told = conditional.softmax(-1)
    assert found[0, 0] > told[0, 0]  # towards the condition
    assert plain[0, 2] > 100 * told[0, 2]  # noise, multiplied
    assert found[0, 2] < 1.1 * told[0, 2]
    assert found[0, 4] < told[0, 4]  # what only the null makes probable is still left
    # Where all is probable both say the same.
    near = torch.randn(3, 5), torch.randn(3, 5)
    torch.testing.assert_close(guided(*near, 2.0, 1e-6).softmax(-1), guided(*near, 2.0).softmax(-1))
    torch.testing.assert_close(guided(*near, 0.0, 1e-3).softmax(-1), near[0].softmax(-1))


def test_drawn_tokens_have_the_distribution_of_the_logits() -> None:
    logits = torch.tensor([0.0, 2.0, -1.0, -torch.inf, 1.0])
    uniform = torch.from_numpy((np.arange(20_000) + 0.5) / 20_000)
    found = draw_tokens(logits.expand(20_000, 5), uniform)
    share = torch.bincount(found, minlength=5) / 20_000
    torch.testing.assert_close(share, logits.softmax(0), rtol=0, atol=1e-4)
    assert share[3] == 0.0


def test_extreme_numbers_give_the_first_and_the_last_token() -> None:
    logits = torch.zeros(2, 4)
    assert draw_tokens(logits, torch.tensor([0.0, 1.0], dtype=torch.float64)).tolist() == [0, 3]


# Power-function averages of weights


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
