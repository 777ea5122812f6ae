"""Named sizes of CellPulse."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cfm.models._named_sizes import check_sizes, named_size


@dataclass(frozen=True)
class CellPulseSize:
    """Sizes of the network; see :class:`CellPulseModule`. ``n_tokens`` is the context."""

    n_tokens: int
    n_factors: int
    dim: int
    n_layers: int
    n_heads: int
    ff_mult: int = 4
    dropout: float = 0.1
    attention_dropout: float = 0.0
    learn_gene_embedding: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, dropouts=("dropout", "attention_dropout"))

    def module_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments of the module."""
        arguments = asdict(self)
        del arguments["n_tokens"]
        return arguments


#: ``mini`` is what ships with cfm; ``published`` has the scale that the abstract of CellPulse
#: implies (no size is published): 2,048 genes of context and over 100 million parameters.
SIZES = {
    "mini": CellPulseSize(
        n_tokens=1024, n_factors=128, dim=128, n_layers=1, n_heads=4, attention_dropout=0.1
    ),
    "small": CellPulseSize(n_tokens=1024, n_factors=128, dim=256, n_layers=4, n_heads=8),
    "base": CellPulseSize(
        n_tokens=2048, n_factors=256, dim=512, n_layers=8, n_heads=8, learn_gene_embedding=True
    ),
    "published": CellPulseSize(
        n_tokens=2048, n_factors=256, dim=768, n_layers=14, n_heads=12, learn_gene_embedding=True
    ),
}


def get_size(size: str | CellPulseSize, **changes: Any) -> CellPulseSize:
    """Return a named size, with single numbers changed where asked."""
    return named_size(size, SIZES, changes)
