"""Embedding of a positive number that may be unknown."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


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
