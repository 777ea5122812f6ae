"""What BulkFormer is built of: a graph convolution, then Performer layers."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cfm.nn import GraphConvolution, PerformerLayer


def mlp(n_in: int, n_hidden: int, n_out: int) -> nn.Sequential:
    """Return two linear layers with a ReLU between them."""
    return nn.Sequential(nn.Linear(n_in, n_hidden), nn.ReLU(), nn.Linear(n_hidden, n_out))


class GraphPerformerBlock(nn.Module):
    """Graph convolution over the normalised tokens, then Performer layers.

    Parameters
    ----------
    dim, n_layers, n_heads, ff_mult, attention_dropout, ff_dropout
        Size of the block.
    """

    def __init__(
        self,
        dim: int,
        n_layers: int,
        n_heads: int,
        ff_mult: int = 4,
        attention_dropout: float = 0.0,
        ff_dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.graph = GraphConvolution(dim)
        self.layers = nn.ModuleList(
            PerformerLayer(
                dim,
                n_heads,
                ff_mult=ff_mult,
                attention_dropout=attention_dropout,
                ff_dropout=ff_dropout,
            )
            for _ in range(n_layers)
        )

    def performer_layers(self) -> list[PerformerLayer]:
        """Return the layers, typed."""
        return [cast("PerformerLayer", layer) for layer in self.layers]

    def forward(self, x: Tensor, adjacency: Tensor, *, recompute: bool = False) -> Tensor:
        """Map ``(b, n, dim)`` to ``(b, n, dim)``; ``recompute`` trades time for memory."""
        x = self.norm(x)  # the residual starts here, as in the published model
        x = x + self.graph(x, adjacency)
        for layer in self.layers:
            x = checkpoint(layer, x, use_reentrant=False) if recompute else layer(x)
        return x
