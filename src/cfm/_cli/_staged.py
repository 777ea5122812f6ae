"""Outputs that are made in two steps: results first, then a table or a copy of the input with them.

The results lie in a hidden folder beside the output until that is whole, so a run that was killed
in the second step does not begin anew.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfm import __version__

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Options that do not change what is written.
_FREE = ("overwrite", "skip_existing", "device", "devices", "num_nodes", "strategy", "output")
_RECORD = "call.json"


class Staged:
    """The hidden folder of an output.

    Parameters
    ----------
    output
        What is made in the end.
    suffix
        Of the file of results.

    Attributes
    ----------
    folder
        ``.OUT.work`` beside the output.
    results
        The file of results in it.
    """

    def __init__(self, output: Path, suffix: str) -> None:
        self.output = output
        self.folder = output.absolute().with_name(f".{output.name}.work")
        self.results = self.folder / f"results{suffix}"

    def begin(self, call: Mapping[str, Any], inputs: Sequence[Path], overwrite: bool) -> None:
        """Make the folder, or go on with that of the same call.

        Raises
        ------
        ValueError
            If it is of another call, and ``overwrite`` is not set.
        """
        wanted = {name: value for name, value in call.items() if name not in _FREE}
        wanted |= {"version": __version__, "inputs": [stamp(path) for path in inputs]}
        wanted = json.loads(json.dumps(wanted, default=str))
        record = self.folder / _RECORD
        try:
            found = json.loads(record.read_text())
        except (FileNotFoundError, ValueError):
            found = None
        if found is not None and found != wanted:
            if not overwrite:
                names = [n for n in sorted(found.keys() | wanted) if found.get(n) != wanted.get(n)]
                raise ValueError(
                    f"{self.folder} holds the results of another call (other {', '.join(names)}) "
                    "for the same OUT; repeat that call to finish it, or throw them away with "
                    "--overwrite."
                )
            found = None
        if found is None:
            remove(self.folder)
            self.folder.mkdir()
            part = record.with_suffix(".part")
            part.write_text(json.dumps(wanted, indent=1))
            part.replace(record)

    def finish(self, source: Path | None) -> int:
        """Make the output of the results; the folder is removed.

        Parameters
        ----------
        source
            Input to copy; ``None`` for a table.

        Returns
        -------
        Rows of the output.
        """
        from cfm.data import open_files

        made = self.folder / f"made{self.output.suffix}"
        remove(made)
        results = open_files(self.results)
        try:
            if source is None:
                from cfm._cli._table import write_table

                write_table(results, made)
            else:
                from cfm._cli._keep_input import keep_input

                keep_input(source, self.results, made)
            _publish(made, self.output)
        except OSError:
            remove(made)  # it may be what fills the disk; the results stay
            raise
        remove(self.folder)
        return int(results.n_obs)


def check_apart(inputs: Sequence[Path], output: Path) -> None:
    """Check that the output is no input.

    Raises
    ------
    ValueError
        If it is.
    """
    for path in inputs:
        if path.resolve() == output.resolve():
            raise ValueError(f"OUT is IN ({path}); choose another name.")


def stamp(path: Path) -> list[Any]:
    """Return what changes when a file or folder does; its name if there is none."""
    if not path.exists():
        return [str(path)]
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    about = [file.stat() for file in files]
    return [path.name, len(about), sum(s.st_size for s in about), max(s.st_mtime_ns for s in about)]


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _publish(made: Path, output: Path) -> None:
    """Give what was made its name."""
    if made.is_file():
        with made.open("rb+") as file:
            os.fsync(file.fileno())
    if output.is_dir() or made.is_dir():
        remove(output)
    made.replace(output)
