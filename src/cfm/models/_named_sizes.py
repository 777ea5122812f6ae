"""Sizes of a model: by name, with single numbers changed, and their checks."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from cfm._arguments import check_flag, check_whole

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

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


def check_sizes(size: Any, *, dropouts: Collection[str] = (), zero: Collection[str] = ()) -> None:
    """Check the numbers and flags of a dataclass of sizes, by the types of its fields.

    Parameters
    ----------
    size
        The dataclass; NumPy numbers in it become plain ones.
    dropouts
        Fields that are at least 0 and below 1.
    zero
        Whole numbers that may be 0; all others are at least 1.

    Raises
    ------
    ValueError
        If one is of another type or out of range.
    """
    for field in fields(size):
        value = getattr(size, field.name)
        if field.type == "int":
            value = check_whole(field.name, value, 0 if field.name in zero else 1)
        elif field.type == "bool":
            value = check_flag(field.name, value)
        elif field.name in dropouts and (isinstance(value, bool) or not 0.0 <= value < 1.0):
            raise ValueError(f"{field.name} must be at least 0 and below 1; found {value!r}.")
        object.__setattr__(size, field.name, value)
