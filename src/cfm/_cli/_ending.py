"""How a command ends: exit statuses, the errors and signals behind them, and the log of a run."""

from __future__ import annotations

import errno
import json
import logging
import os
import platform
import re
import resource
import signal
import sys
import sysconfig
import threading
import time
import warnings
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import typer

from cfm import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import FrameType, SimpleNamespace, TracebackType

OK = 0
BAD_INPUT = 2  # that of usage errors, too
TRY_AGAIN = 75  # EX_TEMPFAIL of sysexits.h
INTERRUPTED = 130  # what a shell makes of Ctrl-C
TERMINATED = 143  # and of SIGTERM

#: Fields of a log line.
NAMES = {
    OK: "ok",
    BAD_INPUT: "refused",
    TRY_AGAIN: "failed for now",
    INTERRUPTED: "interrupted",
    TERMINATED: "terminated",
}
EXIT_STATUS = """\
\b
exit status:
  0    done
  2    the input or the command was refused; the reason is one line on stderr
  75   failed for now: disk full, no memory, no network, or another run writes
       there; run the same command again, it goes on where it was
  130  stopped by Ctrl-C; the same
  143  stopped by SIGTERM, such as a time limit; the same
  other: an error of cfm itself, with a traceback"""

#: What the package raises about its input; anything else is a bug and shows its traceback.
_INPUT_ERRORS = (ValueError, KeyError, TypeError, OSError)
#: System errors after which the same command may work later.
_PASSING = """EAGAIN EBUSY EDQUOT EFBIG EHOSTUNREACH EINTR EIO ENETDOWN ENETUNREACH ENFILE EMFILE
ENOLCK ENOMEM ENOSPC ESTALE ETIMEDOUT"""
#: A full disk, in errors of libraries that carry the system's error in their text only.
_FULL_DISK = re.compile(r"No space left on device|Disk quota exceeded|errno = (27|28|122)\b")
#: Python's names in messages of the package, and those of the command line: ``layer='counts'`` is
#: ``--layer counts``; the functions that are commands by their names.
_ARGUMENT = re.compile(r"""(?<![\w.])([a-z][a-z_]*)=(?:True\b|(?:'([^']*)'|"([^"]*)"))?""")
_FUNCTION = re.compile(r"cfm\.(?:tl|pp)\.(\w+)(?:\([^()]*\))?")
_OWN_NAMES = {"output": "OUT", "reference": "--reference", "adata": "IN"}
COMMANDS = {
    "predict_virus": "calls",
    "embed": "embed",
    "cell_codes": "codes",
    "impute": "impute",
    "embed_donors": "donors",
    "search_signatures": "search",
    "tpm": "tpm",
}
#: Directories of other packages; what these warn of is in the log, not in the terminal.
_PACKAGE = str(Path(__file__).parents[1])
_OTHERS = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")})
#: Fields of a log record that are written besides its message.
_FIELDS = ("done", "total", "rows", "seconds")


class Terminated(KeyboardInterrupt):
    """SIGTERM came; tools treat it like Ctrl-C."""


def status_of(error: BaseException) -> int | None:
    """Return the exit status for an error; ``None`` for what should not happen."""
    if isinstance(error, KeyboardInterrupt):
        return TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    passing: tuple[type[BaseException], ...] = (MemoryError, ConnectionError, TimeoutError)
    if "torch" in sys.modules:
        passing = (*passing, sys.modules["torch"].OutOfMemoryError)
    number = errno.errorcode.get(getattr(error, "errno", None) or 0)
    if isinstance(error, (*passing, BlockingIOError)) or number in _PASSING.split():
        return TRY_AGAIN
    # HDF5 raises either, whatever fails when a file is closed
    if isinstance(error, OSError | RuntimeError) and _FULL_DISK.search(str(error)):
        return TRY_AGAIN
    return BAD_INPUT if isinstance(error, _INPUT_ERRORS) else None


def one_line(error: BaseException, options: Sequence[str] = ()) -> str:
    """Return the text of an error on one line, in the words of the command line.

    Parameters
    ----------
    error
        The error.
    options
        Names of the command's options, such as ``"layer"``; arguments of these names are written
        as options.
    """
    if isinstance(error, KeyError) and error.args:
        text = error.args[0]  # str() of a KeyError is the quoted repr of its text
    elif isinstance(error, OSError) and error.strerror and not error.filename:
        text = error.strerror
    elif not getattr(error, "errno", None) and _FULL_DISK.search(str(error)):
        text = "the disk is full; free some space, and run the same command again"
    else:
        text = error

    def option(found: re.Match[str]) -> str:
        name, *values = found.groups()
        if name in _OWN_NAMES:
            return " ".join(filter(None, (_OWN_NAMES[name], *values)))
        if name not in options:
            return found.group()
        written = " ".join(filter(None, (f"--{name.replace('_', '-')}", *values)))
        return written + " " * found.string[found.end() : found.end() + 1].isalnum()

    def command(found: re.Match[str]) -> str:
        name = found[1]
        return f"cfm {COMMANDS[name]}" if name in COMMANDS else found.group()

    text = _ARGUMENT.sub(option, _FUNCTION.sub(command, str(text)))
    return " ".join(text.split()) or type(error).__name__


