"""Runs a tool on files: its input, its output, and what is kept of a run that was stopped.

Tables and copies of the input are made in two steps, results first. The results lie in a hidden
folder beside the output until that is whole, so a run that was killed in the second step does not
begin anew.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import sys
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from cfm import __version__, settings
from cfm._cli._ending import bars

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import SimpleNamespace

    from anndata import AnnData
    from pandas import DataFrame

logger = logging.getLogger(__name__)

_STORES, _TABLES = (".h5ad", ".zarr"), {".csv": ",", ".tsv": "\t"}
#: Options that do not change what is written.
_FREE = "command overwrite skip_existing device scheduler output inputs log quiet debug"
#: Levels by which ``cfm calls`` recognises the controls where none are named.
_CONTROLS = "mock control controls ctrl none uninfected untreated healthy vehicle dmso pbs naive"


class Tool(NamedTuple):
    """A tool as a command.

    Attributes
    ----------
    module, function
        Where it is.
    prepare
        Takes the data and the options; returns changes of the tool's arguments.
    streams
        Whether it reads files a part at a time and writes them as it goes (``output=``).
    keeps_rows
        Whether a row of the result is a row of the input.
    table, summary
        The result as a table in a file, and on stdout, of the AnnData and ``key_added``; ``None``:
        ``obs`` and ``obsm``, or the layer.
    """

    module: str
    function: str
    prepare: Callable[[Any, SimpleNamespace], dict[str, Any]] | None = None
    streams: bool = True
    keeps_rows: bool = True
    table: Callable[[AnnData, str | None], DataFrame] | None = None
    summary: Callable[[AnnData, str | None], DataFrame] | None = None


def run_tool(given: SimpleNamespace, own: Sequence[str], tool: Tool) -> int | None:
    """Run a command.

    Parameters
    ----------
    given
        All options.
    own
        Names of those that are not of files, but of this tool.
    tool
        What runs.

    Returns
    -------
    Rows of the output; ``None`` if it was there already.
    """
    read = [
        v for name, v in vars(given).items() if isinstance(v, Path) and name not in _FREE.split()
    ]
    _check_files(given, tool, read)
    output: Path | None = given.output
    if output is not None and os.path.lexists(output):
        if given.skip_existing:
            logger.info("%s exists; nothing was done", output, extra={"event": "skipped"})
            return None
        if not given.overwrite:
            raise FileExistsError(
                f"{output} exists; --overwrite replaces it, --skip-existing keeps it."
            )

    from cfm._cli import _files

    data = _files.read_inputs(given, given.inputs)
    genes_in_rows = not isinstance(data, list) and bool(data.uns.pop(_files.GENES_IN_ROWS, False))
    options = {name: getattr(given, name) for name in own}
    options |= {name: getattr(given, name, None) for name in ("layer", "key_added")}
    options |= {} if tool.prepare is None else tool.prepare(data, given)
    # what was not given is left to the tool; None is a number of cells
    options = {n: v for n, v in options.items() if v is not None or n == "n_cells"}

    def compute(into: Path | None) -> AnnData:
        client = nullcontext() if given.__dict__.get("scheduler") is None else _client(given)
        with bars(not given.quiet), client, _chunk_size(given.__dict__.get("chunk_size")):
            return _compute(tool, data, options, given, into)

    def write_table(results: AnnData, file: TextIO, separator: str) -> None:
        make = tool.table if file is not sys.stdout else tool.summary or tool.table
        if make is None:
            _files.write_table(results, file, separator, genes_in_rows=genes_in_rows)
        else:
            make(results, given.key_added).to_csv(
                file, sep=separator, index=False, float_format="%.6g"
            )

    if output is None:
        results = compute(None)
        write_table(results, sys.stdout, ",")
        return int(results.n_obs)
    if tool.streams and output.suffix in _STORES and not given.keep_input:
        rows = int(compute(output).n_obs)
    else:
        stage = _Stage(output, given.overwrite)
        try:
            stage.begin(given, [*given.inputs, *read])
            if not stage.results.exists():
                compute(stage.results)
            rows = stage.finish(given.inputs[0] if given.keep_input else None, write_table)
        finally:
            stage.end()
    logger.info("%s: %s rows", output, f"{rows:,}", extra={"event": "written", "rows": rows})
    return rows


def _check_files(given: SimpleNamespace, tool: Tool, read: list[Path]) -> None:
    """Check names of files before anything is loaded.

    Raises
    ------
    FileNotFoundError
        If an input or the folder of the output does not exist.
    ValueError
        If a name ends in what cannot be read or written, or the output is an input.
    """
    from cfm._cli._files import READ, suffix_of
    from cfm.data._inputs import check_apart

    for path in given.inputs:
        if suffix_of(path) not in READ:
            known = ", ".join(READ)
            raise ValueError(f"IN is {path}, which ends in {path.suffix!r}; expected {known}.")
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist (seen from {Path.cwd()}).")
    output = given.output
    if output is None:
        if given.overwrite or given.skip_existing or given.keep_input:
            raise ValueError("--overwrite, --skip-existing and --keep-input go with -o OUT.")
        return
    if output.suffix not in (*_STORES, *_TABLES):
        known = ", ".join((*_STORES, *_TABLES))
        raise ValueError(f"OUT is {output}, which ends in {output.suffix!r}; expected {known}.")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {output} does not exist; make it first.")
    check_apart(output, *given.inputs, *read, name="OUT")
    if given.overwrite and given.skip_existing:
        raise ValueError("--overwrite and --skip-existing contradict each other; choose one.")
    if not given.keep_input:
        return
    if not tool.keeps_rows or (given.command == "calls" and given.groupby is not None):
        raise ValueError("--keep-input does not go with results whose rows are not those of IN.")
    if len(given.inputs) > 1:
        raise ValueError(f"--keep-input copies one IN, found {len(given.inputs)}; run each alone.")
    if given.inputs[0].suffix != output.suffix or output.suffix not in _STORES:
        raise ValueError(
            f"--keep-input makes an .h5ad or .zarr of the same kind as IN; found "
            f"{given.inputs[0]} and OUT {output}."
        )


def contrast_design(data: Any, given: SimpleNamespace) -> dict[str, Any]:
    """Return ``groupby`` and ``control`` of ``cfm calls``, found where they are not given."""
    if isinstance(data, list) or not len(data.obs.columns):
        return {}
    groupby, control = given.groupby, given.control
    if groupby is None and control is None:
        from cfm.data._matrix import row_blocks

        if any((block < 0).sum() for _, block in row_blocks(data.X)):
            return {}  # fold changes
        found = {}
        for column in data.obs:
            levels = data.obs[column].dropna().astype(str).unique()
            controls = [level for level in levels if level.strip().lower() in _CONTROLS.split()]
            if len(levels) > 1 and len(controls) == 1:
                found[str(column)] = controls[0]
        if len(found) != 1:
            raise ValueError(
                f"{'several columns have' if found else 'no column has'} one level such as 'mock' "
                f"or 'control' ({', '.join(found or map(str, data.obs))}); give --groupby and "
                "--control."
            )
        ((groupby, control),) = found.items()
        logger.info("contrasts: each level of %s against %s", groupby, control)
    if groupby in data.obs:  # a command line has only text
        levels = {str(level): level for level in data.obs[groupby].unique()}
        control = levels.get(str(control), control)
    return {"groupby": groupby, "control": control}


def _compute(
    tool: Tool, data: Any, options: dict[str, Any], given: SimpleNamespace, output: Path | None
) -> AnnData:
    """Call the tool, and return what it made, which is in ``output`` then if one is given."""
    from cfm._cli._files import only_results, write_store
    from cfm.data import open_files

    function = getattr(importlib.import_module(tool.module), tool.function)
    if tool.streams:
        options = options | {"device": given.device}
        if output is not None:
            made: AnnData = function(data, output=output, overwrite=given.overwrite, **options)
            return made
    adata = open_files(data) if isinstance(data, list) else data
    before = {*adata.obsm, *adata.layers}
    made = function(adata, **options)
    results = only_results(adata, before) if made is None else only_results(made, set())
    if output is not None:
        write_store(results, output)
    return results


@contextmanager
def _chunk_size(rows: int | None) -> Iterator[None]:
    """Set ``cfm.settings.chunk_size``."""
    before = settings.chunk_size
    try:
        if rows is not None:
            settings.chunk_size = rows
        yield
    finally:
        settings.chunk_size = before


def _client(given: SimpleNamespace) -> Any:
    """Connect to the scheduler; tools give their chunks to the client that is active."""
    try:
        from distributed import Client
    except ImportError as error:
        raise ValueError(
            "--scheduler needs the package distributed: pip install 'cfm-tools[scale]'."
        ) from error
    return Client(given.scheduler)


class _Stage:
    """The hidden folder of an output, ``.OUT.work`` beside it.

    Attributes
    ----------
    results
        The file of results in the folder.
    """

    def __init__(self, output: Path, overwrite: bool) -> None:
        from cfm.data._result_store import WorkFolder

        self._output, self._overwrite = output, overwrite
        self._folder = output.absolute().with_name(f".{output.name}.work")
        suffix = output.suffix if output.suffix in _STORES else ".h5ad"
        self.results = self._folder / f"results{suffix}"
        self._work = WorkFolder(self._folder, output)

    def begin(self, given: SimpleNamespace, read: list[Path]) -> None:
        """Make the folder, or go on with that of the same call.

        Raises
        ------
        ValueError
            If it holds results of another call, and ``overwrite`` is not set.
        FileExistsError
            If something of its name was not made here.
        """
        from cfm.data._inputs import describe_files
        from cfm.data._result_store import differences

        call: dict[str, Any] = {n: v for n, v in vars(given).items() if n not in _FREE.split()}
        read = [*read, Path(str(call.get("model", "")))]
        wanted = call | describe_files(p for p in read if p.exists()) | {"version": __version__}
        wanted = json.loads(json.dumps(wanted, default=str))
        self._work.open()
        found = self._work.record()
        if found != wanted:
            if found is not None and self._holds_results() and not self._overwrite:
                raise ValueError(
                    f"{self._folder} holds results of another call for the same OUT "
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
        from cfm.data._result_store import ResultStore

        return self.results.exists() or bool(ResultStore(self.results).done())

    def finish(
        self, source: Path | None, write_table: Callable[[AnnData, TextIO, str], None]
    ) -> int:
        """Make the output of the results, remove the folder, and return the rows.

        Parameters
        ----------
        source
            Input to copy, if that is the output.
        write_table
            Writes the output if it is a table.
        """
        from cfm._cli._files import copy_with_results
        from cfm.data import open_files
        from cfm.data._result_store import put_in_place, remove

        results = open_files(self.results)
        made = self._folder / f"made{self._output.suffix}"
        remove(made)
        try:
            if source is not None:
                copy_with_results(source, self.results, made)
            elif self._output.suffix in _TABLES:
                with made.open("w", encoding="utf-8", newline="") as file:
                    write_table(results, file, _TABLES[self._output.suffix])
            if made.is_file():
                with made.open("rb+") as written:
                    os.fsync(written.fileno())
        except OSError:
            remove(made)  # it may be what fills the disk; the results stay
            raise
        made = made if made.exists() else self.results
        put_in_place(made, self._output, overwrite=self._overwrite)
        self._work.remove()
        return int(results.n_obs)
