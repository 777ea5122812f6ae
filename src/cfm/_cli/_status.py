"""How the command ends: exit statuses, the errors and signals behind them."""

from __future__ import annotations

import errno
import logging
import os
import re
import signal
import sys
import threading
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType

OK = 0
BAD_INPUT = 2
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130  # what a shell makes of Ctrl-C
TERMINATED = 143  # and of SIGTERM

#: What a log says of each.
NAMES = {
    OK: "ok",
    BAD_INPUT: "refused",
    TRY_AGAIN: "failed for now",
    INTERRUPTED: "interrupted",
    TERMINATED: "terminated",
}

#: For ``--help``.
EXIT_STATUS = """\
exit status:
  0    done
  2    the input or the command was refused; the reason is one line on stderr
  75   failed for now: disk full, no memory, no network, or another run writes there;
       run the same command again, it goes on where it was
  130  stopped by Ctrl-C; the same
  143  stopped by SIGTERM, such as a time limit; the same
  other: an error of cfm itself, with a traceback"""

#: What the package raises about its input; anything else is a bug and shows its traceback.
_INPUT_ERRORS = (ValueError, KeyError, TypeError, OSError)
_PASSING = {
    getattr(errno, name)
    for name in (
        "EAGAIN", "EBUSY", "EDQUOT", "EFBIG", "EHOSTUNREACH", "EINTR", "EIO", "ENETDOWN",
        "ENETUNREACH", "ENFILE", "EMFILE", "ENOLCK", "ENOMEM", "ENOSPC", "ESTALE", "ETIMEDOUT",
    )
    if hasattr(errno, name)
}  # fmt: skip
#: What errors of the package call an argument, and the command line an option.
_OPTIONS = {"overwrite=True": "--overwrite", "another output=": "another OUT"}
#: A full disk, in errors of libraries that carry the system's error in their text only.
_FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded|errno = (27|28|122)\b")


class Terminated(KeyboardInterrupt):
    """SIGTERM came; tools treat it like Ctrl-C."""


@contextmanager
def sigterm_raises() -> Iterator[None]:
    """Let SIGTERM raise :class:`Terminated`, so that files are left as Ctrl-C leaves them."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # schedulers send it more than once
        raise Terminated("SIGTERM")

    before = signal.signal(signal.SIGTERM, handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def leave(status: int) -> None:
    """End the process at once where ending it in order may crash.

    HDF5 tries to write what it holds of a file once more when the interpreter ends, and on a full
    disk that is a segmentation fault.
    """
    if status == TRY_AGAIN:
        logging.shutdown()
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):
                stream.flush()
        os._exit(status)


def status_of(error: BaseException) -> int | None:
    """Return the exit status for an error; ``None`` for what should not happen."""
    if isinstance(error, Terminated):
        return TERMINATED
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if _passes(error):
        return TRY_AGAIN
    if isinstance(error, _INPUT_ERRORS):
        return BAD_INPUT
    return None


def _passes(error: BaseException) -> bool:
    """Whether the same command may work later."""
    if isinstance(error, MemoryError | ConnectionError | TimeoutError | BlockingIOError):
        return True
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(error, torch.OutOfMemoryError):
        return True
    if isinstance(error, OSError) and error.errno in _PASSING:
        return True
    # HDF5 raises either, whatever fails when a file is closed
    return isinstance(error, OSError | RuntimeError) and bool(_FULL_DISK.search(str(error)))


def one_line(error: BaseException) -> str:
    """Return the text of an error on one line."""
    if isinstance(error, KeyError) and error.args:
        text = error.args[0]  # str() of a KeyError is the quoted repr of its text
    elif isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror
    else:
        text = error
    for python, option in _OPTIONS.items():
        text = str(text).replace(python, option)
    return " ".join(str(text).split()) or type(error).__name__
