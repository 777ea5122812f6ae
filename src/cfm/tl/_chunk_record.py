"""What chunks of results depend on, and what is said while they are made."""

from __future__ import annotations

import re
import warnings
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, NamedTuple

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


class Caught(NamedTuple):
    """A warning, and the line that it points at."""

    category: type[Warning]
    text: str
    filename: str
    line: int


class WarningLog:
    """Warnings of many chunks, each issued once.

    Parameters
    ----------
    n_rows
        Rows of all chunks.
    """

    def __init__(self, n_rows: int) -> None:
        self.n_rows = n_rows
        self._issued: set[str] = set()
        self._counted: dict[str, tuple[int, str]] = {}

    @staticmethod
    @contextmanager
    def recorded() -> Iterator[list[Caught]]:
        """Record the warnings of a chunk instead of issuing them."""
        found: list[Caught] = []
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield found
        found.extend(Caught(w.category, str(w.message), w.filename, w.lineno) for w in caught)

    def collect(self, found: Sequence[Caught]) -> None:
        """Issue what is new; what counts rows is added up until the end."""
        for warning in found:
            text = warning.text
            counted = _COUNTED.match(text)
            if counted is not None:
                rest = text[counted.end() :]
                n, _ = self._counted.get(rest, (0, ""))
                self._counted[rest] = n + int(counted[1]), rest
            elif text not in self._issued and not text.startswith(_OF_NAMES):
                self._issued.add(text)
                if warning.category is UserWarning:
                    warn_user(text)
                else:  # of another package, whose module the user's filters look at
                    warnings.warn_explicit(text, warning.category, warning.filename, warning.line)

    def issue_counted(self) -> None:
        """Issue what was counted."""
        for n, rest in self._counted.values():
            warn_user(f"{n} of {self.n_rows} {rest}")


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
