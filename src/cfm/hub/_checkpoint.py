"""The format of a checkpoint: what may lie in its folder, and how that is read and verified."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import get_ident
from typing import Any, NoReturn

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from torch.nn.modules.module import register_module_parameter_registration_hook

from cfm.hub._resolve import (
    CONFIG_NAME,
    checkpoint_name,
    named_folders,
    reads_checkpoint,
    reread,
    resolve,
)

FORMAT = "cfm-checkpoint"
FORMAT_VERSION = 1
WEIGHTS_NAME = "model.safetensors"
CARD_NAME = "README.md"

# Bytes of the largest text that is read: lists of genes and tables have a few MB. JSON takes up to
# twenty times its size when it is parsed.
LARGEST_TEXT = 2**24
LARGEST_JSON = 2**23
# Tensors of a safetensors file, and bytes of its header, which both cost time: twenty times those
# of the largest published model.
MOST_TENSORS = 10_000
LARGEST_HEADER = 2**21

# One plain name: no folders, no drive letters, nothing hidden.
_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,199}")


def check_file_name(name: object) -> str:
    """Return `name` if a text file of a checkpoint may have it.

    Raises
    ------
    ValueError
        If `name` is not one plain file name (so neither a path nor hidden), or is one of the
        names that the format itself uses.
    """
    if not isinstance(name, str) or not _FILE_NAME.fullmatch(name):
        raise ValueError(
            f"A checkpoint lists the file {name!r}, but only plain file names (letters, digits, "
            "'_', '.', '+', '-') inside the checkpoint's own folder are allowed; rename it, and "
            "do not use a checkpoint from elsewhere with other paths."
        )
    if name in {CONFIG_NAME, WEIGHTS_NAME, CARD_NAME}:
        raise ValueError(
            f"A checkpoint lists {name!r} among its further text files, but the format uses that "
            "name itself; rename the file."
        )
    return name


def find_file(folder: Path, name: str) -> Path:
    """Path of the regular file `name` in `folder`, never one that a link takes elsewhere.

    Links into the ``blobs`` folder that huggingface_hub keeps beside ``snapshots`` are allowed,
    because that is how its cache stores every file.

    Raises
    ------
    ValueError
        If the file is missing, is not a regular file, or is a link out of the folder.
    """
    path = folder / name
    try:
        target = path.resolve()
    except (RuntimeError, OSError) as error:  # circular links, before Python 3.13
        raise ValueError(
            f"The checkpoint file {path} is a link that leads nowhere ({error}); replace it by "
            "the file itself."
        ) from error
    allowed = [folder.resolve()]
    if folder.parent.name == "snapshots":
        allowed.append((folder.parent.parent / "blobs").resolve())
    if not any(target.is_relative_to(root) for root in allowed):
        raise ValueError(
            f"The checkpoint file {path} is a link to {target}, outside the checkpoint's folder; "
            "replace the link by the file itself if you trust it."
        )
    if not target.is_file():
        raise ValueError(
            f"The checkpoint folder {folder} has no file {name!r}; it is incomplete or not a "
            "checkpoint of cfm: download or save it again."
        )
    return path


def read_limited(path: Path, most: int = LARGEST_TEXT) -> bytes:
    """Bytes of a text file, unless it is larger than any that belongs to a checkpoint.

    Raises
    ------
    ValueError
        If the file has more than `most` bytes.
    """
    size = path.stat().st_size
    if size > most:
        raise ValueError(
            f"{path} has {size / 1e6:,.0f} MB, but such a file of a checkpoint has at most "
            f"{most / 1e6:,.0f} MB; it was not read. Use a checkpoint of another origin."
        )
    return path.read_bytes()


def sha256_of_file(path: Path) -> str:
    """SHA-256 of a file's bytes as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Also errors of torch: no memory for a size, or a file that is just being replaced.
