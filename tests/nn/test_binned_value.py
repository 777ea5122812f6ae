"""A value becomes a mixture of bins."""

from __future__ import annotations

import pytest
import torch

from cfm.nn._values import BinnedValueEmbedding


def layer(alpha: float = 1.0) -> BinnedValueEmbedding:
    torch.manual_seed(0)
    return BinnedValueEmbedding(6, 5, alpha)


def test_it_is_the_formula() -> None:
    for alpha in (1.0, 0.3):
        found = layer(alpha)
        v = torch.tensor([0.0, 1.5, 8.0])
        h = v[:, None] * found.to_bins.weight[:, 0] + found.to_bins.bias
        h = torch.where(h > 0, h, 0.1 * h)
        p = torch.softmax(alpha * h + h @ found.mix.weight.T + found.mix.bias, -1)
        with torch.no_grad():
            torch.testing.assert_close(found(v), p @ found.bins)
            torch.testing.assert_close(found.shares(v), p)


def test_shares_sum_to_one_in_any_shape() -> None:
    values = torch.rand(2, 3, 4) * 10
    shares = layer().shares(values)
    assert shares.shape == (2, 3, 4, 5)
    torch.testing.assert_close(shares.sum(-1), torch.ones(2, 3, 4))
    assert layer()(values).shape == (2, 3, 4, 6)
    assert layer()(torch.tensor(0.0)).shape == (6,)


def test_bins_can_be_learned() -> None:
    found = layer()
    values = torch.linspace(0, 8, 60)
    target = torch.stack([(values > 3).float()] * 6, -1)
    optimiser = torch.optim.Adam(found.parameters(), 0.05)
    for _ in range(150):
        optimiser.zero_grad()
        loss = (found(values) - target).square().mean()
        loss.backward()
        optimiser.step()
    assert loss < 0.02


def test_no_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="n_bins must be at least 1"):
        BinnedValueEmbedding(6, 0)
