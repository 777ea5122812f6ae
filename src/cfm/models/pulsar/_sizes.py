"""Named sizes of PULSAR."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cfm.models._named_sizes import check_sizes, named_size


@dataclass(frozen=True)
class PulsarSize:
    """Sizes of the network; the defaults are those of the released checkpoints.

    Attributes
    ----------
    input_dim
        Width of what represents a cell: 1280 of UCE.
    dim
        Width of the tokens, and of a donor's embedding.
    encoder_layers, encoder_heads, encoder_ff
        Layers of the encoder, their attention heads and hidden feed-forward width.
    decoder_layers, decoder_heads, decoder_ff
        The same of the decoder.
    n_cell_states, use_cell_states
        Cell states that the decoder can be told, and whether it is.
    cls_transform
        Whether there is a network that transforms the donor embedding.
    decoder_loops
        How often the decoder is applied to its own output.
    head_factor
        Hidden width of a head, as a multiple of ``dim``.
    masked_input
        Whether there is an input network for cells with hidden elements, which training needs.
    standardised
        Whether inputs are standardised by means and spreads that the model keeps.
    templates
        Whether there is a layer before encoder and decoder that is never used. Released
        checkpoints carry them: 10.5 million of 87.4 million parameters.
    activation, dropout, eps
        Of the transformer layers; ``eps`` of their layer norms.
    """

    input_dim: int = 1280
    dim: int = 512
    encoder_layers: int = 8
    encoder_heads: int = 8
    encoder_ff: int = 4096
    decoder_layers: int = 6
    decoder_heads: int = 8
    decoder_ff: int = 4096
    n_cell_states: int = 256
    use_cell_states: bool = False
    cls_transform: bool = False
    decoder_loops: int = 1
    head_factor: int = 4
    masked_input: bool = False
    standardised: bool = False
    templates: bool = True
    activation: str = "gelu"
    dropout: float = 0.1
    eps: float = 1e-12

    def __post_init__(self) -> None:
        check_sizes(self, dropouts=("dropout", "eps"), zero=("decoder_layers",))
        if self.activation not in ("gelu", "relu"):
            raise ValueError(f"activation={self.activation!r}; expected 'gelu' or 'relu'.")
        for part in ("encoder", "decoder"):
            heads = getattr(self, f"{part}_heads")
            if self.dim % heads:
                raise ValueError(f"dim={self.dim} must be divisible by {part}_heads={heads}.")


_OURS = {"masked_input": True, "standardised": True, "templates": False}
#: ``released`` builds as the published checkpoints do; the others are for training from scratch.
SIZES = {
    "mini": PulsarSize(
        input_dim=50,
        dim=64,
        encoder_layers=2,
        encoder_heads=4,
        encoder_ff=256,
        decoder_layers=1,
        decoder_heads=4,
        decoder_ff=256,
        n_cell_states=1,
        **_OURS,  # type: ignore[arg-type]
    ),
    "base": PulsarSize(**_OURS),  # type: ignore[arg-type]
    "released": PulsarSize(),
}


def get_size(size: str | PulsarSize, **changes: Any) -> PulsarSize:
    """Return a named size, with single numbers changed where asked."""
    return named_size(size, SIZES, changes)
