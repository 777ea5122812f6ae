"""Replace a checkpoint folder in one step, and read one that may be replaced meanwhile."""

from __future__ import annotations

import ctypes
import errno
import functools
import inspect
import itertools
import os
import shutil
import sys
import time
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, ParamSpec, TypeVar

import torch

from cfm.hub._resolve import local_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

P = ParamSpec("P")
T = TypeVar("T")

#: Seconds after which a reader gives up on a folder that is replaced again and again.
PATIENCE = 60.0
#: What a system answers that cannot exchange two names, or a file system such as NFS.
_CANNOT = {errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}
#: What is wrong with a name where another process has just put a folder, or taken one away.
_TAKEN = {errno.ENOENT, errno.EEXIST, errno.ENOTEMPTY}


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


def reread(source: object, read: Callable[[], T]) -> T:
    """Read a checkpoint; where its folder is replaced meanwhile and reading fails, begin again.

    A reader that began with the old folder finds files gone, or those of the new one. Tensors are
    ordinary ones also inside :func:`torch.inference_mode`, so that models can be trained later.

    Parameters
    ----------
    source
        As for :func:`cfm.hub.resolve`; anything else is never replaced.
    read
        Reads it.

    Raises
    ------
    Exception
        What ``read`` raises with a folder that stays, or that is replaced for a minute on end.
    """
    end = time.monotonic() + PATIENCE
    for attempt in itertools.count(1):
        before = _identity(source)
        try:
            with torch.inference_mode(False):
                return read()
        except (OSError, ValueError):
            late = time.monotonic() > end and attempt > 3
            if late or _identity(source) == before:
                raise
    raise AssertionError("not reached")


def reads_checkpoint(reader: Callable[P, T]) -> Callable[P, T]:
    """Decorate a function whose argument ``source`` is a checkpoint; see :func:`reread`."""
    signature = inspect.signature(reader)

    @functools.wraps(reader)
    def read(*args: P.args, **kwargs: P.kwargs) -> T:
        given = signature.bind(*args, **kwargs).arguments
        return reread(given["source"], lambda: reader(*args, **kwargs))

    return read


def _identity(source: object) -> tuple[int, int, int] | None:
    """What tells a folder from another one of its name, ``None`` where there is none."""
    path = local_path(source)
    try:
        seen = None if path is None else path.stat()
    except OSError:
        return None
    return None if seen is None else (seen.st_dev, seen.st_ino, seen.st_mtime_ns)
