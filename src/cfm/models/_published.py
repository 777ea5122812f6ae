"""Which files are weights as their authors publish them: one table of patterns."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, NamedTuple

from cfm.hub._checkpoint import FORMAT, LARGEST_JSON, WEIGHTS_NAME, read_limited
from cfm.hub._resolve import CONFIG_NAME

if TYPE_CHECKING:
    from pathlib import Path


class Layout(NamedTuple):
    """How the weights of a system are published.

    Attributes
    ----------
    file
        Name of the file of weights, a pattern; ``""`` if a file alone is not enough.
    in_folder
        Name of that file by which a folder is recognised.
    model_type
        What ``config.json`` says beside ``model.safetensors``.
    """

    file: str = ""
    in_folder: str = ""
    model_type: str = ""


#: By the name of the model; the first that fits.
PUBLISHED = {
    "VirtualInstrument": Layout(file=r".*instrument.*\.(pt|pth|ckpt|safetensors)"),
    "BulkFormer": Layout(file=r"bulkformer.*\.pt", in_folder=r"bulkformer.*\.pt"),
    "CellVQ": Layout(file=r".*\.ckpt", in_folder=r"models\.ckpt"),
    "UCE": Layout(
        file=r"(?!all_tokens\.torch$).*\.torch", in_folder=r"(?!all_tokens\.torch$).*\.torch"
    ),
    "Pulsar": Layout(model_type="PULSAR"),
}
#: Those of models of other packages, by name; they come first.
FROM_OUTSIDE: dict[str, Layout] = {}


def published_model(path: Path) -> str | None:
    """Return the name of the model whose authors publish such a folder or file, or ``None``."""
    if path.is_file():
        names, said = [path.name], ""
    elif (path / WEIGHTS_NAME).is_file():
        names, said = [], _model_type(path)
    elif path.is_dir():
        names, said = [found.name for found in path.iterdir() if found.is_file()], ""
    else:
        return None
    for model, layout in (FROM_OUTSIDE | PUBLISHED).items():
        pattern = layout.file if path.is_file() else layout.in_folder
        if any(re.fullmatch(pattern, name, re.IGNORECASE) for name in names if pattern):
            return model
        if said and said == layout.model_type:
            return model
    return None


def _model_type(folder: Path) -> str:
    """Return what ``config.json`` of other projects says of the model, ``""`` if nothing."""
    try:
        config = json.loads(read_limited(folder / CONFIG_NAME, LARGEST_JSON).decode("utf-8"))
    except (OSError, ValueError, RecursionError):
        return ""  # load_checkpoint says what is wrong
    if not isinstance(config, dict) or config.get("format") == FORMAT:
        return ""
    return str(config.get("model_type", "")).upper()