@contextmanager
def _sigterm_raises() -> Iterator[None]:
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


class Ending:
    """Reports how a command ended, and ends it with its status.

    What should not happen goes on to the top, as do all errors with ``--debug``.

    Parameters
    ----------
    given
        Options of the command, ``quiet``, ``debug`` and maybe ``log`` among them.

    Attributes
    ----------
    log
        The log of the run.
    rows
        Rows of the output, if it has been made.
    """

    def __init__(self, given: SimpleNamespace) -> None:
        self.rows: int | None = None
        self._given = given

    def __enter__(self) -> Ending:
        given = vars(self._given)
        self.log = RunLog(_checked_log(given))
        with ExitStack() as stack:
            stack.enter_context(_sigterm_raises())
            stack.enter_context(_messages(self.log, given))
            self._within = stack.pop_all()
        self.log.event(
            "start",
            version=__version__,
            command=given["command"],
            arguments={name: value for name, value in given.items() if name != "inputs"},
            inputs=[{"path": str(p), "bytes": _bytes_of(p)} for p in given.get("inputs", [])],
            folder=str(Path.cwd()),
            python=platform.python_version(),
        )
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._within.close()
        if error is None:
            self.log.end(OK, self.rows, "")
            return
        status, text = status_of(error), one_line(error, [*vars(self._given)])
        self.log.end(1 if status is None else status, None, text)
        if status is None or self._given.debug:
            return
        if isinstance(error, KeyboardInterrupt):
            kept = " ".join(getattr(error, "__notes__", []))
            kept = kept or "what is done is kept; run the same command again to go on from there"
            word = "interrupted" if status == INTERRUPTED else "stopped by SIGTERM"
            sys.stderr.write(f"cfm: {word}; {kept}\n")
        else:
            sys.stderr.write(f"cfm: error: {text}\n")
        raise typer.Exit(status) from error


def _checked_log(given: dict[str, Any]) -> Path | None:
    """Return the path of the log, which must not be a file that the command reads."""
    path: Path | None = given.get("log")
    if path is None:
        return None
    from cfm.data._inputs import check_apart

    read = [v for name, v in given.items() if isinstance(v, Path) and name not in ("log", "output")]
    try:
        check_apart(path, *given.get("inputs", []), *read, name="--log")
        path.open("a").close()
    except (OSError, ValueError) as error:
        sys.stderr.write(f"cfm: error: the log cannot be written: {one_line(error)}\n")
        raise typer.Exit(status_of(error) or 1) from error
    return path


class RunLog(logging.Handler):
    """Writes a line of JSON per event; a log that cannot be written any more is given up.

    Parameters
    ----------
    path
        File to append to, ``None`` for no log.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__(logging.INFO)
        self._path = path
        self._started = time.monotonic()

    def event(self, event: str, **fields: Any) -> None:
        """Write an event."""
        if self._path is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "event": event, "pid": os.getpid()} | fields
        try:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, default=str, ensure_ascii=False) + "\n")
        except OSError as error:
            sys.stderr.write(f"cfm: warning: the log is given up: {error}\n")
            self._path = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of the package."""
        fields = {name: record.__dict__[name] for name in _FIELDS if name in record.__dict__}
        self.event(record.__dict__.get("event", "message"), **fields, message=record.getMessage())

    def end(self, status: int, rows: int | None, message: str) -> None:
        """Write how the run ended."""
        self.event(
            "end",
            status=NAMES.get(status, "error"),
            exit_status=status,
            seconds=round(time.monotonic() - self._started, 3),
            rows=rows,
            peak_rss_mib=_peak_mib(),
            message=message,
        )


def _bytes_of(path: Path) -> int | None:
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size if path.exists() else None


def _peak_mib() -> float:
    """Largest resident memory of this process so far, in MiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


@contextmanager
def _messages(log: RunLog, given: dict[str, Any]) -> Iterator[None]:
    """Write what the package reports and warns of to stderr and to the log."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = one_line(Warning(message), [*given])
        log.event("warning", message=text, category=category.__name__)
        ours = filename.startswith(_PACKAGE) or not filename.startswith(_OTHERS)
        if issubclass(category, UserWarning) and ours:
            sys.stderr.write(f"cfm: warning: {text}\n")
        elif given["debug"]:
            sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    logger = logging.getLogger("cfm")
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING if given["quiet"] else logging.INFO)
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in (terminal, log):
        logger.addHandler(handler)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = show
            yield
    finally:
        for handler in (terminal, log):
            logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Show the bars of the tools, or silence them through the one switch they share."""
    from scvi import settings

    before = settings.verbosity
    settings.verbosity = before if shown else logging.ERROR
    try:
        yield
    finally:
        settings.verbosity = before
