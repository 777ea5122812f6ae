"""The command line: its commands, what they share, and how they end."""

from __future__ import annotations

import argparse
import logging
import sys
import sysconfig
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING

from cfm import __version__
from cfm._cli import _demo, _models, _tools
from cfm._cli._log import RunLog
from cfm._cli._run_tool import check_apart, is_first_process
from cfm._cli._status import (
    EXIT_STATUS,
    INTERRUPTED,
    OK,
    TERMINATED,
    leave,
    one_line,
    sigterm_raises,
    status_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from types import TracebackType
    from typing import TextIO

#: Directories of other packages; what these warn of is in the log, not in the terminal.
_OTHERS = tuple({sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib")})


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; ``None`` reads those of the process.

    Returns
    -------
    The exit status: 0, 2 when the input was refused (the reason is one line on stderr), 75 when
    the same command may work later (disk full, no memory, no network), 130 after Ctrl-C, or 143
    after SIGTERM.
    """
    arguments = _parser().parse_args(argv)
    path = getattr(arguments, "log", None) if is_first_process(arguments) else None
    try:
        if path is not None:
            check_apart(arguments, path, "--log")
        log = RunLog(path)
    except (OSError, ValueError) as error:
        sys.stderr.write(f"cfm: error: the log cannot be written: {one_line(error)}\n")
        return status_of(error) or OK
    with (
        sigterm_raises(),
        _records_told(log, arguments.quiet),
        _warnings_told(log, arguments.debug),
    ):
        status = _run(arguments, log)
    if argv is None:
        leave(status)
    return status


def _run(arguments: argparse.Namespace, log: RunLog) -> int:
    with _Ending(arguments, log) as ending:
        ending.rows = arguments.run(arguments, log)
    return ending.status


class _Ending:
    """Tells how a command ended, whatever it was that ended it.

    What should not happen goes on to the top, as do all errors with ``--debug``.
    """

    def __init__(self, arguments: argparse.Namespace, log: RunLog) -> None:
        self.arguments = arguments
        self.log = log
        self.rows: int | None = None
        self.status = OK

    def __enter__(self) -> _Ending:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        if error is None:
            self.log.end(OK, self.rows)
            return True
        status = status_of(error)
        self.log.end(1 if status is None else status, None, one_line(error))
        if status is None or self.arguments.debug:
            return False
        self.status = status
        if status in (INTERRUPTED, TERMINATED):
            kept = " ".join(getattr(error, "__notes__", [])) or self.arguments.kept
            word = "interrupted" if status == INTERRUPTED else "stopped by SIGTERM"
            sys.stderr.write(f"cfm: {word}; {kept}\n")
        else:
            sys.stderr.write(f"cfm: error: {one_line(error)}\n")
        return True


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfm",
        description="Transcriptome foundation models for scverse.",
        epilog=EXIT_STATUS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"cfm {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--quiet", action="store_true", help="say nothing about progress")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for part in (_tools, _demo, _models):
        part.add_commands(commands, common)
    return parser


@contextmanager
def _records_told(log: RunLog, quiet: bool) -> Iterator[None]:
    """Give what the package reports to the terminal and to the log."""
    logger = logging.getLogger("cfm")
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.WARNING if quiet else logging.INFO)
    level = logger.level
    logger.setLevel(logging.INFO)
    for handler in (terminal, log):
        logger.addHandler(handler)
    try:
        yield
    finally:
        for handler in (terminal, log):
            logger.removeHandler(handler)
        logger.setLevel(level)


@contextmanager
def _warnings_told(log: RunLog, debug: bool) -> Iterator[None]:
    """Give warnings a line each, and a line of the log."""

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        text = " ".join(str(message).split())
        log.event("warning", message=text, category=category.__name__)
        ours = issubclass(category, UserWarning) and not filename.startswith(_OTHERS)
        if ours:
            sys.stderr.write(f"cfm: warning: {text}\n")
        elif debug:
            sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
