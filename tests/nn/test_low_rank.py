"""The linear gene-gene term is the optimum of a penalised logistic problem."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import minimize
from sklearn.linear_model import LogisticRegression
from torch import Tensor

from cfm.nn import LowRankLogistic


def problem(seed: int = 0, b: int = 3, n: int = 40, r: int = 6) -> tuple[Tensor, Tensor, Tensor]:
    """Factors, directions that depend on them, and which are observed; in double precision."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.randn(b, n, r, generator=generator, dtype=torch.float64)
    z = torch.randn(b, r, generator=generator, dtype=torch.float64)
    score = (factors @ z.unsqueeze(-1)).squeeze(-1)
    noise = torch.randn(b, n, generator=generator, dtype=torch.float64)
    observed = torch.rand(b, n, generator=generator) < 0.7
    return factors, (score + noise).sign(), observed


@pytest.mark.parametrize("ridge", [0.5, 2.0, 20.0])
def test_newton_reaches_sklearns_penalised_optimum(ridge: float) -> None:
    factors, direction, observed = problem()
    z = LowRankLogistic(ridge, n_newton=60).scores(factors, direction, observed)
    for i in range(len(z)):
        x, y = factors[i][observed[i]].numpy(), direction[i][observed[i]].numpy()
        model = LogisticRegression(C=1 / ridge, fit_intercept=False, tol=1e-10, max_iter=5000)
        model.fit(2 * x, y > 0)
        np.testing.assert_allclose(z[i].detach().numpy(), model.coef_[0], rtol=1e-4, atol=1e-5)


def test_unchanged_genes_pull_towards_no_direction() -> None:
    factors, direction, observed = problem(b=1)
    direction[:, ::3] = 0
    ridge = 2.0
    z = LowRankLogistic(ridge, n_newton=60).scores(factors, direction, observed)[0]
    f, y = factors[0][observed[0]].numpy(), direction[0][observed[0]].numpy()

    def loss(w: np.ndarray) -> float:
        s = 2 * f @ w
        target = (y + 1) / 2
        fit = np.logaddexp(0, s) - target * s
        return float(fit.sum() + 0.5 * ridge * w @ w)

    best = minimize(loss, np.zeros(f.shape[1]), tol=1e-12)
    np.testing.assert_allclose(z.detach().numpy(), best.x, atol=1e-4)


def test_without_newton_steps_it_is_ridge_regression() -> None:
    factors, direction, observed = problem()
    ridge = 3.0
    z = LowRankLogistic(ridge, n_newton=0).scores(factors, direction, observed)
    for i in range(len(z)):
        f, y = factors[i][observed[i]], direction[i][observed[i]]
        expected = torch.linalg.solve(f.T @ f + ridge * torch.eye(6, dtype=f.dtype), f.T @ y)
        torch.testing.assert_close(z[i].detach(), expected, rtol=1e-6, atol=1e-8)


def test_few_steps_are_near_the_optimum() -> None:
    """The three steps that the model takes leave directions as the optimum has them."""
    factors, direction, observed = problem(n=200, r=10)
    near = LowRankLogistic(2.0, n_newton=3)(factors, direction, observed)
    optimum = LowRankLogistic(2.0, n_newton=60)(factors, direction, observed)
    assert ((near > 0) == (optimum > 0)).double().mean() > 0.99
    assert np.corrcoef(near.detach().ravel(), optimum.detach().ravel())[0, 1] > 0.999


@given(seed=st.integers(0, 500))
def test_what_is_not_observed_is_not_read(seed: int) -> None:
    factors, direction, observed = problem(seed)
    term = LowRankLogistic()
    other = torch.where(observed, direction, -direction)
    torch.testing.assert_close(
        term(factors, direction, observed), term(factors, other, observed), rtol=0, atol=0
    )


def test_a_profile_does_not_see_its_batch() -> None:
    factors, direction, observed = problem(b=5)
    term = LowRankLogistic()
    together = term(factors, direction, observed)
    for i in range(5):
        one = slice(i, i + 1)
        alone = term(factors[one], direction[one], observed[one])
        torch.testing.assert_close(together[one], alone, rtol=1e-9, atol=1e-10)


def test_an_orthonormal_rotation_of_the_factors_changes_nothing() -> None:
    factors, direction, observed = problem()
    rotation, _ = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))
    term = LowRankLogistic()
    torch.testing.assert_close(
        term(factors @ rotation, direction, observed), term(factors, direction, observed)
    )


def test_flipping_all_directions_flips_the_scores() -> None:
    factors, direction, observed = problem()
    term = LowRankLogistic()
    torch.testing.assert_close(
        term(factors, -direction, observed), -term(factors, direction, observed)
    )


def test_nothing_observed_scores_nothing() -> None:
    factors, direction, observed = problem()
    assert (LowRankLogistic()(factors, direction, torch.zeros_like(observed)) == 0).all()


def test_low_precision_is_solved_in_single_precision() -> None:
    factors, direction, observed = problem()
    exact = LowRankLogistic()(factors.float(), direction.float(), observed)
    rough = LowRankLogistic()(factors.bfloat16(), direction.bfloat16(), observed)
    assert rough.dtype == torch.bfloat16
    assert (rough.float() - exact).abs().max() < 0.1


def test_the_ridge_is_learned_on_a_log_scale() -> None:
    factors, direction, observed = problem()
    term = LowRankLogistic(ridge=5.0)
    assert math.isclose(term.log_ridge.exp().item(), 5.0, rel_tol=1e-5)
    term(factors, direction, observed).square().sum().backward()
    assert term.log_ridge.grad is not None
    assert term.log_ridge.grad.abs() > 0
