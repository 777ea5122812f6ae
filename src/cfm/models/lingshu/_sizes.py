"""Named sizes of Lingshu-Cell."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cfm.models._named_sizes import check_sizes, named_size


@dataclass(frozen=True)
class LingshuSize:
    """Sizes of the network.

    Attributes
    ----------
    dim, n_layers, n_heads, ff_dim
        Width, layers, attention heads and hidden feed-forward width of the trunk.
    group_size
        Genes per token of the trunk.
    depth
        Whether the library size of a cell is one of its conditions.
    learned_positions
        Whether each group of genes has a learned vector beside its rotary position.
    """

    dim: int
    n_layers: int
    n_heads: int
    ff_dim: int
    group_size: int
    depth: bool = False
    learned_positions: bool = False

    def __post_init__(self) -> None:
        check_sizes(self)
        if self.dim % (2 * self.n_heads):
            raise ValueError(
                f"dim={self.dim} does not split into n_heads={self.n_heads} heads of even width."
            )


#: ``vcc`` and ``default`` are published (85,214,080 parameters in the trunk; 18,080 genes make 565
#: and 2,260 groups): the first for genetic perturbations, the second for everything else. ``mini``
#: is for laptops and small data.
SIZES = {
    "mini": LingshuSize(128, 4, 4, 512, 16, depth=True, learned_positions=True),
    "default": LingshuSize(640, 13, 10, 2560, 8),
    "vcc": LingshuSize(640, 13, 10, 2560, 32),
}


def get_size(size: str | LingshuSize, **changes: Any) -> LingshuSize:
    """Return a named size, with single numbers changed where asked."""
    return named_size(size, SIZES, changes)
