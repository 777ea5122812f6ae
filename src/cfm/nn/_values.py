"""Values in and counts out: embeddings of numbers, and the zero-inflated negative binomial."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class RotaryExpressionEmbedding(nn.Module):
    r"""Embed a number through sines and cosines at fixed, geometrically spaced frequencies.

    The embedding of :math:`x` is :math:`[\sin(x\,\omega), \cos(x\,\omega)]` with
    :math:`\omega_j = 100^{-2j/d}` for :math:`j = 0 \dots d/2 - 1`. A missing value is embedded
    as zeros.

    Parameters
    ----------
    dim
        Width of the embedding, even.
    base
        The 100 above.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import RotaryExpressionEmbedding
    >>> missing = torch.tensor([False, True])
    >>> RotaryExpressionEmbedding(dim=8)(torch.tensor([3.2, 0.0]), missing).shape
    torch.Size([2, 8])
    """

    def __init__(self, dim: int, base: float = 100.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim={dim} must be even: half of it are sines, half cosines.")
        exponent = 2.0 * torch.arange(dim // 2, dtype=torch.float32) / dim
        # A parameter that is never trained, as published weights store it.
        self.frequencies = nn.Parameter(base**-exponent, requires_grad=False)

    def forward(self, value: Tensor, missing: Tensor) -> Tensor:
        """Map ``(...,)`` values and a bool mask of the missing ones to ``(..., dim)``."""
        angle = value.unsqueeze(-1) * self.frequencies
        embedded = torch.cat([angle.sin(), angle.cos()], dim=-1)
        return embedded.masked_fill(missing.unsqueeze(-1), 0.0)


class MagnitudeEmbedding(nn.Module):
    """Embed a magnitude through Fourier features and a linear map; one vector for *unknown*.

    Parameters
    ----------
    dim
        Width of the embedding.
    n_frequencies
        Number of sine and of cosine features.
    max_value
        Magnitude at which the lowest frequency has gone through half a turn.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import MagnitudeEmbedding
    >>> known = torch.tensor([True, False])
    >>> MagnitudeEmbedding(dim=8)(torch.tensor([1.5, 0.0]), known).shape
    torch.Size([2, 8])
    """

    frequencies: Tensor

    def __init__(self, dim: int, n_frequencies: int = 8, max_value: float = 4.0) -> None:
        super().__init__()
        # On the CPU in any case: they are not stored with the weights.
        powers = torch.arange(n_frequencies, dtype=torch.float32, device="cpu")
        frequencies = math.pi / max_value * 2.0**powers
        self.register_buffer("frequencies", frequencies / 2.0, persistent=False)
        self.linear = nn.Linear(2 * n_frequencies + 1, dim)
        self.unknown = nn.Parameter(torch.zeros(dim))

    def forward(self, magnitude: Tensor, known: Tensor) -> Tensor:
        """Map ``(...,)`` magnitudes and a bool mask of the known ones to ``(..., dim)``."""
        value = torch.where(known, magnitude, torch.zeros_like(magnitude)).unsqueeze(-1)
        angle = value * self.frequencies
        features = torch.cat([value, angle.sin(), angle.cos()], dim=-1)
        embedded = self.linear(features.to(self.linear.weight.dtype))
        return torch.where(known.unsqueeze(-1), embedded, self.unknown.to(embedded.dtype))


#: Slope of the activation for negative numbers.
_SLOPE = 0.1


class BinnedValueEmbedding(nn.Module):
    r"""A number becomes a mixture of bin embeddings whose shares are learned.

    .. math:: h = \mathrm{LeakyReLU}_{0.1}(w v + b), \quad
              p = \mathrm{softmax}(\alpha h + W h + c), \quad e = p^\top E

    with a row of :math:`E` per bin. Nothing is cut into intervals beforehand, and the embedding
    changes smoothly with the value.

    Parameters
    ----------
    dim
        Width of the embedding.
    n_bins
        Number of bins.
    alpha
        Weight of the hidden numbers beside their mixture.

    References
    ----------
    Hao et al. 2024, Large-scale foundation model on single-cell transcriptomics (scFoundation),
    auto-discretisation; the numbers of its released code.
    """

    def __init__(self, dim: int, n_bins: int = 100, alpha: float = 1.0) -> None:
        super().__init__()
        if n_bins < 1:
            raise ValueError(f"n_bins must be at least 1; found {n_bins!r}.")
        self.alpha = alpha
        self.to_bins = nn.Linear(1, n_bins)
        self.mix = nn.Linear(n_bins, n_bins)
        self.bins = nn.Parameter(torch.empty(n_bins, dim))
        if not self.bins.is_meta:
            nn.init.normal_(self.bins)

    def shares(self, values: Tensor) -> Tensor:
        """Return the shares of the bins, ``(...)`` to ``(..., n_bins)``, which sum to 1."""
        hidden = F.leaky_relu(self.to_bins(values.unsqueeze(-1)), _SLOPE)
        return torch.softmax(self.alpha * hidden + self.mix(hidden), dim=-1)

    def forward(self, values: Tensor) -> Tensor:
        """Embed values, ``(...)`` to ``(..., dim)``."""
        return self.shares(values) @ self.bins


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


class ZINBHeads(nn.Module):
    """Linear heads that turn tokens into the three numbers of the distribution.

    Parameters
    ----------
    dim
        Width of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = nn.Linear(dim, 1)
        self.dispersion = nn.Linear(dim, 1)
        self.dropout = nn.Linear(dim, 1)

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
