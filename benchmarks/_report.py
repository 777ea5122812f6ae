"""What every benchmark shares: where the data lie, the environment, tables and where they go."""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
from dataclasses import dataclass, field
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._figures import Dots, Lines, draw

REPOSITORY = Path(__file__).resolve().parents[1]
DOCUMENT = REPOSITORY / "docs" / "benchmarks.md"
RESULTS = REPOSITORY / "benchmarks" / "results"
FIGURES = REPOSITORY / "docs" / "_static" / "benchmarks"


def add_arguments(parser: argparse.ArgumentParser, *, data: bool = True) -> None:
    """Add the options that all benchmarks have: ``--data`` and ``--write``."""
    if data:
        parser.add_argument(
            "--data", help="folder of real data (default: $CFM_DATA, then ../shared/data)"
        )
    parser.add_argument(
        "--write",
        action="store_true",
        help="write the tables into docs/benchmarks.md and benchmarks/results/",
    )


def data_folder(argument: str | os.PathLike[str] | None = None) -> Path:
    """Find the folder of real data: the argument, ``$CFM_DATA``, or ``../shared/data``.

    Raises
    ------
    SystemExit
        With a sentence that says what was looked for, if the folder is not there or does not
        hold ``virus_signatures/manifest.csv``.
    """
    given = argument or os.environ.get("CFM_DATA")
    folder = Path(given).expanduser() if given else REPOSITORY.parent / "shared" / "data"
    if not (folder / "virus_signatures" / "manifest.csv").is_file():
        raise SystemExit(
            f"No virus_signatures/manifest.csv under {folder}. Give the folder of the real data "
            "with --data FOLDER or in the environment variable CFM_DATA."
        )
    return folder


def environment(packages: tuple[str, ...] = ("cfm-tools", "torch", "numpy", "scikit-learn")) -> str:
    """One line that says on what a benchmark ran."""
    versions = []
    for package in packages:
        try:
            versions.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    usable = getattr(os, "process_cpu_count", os.cpu_count)() or 1
    threads = os.environ.get("OMP_NUM_THREADS", "all")
    machine = _processor() or platform.machine()
    return (
        f"{machine}, {usable} CPUs, {threads} BLAS threads; Python {platform.python_version()}, "
        f"{', '.join(versions)}; {date.today().isoformat()}"
    )


def commit() -> str:
    """Short name of the commit that runs, with a ``+`` if files of the package differ from it."""

    def git(*arguments: str) -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False
        )
        return done.stdout.strip()

    name = git("rev-parse", "--short", "HEAD")
    return (name + ("+" if git("status", "--porcelain", "src", "benchmarks/*.py") else "")) or "–"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def markdown_table(table: pd.DataFrame, digits: int | dict[str, int] = 3) -> str:
    """Format a table as GitHub markdown: numbers rounded, NaN as a dash, no index."""

    def cell(value: Any, column: str) -> str:
        if isinstance(value, bool | np.bool_):
            return "yes" if value else "no"
        if isinstance(value, float | np.floating):
            if not np.isfinite(value):
                return "–"
            n = digits.get(column, 3) if isinstance(digits, dict) else digits
            return f"{value:.{n}f}"
        return str(value).replace("|", "\\|")

    names = [str(c) for c in table.columns]
    is_number = [pd.api.types.is_numeric_dtype(t) for t in table.dtypes]
    lines = [
        "| " + " | ".join(n.replace("|", "\\|") for n in names) + " |",
        "|" + "|".join("---:" if n else "---" for n in is_number) + "|",
    ]
    for row in table.itertuples(index=False):
        cells = [cell(v, n) for v, n in zip(row, names, strict=True)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


@dataclass
class Report:
    """Collects tables and sentences; prints them and, if asked, writes them to the docs.

    Parameters
    ----------
    name
        Short name: the section's marker in ``docs/benchmarks.md`` and the JSON file's stem.
    title
        Heading of the section.
    """

    name: str
    title: str
    parts: list[str] = field(default_factory=list)
    values: dict[str, Any] = field(default_factory=dict)

    def text(self, sentence: str) -> None:
        """Add a paragraph."""
        print(sentence, flush=True)
        self.parts.append(sentence)

    def table(
        self, key: str, table: pd.DataFrame, caption: str, digits: int | dict[str, int] = 3
    ) -> None:
        """Add a table; its unrounded values go to the JSON file under ``key``."""
        markdown = f"**{caption}**\n\n{markdown_table(table, digits)}"
        print(f"\n{markdown}\n", flush=True)
        self.parts.append(markdown)
        self.values[key] = json.loads(table.to_json(orient="records"))

    def value(self, key: str, value: Any) -> None:
        """Add something that goes to the JSON file only."""
        self.values[key] = value

    def markdown(self) -> str:
        """Return the section as markdown."""
        body = "\n\n".join(self.parts)
        run = (
            f"Run with `python -m benchmarks.{self.name}` at commit {commit()} on {environment()}."
        )
        return f"## {self.title}\n\n{body}\n\n{run}\n"

    def finish(self, write: bool) -> None:
        """Print the environment; with ``write`` update the document and the JSON file."""
        print(environment(), flush=True)
        if not write:
            return
        RESULTS.mkdir(parents=True, exist_ok=True)
        content = {
            "benchmark": self.name,
            "environment": environment(),
            "commit": commit(),
            **self.values,
        }
        path = RESULTS / f"{self.name}.json"
        path.write_text(json.dumps(content, indent=1, default=_plain) + "\n")
        old = DOCUMENT.read_text() if DOCUMENT.is_file() else "# Benchmarks\n"
        DOCUMENT.write_text(replace_section(old, self.name, self.markdown()))
        print(f"Wrote {path.relative_to(REPOSITORY)} and {DOCUMENT.relative_to(REPOSITORY)}.")


def replace_section(document: str, name: str, section: str) -> str:
    """Put ``section`` between the markers of ``name``, at the end if there are none yet."""
    begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
    block = f"{begin}\n{section.strip()}\n{end}"
    if begin in document and end in document:
        head, rest = document.split(begin, 1)
        return head + block + rest.split(end, 1)[1]
    return f"{document.rstrip()}\n\n{block}\n"


def print_or_write(path: Path, name: str, table: pd.DataFrame, description: str) -> None:
    """Print a table that computes nothing anew; with ``--write`` put it into a page, too."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--write", action="store_true", help=f"write {path.name}")
    section = markdown_table(table)
    if parser.parse_args().write:
        path.write_text(replace_section(path.read_text(), name, section))
    print(section)


def with_figure(document: str, name: str, panels: tuple[Dots | Lines, ...]) -> str:
    """Draw the figure of a benchmark that has results, and put it below its heading."""
    path, begin, end = RESULTS / f"{name}.json", f"<!-- begin {name} -->", f"<!-- end {name} -->"
    if not path.is_file() or begin not in document:
        return document
    said = draw(path, panels, FIGURES / f"{name}.png")
    head, rest = document.split(begin, 1)
    section, tail = rest.split(end, 1)
    lines = [line for line in section.strip().split("\n") if not line.startswith("![")]
    if said is not None:
        alt = said.replace("[", "(").replace("]", ")")
        lines[1:2] = ["", f"![{alt}](_static/benchmarks/{name}.png)", ""]
    body = "\n".join(lines)
    while "\n\n\n" in body:
        body = body.replace("\n\n\n", "\n\n")
    return f"{head}{begin}\n{body}\n{end}{tail}"


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    raise TypeError(f"Cannot write a {type(value).__name__} as JSON.")
