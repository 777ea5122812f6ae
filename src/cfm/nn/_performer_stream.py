"""Performer layers without gradients: a few tokens at a time, so that they stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from cfm.nn._linear import prepare, prepare_linear
from cfm.nn._performer import FEATURE_EPS, PerformerAttention, PerformerLayer

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
