"""Bidirectional transformer with rotary positions, RMS norms and gated feed-forward networks."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cfm.nn._linear import Linear, prepare

_ROTARY_BASE = 10_000.0


class LlamaBlock(nn.Module):
    """Pre-norm block: attention in both directions, then SwiGLU; no biases.

    Parameters
    ----------
    dim
        Width of the tokens.
    n_heads
        Number of attention heads; each has an even width of ``dim / n_heads``.
    ff_dim
        Width of the hidden feed-forward layer.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import LlamaTrunk
    >>> block = LlamaTrunk(dim=8, n_layers=1, n_heads=2, ff_dim=16).blocks[0]
    >>> type(block).__name__
    'LlamaBlock'
    """

    def __init__(self, dim: int, n_heads: int, ff_dim: int) -> None:
        super().__init__()
        if dim % (2 * n_heads):
            raise ValueError(f"Width {dim} does not split into {n_heads} heads of even width.")
        self.n_heads = n_heads
        self.attention_norm = nn.RMSNorm(dim, eps=1e-6)
        self.to_qkv = Linear(dim, 3 * dim)
        self.to_out = Linear(dim, dim)
        self.ff_norm = nn.RMSNorm(dim, eps=1e-6)
        self.ff_in = Linear(dim, 2 * ff_dim)
        self.ff_out = Linear(ff_dim, dim)

    def forward(self, x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
        """Map ``(b, n, dim)`` tokens to ``(b, n, dim)``."""
        return self._run(x, rotation, (self.to_qkv, self.to_out, self.ff_in, self.ff_out))

    def prepare(self, dtype: torch.dtype) -> Callable[[Tensor, tuple[Tensor, Tensor]], Tensor]:
        """Return the block for many calls without gradients; matrix products in ``dtype``."""
        linear = (self.to_qkv, self.to_out, self.ff_in, self.ff_out)
        layers = tuple(prepare(layer, dtype) for layer in linear)
        return lambda x, rotation: self._run(x, rotation, layers)

    def _run(
        self,
        x: Tensor,
        rotation: tuple[Tensor, Tensor],
        layers: tuple[Callable[[Tensor], Tensor], ...],
    ) -> Tensor:
        to_qkv, to_out, ff_in, ff_out = layers
        b, n, dim = x.shape
        qkv = to_qkv(self.attention_norm(x)).view(b, n, 3, self.n_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # (b, h, n, d) each
        q, k = rotate(q, rotation), rotate(k, rotation)
        mixed = F.scaled_dot_product_attention(q, k, v)
        x = x + to_out(mixed.transpose(1, 2).reshape(b, n, dim)).to(x.dtype)
        gate, value = ff_in(self.ff_norm(x)).chunk(2, dim=-1)
        return x + ff_out(F.silu(gate) * value).to(x.dtype)


class LlamaTrunk(nn.Module):
    """Blocks and a final RMS norm.

    Width 640, 13 layers, 10 heads and a hidden width of 2,560 make 85,214,080 parameters, the
    trunk of Lingshu-Cell (arXiv 2603.25240, Supplementary Table 2).

    Parameters
    ----------
    dim, n_heads, ff_dim
        As for :class:`LlamaBlock`.
    n_layers
        Number of blocks.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import LlamaTrunk
    >>> LlamaTrunk(dim=8, n_layers=2, n_heads=2, ff_dim=16)(torch.randn(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(self, dim: int, n_layers: int, n_heads: int, ff_dim: int) -> None:
        super().__init__()
        self.head_dim = dim // n_heads
        self.blocks = nn.ModuleList(LlamaBlock(dim, n_heads, ff_dim) for _ in range(n_layers))
        self.norm = nn.RMSNorm(dim, eps=1e-6)
        #: Whether training recomputes the blocks in the backward pass instead of storing them.
        self.recompute = False

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, n, dim)`` tokens to ``(b, n, dim)``; positions count along ``n``."""
        rotation = rotations(x.shape[1], self.head_dim, x.device)
        for block in self.blocks:
            if self.recompute and torch.is_grad_enabled():
                x = checkpoint(block, x, rotation, use_reentrant=False)
            else:
                x = block(x, rotation)
        return self.norm(x)

    def prepare(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """Return the trunk for many calls without gradients; matrix products in ``dtype``."""
        blocks = [block.prepare(dtype) for block in self.blocks if isinstance(block, LlamaBlock)]

        def run(x: Tensor) -> Tensor:
            rotation = rotations(x.shape[1], self.head_dim, x.device)
            for block in blocks:
                x = block(x, rotation)
            return self.norm(x)

        return run


def rotations(n: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return cosines and sines of the angle of each position and frequency, ``(n, dim / 2)``."""
    powers = torch.arange(0, dim, 2, device=device, dtype=torch.float32) / dim
    angle = torch.arange(n, device=device, dtype=torch.float32)[:, None] / _ROTARY_BASE**powers
    return angle.cos(), angle.sin()


def rotate(x: Tensor, rotation: tuple[Tensor, Tensor]) -> Tensor:
    """Turn pairs of dimensions ``(i, i + d / 2)`` of ``(..., n, d)`` by the angle of a position."""
    cos, sin = (part.to(x.dtype) for part in rotation)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
