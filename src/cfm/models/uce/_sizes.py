"""Sizes of UCE."""

from __future__ import annotations

from dataclasses import dataclass

from cfm._arguments import check_whole
from cfm.models._named_sizes import check_sizes


@dataclass(frozen=True)
class UCESize:
    """Sizes of the network; the defaults are those of the published 33-layer model."""

    n_tokens: int = 145_469
    max_length: int = 1536
    token_dim: int = 5120
    dim: int = 1280
    n_heads: int = 20
    n_layers: int = 33
    ff_dim: int = 5120
    output_dim: int = 1280
    head_dim: int = 1024
    expression_dims: tuple[int, ...] = (2048, 512, 128)
    dropout: float = 0.05

    def __post_init__(self) -> None:
        object.__setattr__(self, "expression_dims", tuple(self.expression_dims))
        check_sizes(self, dropouts=("dropout",))
        for i, width in enumerate(self.expression_dims):
            check_whole(f"expression_dims[{i}]", width)
        if not self.expression_dims:
            raise ValueError("expression_dims is empty; expected the widths of the hidden layers.")
        if self.dim % self.n_heads:
            raise ValueError(
                f"The model is {self.dim} wide, which {self.n_heads} heads do not divide; pass "
                "the number it was trained with as n_heads=."
            )
