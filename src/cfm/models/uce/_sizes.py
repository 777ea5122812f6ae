"""Sizes of UCE."""

from __future__ import annotations

from dataclasses import dataclass


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
        numbers = {k: v for k, v in vars(self).items() if k not in ("expression_dims", "dropout")}
        numbers |= {f"expression_dims[{i}]": n for i, n in enumerate(self.expression_dims)}
        for name, value in numbers.items():
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1; found {value!r}.")
        if not self.expression_dims:
            raise ValueError("expression_dims is empty; expected the widths of the hidden layers.")
        if self.dim % self.n_heads:
            raise ValueError(
                f"The model is {self.dim} wide, which {self.n_heads} heads do not divide; pass "
                "the number it was trained with as n_heads=."
            )
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"dropout must be at least 0 and below 1; found {self.dropout!r}.")