_UNREADABLE = (SafetensorError, TypeError, RuntimeError)
# The names that torch gives to what safetensors abbreviates.
_DTYPES = {
    "BOOL": "bool",
    "U8": "uint8",
    "I8": "int8",
    "I16": "int16",
    "I32": "int32",
    "I64": "int64",
    "U16": "uint16",
    "U32": "uint32",
    "U64": "uint64",
    "F16": "float16",
    "BF16": "bfloat16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}


def load_safetensors(path: str | Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file, checking that it is whole and that its values are finite.

    For weights published by others in their own layout; a folder written by
    :func:`cfm.hub.save_checkpoint` is read with :func:`cfm.hub.load_checkpoint`.

    Parameters
    ----------
    path
        The file.

    Returns
    -------
    dict
        Tensors by name, on the CPU, in the dtype in which they are stored.

    Raises
    ------
    ValueError
        If the file is missing, truncated, not safetensors (for example a pickle), or holds NaN
        or infinite values; if it has more than 10,000 tensors or a header of more than 2 MB.

    Examples
    --------
    >>> import cfm
    >>> weights = cfm.hub.load_safetensors(cfm.hub.resolve("pulsar-mini") / "model.safetensors")
    >>> len(weights), sorted({str(tensor.dtype) for tensor in weights.values()})
    (59, ['torch.float16', 'torch.float32'])
    """
    path = Path(path)
    find_file(path.parent, path.name)
    header = read_header(path)
    return read_tensors(path, list(header))


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Shape and dtype of every tensor in a safetensors file, without reading the tensors.

    Returns
    -------
    dict
        ``{name: {"shape": list of int, "dtype": str}}``, dtypes named as in torch.

    Raises
    ------
    ValueError
        If the file is truncated, is not a safetensors file, or has more than 10,000 tensors or a
        header of more than 2 MB.
    """
    with path.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
    if size > LARGEST_HEADER:
        raise _unreadable(path, f"a header of {size / 1e6:,.0f} MB; expected at most 2 MB")
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            if len(names) > MOST_TENSORS:
                raise _unreadable(
                    path, f"{len(names):,} tensors; expected at most {MOST_TENSORS:,}"
                )
            slices = {name: file.get_slice(name) for name in names}
            return {
                name: {
                    "shape": [int(size) for size in piece.get_shape()],
                    "dtype": _DTYPES.get(piece.get_dtype(), piece.get_dtype()),
                }
                for name, piece in slices.items()
            }
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error


def read_tensors(path: Path, names: list[str]) -> dict[str, torch.Tensor]:
    """The tensors called `names`, on the CPU, refused if one holds NaN or infinity."""
    tensors = {}
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            for name in names:
                tensors[name] = file.get_tensor(name)
    except _UNREADABLE as error:
        raise _unreadable(path, error) from error
    check_finite(tensors.items(), str(path))
    return tensors


def check_finite(
    tensors: Iterable[tuple[str, torch.Tensor]], where: str, *, infinite: bool = False
) -> None:
    """Raise ValueError if a tensor holds NaN, or infinity unless `infinite` allows it."""
    for name, tensor in tensors:
        if tensor.is_complex():
            tensor = torch.view_as_real(tensor)
        if not tensor.is_floating_point() or tensor.numel() == 0:
            continue
        if tensor.element_size() == 1:  # float8 has no minimum and maximum on the CPU
            try:
                tensor = tensor.float()
            except NotImplementedError as error:
                raise ValueError(
                    f"The tensor {name!r} in {where} has dtype {tensor.dtype}, which torch cannot "
                    "convert to float32; convert it with the program that wrote it."
                ) from error
        # Minimum and maximum pass NaN on and need no second array of the tensor's size.
        low, high = (float(value) for value in torch.aminmax(tensor))
        if math.isnan(low) or (not infinite and not (math.isfinite(low) and math.isfinite(high))):
            raise ValueError(
                f"The tensor {name!r} in {where} holds NaN{'' if infinite else ' or infinite'} "
                "values, but weights must be finite; the training probably diverged: use an "
                "earlier checkpoint."
            )


def _unreadable(path: Path, error: Exception | str) -> ValueError:
    return ValueError(
        f"{path} is truncated or not a safetensors file ({error}); nothing was loaded: download "
        "or save it again."
    )


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read and verified by :func:`load_checkpoint`.

    Attributes
    ----------
    name
        Name in the call: ``"cellpulse-mini"``, ``"org/name"`` or that of the folder.
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
    """Return ``config.json``, the bytes of the weights, and the card."""
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


#: Errors of damaged settings, when they are read or modules are made of them.
_WRONG = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)


@contextmanager
def validate_config(model: str, name: str, tensors: Sized) -> Iterator[None]:
    """Read settings and make modules of them on the ``meta`` device, without memory.

    Fill the modules with :func:`cfm.models.base.load_weights`, which compares every shape with
    that of the stored tensor.

    Parameters
    ----------
    model, name
        Of the model and the checkpoint, for the error.
    tensors
        Those of the checkpoint. Modules with far more parameters are refused while they are made:
        a layer costs time on ``meta``, too.

    Raises
    ------
    ValueError
        If settings are missing or invalid, or give more layers than there are weights for.
    """
    thread, n_parameters = get_ident(), 0

    def count(*_: object) -> None:
        nonlocal n_parameters
        n_parameters += get_ident() == thread
        # some parameters are made twice
        if n_parameters > 2 * len(tensors) + 16:
            raise ValueError(f"more layers than the {len(tensors)} tensors have weights for")

    hook = register_module_parameter_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    except _WRONG as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(
            f"The config.json or a text file of checkpoint {name!r} lacks or garbles a setting of "
            f"{model} ({reason[:500]}). It may be damaged or from another version; download it "
            "again."
        ) from error
    finally:
        hook.remove()
