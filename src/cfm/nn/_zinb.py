"""Zero-inflated negative binomial distribution of counts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

#: Counts up to this are zeros.
_ZERO = 1e-8
_EPS = 1e-8
#: Bounds of the mean, as published.
LEAST_MEAN, MOST_MEAN = 1e-5, 1e6


def zinb_nll(
    counts: Tensor, mean: Tensor, dispersion: Tensor, dropout: Tensor, *, ridge: float = 0.0
) -> Tensor:
    r"""Return the negative log-likelihood of counts, element by element.

    .. math::
        -\log P(0) &= -\log\left(\pi + (1 - \pi) (\theta / (\theta + \mu))^\theta\right) \\
        -\log P(x) &= -\log(1 - \pi) - \log\Gamma(x + \theta) + \log\Gamma(\theta)
            + \log\Gamma(x + 1) - \theta \log\frac{\theta}{\theta + \mu}
            - x \log\frac{\mu}{\theta + \mu}

    Parameters
    ----------
    counts
        *x*, zero or more; up to 1e-8 is zero.
    mean
        :math:`\mu` of the negative binomial part, above 0.
    dispersion
        :math:`\theta`, above 0; the variance is :math:`\mu + \mu^2 / \theta`.
    dropout
        :math:`\pi`, the probability of a zero beside that part, 0 to 1.
    ridge
        Weight of :math:`\pi^2`, which is added.

    Returns
    -------
    Of the broadcast shape of the inputs, in nats.
    """
    dropout = dropout.clamp(_EPS, 1.0 - 1e-7)
    log_share = -torch.log1p(mean / dispersion)  # log θ / (θ + μ)
    log_zero = dispersion * log_share
    stays = torch.log1p(-dropout)
    zero = -torch.logaddexp(dropout.log(), stays + log_zero)
    more = (
        torch.lgamma(dispersion)
        + torch.lgamma(counts + 1.0)
        - torch.lgamma(counts + dispersion)
        - log_zero
        - counts * (mean.log() - dispersion.log() + log_share)
        - stays
    )
    loss = torch.where(counts <= _ZERO, zero, more)
    return loss + ridge * dropout.square() if ridge else loss


class ZINBHeads(torch.nn.Module):
    """Linear heads that turn tokens into the three numbers of the distribution.

    Parameters
    ----------
    dim
        Width of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = torch.nn.Linear(dim, 1)
        self.dispersion = torch.nn.Linear(dim, 1)
        self.dropout = torch.nn.Linear(dim, 1)

    @torch.no_grad()
    def start_at_one(self) -> None:
        """Let every mean be 1, whatever the token; the rest of a model can then start it off."""
        self.mean.weight.zero_()
        self.mean.bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ``(..., dim)`` to mean, dispersion and dropout, each ``(...)`` float32.

        The mean is within 1e-5 and 1e6, the dispersion within 1e-4 and 1e4, as published.
        """
        mean, dispersion, dropout = (
            head(x).squeeze(-1).float() for head in (self.mean, self.dispersion, self.dropout)
        )
        return (
            mean.exp().clamp(LEAST_MEAN, MOST_MEAN),
            F.softplus(dispersion).clamp(1e-4, 1e4),
            torch.sigmoid(dropout),
        )
