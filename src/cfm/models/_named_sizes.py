"""Sizes of a model by name, with single numbers changed."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Mapping

Size = TypeVar("Size", bound=Any)


def named_size(size: str | Size, sizes: Mapping[str, Size], changes: Mapping[str, Any]) -> Size:
    """Return a named size, with single numbers changed where asked.

    Raises
    ------
    ValueError
        If there is no size of that name, or numbers do not go together.
    TypeError
        If a number is named that sizes do not have.
    """
    if isinstance(size, str):
        if size not in sizes:
            raise ValueError(f"Unknown size {size!r}; expected one of {list(sizes)}.")
        size = sizes[size]
    known = [field.name for field in fields(size)]
    unknown = sorted(changes.keys() - set(known))
    if unknown:
        raise TypeError(
            f"There is no argument {', '.join(map(repr, unknown))}; of the size can be set: "
            f"{', '.join(known)}."
        )
    return replace(size, **changes)
