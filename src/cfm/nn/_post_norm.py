"""Post-norm transformer layer over a set of tokens, and a stack of them prepared for inference."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._arguments import check_choice
from cfm.nn._linear import CHUNK, attend_by_products, prefers_onednn, prepare, prepare_linear

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

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
    with its defaults; it knows no positions.

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
        Only the first token of each set is asked for: the last layer then computes no others.
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

    def __init__(self, layer: TransformerEncoderLayer, dtype: torch.dtype, first_only: bool) -> None:
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
        out = torch.empty_like(q)
        done = 0
        parts = zip(k.split(list(lengths)), v.split(list(lengths)), n_queries, strict=True)
        for key, value, n in parts:
            rows = slice(done, done + n)
            attend = attend_by_products if _slow_fused(q, n) else F.scaled_dot_product_attention
            attended = attend(_split(q[rows], heads), _split(key, heads), _split(value, heads))
            out[rows] = _joined(attended)[0]
            done += n
        return out


def _slow_fused(x: Tensor, n_queries: int) -> bool:
    """Whether the fused kernel takes longer than products, which it does on some CPUs.

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
    """Place of the first token of each set."""
    sizes = torch.tensor(list(lengths), device=device)
    return sizes.cumsum(0) - sizes
