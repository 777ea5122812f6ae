"""Performer layers: attention that is linear in the number of tokens (FAVOR+)."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.nn._kernels import prepare, prepare_linear

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


# exp() of more than this is infinite in float32 and bfloat16; a little is left for sums.
_LARGEST_EXPONENT = 80.0


def chunks(n: int, size: int) -> Iterator[slice]:
    """Cut ``n`` tokens into slices of at most ``size``."""
    for start in range(0, n, size):
        yield slice(start, min(start + size, n))


@torch.no_grad()
def run_layers(
    layers: Sequence[PerformerLayer], x: Tensor, *, chunk: int, dtype: torch.dtype
) -> Tensor:
    """Apply Performer layers one after the other, in place.

    The result is that of the layers themselves in evaluation mode; only the order of the
    arithmetic differs. Nothing of the size ``n × features`` exists: keys are summed into the
    context chunk by chunk, and the context of the next layer is gathered while the chunk is at
    hand.

    Parameters
    ----------
    layers
        In order.
    x
        ``(b, n, dim)`` float32 tokens; overwritten. A sample's result does not depend on the
        others.
    chunk
        Tokens at a time.
    dtype
        Of the matrix products: float32 or bfloat16. Sums, norms and the residual stream are
        float32 in any case.

    Returns
    -------
    ``x``.
    """
    if not layers:
        return x
    parts = list(chunks(x.shape[1], chunk))
    current = _Run(layers[0], dtype, x.shape[0])
    for rows in parts:
        current.gather(x[:, rows])
    for following in [*layers[1:], None]:
        current.close()
        ahead = None if following is None else _Run(following, dtype, x.shape[0])
        for rows in parts:
            current.update(x[:, rows])
            if ahead is not None:
                ahead.gather(x[:, rows])
        if ahead is not None:
            current = ahead
    return x


class _Run:
    """One layer's pass over a batch: keys and values in, then queries and feed-forward."""

    def __init__(self, layer: PerformerLayer, dtype: torch.dtype, n_samples: int) -> None:
        attention: PerformerAttention = layer.attention
        self.layer = layer
        self.dtype = dtype
        self.n_heads, self.head_dim = attention.n_heads, attention.head_dim
        self.to_kv = prepare_linear(
            torch.cat([attention.to_k.weight, attention.to_v.weight]),
            torch.cat([attention.to_k.bias, attention.to_v.bias]),
            dtype,
        )
        linear = (attention.to_q, attention.to_out, layer.ff_in, layer.ff_out)
        self.to_q, self.to_out, self.ff_in, self.ff_out = (prepare(part, dtype) for part in linear)
        features = attention.features * self.head_dim**-0.25  # (m, d)
        # No exponent exceeds |w|²/2, so with this shift exp() is finite without a search for the
        # largest exponent first; the shift cancels.
        shift = float(features.square().sum(1).max()) * self.head_dim**0.5 / 2.0
        self.shift = max(0.0, shift - _LARGEST_EXPONENT)
        ones = torch.ones_like(features[:, :1])
        self.projection = prepare_linear(
            torch.cat([features, -ones, -ones], dim=1),  # (m, d + 2)
            torch.full_like(features[:, 0], -self.shift) if self.shift else None,
            dtype,
        )
        shape = (n_samples * self.n_heads, 1)
        device = features.device
        self.largest = torch.full((*shape, 1), float("-inf"), device=device)
        self.sum = torch.zeros(*shape, self.head_dim + 1, device=device)
        self.context = torch.zeros(shape[0], features.shape[0], self.head_dim + 1, device=device)
        self.rest = self.sum

    def exponentials(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Exponentiate projections of queries or keys.

        Parameters
        ----------
        x
            ``(b, c, h, d)``.

        Returns
        -------
        ``(b·h, c, m)`` exponentials of projection − |x|²/2 − shift, and ``(b·h, c)`` the largest
        projection of each token.
        """
        norm = x.float().square().sum(-1, keepdim=True) * (0.5 * self.head_dim**-0.5)
        high = norm.to(self.dtype)
        low = (norm - high).to(self.dtype)  # bfloat16 alone has too few digits for the norm
        exponent = self.projection(torch.cat([x, high, low], dim=-1))  # (b, c, h, m)
        # The cast pays: amax of bfloat16 is five times slower.
        largest = exponent.float().amax(-1) + norm.squeeze(-1) + self.shift  # (b, c, h)
        b, c, h, m = exponent.shape
        features = exponent.exp_().transpose(1, 2).reshape(b * h, c, m)
        return features, largest.transpose(1, 2).reshape(b * h, c)

    def _scale(self, largest: Tensor) -> Tensor:
        """What turns the shifted exponentials into those below the largest projection."""
        return (self.shift - largest).clamp(max=_LARGEST_EXPONENT).exp()

    def gather(self, x: Tensor) -> None:
        """Add the keys and values of some tokens, ``(b, c, dim)``, to the context."""
        b, c, _ = x.shape
        norm = self.layer.attention_norm
        y = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        kv = self.to_kv(y).view(b, c, 2, self.n_heads, self.head_dim)
        features, largest = self.exponentials(kv[:, :, 0])
        # A last column of ones sums the features themselves.
        v = F.pad(kv[:, :, 1], (0, 1), value=1.0).transpose(1, 2).flatten(0, 1)  # (b·h, c, d+1)
        self.context += torch.bmm(features.transpose(1, 2), v).float()
        self.sum += v.sum(1, keepdim=True, dtype=torch.float32)
        self.largest = torch.maximum(self.largest, largest.amax(1).view(-1, 1, 1))

    def close(self) -> None:
        """Finish the context once all keys are in."""
        context = self.context * self._scale(self.largest) + FEATURE_EPS * self.sum
        self.rest = FEATURE_EPS * context.sum(1, keepdim=True)  # (b·h, 1, d + 1)
        self.context = context.to(self.dtype)

    def update(self, x: Tensor) -> None:
        """Attend and feed forward for some tokens, ``(b, c, dim)``, in place."""
        b, c, dim = x.shape
        layer, heads = self.layer, (self.n_heads, self.head_dim)
        norm = layer.attention_norm
        y = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        features, largest = self.exponentials(self.to_q(y).view(b, c, *heads))
        out = torch.bmm(features, self.context).float()  # (b·h, c, d + 1)
        out = out * self._scale(largest).unsqueeze(-1) + self.rest
        out = out[..., :-1] / out[..., -1:]
        out = out.view(b, self.n_heads, c, self.head_dim).transpose(1, 2).reshape(b, c, dim)
        x += self.to_out(out)
        norm = layer.ff_norm
        y = F.layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)
        x += self.ff_out(F.gelu(self.ff_in(y)))
