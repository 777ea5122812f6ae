"""Write a checkpoint folder, all of it or nothing, and put it in the place of an older one."""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import shutil
import sys
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from cfm.hub._checkpoint import (
    CARD_NAME,
    FORMAT,
    FORMAT_VERSION,
    MOST_TENSORS,
    WEIGHTS_NAME,
    check_file_name,
    check_finite,
    read_config,
    read_header,
    sha256_of_file,
)
from cfm.hub._resolve import CONFIG_NAME, PATIENCE, reread

#: What a system answers that cannot exchange two names, or a file system such as NFS.
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
#: What is wrong with a name where another process has just put a folder, or taken one away.
_TAKEN = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY}


def save_checkpoint(
    folder: str | Path,
    tensors: Mapping[str, torch.Tensor],
    config: Mapping[str, Any],
    *,
    model: str | None = None,
    files: Mapping[str, str] | None = None,
    card: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a checkpoint folder, all of it or nothing.

    The folder is written under a hidden name beside its place and takes its name when it is
    complete: a full disk or Ctrl-C leaves neither a half checkpoint nor a damaged old one. A
    checkpoint that is replaced is exchanged for the new one in one step (on Linux and macOS, where
    the file system can), so others may load it, or save over it, at the same time.

    Parameters
    ----------
    folder
        Where the checkpoint goes. Missing parents are made.
    tensors
        Weights by name. Any device; stored contiguously in the dtype that they have (bfloat16
        stays bfloat16). Tensors that share memory are each stored in full.
    config
        The model's own settings: JSON types, NumPy numbers and arrays (stored as lists).
    model
        Name of the model class, by default ``config["model"]`` if there is one.
    files
        Further text files: content by plain file name, such as ``{"genes.txt": ...}``.
    card
        The model card in Markdown, written to ``README.md``.
    overwrite
        Replace a checkpoint that is already there. A folder that is not one is never replaced.

    Returns
    -------
    pathlib.Path
        The folder.

    Raises
    ------
    FileExistsError
        If the folder exists and `overwrite` is False.
    ValueError
        If a tensor holds NaN or infinity or cannot be stored (sparse, quantised, complex, meta),
        if there are none or more than 10,000,
        if a file name is not plain, if a setting is NaN, or if what `overwrite` would replace is
        not a checkpoint.
    TypeError
        If `tensors` holds something else, or `config` something that JSON cannot express.
    OSError
        If the disk is full or the place cannot be written.

    Notes
    -----
    ``config.json`` holds ``format``, ``format_version``, ``model``, ``sha256`` of the weights,
    ``tensors`` (shape and dtype of each), ``files`` (SHA-256 of each) and ``config``.

    A process that is killed outright cannot tidy up: it may leave a folder called
    ``.<name>.<32 digits>`` beside the checkpoint, with the unfinished new one or the old one. On a
    file system that cannot exchange names, such as NFS, the old one is renamed first: a kill in
    between leaves it there and no folder of its name.

    Examples
    --------
    >>> import cfm, torch
    >>> folder = cfm.hub.save_checkpoint(
    ...     "ours",
    ...     {"weight": torch.ones(2)},
    ...     {"dim": 2},
    ...     model="Ours",
    ...     files={"genes.txt": "ISG15"},
    ... )
    >>> cfm.hub.load_checkpoint(folder).config
    {'dim': 2}
    """
    # The real place, so that replacing a linked folder replaces the folder and not the link.
    target = Path(folder).expanduser().resolve()
    reread(target, lambda: _check_target(target, overwrite))
    weights = _storable(tensors)
    texts = {check_file_name(name): text for name, text in (files or {}).items()}
    header = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "model": model if model is not None else str(config.get("model", "")),
        "files": {
            name: hashlib.sha256(text.encode("utf-8")).hexdigest() for name, text in texts.items()
        },
        "config": dict(config),
    }
    _to_json(header)  # before anything is written
    target.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile.mkdtemp, which makes folders that only their owner can read.
    draft = target.parent / f".{target.name}.{uuid.uuid4().hex}"
    try:
        draft.mkdir()
        for name, text in texts.items():
            _write_text(draft / name, text)
        if card is not None:
            _write_text(draft / CARD_NAME, card)
        _write_weights(draft / WEIGHTS_NAME, weights)
        header["sha256"] = sha256_of_file(draft / WEIGHTS_NAME)
        header["tensors"] = read_header(draft / WEIGHTS_NAME)
        _write_text(draft / CONFIG_NAME, _to_json(header))
        # safetensors lets only the owner read; the other files follow the user's umask.
        os.chmod(draft / WEIGHTS_NAME, (draft / CONFIG_NAME).stat().st_mode)
        reread(target, lambda: _check_target(target, overwrite))
        put_in_place(draft, target, overwrite=overwrite)
    finally:
        # Also after Ctrl-C; after the exchange it is the old checkpoint.
        shutil.rmtree(draft, ignore_errors=True)
    return target


def _check_target(target: Path, overwrite: bool) -> None:
    if not target.exists():
        return
    if not overwrite:
        raise FileExistsError(
            f"{target} already exists; choose another folder or pass overwrite=True to replace "
            "the checkpoint in it."
        )
    if not target.is_dir():
        raise ValueError(f"{target} is a file, but a checkpoint is a folder; choose another path.")
    if any(target.iterdir()):
        try:
            read_config(target)
        except ValueError as error:
            raise ValueError(
                f"{target} is not empty and not a checkpoint of cfm, so overwrite=True does not "
                "replace it; choose another folder or remove it yourself."
            ) from error


def _storable(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    ready: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"tensors maps {name!r} to {type(tensor).__name__}, expected names and tensors."
            )
        if (
            tensor.layout != torch.strided
            or tensor.is_quantized
            or tensor.is_complex()
            or tensor.is_meta
        ):
            raise ValueError(
                f"The tensor {name!r} is sparse, quantised, complex or without data; convert it to "
                "a plain dense real tensor."
            )
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage().data_ptr()
        if tensor.numel() and storage in seen:  # safetensors refuses shared memory
            tensor = tensor.clone()
        seen.add(storage)
        ready[name] = tensor
    if not 1 <= len(ready) <= MOST_TENSORS:
        found = f"holds {len(ready):,} tensors" if ready else "is empty"
        raise ValueError(f"tensors {found}; a checkpoint has from 1 to {MOST_TENSORS:,}.")
    check_finite(ready.items(), "tensors")
    return ready


def _to_json(header: dict[str, Any]) -> str:
    try:
        return json.dumps(header, indent=1, allow_nan=False, default=_plain) + "\n"
    except TypeError as error:
        raise TypeError(
            f"config holds something that JSON cannot express ({error}); use numbers, strings, "
            "booleans, None, lists and dictionaries with string keys."
        ) from error
    except ValueError as error:
        raise ValueError(
            f"config holds NaN, infinity or itself ({error}); use None for a missing number."
        ) from error


def _plain(value: object) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"a {type(value).__name__}")


def _write_text(path: Path, text: str) -> None:
    # Bytes, so that Windows does not change line ends under the recorded SHA-256.
    with path.open("wb") as file:
        file.write(text.encode("utf-8"))
        file.flush()
        os.fsync(file.fileno())


def _write_weights(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    try:
        save_file(tensors, path, metadata={"format": "pt"})
    except SafetensorError as error:
        raise OSError(
            f"The weights could not be written ({error}); nothing was changed: free some space "
            "or choose another folder."
        ) from error
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def put_in_place(draft: Path, target: Path, *, overwrite: bool) -> None:
    """Give a folder its name; what had the name before has that of ``draft`` afterwards.

    Linux and macOS exchange the two names in one step, so that there is a whole folder at any
    moment and after a kill. Where the system or the file system cannot, the old folder steps aside
    first; two processes that do so at once repeat it until both are through.

    Parameters
    ----------
    draft
        The new folder, beside ``target``.
    target
        Its name; nothing, an empty folder, or one that ``overwrite`` replaces.
    overwrite
        Whether a folder that is not empty is replaced.

    Raises
    ------
    FileExistsError
        If there is one and it is not to be replaced.
    OSError
        If names cannot be changed there.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            if not overwrite or not target.exists():
                os.replace(draft, target)
            elif not _exchange(draft, target):
                _step_aside(draft, target)
        except OSError as error:
            if not overwrite and error.errno in (errno.EEXIST, errno.ENOTEMPTY):
                raise FileExistsError(error.errno, "already exists", str(target)) from error
            if not overwrite or error.errno not in _TAKEN or time.monotonic() > end:
                raise
        else:
            return


def _exchange(first: Path, second: Path) -> bool:
    """Exchange the names of two folders in one step; ``False`` where that cannot be done."""
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        names = os.fsencode(first), os.fsencode(second)
        if sys.platform == "darwin":
            failed = libc.renamex_np(*names, 2)  # RENAME_SWAP
        else:
            here = -100  # AT_FDCWD
            failed = libc.renameat2(here, names[0], here, names[1], 2)  # RENAME_EXCHANGE
    except (AttributeError, OSError, TypeError):  # no such function, no C library
        return False
    number = ctypes.get_errno()
    if failed and number not in _CANNOT:
        raise OSError(number, os.strerror(number), str(second))
    return not failed


def _step_aside(draft: Path, target: Path) -> None:
    """Exchange the names of two folders in three steps; if one fails, as if it had not begun."""
    aside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        os.replace(target, aside)
        os.replace(draft, target)
    except BaseException:
        with suppress(OSError):  # where another process was faster, its folder stays
            os.replace(aside, target)
        if target.exists():
            shutil.rmtree(aside, ignore_errors=True)
        raise
    os.replace(aside, draft)
