"""Named sizes of CellPulse."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cfm.models._named_sizes import named_size


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
        for name in ("n_tokens", "n_factors", "dim", "n_layers", "n_heads", "ff_mult"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; found {value!r}.")
        if not isinstance(self.learn_gene_embedding, bool):
            raise ValueError(
                f"learn_gene_embedding must be True or False; found {self.learn_gene_embedding!r}."
            )
        for name in ("dropout", "attention_dropout"):
            share = getattr(self, name)
            if not 0.0 <= share < 1.0:
                raise ValueError(f"{name} must be at least 0 and below 1; found {share!r}.")

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
