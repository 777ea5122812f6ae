"""Runs a tool of :mod:`cfm.tl` on files, and writes what it makes."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cfm._cli._log import bars

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

    from cfm._cli._log import RunLog
    from cfm._cli._staged import Staged

_FILES = (".h5ad", ".zarr")
_TABLES = (".csv", ".tsv")


class Tool(NamedTuple):
    """A tool of :mod:`cfm.tl` as a command.

    Attributes
    ----------
    function
        Its name in :mod:`cfm.tl`.
    arguments
        Names of the options that it takes, where they are not ``None``.
    keeps_rows
        Whether a row of the result is a row of the input.
    tables
        Whether the result fits into a table.
    """

    function: str
    arguments: tuple[str, ...]
    keeps_rows: bool = True
    tables: bool = True


def run_tool(
    arguments: argparse.Namespace, tool: Tool, options: dict[str, Any], log: RunLog
) -> int | None:
    """Run a command.

    Returns
    -------
    Rows of the output; ``None`` if it was there already.
    """
    inputs: list[Path] = arguments.inputs
    output: Path = arguments.output
    log.begin(arguments.command, told(arguments), inputs)
    check_files(arguments, tool)
    if output.exists() and arguments.skip_existing:
        log.event("skipped", output=str(output))
        _say(arguments, f"{output} exists; nothing was done")
        return None
    if output.exists() and not arguments.overwrite:
        raise FileExistsError(
            f"{output} exists; --overwrite replaces it, --skip-existing keeps it."
        )
    staged = output.suffix in _TABLES or arguments.keep_input
    if not staged:
        with bars(not arguments.quiet):
            rows = compute(tool, inputs, output, options).n_obs
    else:
        from cfm._cli._staged import Staged

        suffix = output.suffix if arguments.keep_input else ".h5ad"
        rows = _run_staged(arguments, tool, options, Staged(output, suffix))
        if rows is None:
            return None
    if is_first_process(arguments):
        log.event("written", output=str(output), rows=rows)
        _say(arguments, f"{output}: {rows:,} rows")
    return rows


def _run_staged(
    arguments: argparse.Namespace, tool: Tool, options: dict[str, Any], stage: Staged
) -> int | None:
    """Make results, and of them the output; return its rows in the first process."""
    inputs: list[Path] = arguments.inputs
    first = is_first_process(arguments)
    try:
        if first:
            stage.begin(told(arguments), [*inputs, _folder_of(options)], arguments.overwrite)
        if not stage.results.exists():
            with bars(not arguments.quiet):
                compute(tool, inputs, stage.results, options)
        if not first:
            return None
        source = inputs[0] if arguments.keep_input else None
        return stage.finish(source, overwrite=arguments.overwrite)
    finally:
        stage.end()


def check_files(arguments: argparse.Namespace, tool: Tool) -> None:
    """Check names of files before anything is loaded.

    Raises
    ------
    FileNotFoundError
        If an input or the folder of the output does not exist.
    ValueError
        If a name ends in what cannot be read or written, or the output is an input.
    """
    inputs, output = arguments.inputs, arguments.output
    for path in inputs:
        if path.suffix not in _FILES:
            raise ValueError(f"IN is {path}, which ends in {path.suffix!r}; expected {_FILES}.")
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist (seen from {Path.cwd()}).")
    known = (*_FILES, *_TABLES) if tool.tables else _FILES
    if output.suffix not in known:
        raise ValueError(f"OUT is {output}, which ends in {output.suffix!r}; expected {known}.")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"the folder of {output} does not exist; make it first.")
    check_apart(arguments, output, "OUT")
    if not arguments.keep_input:
        return
    if len(inputs) > 1:
        raise ValueError(
            f"--keep-input copies one IN, found {len(inputs)}; leave it out, or run each alone."
        )
    if output.suffix != inputs[0].suffix:
        raise ValueError(
            f"--keep-input makes a file of the same kind: OUT must end in {inputs[0].suffix}, "
            f"found {output}."
        )
    if getattr(arguments, "groupby", None) is not None and arguments.command == "predict-virus":
        raise ValueError(
            "--keep-input does not go with --groupby: contrasts are other rows than the samples "
            "of IN."
        )


def check_apart(arguments: argparse.Namespace, written: Path, name: str) -> None:
    """Check that a file that is written is none of those that a command reads.

    Raises
    ------
    ValueError
        If it is.
    """
    from cfm.data import _inputs

    read = (getattr(arguments, "inputs", None), getattr(arguments, "reference", None))
    _inputs.check_apart(written, *read, name=name)


def compute(tool: Tool, inputs: list[Path], output: Path, options: dict[str, Any]) -> AnnData:
    """Call the tool; its results are in ``output`` then."""
    from cfm import data, tl

    options = dict(options)
    paths = inputs if len(inputs) > 1 else inputs[0]
    if "reference" in options:
        options["reference"] = data.open_files(options["reference"])
    result: AnnData = getattr(tl, tool.function)(paths, output=output, **options)
    return result


def is_first_process(arguments: argparse.Namespace) -> bool:
    """Whether this process is the one of those that share the rows which writes and speaks."""
    devices = getattr(arguments, "devices", None) or 1
    nodes = getattr(arguments, "num_nodes", None) or 1
    if (devices, nodes) == (1, 1):  # others, such as tasks of srun, do something else
        return True
    local = int(os.environ.get("LOCAL_RANK", 0)) + int(os.environ.get("NODE_RANK", 0))
    everywhere = os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))
    return local == 0 and int(everywhere) == 0


def told(arguments: argparse.Namespace) -> Mapping[str, Any]:
    """Return the options of a command by name."""
    hidden = ("run", "kept", "command", "quiet", "debug", "log", "inputs")
    found = vars(arguments).items()
    return {k: str(v) if isinstance(v, Path) else v for k, v in found if k not in hidden}


def _folder_of(options: Mapping[str, Any]) -> Path:
    """Return the folder of the model, if it is one."""
    return Path(str(options["model"]))


def _say(arguments: argparse.Namespace, text: str) -> None:
    if not arguments.quiet:
        sys.stdout.write(text + "\n")
