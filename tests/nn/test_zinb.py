"""Zero-inflated negative binomial: the likelihood of scvi-tools, and its simple cases."""

from __future__ import annotations

import math

import torch
from hypothesis import given
from hypothesis import strategies as st
from scvi.distributions import ZeroInflatedNegativeBinomial

from cfm.nn._values import ZINBHeads, zinb_nll


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
