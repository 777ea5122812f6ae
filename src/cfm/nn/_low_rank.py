"""A linear gene-gene term: logistic regression of a profile on gene factors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LowRankLogistic(nn.Module):
    r"""Predict every gene's direction from the observed ones through low-rank gene covariance.

    With gene factors :math:`F \in \mathbb{R}^{G \times r}` the gene-gene covariance is
    :math:`F F^\top`. A profile is given factor scores :math:`z \sim N(0, I / \lambda)` and its
    genes the directions :math:`P(y_g = 1) = \sigma(2 F_g z)`. The posterior mode of :math:`z`
    given the observed directions is found by Newton steps from the ridge solution

    .. math:: z_0 = (F_O^\top F_O + \lambda I)^{-1} F_O^\top y_O

    (which is kernel ridge regression with the kernel :math:`F F^\top`); each step is one
    ``r × r`` solve per profile. The prediction for any gene is :math:`F_g z`: this is the mode of
    a Gaussian-process classifier (Rasmussen & Williams 2006, section 3.4) with a low-rank kernel.

    Parameters
    ----------
    ridge
        Initial :math:`\lambda`; learned on a log scale.
    n_newton
        Number of Newton steps; 0 leaves the ridge solution.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import LowRankLogistic
    >>> factors = torch.tensor([[[2.0], [2.0], [-2.0]]])  # two genes together, one against them
    >>> direction = torch.tensor([[1.0, 0.0, 0.0]])
    >>> observed = torch.tensor([[True, False, False]])
    >>> LowRankLogistic()(factors, direction, observed).sign()
    tensor([[ 1.,  1., -1.]], grad_fn=<SignBackward0>)
    """

    def __init__(self, ridge: float = 2.0, n_newton: int = 3) -> None:
        super().__init__()
        self.log_ridge = nn.Parameter(torch.tensor(math.log(ridge)))
        self.n_newton = n_newton

    def scores(self, factors: Tensor, direction: Tensor, observed: Tensor) -> Tensor:
        """Return the factor scores of profiles.

        Parameters
        ----------
        factors
            ``(b, n, r)`` factors of each token's gene.
        direction
            ``(b, n)`` −1, 0 or 1; ignored where not observed. 0 is read as "either way".
        observed
            ``(b, n)`` bool.

        Returns
        -------
        ``(b, r)`` factor scores in the dtype of ``factors``.
        """
        # Solved in float32 at least: bfloat16 has no Cholesky and too few digits.
        dtype = torch.promote_types(factors.dtype, torch.float32)
        seen = observed.to(dtype)  # (b, n)
        f = factors.to(dtype) * seen.unsqueeze(-1)  # (b, n, r)
        y = direction.to(dtype) * seen
        ridge = self.log_ridge.exp().to(dtype)
        z = self._solve(f, f, y, ridge)
        for _ in range(self.n_newton):
            score = (f @ z.unsqueeze(-1)).squeeze(-1)  # (b, n)
            p = torch.sigmoid(2.0 * score)
            # The floor keeps a saturated gene from dropping out of the system altogether.
            curvature = (4.0 * p * (1.0 - p)).clamp(min=1e-3) * seen
            gradient = 2.0 * (0.5 * (y + 1.0) - p) * seen
            z = self._solve(f * curvature.unsqueeze(-1), f, curvature * score + gradient, ridge)
        return z.to(factors.dtype)

    def forward(self, factors: Tensor, direction: Tensor, observed: Tensor) -> Tensor:
        """Return the score of every token's direction, ``(b, n)``; log-odds of up are twice it."""
        z = self.scores(factors, direction, observed)
        return (factors @ z.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def _solve(weighted: Tensor, f: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
        """Solve ``(weightedᵀ f + ridge I) z = fᵀ y`` for each profile, ``(b, r)``."""
        gram = weighted.transpose(1, 2) @ f  # (b, r, r)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        rhs = f.transpose(1, 2) @ y.unsqueeze(-1)  # (b, r, 1)
        return torch.cholesky_solve(rhs, torch.linalg.cholesky(gram + ridge * eye)).squeeze(-1)
