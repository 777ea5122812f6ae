"""Embeddings and likelihoods of single values."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scvi.distributions import ZeroInflatedNegativeBinomial

from cfm.nn import MagnitudeEmbedding, RotaryExpressionEmbedding
from cfm.nn._genes import BinnedValueEmbedding, ZINBHeads, zinb_nll

# Rotary embedding of expression values


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


# The magnitude embedding


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


# A value becomes a mixture of bins


def binned(alpha: float = 1.0) -> BinnedValueEmbedding:
    torch.manual_seed(0)
    return BinnedValueEmbedding(6, 5, alpha)


def test_it_is_the_formula() -> None:
    for alpha in (1.0, 0.3):
        found = binned(alpha)
        v = torch.tensor([0.0, 1.5, 8.0])
        h = v[:, None] * found.to_bins.weight[:, 0] + found.to_bins.bias
        h = torch.where(h > 0, h, 0.1 * h)
        p = torch.softmax(alpha * h + h @ found.mix.weight.T + found.mix.bias, -1)
        with torch.no_grad():
            torch.testing.assert_close(found(v), p @ found.bins)
            torch.testing.assert_close(found.shares(v), p)


def test_no_bins_are_refused() -> None:
    with pytest.raises(ValueError, match="n_bins must be at least 1"):
        BinnedValueEmbedding(6, 0)


# Zero-inflated negative binomial: the likelihood of scvi-tools, and its simple cases


@given(
    mean=st.floats(1e-3, 1e4),
    dispersion=st.floats(1e-2, 1e3),
    logit=st.floats(-8, 8),
    count=st.sampled_from([0, 1, 2, 7, 300]),
)
def test_it_is_the_likelihood_of_scvi(mean, dispersion, logit, count) -> None:
    mu, theta, x, pi = (
        torch.tensor([[v]], dtype=torch.float64) for v in (mean, dispersion, count, logit)
    )
    theirs = ZeroInflatedNegativeBinomial(mu=mu, theta=theta, zi_logits=pi, validate_args=False)
    found = zinb_nll(x, mu, theta, torch.sigmoid(pi))
    torch.testing.assert_close(found, -theirs.log_prob(x), rtol=1e-4, atol=1e-4)


def test_probabilities_sum_to_one() -> None:
    x = torch.arange(2000, dtype=torch.float64)
    for mean, dispersion, dropout in ((3.0, 0.7, 0.0), (20.0, 4.0, 0.4), (0.1, 100.0, 0.9)):
        parts = (torch.tensor(v, dtype=torch.float64) for v in (mean, dispersion, dropout))
        total = zinb_nll(x, *parts).neg().exp().sum()
        assert math.isclose(total, 1.0, abs_tol=1e-4)


def test_certain_zeros_and_no_zeros_stay_finite() -> None:
    for dropout in (0.0, 1.0):
        for mean in (1e-5, 1e6):
            inputs = [torch.tensor(v, requires_grad=True) for v in (mean, 2.0, dropout)]
            loss = zinb_nll(torch.tensor([0.0, 1e-9, 5.0]), *inputs)
            assert torch.isfinite(loss).all()
            assert loss[0] == loss[1]
            loss.sum().backward()
            assert all(torch.isfinite(t.grad).all() for t in inputs)


def test_a_ridge_counts_dropout() -> None:
    parts = torch.tensor([2.0, 0.0]), torch.tensor(1.0), torch.tensor(2.0), torch.tensor(0.3)
    torch.testing.assert_close(zinb_nll(*parts, ridge=2.0), zinb_nll(*parts) + 2.0 * 0.09)


def test_heads_stay_in_their_bounds() -> None:
    torch.manual_seed(0)
    heads = ZINBHeads(4)
    mean, dispersion, dropout = heads(1e3 * torch.randn(2, 50, 4))
    assert mean.shape == dispersion.shape == dropout.shape == (2, 50)
    assert mean.min() == torch.tensor(1e-5)
    assert mean.max() == 1e6
    assert dispersion.min() == torch.tensor(1e-4)
    assert 0.0 <= dropout.min() <= dropout.max() <= 1.0
    assert torch.isfinite(zinb_nll(torch.ones(2, 50), mean, dispersion, dropout)).all()
