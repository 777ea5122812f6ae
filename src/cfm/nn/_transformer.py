"""Pre-norm transformer block around direction-aware attention."""

from __future__ import annotations

from torch import Tensor, nn

from cfm.nn._direction_attention import DirectionAttention


class DirectionBlock(nn.Module):
    """Pre-norm block: direction-aware attention, then a GELU feed-forward network.

    Parameters
    ----------
    dim
        Width of the tokens.
    n_heads
        Number of attention heads.
    n_states
        Number of token states without padding.
    ff_mult
        Width of the hidden feed-forward layer, as a multiple of ``dim``.
    dropout
        Dropout of both branches.
    attention_dropout
        Dropout of the attention weights. On a CPU anything but 0 makes training build the
        ``n × n`` weights: twice the time, and memory that grows with ``n²``.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import DirectionBlock
    >>> block = DirectionBlock(dim=32, n_heads=2, n_states=3)
    >>> block(torch.randn(1, 5, 32), torch.tensor([[0, 1, 2, 2, 1]])).shape
    torch.Size([1, 5, 32])
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_states: int,
        ff_mult: int = 4,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = DirectionAttention(dim, n_heads, n_states, attention_dropout)
        self.feed_forward = nn.Sequential(
            nn.LayerNorm(dim),
            nn.Linear(dim, ff_mult * dim),
            nn.GELU(),
            nn.Linear(ff_mult * dim, dim),
        )
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Map ``(b, n, dim)`` tokens with ``(b, n)`` states to ``(b, n, dim)``."""
        x = x + self.dropout(self.attention(self.attention_norm(x), state))
        return x + self.dropout(self.feed_forward(x))

    def attention_weights(self, x: Tensor, state: Tensor) -> Tensor:
        """Return the attention weights of this block for its input, ``(b, heads, n, n)``."""
        return self.attention.attention_weights(self.attention_norm(x), state)
