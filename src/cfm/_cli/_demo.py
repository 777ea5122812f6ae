"""``cfm demo``: from a count table to responses, viruses and a report."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cfm._cli._log import bars

if TYPE_CHECKING:
    from cfm._cli._log import RunLog
    from cfm._report import DemoResult


def add_commands(
    commands: argparse._SubParsersAction[argparse.ArgumentParser], common: argparse.ArgumentParser
) -> None:
    """Add the command."""
    demo = commands.add_parser(
        "demo",
        parents=[common],
        help="from a count table to responses, viruses and a report",
        description="Make one profile per contrast, tell its kind of response and the virus where "
        "studies support a name, and write report.html, calls.csv, matches.csv, contrasts.h5ad "
        "and figures. Without --counts it runs on bundled data.",
    )
    demo.add_argument(
        "--counts",
        type=Path,
        metavar="FILE",
        help="raw counts: .h5ad or .zarr (samples by genes), or .csv/.tsv/.txt, also .gz",
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
    demo.set_defaults(run=_demo, kept="files written so far are in the output folder")


def _demo(arguments: argparse.Namespace, log: RunLog) -> int:
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
    with bars(not arguments.quiet):
        result = run_demo(options)
    sys.stdout.write(_told(result))
    return len(result.calls)


def _told(result: DemoResult) -> str:
    """Lines for the terminal: one per contrast, then where the report is."""
    width = max(len(call.name) for call in result.calls)
    lines = [f"{call.name:<{width}}  {call.sentence}" for call in result.calls]
    counted = result.agreement
    if counted.n_known:
        lines.append(
            f"{counted.n_known} contrasts of viruses that the model knows: "
            f"{counted.n_viral} with a viral response, {counted.n_named} with a named virus, "
            f"{counted.n_agree} with the known one"
        )
    if counted.n_in_training:
        lines.append(f"{counted.n_in_training} contrasts are from studies that it was trained on")
    lines.append(f"report: {result.report}")
    return "\n".join(lines) + "\n"
