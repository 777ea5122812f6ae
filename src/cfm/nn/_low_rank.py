"""A linear gene-gene term: ridge regression of a profile on gene factors, in closed form."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class LowRankRidge(nn.Module):
    r"""Predict every gene's effect from the observed ones through low-rank gene covariance.

    With gene factors :math:`F \in \mathbb{R}^{G \times r}` the gene-gene covariance is
    :math:`F F^\top`; given observed signed effects :math:`y_O` the posterior mean of a profile's
    factor scores is

    .. math:: z = (F_O^\top F_O + \lambda I)^{-1} F_O^\top y_O

    and the prediction for any gene :math:`g` is :math:`F_g z`. This is kernel ridge regression
    with the kernel :math:`F F^\top`, at the cost of one ``r × r`` solve per profile.

    Parameters
    ----------
    ridge
        Initial :math:`\lambda`; learned on a log scale.
    """

    def __init__(self, ridge: float = 1.0) -> None:
        super().__init__()
        self.log_ridge = nn.Parameter(torch.tensor(math.log(ridge)))

    def scores(self, factors: Tensor, effects: Tensor, observed: Tensor) -> Tensor:
        """Return the factor scores of profiles.

        Parameters
        ----------
        factors
            ``(b, n, r)`` factors of each token's gene.
        effects
            ``(b, n)`` signed effects; ignored where not observed.
        observed
            ``(b, n)`` bool.

        Returns
        -------
        ``(b, r)`` factor scores in the dtype of ``factors``.
        """
        # The solve is done in float32 at least: bfloat16 has no Cholesky and too few digits.
        dtype = torch.promote_types(factors.dtype, torch.float32)
        f = factors.to(dtype) * observed.unsqueeze(-1)  # (b, n, r)
        y = torch.where(observed, effects, torch.zeros_like(effects)).to(dtype)
        gram = f.transpose(1, 2) @ f  # (b, r, r)
        eye = torch.eye(gram.shape[-1], dtype=dtype, device=gram.device)
        chol = torch.linalg.cholesky(gram + self.log_ridge.exp().to(dtype) * eye)
        rhs = f.transpose(1, 2) @ y.unsqueeze(-1)  # (b, r, 1)
        return torch.cholesky_solve(rhs, chol).squeeze(-1).to(factors.dtype)

    def forward(self, factors: Tensor, effects: Tensor, observed: Tensor) -> Tensor:
        """Return the linear prediction of every token's effect, ``(b, n)``."""
        z = self.scores(factors, effects, observed)
        return (factors @ z.unsqueeze(-1)).squeeze(-1)
