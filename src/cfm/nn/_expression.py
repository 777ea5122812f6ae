"""Embedding of an expression value by its angle, as rotary position encodings do."""

from __future__ import annotations

import torch
from torch import Tensor, nn


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
