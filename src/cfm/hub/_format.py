"""The layout of a checkpoint folder: names, versions and what may lie in it."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

FORMAT = "cfm-checkpoint"
FORMAT_VERSION = 1
CONFIG_NAME = "config.json"
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
            "do not use a checkpoint from elsewhere that asks for other paths."
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
    except (RuntimeError, OSError) as error:  # Python before 3.13 says so of links in a circle
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


# Also what torch says of a size that it has no room for, and of a file that is just being replaced.
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
