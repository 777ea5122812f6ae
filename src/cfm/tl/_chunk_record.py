"""What chunks of results depend on, and what is said while they are made."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cfm.data._matrix import read_rows
from cfm.data._warn import warn_user
from cfm.models import PretrainedModel

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cfm.tl._chunk_input import Rows

#: Rows of each part whose values are looked at to tell whether data are the same.
_LOOKED_AT = 32
#: Names that are made one text at a time.
_NAMES_AT_ONCE = 65_536
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
    """Return what results depend on, to tell whether chunks are of the same run.

    Of files size and date of change are part of it, but not where they lie, so that a pipeline may
    link them into another folder; of all data the names and the values of some rows.
    """
    told = {name: _plain(value) for name, value in arguments.items()}
    return told | {
        "tool": tool,
        "cfm": _version(),
        "model": type(model).__name__,
        "model_sha256": model_digest(model),
        "n_obs": int(rows.whole.n_obs),
        "input_sha256": _input_digest(rows, layers),
        "chunk_size": chunk_size,
    }


def _version() -> str:
    try:
        return version("cfm-tools")
    except PackageNotFoundError:
        return ""


def model_digest(model: Any) -> str:
    """Return the SHA-256 of a model's checkpoint, or of its weights if it was trained here."""
    if not isinstance(model, PretrainedModel):
        return ""
    if model.checkpoint_sha256:
        return model.checkpoint_sha256
    tensors, config, files = model._contents()
    digest = hashlib.sha256(json.dumps([config, files], sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(name.encode())
        array = tensor.detach().cpu().contiguous()
        digest.update(array.float().numpy().tobytes())
    return digest.hexdigest()


def _input_digest(rows: Rows, layers: Sequence[str | None]) -> str:
    digest = hashlib.sha256()
    for path in rows.paths:
        # of a zarr folder the file that lists what is in it
        named = [path / name for name in ("zarr.json", ".zmetadata", ".zattrs")]
        file = next((p for p in named if p.exists()), path)
        found = file.stat()
        digest.update(f"{found.st_size} {found.st_mtime_ns}".encode())
    for number, part in enumerate(rows.parts):
        for names in (part.obs_names, part.var_names):
            for start in range(0, len(names), _NAMES_AT_ONCE):
                digest.update("\n".join(map(str, names[start : start + _NAMES_AT_ONCE])).encode())
        if not part.n_obs:
            continue
        looked_at = np.unique(np.linspace(0, part.n_obs - 1, _LOOKED_AT).astype(np.int64))
        for layer in layers:
            block = read_rows(rows.matrix(number, layer), looked_at)
            for array in _arrays(block):
                digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def _arrays(block: Any) -> list[np.ndarray]:
    if sparse.issparse(block):
        block = block.tocsr().sorted_indices()
        return [block.indptr.astype(np.int64), block.indices.astype(np.int64), block.data]
    return [np.asarray(block)]


def _plain(value: Any) -> Any:
    """Return an argument as JSON has it; of an array its digest."""
    if isinstance(value, np.ndarray):
        return hashlib.sha256(np.ascontiguousarray(value).tobytes()).hexdigest()
    return value
