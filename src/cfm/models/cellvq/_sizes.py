"""Named sizes of CellVQ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cfm.models._named_sizes import check_sizes, named_size


@dataclass(frozen=True)
class CellVQSize:
    """Sizes of the network.

    Attributes
    ----------
    dim, n_layers, n_heads, ff_dim
        Width, layers, attention heads and hidden feed-forward width of the encoder.
    decoder_dim, decoder_layers, decoder_heads
        Width, Performer layers and their heads of the decoder.
    n_bins, bin_alpha
        Bins that values are mixed of, and the weight of the hidden numbers in their shares.
    n_bits
        Bits of a code; there are 2 to the power of ``n_bits`` codes.
    codebook_dim, codebook_layers
        Width and number of the hidden layers of the network that makes the codes.
    code_dim
        Width of the codes.
    relation
        Learned relations between genes that are added to their identity: ``"full"``, a number for
        each pair of positions, as published; a whole number, the rank of a smaller form; or
        ``"none"``.
    dropout
        Of the encoder, in training.
    code_term
        Whether expected counts also depend on the code through a bilinear term of genes and codes,
        without which a narrow decoder learns them slowly. Not in the published model.
    expression_term
        Whether a linear term of expression is added to the tokens of a cell. Not in the published
        model.
    """

    dim: int = 768
    n_layers: int = 12
    n_heads: int = 12
    ff_dim: int = 3072
    decoder_dim: int = 512
    decoder_layers: int = 6
    decoder_heads: int = 8
    n_bins: int = 100
    n_bits: int = 12
    codebook_dim: int = 1024
    codebook_layers: int = 5
    code_dim: int = 32
    relation: str | int = "full"
    bin_alpha: float = 1.0
    dropout: float = 0.1
    code_term: bool = False
    expression_term: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, dropouts=("dropout",))
        if self.n_bits > 20:
            raise ValueError(f"n_bits must be at most 20; found {self.n_bits}.")
        for width, heads in (("dim", "n_heads"), ("decoder_dim", "decoder_heads")):
            if getattr(self, width) % getattr(self, heads):
                raise ValueError(
                    f"{width}={getattr(self, width)} must be divisible by "
                    f"{heads}={getattr(self, heads)}."
                )
        rank = isinstance(self.relation, int) and not isinstance(self.relation, bool)
        if not (rank and int(self.relation) >= 1) and self.relation not in ("full", "none"):
            raise ValueError(
                f"relation must be 'full', 'none' or a rank of at least 1; found {self.relation!r}."
            )
        if isinstance(self.bin_alpha, bool) or not abs(self.bin_alpha) < float("inf"):
            raise ValueError(f"bin_alpha must be a finite number; found {self.bin_alpha!r}.")

    @property
    def n_codes(self) -> int:
        """Number of codes."""
        return int(2**self.n_bits)


#: ``published`` is that of the authors (514 million parameters with 19,264 genes, 371 million of
#: them relations between genes). ``mini`` is for laptops and small data.
SIZES = {
    "mini": CellVQSize(
        dim=64,
        n_layers=2,
        n_heads=4,
        ff_dim=128,
        decoder_dim=32,
        decoder_layers=1,
        decoder_heads=2,
        n_bins=32,
        n_bits=8,
        codebook_dim=64,
        codebook_layers=3,
        relation="none",
        dropout=0.0,  # with it, attention on a CPU takes four times as long in training
        code_term=True,
        expression_term=True,
    ),
    "published": CellVQSize(),
}


def get_size(size: str | CellVQSize, **changes: Any) -> CellVQSize:
    """Return a named size, with single numbers changed where asked."""
    return named_size(size, SIZES, changes)
