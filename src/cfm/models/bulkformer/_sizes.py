"""Named sizes of BulkFormer."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from cfm.models._named_sizes import check_sizes, named_size


@dataclass(frozen=True)
class BulkFormerSize:
    """Sizes of the network; see :class:`BulkFormerModule`."""

    dim: int
    n_layers: int
    n_heads: int = 8
    n_blocks: int = 1
    ff_mult: int = 4
    attention_dropout: float = 0.05
    ff_dropout: float = 0.1
    centred: bool = False

    def __post_init__(self) -> None:
        check_sizes(self, dropouts=("attention_dropout", "ff_dropout"))

    def module_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments of the module."""
        return asdict(self)


#: The five published sizes by the names of their checkpoints, which are nominal: with 20,010 genes
#: they have 13.4, 28.6, 75.9, 112.4 and 132.1 million parameters. ``mini`` is for small cohorts.
SIZES = {
    "mini": BulkFormerSize(dim=64, n_layers=2, n_heads=4, centred=True),
    "37M": BulkFormerSize(dim=128, n_layers=1),
    "50M": BulkFormerSize(dim=256, n_layers=2),
    "93M": BulkFormerSize(dim=512, n_layers=6),
    "127M": BulkFormerSize(dim=640, n_layers=8),
    "147M": BulkFormerSize(dim=640, n_layers=12),
}


def get_size(size: str | BulkFormerSize, **changes: Any) -> BulkFormerSize:
    """Return a named size, with single numbers changed where asked."""
    return named_size(size, SIZES, changes)
