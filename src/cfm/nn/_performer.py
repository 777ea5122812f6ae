"""Performer layers: attention that is linear in the number of tokens (FAVOR+)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Added to every random feature, so that no token is left without attention.
FEATURE_EPS = 1e-4
#: Our names of the tensors of a :class:`PerformerLayer` by those of performer-pytorch.
PERFORMER_NAMES = {"0.fn.fast_attention.projection_matrix": "attention.features"} | {
    f"{theirs}.{kind}": f"{ours}.{kind}"
    for theirs, ours in {
        "0.norm": "attention_norm",
        "0.fn.to_q": "attention.to_q",
        "0.fn.to_k": "attention.to_k",
        "0.fn.to_v": "attention.to_v",
        "0.fn.to_out": "attention.to_out",
        "1.norm": "ff_norm",
        "1.fn.fn.w1": "ff_in",
        "1.fn.fn.w2": "ff_out",
    }.items()
    for kind in ("weight", "bias")
}


def orthogonal_features(
    n_features: int, dim: int, generator: torch.Generator | None = None
) -> Tensor:
    """Draw random features: blocks of orthogonal rows, each row as long as a normal vector.

    Parameters
    ----------
    n_features, dim
        Shape of the result.
    generator
        Source of randomness, on the CPU.

    Returns
    -------
    ``(n_features, dim)`` float32.

    References
    ----------
    Choromanski et al. 2021, Rethinking attention with Performers, section 2.4.
    """
    blocks = []
    for start in range(0, n_features, dim):
        q, _ = torch.linalg.qr(torch.randn(dim, dim, generator=generator))
        blocks.append(q.T[: n_features - start])
    length = torch.randn(n_features, dim, generator=generator).norm(dim=1, keepdim=True)
    return length * torch.cat(blocks)


class PerformerAttention(nn.Module):
    r"""Multi-head self-attention through positive random features of the softmax kernel.

    With random directions :math:`w_1 \dots w_m` and :math:`\tilde{x} = x / d^{1/4}` the features
    are

    .. math:: \phi(x)_i = \exp(w_i^\top \tilde{x} - \|\tilde{x}\|^2 / 2 - c) + \epsilon

    with :math:`c` the largest :math:`w_i^\top \tilde{x}` of the query, or of all keys of the
    sample; the output of query :math:`q` is
    :math:`\sum_j \phi(q)^\top \phi(k_j) v_j / \sum_j \phi(q)^\top \phi(k_j)`. These are the
    numbers of performer-pytorch 1.1.4, so that weights trained there can be used.

    Parameters
    ----------
    dim
        Width of the tokens, divisible by ``n_heads``.
    n_heads
        Number of heads.
    n_features
        Number of random features *m*; by default :math:`d \ln d` of the head width *d*.
    dropout
        Dropout of the output in training.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import PerformerAttention
    >>> PerformerAttention(dim=8, n_heads=2)(torch.randn(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    features: Tensor

    def __init__(
        self, dim: int, n_heads: int, n_features: int | None = None, dropout: float = 0.0
    ) -> None:
        super().__init__()
        if dim % n_heads:
            raise ValueError(f"dim={dim} must be divisible by n_heads={n_heads}.")
        self.n_heads = n_heads
        self.head_dim = dim // n_heads
        if n_features is None:
            n_features = int(self.head_dim * math.log(self.head_dim))
        if n_features < 1:
            raise ValueError(f"Heads of width {self.head_dim} are too narrow; use fewer heads.")
        self.to_q = nn.Linear(dim, dim)
        self.to_k = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out = nn.Linear(dim, dim)
        self.dropout = nn.Dropout(dropout)
        self.register_buffer("features", torch.empty(n_features, self.head_dim))
        if not self.features.is_meta:
            self.redraw()

    @torch.no_grad()
    def redraw(self, generator: torch.Generator | None = None) -> None:
        """Draw new random features, as training does now and then."""
        n_features, dim = self.features.shape
        self.features.copy_(orthogonal_features(n_features, dim, generator))

    def feature_map(self, x: Tensor, *, is_query: bool) -> Tensor:
        """Map ``(b, h, n, d)`` queries or keys to ``(b, h, n, m)`` positive features."""
        # float32 at least: the exponent's error becomes the relative error of the feature.
        x = x.to(torch.promote_types(x.dtype, torch.float32)) * x.shape[-1] ** -0.25
        with torch.autocast(x.device.type, enabled=False):
            projected = x @ self.features.to(x.dtype).T  # (b, h, n, m)
        norm = x.square().sum(-1, keepdim=True) / 2.0
        largest = projected.amax(-1 if is_query else (-2, -1), keepdim=True).detach()
        return (projected - norm - largest).exp() + FEATURE_EPS

    def forward(self, x: Tensor) -> Tensor:
        """Attend; ``(b, n, dim)`` to ``(b, n, dim)``."""
        b, n, dim = x.shape
        q, k, v = (
            layer(x).view(b, n, self.n_heads, self.head_dim).transpose(1, 2)  # (b, h, n, d)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        q, k = self.feature_map(q, is_query=True), self.feature_map(k, is_query=False)
        v = v.to(k.dtype)
        with torch.autocast(x.device.type, enabled=False):
            context = k.transpose(-1, -2) @ v  # (b, h, m, d)
            weight = q @ k.sum(-2).unsqueeze(-1)  # (b, h, n, 1)
            out = (q @ context) / weight  # (b, h, n, d)
        return self.dropout(self.to_out(out.transpose(1, 2).reshape(b, n, dim)))


class PerformerLayer(nn.Module):
    """Pre-norm layer: linear attention, then a GELU feed-forward network.

    Parameters
    ----------
    dim, n_heads, n_features
        As in :class:`PerformerAttention`.
    ff_mult
        Width of the hidden feed-forward layer, as a multiple of ``dim``.
    attention_dropout, ff_dropout
        Dropout of the attention's output and of the hidden feed-forward layer.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import PerformerLayer
    >>> PerformerLayer(dim=8, n_heads=2)(torch.randn(1, 5, 8)).shape
    torch.Size([1, 5, 8])
    """

    def __init__(
        self,
        dim: int,
        n_heads: int,
        n_features: int | None = None,
        *,
        ff_mult: int = 4,
        attention_dropout: float = 0.0,
        ff_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(dim)
        self.attention = PerformerAttention(dim, n_heads, n_features, attention_dropout)
        self.ff_norm = nn.LayerNorm(dim)
        self.ff_in = nn.Linear(dim, ff_mult * dim)
        self.ff_out = nn.Linear(ff_mult * dim, dim)
        self.ff_dropout = nn.Dropout(ff_dropout)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``(b, n, dim)`` tokens to ``(b, n, dim)``."""
        x = x + self.attention(self.attention_norm(x))
        hidden = self.ff_dropout(F.gelu(self.ff_in(self.ff_norm(x))))
        return x + self.ff_out(hidden)
