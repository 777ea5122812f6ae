"""Embedding of a value as a learned mixture of bins."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

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
