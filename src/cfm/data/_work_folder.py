"""A hidden folder beside an output, for what is not finished, and how the output takes its name."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

#: Marks a folder as made here, and keeps a second process out.
_MARK = "cfm.lock"
_RECORD = "run.json"
#: What says nothing to a reader.
_DIGEST = re.compile("[0-9a-f]{32,64}")


class WorkFolder:
    """A folder for the unfinished results of a call.

    What bears its name and was not made here is never touched.

    Parameters
    ----------
    path
        The folder.
    output
        What is made in the end.
    """

    def __init__(self, path: Path, output: Path) -> None:
        self.path = path
        self.output = output
        self._lock: Any = None

    def open(self) -> None:
        """Make the folder, or take the one that is there, for this process alone.

        Raises
        ------
        FileExistsError
            If something of that name was not made here.
        BlockingIOError
            If another process works in it at this moment.
        """
        try:
            self.path.mkdir()
        except FileExistsError:
            self._check_made_here()
        self._lock = _locked(self.path / _MARK, self.output)

    def _check_made_here(self) -> None:
        mark = self.path / _MARK
        if self.path.is_symlink():
            found = "a link"
        elif not self.path.is_dir():
            found = "a file"
        elif mark.is_symlink() or not (mark.is_file() or next(self.path.iterdir(), None) is None):
            found = "a folder that cfm did not make"
        else:
            return
        raise FileExistsError(
            f"{self.path}, the place for unfinished results, is {found} and is left as it is; move "
            "it, or choose another output="
        )

    def close(self) -> None:
        """Let other processes work in it."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def record(self) -> dict[str, Any] | None:
        """Return what :meth:`start` wrote; ``None`` if a kill came before."""
        try:
            found = json.loads((self.path / _RECORD).read_text())
        except (FileNotFoundError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def start(self, record: Mapping[str, Any]) -> None:
        """Empty the folder, and write down of which call the results will be."""
        for old in self.path.iterdir():
            if old.name != _MARK:
                remove(old)
        part = self.path / f"{_RECORD}.part"
        with part.open("w") as file:
            json.dump(record, file, indent=1)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self.path / _RECORD)

    def remove(self) -> None:
        """Remove the folder, if this process has it."""
        if self._lock is None:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()
        with suppress(OSError):  # a network file system keeps the lock while it is open
            self.path.rmdir()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """Say in which of the things that results depend on two calls differ."""
    named = []
    for name in sorted(found.keys() | wanted.keys()):
        before, now = found.get(name), wanted.get(name)
        if before != now:
            digests = all(_DIGEST.fullmatch(str(value)) for value in (before, now))
            named.append(
                f"{name} changed" if digests else f"{name} was {before!r} and is now {now!r}"
            )
    return "; ".join(named)


def remove(path: Path) -> None:
    """Remove a file, folder or link, if it is there; what a link leads to stays."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def put_in_place(made: Path, output: Path, *, overwrite: bool = False) -> None:
    """Give a finished file or folder its name, in one step.

    Parameters
    ----------
    made
        The file or folder, on the same file system.
    output
        The name.
    overwrite
        Replace what has the name.

    Raises
    ------
    FileExistsError
        If something has the name and is not to be replaced; ``made`` stays.
    """
    if overwrite:
        aside = made.with_name(f"{made.name}.replaced")
        if output.is_dir():  # no system renames over a folder that is not empty
            remove(aside)
            output.replace(aside)
        made.replace(output)
        remove(aside)
        return
    if not os.path.lexists(output):
        try:
            if made.is_file():
                os.link(made, output)  # unlike a renamed file, a link replaces nothing
            else:
                made.rename(output)
        except OSError:
            if not os.path.lexists(output):  # a file system without hard links
                made.replace(output)
                return
        else:
            made.unlink(missing_ok=True)
            return
    raise FileExistsError(
        f"{output} appeared during the run and is left as it is; the results are kept in {made}. "
        "Move one of them, or repeat the call with overwrite=True to replace it."
    )


def _locked(path: Path, output: Path) -> Any:
    """Return an open file that keeps other processes out; a process that dies lets go of it."""
    file = path.open("w")
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.fstat(file.fileno()).st_nlink:  # its owner has just removed it
            raise BlockingIOError
    except ImportError:  # Windows
        return file
    except BlockingIOError as error:
        file.close()
        raise BlockingIOError(
            errno.EAGAIN,
            f"Another process writes the results for {output} at this moment; wait for it, or "
            "choose another output=. Several processes share a run through a dask client",
        ) from error
    except OSError:  # a file system without locks
        return file
    return file
