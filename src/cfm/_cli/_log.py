"""A log in JSON lines: how a run began, how far it is, and how it ended."""

from __future__ import annotations

import json
import logging
import os
import platform
import sys
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from cfm import __version__
from cfm._cli._status import NAMES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

#: Fields of a log record that are written besides its message.
_FIELDS = ("done", "total", "rows", "seconds")


class RunLog(logging.Handler):
    """Writes a line of JSON per event; a log that cannot be written any more is given up.

    Parameters
    ----------
    path
        File to append to, ``None`` for no log.
    """

    def __init__(self, path: Path | None) -> None:
        super().__init__(logging.INFO)
        self._file: TextIO | None = None
        self._started = time.monotonic()
        if path is not None:
            self._file = path.open("a", encoding="utf-8")

    def event(self, event: str, **fields: Any) -> None:
        """Write an event."""
        if self._file is None:
            return
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = {"time": now, "event": event, "pid": os.getpid()} | fields
        try:
            self._file.write(json.dumps(line, default=str, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            sys.stderr.write(f"cfm: warning: the log is given up: {error}\n")
            self._file = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record of the package."""
        fields = {name: record.__dict__[name] for name in _FIELDS if name in record.__dict__}
        self.event(record.__dict__.get("event", "message"), **fields, message=record.getMessage())

    def begin(self, command: str, arguments: Mapping[str, Any], inputs: list[Path]) -> None:
        """Write what runs on what."""
        self.event(
            "start",
            version=__version__,
            command=command,
            arguments=dict(arguments),
            inputs=[{"path": str(path), "bytes": size_of(path)} for path in inputs],
            folder=str(Path.cwd()),
            python=platform.python_version(),
        )

    def end(self, status: int, rows: int | None, message: str = "") -> None:
        """Write how it ended, and close the log."""
        self.event(
            "end",
            status=NAMES.get(status, "error"),
            exit_status=status,
            seconds=round(time.monotonic() - self._started, 3),
            rows=rows,
            peak_rss_mib=peak_mib(),
            message=message,
        )
        if self._file is not None:
            self._file.close()
            self._file = None


def size_of(path: Path) -> int | None:
    """Bytes of a file, or of all files of a folder; ``None`` if there is none."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    return path.stat().st_size if path.exists() else None


def peak_mib() -> float | None:
    """Largest resident memory of this process so far, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():
        for line in status.read_text().splitlines():
            if line.startswith("VmHWM"):
                return round(int(line.split()[1]) / 2**10, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(peak / (2**20 if sys.platform == "darwin" else 2**10), 1)


@contextmanager
def bars(shown: bool) -> Iterator[None]:
    """Show the bars of the tools, or silence them through the one switch they share."""
    if shown:
        yield
        return
    from scvi import settings

    before = settings.verbosity
    settings.verbosity = logging.ERROR
    try:
        yield
    finally:
        settings.verbosity = before
