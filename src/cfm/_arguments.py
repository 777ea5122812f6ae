"""Checks of arguments that many functions share: flags, numbers, seeds and choices.

Each check returns the value as a plain Python type, so that NumPy scalars can be passed and what is
recorded of a call can be stored. A bool is never taken for a number, nor a text for a flag.
"""

from __future__ import annotations

import functools
import inspect
import math
from dataclasses import fields, replace
from types import UnionType
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    ParamSpec,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

P = ParamSpec("P")
T = TypeVar("T")
Size = TypeVar("Size", bound=Any)

#: The largest seed that NumPy, torch and scikit-learn all accept.
LARGEST_SEED = 2**32 - 1


def check_flag(name: str, value: object) -> bool:
    """Return a flag as a bool.

    Raises
    ------
    ValueError
        If it is anything but ``True`` or ``False``.
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name}={value!r}; expected True or False.")
    return bool(value)


def check_whole(name: str, value: object, least: int = 1, most: int | None = None) -> int:
    """Return a whole number as an int.

    Raises
    ------
    ValueError
        If it is no integer of Python or NumPy, or is out of range.
    """
    if isinstance(value, int | np.integer) and not isinstance(value, bool):
        found = int(value)
        if found >= least and (most is None or found <= most):
            return found
    bounds = f"of at least {least}" if most is None else f"from {least} to {most}"
    raise ValueError(f"{name}={value!r}; expected a whole number {bounds}.")


def check_seed(value: object, name: str = "seed") -> int:
    """Return a seed as an int; ``0`` to ``2**32 - 1`` is what all libraries accept.

    Raises
    ------
    ValueError
        If it is no integer of Python or NumPy, or is out of range.
    """
    return check_whole(name, value, 0, LARGEST_SEED)


def check_number(
    name: str,
    value: object,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    exclusive: Literal["low", "high", "both"] | None = None,
) -> float:
    """Return a finite number as a float.

    Parameters
    ----------
    low, high
        The range.
    exclusive
        Which end of the range is excluded.

    Raises
    ------
    ValueError
        If it is no number of Python or NumPy, not finite, or out of range.
    """
    above = exclusive in ("low", "both")
    below = exclusive in ("high", "both")
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        found = float(value)
        inside = (low < found if above else low <= found) and (
            found < high if below else found <= high
        )
        if inside and math.isfinite(found):
            return found
    ends = [f"above {low:g}" if above else f"of at least {low:g}"] if low > -math.inf else []
    ends += [f"below {high:g}" if below else f"at most {high:g}"] if high < math.inf else []
    raise ValueError(
        f"{name}={value!r}; expected a finite number {' and '.join(ends)}".rstrip() + "."
    )


def check_choice(name: str, value: object, choices: Collection[Any]) -> Any:
    """Return the choice that a value is.

    Raises
    ------
    ValueError
        If it is none of them.
    """
    for choice in choices:
        # an array compares with each choice and gives an array
        if isinstance(value, type(choice)) and not isinstance(value, bool) and value == choice:
            return choice
    raise ValueError(f"{name}={value!r}; expected one of {tuple(choices)}.")


def layer_names(adata: Any) -> list[str]:
    """Return the names of the layers; from anndata 0.13 on ``layers[None]`` is ``X``."""
    return sorted(name for name in adata.layers if name is not None)


def check_layer(adata: Any, layer: str | None, name: str = "adata") -> None:
    """Check that a layer exists; ``None`` stands for ``X``.

    Raises
    ------
    KeyError
        If it does not.
    """
    if layer is not None and layer not in adata.layers:
        raise KeyError(f"no layer {layer!r}; {name} has layers {layer_names(adata)}.")


class Range(NamedTuple):
    """Of a number: as the parameters of :func:`check_number`."""

    low: float = -math.inf
    high: float = math.inf
    exclusive: Literal["low", "high", "both"] | None = None


ABOVE_0 = Range(0, exclusive="low")
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)
#: Neither nothing nor all.
PART = Range(0, 1, "both")
BELOW_1 = Range(0, 1, "high")
#: Type of a field that :func:`check_fields` checks.
Dropout = Annotated[float, BELOW_1]


def checks_arguments(**ranges: int | Range) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """Decorate a public function: its arguments are checked against its signature at its start.

    A parameter annotated as ``bool`` takes bools, ``int`` whole numbers of at least 1, ``seed``
    what all libraries take, ``float`` finite numbers, a ``Literal`` its choices, each also ``None``
    where that is annotated. The function is given plain Python numbers.

    Parameters
    ----------
    **ranges
        By parameter: the least that a whole number may be if that is not 1, and the range of a
        number.
    """

    def decorate(function: Callable[P, T]) -> Callable[P, T]:
        signature = inspect.signature(function)
        names = inspect.unwrap(function).__globals__
        checks = {
            name: check
            for name, parameter in signature.parameters.items()
            if (check := _check_of(parameter, ranges.get(name), names)) is not None
        }
        if unknown := ranges.keys() - checks.keys():
            raise TypeError(
                f"{function.__qualname__} has no parameters {sorted(unknown)} to check."
            )

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            try:
                bound = signature.bind_partial(*args, **kwargs)
            except TypeError:  # Python's own error names the function
                return function(*args, **kwargs)
            given = bound.arguments
            given |= {name: check(given[name]) for name, check in checks.items() if name in given}
            return function(*bound.args, **bound.kwargs)

        return checked

    return decorate


def check_fields(settings: Any) -> None:
    """Check the fields of a frozen dataclass by their types; NumPy numbers become plain ones.

    A field ``name: Annotated[float, Range(…)]``, or ``Annotated[int, least]``, has this range;
    other fields are checked as :func:`checks_arguments` does.

    Raises
    ------
    ValueError
        If one is of another type or out of its range.
    """
    hints = get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        hint = hints[field.name]
        bounds = None
        if get_origin(hint) is Annotated:
            hint, bounds = get_args(hint)
        value = getattr(settings, field.name)
        kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
        if value is None and type(None) in kinds:
            continue
        object.__setattr__(settings, field.name, _checked(field.name, value, kinds, bounds))


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


def _checked(name: str, value: Any, kinds: tuple[Any, ...], bounds: int | Range | None) -> Any:
    """Return a value of one of these types, checked; what is of no simple type as it is."""
    kind = [k for k in kinds if k is not type(None)]
    if kind == [bool]:
        return check_flag(name, value)
    if kind == [int]:
        return check_whole(name, value, bounds if isinstance(bounds, int) else 1)
    if kind == [float]:
        low, high, exclusive = bounds if isinstance(bounds, Range) else Range()
        return check_number(name, value, low, high, exclusive=exclusive)
    if len(kind) == 1 and get_origin(kind[0]) is Literal:
        return check_choice(name, value, get_args(kind[0]))
    return value


def _check_of(
    parameter: inspect.Parameter, bounds: int | Range | None, names: dict[str, Any]
) -> Callable[[Any], Any] | None:
    """Return the check of a parameter by its annotation, which is text; ``None`` if any value."""
    name = parameter.name
    kinds = {kind.strip() for kind in str(parameter.annotation).split("|")}
    optional = "None" in kinds
    kind = " | ".join(sorted(kinds - {"None"}))
    check: Callable[[Any], Any]
    if kind == "bool" or isinstance(parameter.default, bool):
        check = functools.partial(check_flag, name)
    elif kind == "int" and name == "seed":
        check = check_seed
    elif kind == "int":
        least = bounds if isinstance(bounds, int) else 1
        check = functools.partial(check_whole, name, least=least)
    elif kind == "float":
        low, high, exclusive = bounds if isinstance(bounds, Range) else Range()
        check = functools.partial(check_number, name, low=low, high=high, exclusive=exclusive)
    else:
        # an alias of a Literal is in the module of the function, unless it is for type checks only
        literal = "|" not in kind and (kind.startswith("Literal[") or kind in names)
        choices = get_args(eval(kind, {"Literal": Literal}, names)) if literal else ()
        if not choices or not all(isinstance(choice, str) for choice in choices):
            return None
        check = functools.partial(check_choice, name, choices=choices)
    return lambda value: None if value is None and optional else check(value)


#: Of a function whose whole numbers are all at least 1.
checks_flags = checks_arguments()
