from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch

from cfm.hub._format import (
    CARD_NAME,
    CONFIG_NAME,
    FORMAT,
    FORMAT_VERSION,
    LARGEST_JSON,
    WEIGHTS_NAME,
    check_file_name,
    find_file,
    read_header,
    read_limited,
    read_tensors,
    sha256_of_file,
)
from cfm.hub._replace import reads_checkpoint
from cfm.hub._resolve import checkpoint_name, resolve


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified by :func:`load_checkpoint`.

    Attributes
    ----------
    name
        Name under which it was asked for: ``"cellpulse-mini"``, ``"org/name"`` or the folder's.
    path
        The folder it was read from.
    model
        Name of the model class that it belongs to, such as ``"CellPulse"``.
    config
        The model's own settings, as given to :func:`save_checkpoint` (JSON types).
    tensors
        Weights by name, on the CPU, in the dtype in which they were saved.
    sha256
        SHA-256 of ``model.safetensors``: states which weights produced a result.
    files
        Contents of the further text files by name, such as ``files["genes.txt"]``.
    card
        The model card (Markdown), None where there is none.

    Examples
    --------
    >>> import cfm
    >>> checkpoint = cfm.hub.load_checkpoint("pulsar-mini")
    >>> checkpoint.name, checkpoint.model, sorted(checkpoint.files)
    ('pulsar-mini', 'Pulsar', ['genes.txt', 'history.csv'])
    """

    name: str
    path: Path
    model: str
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]
    sha256: str
    files: dict[str, str] = field(default_factory=dict)
    card: str | None = None


@reads_checkpoint
def load_checkpoint(source: str | Path) -> Checkpoint:
    """Read a checkpoint folder and verify everything in it before anything is used.

    Parameters
    ----------
    source
        A bundled or registered name, a folder, or ``hf://org/name[@revision]``; see
        :func:`cfm.hub.resolve`.

    Returns
    -------
    Checkpoint
        Settings, weights, text files and card.

    Raises
    ------
    ValueError
        If the source is unknown; if ``config.json`` is no JSON, of another format or of a newer
        version; if the weights are truncated, differ from the recorded SHA-256, or differ in
        names, shapes or dtypes from what the configuration lists; if a value is NaN or infinite;
        if a listed text file is missing, changed, or outside the folder. Nothing from the folder
        is executed or unpickled in any case.

    Examples
    --------
    >>> import cfm
    >>> checkpoint = cfm.hub.load_checkpoint("cellpulse-mini")
    >>> checkpoint.model, len(checkpoint.files["genes.txt"].split())
    ('CellPulse', 18285)
    """
    folder = resolve(source)
    if not folder.is_dir():
        raise ValueError(
            f"{folder} is a single file, but a checkpoint of cfm is a folder with {CONFIG_NAME} "
            f"and {WEIGHTS_NAME}; open published weights of other projects through the model "
            "class's from_pretrained, or with cfm.hub.load_torch or cfm.hub.load_safetensors."
        )
    with find_file(folder, CONFIG_NAME).open("rb") as config:
        header = read_config(folder)
        weights = find_file(folder, WEIGHTS_NAME)
        _check_tensors(header["tensors"], read_header(weights), weights)
        sha256 = sha256_of_file(weights)
        if sha256 != header["sha256"]:
            raise ValueError(
                f"{weights} has SHA-256 {sha256}, but {CONFIG_NAME} records {header['sha256']}; "
                "the weights were changed or damaged: download or save the checkpoint again."
            )
        files = {
            check_file_name(name): _read_text(folder, name, digest)
            for name, digest in header["files"].items()
        }
        tensors = read_tensors(weights, list(header["tensors"]))
        card = read_card(folder)
        # While it is open no other file has its number.
        if not os.path.samestat(os.fstat(config.fileno()), (folder / CONFIG_NAME).stat()):
            raise ValueError(
                f"{folder} was replaced by another checkpoint while it was read; load it again."
            )
    return Checkpoint(
        name=checkpoint_name(source),
        path=folder,
        model=header["model"],
        config=header["config"],
        tensors=tensors,
        sha256=sha256,
        files=files,
        card=card,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """Read and check ``config.json`` of a checkpoint folder; raises ValueError as documented."""
    path = find_file(folder, CONFIG_NAME)
    try:
        header = json.loads(
            read_limited(path, LARGEST_JSON).decode("utf-8"), parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:  # bad UTF-8 and bad JSON are ValueErrors
        raise ValueError(
            f"{path} is not valid JSON ({error}); the checkpoint is damaged: download or save it "
            "again."
        ) from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ValueError(
            f"{path} does not describe a checkpoint of cfm (its 'format' is not {FORMAT!r}); open "
            "weights of other projects through the model class's from_pretrained."
        )
    version = header.get("format_version")
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        raise ValueError(
            f"{path} has format_version {version!r}, expected a whole number from 1 to "
            f"{FORMAT_VERSION}; the checkpoint is damaged: download or save it again."
        )
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {version}, but this cfm reads up to {FORMAT_VERSION}; "
            "update cfm-tools."
        )
    expected: Mapping[str, type] = {
        "model": str,
        "sha256": str,
        "tensors": dict,
        "files": dict,
        "config": dict,
    }
    for key, kind in expected.items():
        if not isinstance(header.get(key), kind):
            raise ValueError(
                f"{path} has {type(header.get(key)).__name__} under {key!r}, expected "
                f"{kind.__name__}; the checkpoint is damaged: download or save it again."
            )
    for name, spec in header["tensors"].items():
        if not _is_spec(spec):
            raise ValueError(
                f"{path} describes the tensor {name!r} as {spec!r}, expected a shape and a dtype; "
                "the checkpoint is damaged: download or save it again."
            )
    return header


def read_card(folder: Path) -> str | None:
    """Text of the model card in a checkpoint folder, None where there is none."""
    path = folder / CARD_NAME
    if not path.is_symlink() and not path.exists():
        return None
    return read_limited(find_file(folder, CARD_NAME)).decode("utf-8", errors="replace")


def _check_tensors(
    recorded: Mapping[str, Any], stored: Mapping[str, dict[str, Any]], weights: Path
) -> None:
    missing = sorted(recorded.keys() - stored.keys())
    extra = sorted(stored.keys() - recorded.keys())
    if missing or extra:
        raise ValueError(
            f"{weights} and {CONFIG_NAME} disagree: missing from the file: {_some(missing)}; in "
            f"the file but not listed: {_some(extra)}. Download or save the checkpoint again."
        )
    for name, found in stored.items():
        wanted = recorded[name]
        if wanted != found:
            raise ValueError(
                f"The tensor {name!r} in {weights} has shape {found['shape']} and dtype "
                f"{found['dtype']}, but {CONFIG_NAME} lists {wanted}; the two do not belong "
                "together: download or save the checkpoint again."
            )


def _is_spec(spec: object) -> bool:
    return (
        isinstance(spec, dict)
        and spec.keys() == {"shape", "dtype"}
        and isinstance(spec["dtype"], str)
        and isinstance(spec["shape"], list)
        and all(type(size) is int and size >= 0 for size in spec["shape"])
    )


def _read_text(folder: Path, name: str, digest: object) -> str:
    path = find_file(folder, name)
    content = read_limited(path)
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(
            f"{path} differs from the SHA-256 that {CONFIG_NAME} records; the file was changed or "
            "damaged: download or save the checkpoint again."
        )
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text ({error}); the further files of a checkpoint must be text."
        ) from error


def _some(names: list[str]) -> str:
    if not names:
        return "none"
    shown = ", ".join(repr(name) for name in names[:5])
    return shown if len(names) <= 5 else f"{shown} and {len(names) - 5} more"


def _refuse_constant(value: str) -> NoReturn:
    raise ValueError(f"{value} is not a JSON number")
