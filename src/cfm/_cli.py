"""The command line: ``cfm demo``, ``cfm models``, ``cfm --version``."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from cfm import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfm._report import DemoResult

_EXIT_BAD_INPUT = 2
_EXIT_INTERRUPTED = 130  # what a shell makes of Ctrl-C
#: What the package raises about its input; anything else is a bug and shows its traceback.
_INPUT_ERRORS = (ValueError, KeyError, TypeError, OSError)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    argv
        Arguments without the program's name; ``None`` reads those of the process.

    Returns
    -------
    The exit status: 0, 2 when the input was refused (the reason is one line on stderr), or 130
    after Ctrl-C.
    """
    arguments = _parser().parse_args(argv)
    logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr)
    logging.getLogger("cfm").setLevel(logging.WARNING if arguments.quiet else logging.INFO)
    try:
        _COMMANDS[arguments.command](arguments)
    except _INPUT_ERRORS as error:
        if arguments.debug:
            raise
        sys.stderr.write(f"cfm: error: {_one_line(error)}\n")
        return _EXIT_BAD_INPUT
    except KeyboardInterrupt:
        if arguments.debug:
            raise
        sys.stderr.write("cfm: interrupted; files written so far are in the output folder\n")
        return _EXIT_INTERRUPTED
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cfm", description="Transcriptome foundation models for scverse."
    )
    parser.add_argument("--version", action="version", version=f"cfm {__version__}")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--quiet", action="store_true", help="say nothing about progress")
    common.add_argument("--debug", action="store_true", help="show the traceback of an error")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_demo(commands, common)
    commands.add_parser(
        "models",
        parents=[common],
        help="list the checkpoints that work offline",
        description="List bundled and registered checkpoints.",
    )
    return parser


def _add_demo(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="from a count table to a virus call and a report",
        description="Make one profile per contrast, call its virus, and write report.html, "
        "calls.csv, contrasts.h5ad and figures. Without --counts it runs on bundled data.",
    )
    demo.add_argument(
        "--counts",
        type=Path,
        metavar="FILE",
        help="raw counts: .h5ad (samples by genes), or .csv/.tsv/.txt, also .gz",
    )
    demo.add_argument(
        "--metadata",
        type=Path,
        metavar="FILE",
        help="table with one line per sample, first column its name; needed for .csv and .tsv",
    )
    demo.add_argument(
        "--sample-column", metavar="NAME", help="column of the metadata with the sample names"
    )
    demo.add_argument(
        "--orientation",
        choices=["auto", "genes-in-rows", "samples-in-rows"],
        default="auto",
        help="which way round the table is (default: where the sample names are found)",
    )
    demo.add_argument(
        "--groupby",
        default="virus",
        metavar="COLUMN",
        help="column that tells cases from controls (default: virus)",
    )
    demo.add_argument(
        "--control", default="none", metavar="LEVEL", help="its control level (default: none)"
    )
    demo.add_argument(
        "--by",
        nargs="+",
        metavar="COLUMN",
        help="compare only samples that agree in these columns, such as study, tissue, time "
        "(default: no strata; for the bundled data: series)",
    )
    demo.add_argument(
        "--mode",
        choices=["replicates", "test"],
        default="replicates",
        help="shrunken difference of means, or PyDESeq2 (default: replicates)",
    )
    demo.add_argument(
        "--sample-key",
        metavar="COLUMN",
        help="for single cells: column that says which sample a cell is of; counts are summed",
    )
    demo.add_argument(
        "--units",
        choices=["counts", "log"],
        default="counts",
        help="log: the values are log2 expression already (default: counts)",
    )
    demo.add_argument(
        "--organism",
        choices=["auto", "human", "mouse"],
        default="auto",
        help="of the gene names (default: detected)",
    )
    demo.add_argument(
        "--model",
        default="cellpulse-virus",
        help="classifier: name, folder or hf://org/name (default: cellpulse-virus)",
    )
    demo.add_argument(
        "--embedding-model",
        default="cellpulse-mini",
        metavar="MODEL",
        help="model of the embedding (default: cellpulse-mini)",
    )
    demo.add_argument(
        "--output", type=Path, default=Path("demo"), metavar="FOLDER", help="(default: demo)"
    )


def _demo(arguments: argparse.Namespace) -> None:
    os.environ.setdefault("MPLBACKEND", "agg")  # figures go to files; no window may open
    # imported here: torch and scanpy take seconds that --help and --version need not wait for
    from cfm._report import DemoOptions, run_demo

    by = arguments.by
    if by is None:
        by = ["series"] if arguments.counts is None else []
    options = DemoOptions(
        output=arguments.output,
        counts=arguments.counts,
        metadata=arguments.metadata,
        orientation=arguments.orientation,
        sample_column=arguments.sample_column,
        groupby=arguments.groupby,
        control=arguments.control,
        by=tuple(by),
        mode=arguments.mode,
        units=arguments.units,
        sample_key=arguments.sample_key,
        organism=arguments.organism,
        model=arguments.model,
        embedding_model=arguments.embedding_model,
    )
    with _progress_bars(not arguments.quiet):
        result = run_demo(options)
    sys.stdout.write(_told(result))


@contextmanager
def _progress_bars(shown: bool) -> Iterator[None]:
    """Silence the bars of the tools through the one switch they share."""
    from scvi import settings

    before = settings.verbosity
    if not shown:
        settings.verbosity = logging.ERROR
    try:
        yield
    finally:
        settings.verbosity = before


def _told(result: DemoResult) -> str:
    """Lines for the terminal: one per contrast, then where the report is."""
    width = max(len(call.name) for call in result.calls)
    lines = [f"{call.name:<{width}}  {call.sentence}" for call in result.calls]
    counted = result.agreement
    if counted.n_known:
        known = f"known virus met in {counted.n_agree} of {counted.n_known} contrasts"
        if counted.n_in_training:
            known += f" ({counted.n_in_training} of them from the model's training studies)"
        lines.append(known)
    lines.append(f"report: {result.report}")
    return "\n".join(lines) + "\n"


def _models(arguments: argparse.Namespace) -> None:
    from cfm import hub

    table = hub.list_checkpoints()
    if table.empty:
        sys.stdout.write("no checkpoints are bundled or registered\n")
        return
    for name, row in table.iterrows():
        sys.stdout.write(
            f"{name}  {row['model']}, {row['n_parameters'] / 1e6:.1f} M parameters, "
            f"{row['size_mb']:.1f} MB, {row['origin']}\n    {row['description']}\n"
            f"    sha256 {row['sha256']}\n"
        )


_COMMANDS = {"demo": _demo, "models": _models}


def _one_line(error: BaseException) -> str:
    # str() of a KeyError is the quoted repr of its text
    text = error.args[0] if isinstance(error, KeyError) and error.args else error
    return " ".join(str(text).split())


if __name__ == "__main__":
    sys.exit(main())
