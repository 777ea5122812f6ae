"""Sizes of a network: named, checked, and validated on the meta device."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import fields, replace
from threading import get_ident
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch.nn.modules.module import register_module_parameter_registration_hook

from cfm._arguments import check_flag, check_whole

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sized


Size = TypeVar("Size", bound=Any)


def named_size(size: str | Size, sizes: Mapping[str, Size], changes: Mapping[str, Any]) -> Size:
    """Return a named size, with single numbers changed.

    Raises
    ------
    ValueError
        If there is no size of that name, or numbers do not go together.
    TypeError
        If a size has no field of that name.
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


#: Errors of damaged settings, when they are read or modules are made of them.
_WRONG = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def validate_config(model: str, name: str, tensors: Sized) -> Iterator[None]:
    """Read settings and make modules of them on the ``meta`` device, without memory.

    Fill the modules with :func:`cfm.models.base.load_weights`, which compares every shape with
    that of the stored tensor.

    Parameters
    ----------
    model, name
        Of the model and the checkpoint, for the error.
    tensors
        Those of the checkpoint. Modules with far more parameters are refused while they are made:
        a layer costs time on ``meta``, too.

    Raises
    ------
    ValueError
        If settings are missing or invalid, or give more layers than there are weights for.
    """
    thread, n_parameters = get_ident(), 0

    def count(*_: object) -> None:
        nonlocal n_parameters
        n_parameters += get_ident() == thread
        # some parameters are made twice
        if n_parameters > 2 * len(tensors) + 16:
            raise ValueError(f"more layers than the {len(tensors)} tensors have weights for")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    except _WRONG as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"The config.json or a text file of checkpoint {name!r} lacks or garbles a setting of "
            f"{model} ({reason[:500]}). It may be damaged or from another version; download it "
            "again."
        ) from error
    finally:
        hook.remove()
