"""Keeps what was computed from weights, for as long as they stay the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor


class Kept:
    """What was computed from weights, until these change."""

    def __init__(self) -> None:
        self._found: dict[str, tuple[object, Any]] = {}

    def get(self, name: str, weights: Iterable[Tensor], make: Callable[[], Any]) -> Any:
        """Return what ``make`` makes, made anew if the weights are others or were changed."""
        version = tuple((w.data_ptr(), w._version, w.device) for w in weights)
        if name not in self._found or self._found[name][0] != version:
            self._found.pop(name, None)
            self._found[name] = version, make()
        return self._found[name][1]

    def clear(self) -> None:
        """Drop everything."""
        self._found.clear()

    def __reduce__(self) -> tuple[type[Kept], tuple[()]]:
        return type(self), ()  # a copy of the module has weights of its own
