from __future__ import annotations

import math
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from cfm.hub._checkpoint import read_card, read_config
from cfm.hub._format import WEIGHTS_NAME, find_file
from cfm.hub._replace import reread
from cfm.hub._resolve import named_folders, resolve


def list_checkpoints() -> pd.DataFrame:
    """Checkpoints that can be used by name, offline.

    Returns
    -------
    pandas.DataFrame
        One row per checkpoint, index `name`: ``model`` (class), ``n_parameters``, ``size_mb``
        (weights on disk), ``origin`` ("bundled", or "local" from ``CFM_CHECKPOINTS``),
        ``description`` (first sentence of the card), ``sha256`` (weights), ``path``.

    Warns
    -----
    UserWarning
        If a folder is damaged; it is left out.

    Examples
    --------
    >>> import cfm
    >>> cfm.hub.list_checkpoints()["model"].unique().tolist()
    ['BulkFormer', 'CellPulse', 'CellVQ', 'LingshuCell', 'Pulsar']
    """
    rows = []
    for name, (folder, origin) in named_folders().items():
        try:
            header, size, card = reread(folder, partial(_described, folder))
        except ValueError as error:
            warnings.warn(f"The checkpoint {name!r} is left out: {error}", stacklevel=2)
            continue
        n_parameters = sum(math.prod(spec["shape"]) for spec in header["tensors"].values())
        rows.append(
            {
                "name": name,
                "model": header["model"],
                "n_parameters": n_parameters,
                "size_mb": round(size / 1e6, 2),
                "origin": origin,
                "description": _first_sentence(card),
                "sha256": header["sha256"],
                "path": str(folder),
            }
        )
    columns = [
        "name",
        "model",
        "n_parameters",
        "size_mb",
        "origin",
        "description",
        "sha256",
        "path",
    ]
    return pd.DataFrame(rows, columns=columns).set_index("name")


def model_card(name: str | Path) -> str:
    """The model card: data, training, scores beside baselines, intended use and limits.

    Parameters
    ----------
    name
        Anything that :func:`cfm.hub.resolve` understands.

    Returns
    -------
    str
        Markdown.

    Raises
    ------
    ValueError
        If the checkpoint is unknown or has no card.

    Examples
    --------
    >>> import cfm
    >>> cfm.hub.model_card("cellpulse-mini").splitlines()[0]
    '# cellpulse-mini'
    """
    folder = resolve(name)
    card = reread(folder, lambda: read_card(folder) if folder.is_dir() else None)
    if card is None:
        raise ValueError(f"{folder} has no model card; save one with save_checkpoint(card=...).")
    return card


def _described(folder: Path) -> tuple[dict[str, Any], int, str]:
    """Return what ``config.json`` says, the bytes of the weights, and the card."""
    size = find_file(folder, WEIGHTS_NAME).stat().st_size
    return read_config(folder), size, read_card(folder) or ""


def _first_sentence(card: str) -> str:
    text = card
    if text.startswith("---\n"):  # front matter
        text = text.partition("\n---\n")[2]
    for line in text.splitlines():
        line = line.strip()
        if line and not line.startswith(("#", "|", ">", "-", "!", "<")):
            head, dot, _ = line.partition(". ")
            return head + "." if dot else head
    return ""
