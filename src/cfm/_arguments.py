"""Checks of arguments that many functions share: flags, numbers, seeds and choices.

Each check returns the value as a plain Python type, so that NumPy scalars can be passed and what is
recorded of a call can be stored. A bool is never taken for a number, nor a text for a flag.
"""

from __future__ import annotations

import functools
import inspect
import math
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

P = ParamSpec("P")
T = TypeVar("T")

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
    exclusive: bool = False,
) -> float:
    """Return a finite number as a float.

    Parameters
    ----------
    low, high
        The range.
    exclusive
        Whether the ends of the range are excluded.

    Raises
    ------
    ValueError
        If it is no number of Python or NumPy, not finite, or out of range.
    """
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        found = float(value)
        in_range = low < found < high if exclusive else low <= found <= high
        if in_range and math.isfinite(found):
            return found
    if math.isinf(low) and math.isinf(high):
        bounds = ""
    elif math.isinf(high):
        bounds = f" above {low:g}" if exclusive else f" of at least {low:g}"
    elif math.isinf(low):
        bounds = f" below {high:g}" if exclusive else f" of at most {high:g}"
    else:
        bounds = f" between {low:g} and {high:g}" + (", both excluded" if exclusive else "")
    raise ValueError(f"{name}={value!r}; expected a finite number{bounds}.")


def check_choice(name: str, value: T, choices: Collection[Any]) -> T:
    """Return a value if it is one of the choices.

    Raises
    ------
    ValueError
        If it is not.
    """
    # an array compares with each choice and gives an array
    if not any(type(value) is type(choice) and value == choice for choice in choices):
        raise ValueError(f"{name}={value!r}; expected one of {tuple(choices)}.")
    return value


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


def checks_flags(function: Callable[P, T]) -> Callable[P, T]:
    """Decorate a public function: parameters whose default is a bool take only bools.

    ``overwrite="False"`` would otherwise count as true.
    """
    signature = inspect.signature(function)
    flags = [name for name, p in signature.parameters.items() if isinstance(p.default, bool)]

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            given = signature.bind_partial(*args, **kwargs).arguments
        except TypeError:  # Python's own error names the function
            return function(*args, **kwargs)
        for name in flags:
            if name in given:
                check_flag(name, given[name])
        return function(*args, **kwargs)

    return checked
