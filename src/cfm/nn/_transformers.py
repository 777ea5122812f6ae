"""Transformer layers: direction-aware attention, post-norm layers, Llama blocks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from cfm._arguments import check_choice
from cfm.nn._kernels import (
    CHUNK,
    Linear,
    attend_by_products,
    prefers_onednn,
    prepare,
    prepare_linear,
)

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


Activation = Literal["gelu", "relu"]

#: Our names of the tensors by those of :class:`torch.nn.TransformerEncoderLayer`.
TORCH_NAMES = {
    "self_attn.in_proj_weight": "qkv.weight",
    "self_attn.in_proj_bias": "qkv.bias",
    "self_attn.out_proj.weight": "out.weight",
    "self_attn.out_proj.bias": "out.bias",
    "linear1.weight": "ff_in.weight",
    "linear1.bias": "ff_in.bias",
    "linear2.weight": "ff_out.weight",
    "linear2.bias": "ff_out.bias",
    "norm1.weight": "attention_norm.weight",
    "norm1.bias": "attention_norm.bias",
    "norm2.weight": "ff_norm.weight",
    "norm2.bias": "ff_norm.bias",
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu}
#: Fewer queries than this are left to the fused kernel of attention.
_FUSED = 128


class TransformerEncoderLayer(nn.Module):
    """Self-attention and a feed-forward network, each added to its input and then normalised.

    The layer of the first transformers, the same as :class:`torch.nn.TransformerEncoderLayer`
    with its defaults; it has no positions.

    Parameters
    ----------
    dim
        Width of the tokens, divisible by ``n_heads``.
    n_heads
        Number of attention heads.
    ff_dim
        Width of the hidden feed-forward layer.
    activation
        ``"gelu"`` (exact) or ``"relu"``.
    dropout
        Dropout of attention weights, hidden values and both branches.
    eps
        Of the layer norms.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import TransformerEncoderLayer
    >>> TransformerEncoderLayer(dim=8, n_heads=2, ff_dim=16)(torch.randn(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        ff_dim: int,
        *,
        activation: Activation = "gelu",
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        if dim % n_heads:
            raise ValueError(f"dim={dim} must be divisible by n_heads={n_heads}.")
        check_choice("activation", activation, _ACTIVATIONS)
        self.n_heads = n_heads
        self.activation = activation
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.ff_in = nn.Linear(dim, ff_dim)
        self.ff_out = nn.Linear(ff_dim, dim)
        self.attention_norm = nn.LayerNorm(dim, eps=eps)
        self.ff_norm = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(dropout)
        if not self.qkv.weight.is_meta:
            for linear in (self.qkv, self.out, self.ff_in, self.ff_out):
                nn.init.xavier_uniform_(linear.weight)
                nn.init.zeros_(linear.bias)

    def forward(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """Map tokens to tokens.

        Parameters
        ----------
        x
            ``(b, n, dim)``.
        bias
            ``(b, n)``, added to every attention logit of a key: −inf hides a token.

        Returns
        -------
        ``(b, n, dim)``.
        """
        q, k, v = _heads(self.qkv(x), self.n_heads)
        share = self.dropout.p if self.training else 0.0
        mask = None if bias is None else bias[:, None, None, :].to(q.dtype)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=share)
        x = self.attention_norm(x + self.dropout(self.out(_joined(attended))))
        hidden = self.dropout(_ACTIVATIONS[self.activation](self.ff_in(x)))
        return self.ff_norm(x + self.dropout(self.ff_out(hidden)))

    def attention_weights(
        self, x: Tensor, bias: Tensor | None = None, *, first_only: bool = False
    ) -> Tensor:
        """Return the attention weights for an input of this layer.

        Parameters
        ----------
        x, bias
            As for :meth:`forward`.
        first_only
            Only those of the first token as query.

        Returns
        -------
        ``(b, heads, n, n)``, or ``(b, heads, 1, n)``; rows (queries) sum to 1.
        """
        q, k, _ = _heads(self.qkv(x), self.n_heads)
        if first_only:
            q = q[:, :, :1]
        logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        if bias is not None:
            logits = logits + bias[:, None, None, :]
        return torch.softmax(logits, dim=-1)


class PreparedStack:
    """Post-norm layers prepared for many sets without gradients.

    Sets of any sizes are laid end to end: nothing is padded, and a set does not depend on those
    beside it.

    Parameters
    ----------
    layers
        :class:`TransformerEncoderLayer` modules, in order, in evaluation mode.
    dtype
        Of the matrix products and of attention; sums and norms stay in float32.
    first_only
        Return the first token of each set only; the last layer computes no others.
    """

    def __init__(
        self, layers: nn.ModuleList, dtype: torch.dtype, *, first_only: bool = False
    ) -> None:
        last = len(layers) - 1
        self._layers = [
            _Prepared(cast("TransformerEncoderLayer", layer), dtype, first_only and i == last)
            for i, layer in enumerate(layers)
        ]
        self._first_only = first_only

    def __call__(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        """Map the tokens of all sets.

        Parameters
        ----------
        x
            ``(sum of lengths, dim)`` float32.
        lengths
            Tokens of each set, at least 1.

        Returns
        -------
        ``(sum of lengths, dim)`` float32, or ``(n_sets, dim)`` with ``first_only``.
        """
        for layer in self._layers:
            x = layer(x, lengths)
        if self._first_only and not self._layers:
            return x[_starts(lengths, x.device)]
        return x


class _Prepared:
    """One layer of a :class:`PreparedStack`."""

    def __init__(
        self, layer: TransformerEncoderLayer, dtype: torch.dtype, first_only: bool
    ) -> None:
        self.layer = layer
        self.first_only = first_only
        if first_only:
            dim = layer.out.in_features
            weight, bias = layer.qkv.weight, layer.qkv.bias
            self.queries = prepare_linear(weight[:dim], bias[:dim], dtype)
            self.keys_values = prepare_linear(weight[dim:], bias[dim:], dtype)
        else:
            self.qkv = prepare(layer.qkv, dtype)
        self.out = prepare(layer.out, dtype)
        self.ff_in = prepare(layer.ff_in, dtype)
        self.ff_out = prepare(layer.ff_out, dtype)

    def __call__(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
        if self.first_only:
            kept = x[_starts(lengths, x.device)]
            q = self.queries(kept)
            k, v = self.keys_values(x).chunk(2, dim=-1)
            x, n_queries = kept, [1] * len(lengths)
        else:
            q, k, v = self.qkv(x).chunk(3, dim=-1)
            n_queries = list(lengths)
        attended = self._attend(q, k, v, n_queries, lengths)
        x = self.layer.attention_norm(x + self.out(attended))
        act = _ACTIVATIONS[self.layer.activation]
        step = CHUNK * torch.get_num_threads() if x.device.type == "cpu" else len(x)
        parts = [
            self.layer.ff_norm(part + self.ff_out(act(self.ff_in(part))))
            for part in x.split(max(1, step))
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _attend(
        self, q: Tensor, k: Tensor, v: Tensor, n_queries: Sequence[int], lengths: Sequence[int]
    ) -> Tensor:
        heads = self.layer.n_heads
        if len(set(lengths)) == 1 and not _slow_fused(q, n_queries[0]):  # one call for all
            b = len(lengths)
            q, k, v = (t.reshape(b, -1, heads, t.shape[-1] // heads) for t in (q, k, v))
            q, k, v = (t.transpose(1, 2) for t in (q, k, v))
            return _joined(F.scaled_dot_product_attention(q, k, v)).flatten(0, 1)
        queries, keys, values = (
            _split(t, heads).split(list(sizes), dim=2)
            for t, sizes in ((q, n_queries), (k, lengths), (v, lengths))
        )
        attended = [
            attend_by_products(*parts)
            if _slow_fused(q, n)
            else F.scaled_dot_product_attention(*parts)
            for n, *parts in zip(n_queries, queries, keys, values, strict=True)
        ]
        return _joined(torch.cat(attended, dim=2))[0]


def _slow_fused(x: Tensor, n_queries: int) -> bool:
    """Return whether the fused kernel is slower than products, as on some CPUs.

    In bfloat16 three times as long, in float32 half as long again where MKL is slow.
    """
    if x.device.type != "cpu" or n_queries < _FUSED:
        return False
    return x.dtype == torch.bfloat16 or (x.dtype == torch.float32 and prefers_onednn(x.device))


def _heads(qkv: Tensor, n_heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Split ``(b, n, 3 dim)`` into queries, keys and values ``(b, heads, n, head_dim)``."""
    q, k, v = (
        t.unflatten(-1, (n_heads, t.shape[-1] // n_heads)).transpose(1, 2)
        for t in qkv.chunk(3, dim=-1)
    )
    return q, k, v


def _split(x: Tensor, n_heads: int) -> Tensor:
    """Split ``(n, dim)`` into ``(1, heads, n, head_dim)``."""
    return x.unflatten(-1, (n_heads, x.shape[-1] // n_heads)).transpose(0, 1).unsqueeze(0)


def _joined(x: Tensor) -> Tensor:
    """Join the heads, ``(b, heads, n, head_dim)`` to ``(b, n, dim)``."""
    return x.transpose(1, 2).flatten(2)


def _starts(lengths: Sequence[int], device: torch.device) -> Tensor:
    """Return the place of the first token of each set."""
    sizes = torch.tensor(list(lengths), device=device)
    return sizes.cumsum(0) - sizes


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
