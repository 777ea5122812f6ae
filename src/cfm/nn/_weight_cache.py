"""Keeps what was computed from weights, for as long as they stay the same."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor


class WeightCache:
    """What was computed from weights, until these change.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn._weight_cache import WeightCache
    >>> cache, weight = WeightCache(), torch.ones(2)
    >>> float(cache.get("sum", [weight], weight.sum))
    2.0
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[object, Any]] = {}

    def get(self, name: str, weights: Iterable[Tensor], make: Callable[[], Any]) -> Any:
        """Return what ``make`` makes without gradients, made anew if the weights were changed."""
        used = list(weights)
        if any(w.is_inference() for w in used):  # they do not count their changes
            return make()
        version = tuple((w.data_ptr(), w._version, w.device, w.dtype) for w in used)
        if name not in self._found or self._found[name][0] != version:
            self._found.pop(name, None)
            # Not inference tensors: training may use them next.
            with torch.inference_mode(False), torch.no_grad():
                self._found[name] = version, make()
        return self._found[name][1]

    def clear(self) -> None:
        """Drop everything."""
        self._found.clear()

    def __reduce__(self) -> tuple[type[WeightCache], tuple[()]]:
        return type(self), ()  # a copy of the module has weights of its own
