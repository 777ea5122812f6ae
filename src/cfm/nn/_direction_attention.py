"""Self-attention whose logits know which way two genes move."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Large enough that exp() of it underflows to exactly zero; times sqrt(head_dim), as the query
# carries it, still a finite float16 for heads up to 256 wide.
_PADDING_LOGIT = -4.0e3


class DirectionAttention(nn.Module):
    r"""Multi-head self-attention with a learned bias per head and pair of directions.

    The logit of query token :math:`i` and key token :math:`j` in head :math:`h` is

    .. math:: \frac{q_{hi}^\top k_{hj}}{\sqrt{d}} + B_h[s_i, s_j]

    with :math:`s_i` the *state* of a token (down, unchanged, up, hidden, …). :math:`B_h` has as
    many rows as there are states, so it is folded into that many query and key dimensions: the
    query carries :math:`\sqrt{d} B_h[s_i, :]`, the key the one-hot vector of :math:`s_j`. Those
    dimensions are reserved *inside* the head, so query, key and value stay equally wide and
    :func:`torch.nn.functional.scaled_dot_product_attention` uses its fast kernel; no
    ``n × n`` bias tensor exists. Padding is one more state whose column of :math:`B_h` is
    fixed at a large negative number.

    Parameters
    ----------
    dim
        Width of the tokens, divisible by ``n_heads``.
    n_heads
        Number of heads.
    n_states
        Number of token states without padding; state ``n_states`` marks padding.
    dropout
        Dropout of the attention weights in training.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import DirectionAttention
    >>> attention = DirectionAttention(dim=32, n_heads=2, n_states=3)
    >>> state = torch.tensor([[0, 1, 2, 2, 1]])
    >>> attention(torch.randn(1, 5, 32), state).shape
    torch.Size([1, 5, 32])
    """

    def __init__(self, dim: int, n_heads: int, n_states: int, dropout: float = 0.0) -> None:
        super().__init__()
        if dim % n_heads:
            raise ValueError(f"dim={dim} must be divisible by n_heads={n_heads}.")
        self.n_heads = n_heads
        self.n_states = n_states
        self.head_dim = dim // n_heads
        self.content_dim = self.head_dim - n_states - 1
        if self.content_dim < 1:
            raise ValueError(
                f"Heads of width {self.head_dim} cannot reserve {n_states + 1} dimensions for "
                f"{n_states} states and padding; use fewer heads or a larger dim."
            )
        self.dropout = dropout
        self.to_q = nn.Linear(dim, n_heads * self.content_dim)
        self.to_k = nn.Linear(dim, n_heads * self.content_dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.direction_bias = nn.Parameter(torch.zeros(n_heads, n_states, n_states))

    def bias_table(self) -> Tensor:
        """Return the bias of every pair of states, ``(heads, states + 1, states + 1)``."""
        table = F.pad(self.direction_bias, (0, 0, 0, 1))  # what padding attends to is never read
        return F.pad(table, (0, 1), value=_PADDING_LOGIT)

    def queries_keys_values(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Project tokens and fold the direction bias into the reserved dimensions.

        Parameters
        ----------
        x
            ``(b, n, dim)`` tokens.
        state
            ``(b, n)`` integer states, ``n_states`` = padding.

        Returns
        -------
        Query, key and value, each ``(b, heads, n, head_dim)``.
        """
        b, n, _ = x.shape
        q = self.to_q(x).view(b, n, self.n_heads, self.content_dim)
        k = self.to_k(x).view(b, n, self.n_heads, self.content_dim)
        v = self.to_v(x).view(b, n, self.n_heads, self.head_dim).transpose(1, 2)
        # (states + 1, heads, states + 1) -> one row a token: (b, n, heads, states + 1)
        rows = self.bias_table().to(q.dtype).transpose(0, 1)[state] * math.sqrt(self.head_dim)
        columns = F.one_hot(state, self.n_states + 1).to(k.dtype)  # (b, n, states + 1)
        columns = columns.unsqueeze(2).expand(b, n, self.n_heads, -1)
        q = torch.cat([q, rows], dim=-1).transpose(1, 2)  # (b, h, n, head_dim)
        k = torch.cat([k, columns], dim=-1).transpose(1, 2)  # (b, h, n, head_dim)
        return q, k, v

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        """Attend; ``(b, n, dim)`` tokens and ``(b, n)`` states to ``(b, n, dim)``."""
        b, n, dim = x.shape
        q, k, v = self.queries_keys_values(x, state)
        dropout = self.dropout if self.training else 0.0
        out = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout)  # (b, h, n, head_dim)
        return self.to_out(out.transpose(1, 2).reshape(b, n, dim))

    def attention_weights(self, x: Tensor, state: Tensor) -> Tensor:
        """Return the attention weights themselves, ``(b, heads, n, n)``; rows sum to 1."""
        q, k, _ = self.queries_keys_values(x, state)
        return torch.softmax(q @ k.transpose(-1, -2) / math.sqrt(self.head_dim), dim=-1)


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
