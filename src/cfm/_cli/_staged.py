"""Outputs that are made in two steps: results first, then a table or a copy of the input with them.

The results lie in a hidden folder beside the output until that is whole, so a run that was killed
in the second step does not begin anew.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfm import __version__
from cfm.data import open_files
from cfm.data._inputs import describe_files
from cfm.data._result_store import ResultStore
from cfm.data._work_folder import WorkFolder, differences, put_in_place, remove

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

#: Options that do not change what is written.
_FREE = ("overwrite", "skip_existing", "device", "devices", "num_nodes", "strategy", "output")


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
        self._work = WorkFolder(self.folder, output)

    def begin(self, call: Mapping[str, Any], inputs: Sequence[Path], overwrite: bool) -> None:
        """Make the folder, or go on with that of the same call.

        Raises
        ------
        ValueError
            If it holds results of another call, and ``overwrite`` is not set.
        FileExistsError
            If something of its name was not made here.
        """
        read = describe_files(path for path in inputs if path.exists())
        wanted = {name: value for name, value in call.items() if name not in _FREE}
        wanted = json.loads(json.dumps(wanted | read | {"version": __version__}, default=str))
        self._work.open()
        found = self._work.record()
        if found != wanted:
            if found is not None and self._holds_results() and not overwrite:
                raise ValueError(
                    f"{self.folder} holds results of another call for the same OUT "
                    f"({differences(found, wanted)}); start anew with --overwrite, or repeat that "
                    "call to finish it."
                )
            self._work.start(wanted)

    def end(self) -> None:
        """Let others use the folder; one without results is removed."""
        if self._holds_results():
            self._work.close()
        else:
            self._work.remove()

    def _holds_results(self) -> bool:
        return self.results.exists() or bool(ResultStore(self.results).done())

    def finish(self, source: Path | None, *, overwrite: bool) -> int:
        """Make the output of the results; the folder is removed.

        Parameters
        ----------
        source
            Input to copy; ``None`` for a table.
        overwrite
            Replace what has the name of the output.

        Returns
        -------
        Rows of the output.
        """
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
            if made.is_file():
                with made.open("rb+") as file:
                    os.fsync(file.fileno())
        except OSError:
            remove(made)  # it may be what fills the disk; the results stay
            raise
        put_in_place(made, self.output, overwrite=overwrite)
        self._work.remove()
        return int(results.n_obs)
