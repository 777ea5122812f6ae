"""What chunks of results depend on, and what is said while they are made."""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np

from cfm.data._inputs import table_identity
from cfm.data._warn import warn_user
from cfm.models import PretrainedModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cfm.tl._chunk_input import Rows

#: A message that counts rows.
_COUNTED = re.compile(r"^(\d+) of (\d+) ")
#: Of names, which a chunk has no more to say of than the whole.
_OF_NAMES = ("Observation names", "Variable names")


class Notes:
    """Warnings of many chunks, each said once.

    Parameters
    ----------
    n_rows
        Rows of all chunks.
    """

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self._said: set[str] = set()
        self._counted: dict[str, tuple[int, str]] = {}

    @staticmethod
    @contextmanager
    def taken() -> Iterator[list[tuple[type[Warning], str]]]:
        """Take down the warnings of a chunk instead of saying them."""
        notes: list[tuple[type[Warning], str]] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield notes
        notes.extend((w.category, str(w.message)) for w in caught)

    def hear(self, notes: Sequence[tuple[type[Warning], str]]) -> None:
        """Say what is new; what counts rows is added up until the end."""
        for category, text in notes:
            counted = _COUNTED.match(text)
            if counted is not None:
                rest = text[counted.end() :]
                n, _ = self._counted.get(rest, (0, ""))
                self._counted[rest] = n + int(counted[1]), rest
            elif text not in self._said and not text.startswith(_OF_NAMES):
                self._said.add(text)
                _say(category, text)

    def sum_up(self) -> None:
        """Say what was counted."""
        for n, rest in self._counted.values():
            warn_user(f"{n} of {self.n_rows} {rest}")


def _say(category: type[Warning], text: str) -> None:
    if category is UserWarning:
        warn_user(text)
    else:
        warnings.warn(text, category, stacklevel=2)


def fingerprint(
    rows: Rows,
    model: Any,
    tool: str,
    layers: Sequence[str | None],
    arguments: Mapping[str, Any],
    chunk_size: int,
) -> dict[str, Any]:
    """Return what results depend on, to tell whether chunks are of the same run."""
    told = {
        name: table_identity(value) if isinstance(value, np.ndarray) else value
        for name, value in arguments.items()
    }
    return (
        told
        | rows.identity(layers, arguments)
        | {
            "tool": tool,
            "cfm": _version(),
            "model": type(model).__name__,
            "weights": model.weights_digest() if isinstance(model, PretrainedModel) else "",
            "n_obs": int(rows.whole.n_obs),
            "chunk_size": chunk_size,
        }
    )


def _version() -> str:
    try:
        return version("cfm-tools")
    except PackageNotFoundError:
        return ""
