"""The layout of a checkpoint folder: names, versions and what may lie in it."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

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
