"""Decoder of CellVQ: the genes that were read in, the counts of all genes out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor, nn

from cfm.nn import PerformerLayer
from cfm.nn._zinb import ZINBHeads

if TYPE_CHECKING:
    from cfm.models.cellvq._sizes import CellVQSize


class ExpressionDecoder(nn.Module):
    """Performer over all positions, with a zero-inflated negative binomial per position.

    Parameters
    ----------
    size
        Sizes of the network.
    """

    def __init__(self, size: CellVQSize) -> None:
        super().__init__()
        width = size.decoder_dim
        self.projection = nn.Linear(size.dim, width)
        self.layers = nn.ModuleList(
            PerformerLayer(width, size.decoder_heads) for _ in range(size.decoder_layers)
        )
        # Two norms, one after the other, as published.
        self.norm = nn.LayerNorm(width)
        self.output_norm = nn.LayerNorm(width)
        self.heads = ZINBHeads(width)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decode ``(b, positions, dim)`` to mean, dispersion and dropout ``(b, positions)``."""
        x = self.projection(tokens)
        for layer in self.layers:
            x = layer(x)
        mean, dispersion, dropout = self.heads(self.output_norm(self.norm(x)))
        return mean, dispersion, dropout
