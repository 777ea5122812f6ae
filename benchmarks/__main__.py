"""All benchmarks in one command: runs them, and renews every table and figure of the page.

``python -m benchmarks [--data DATA] [NAME …]`` runs them one after the other, each in a process of
its own; ``--figures`` runs none and draws the figures anew from the numbers that are there;
``--list`` says what there is. A benchmark that fails does not stop the others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks._catalogue import BENCHMARKS
from benchmarks._report import DOCUMENT, REPOSITORY, RESULTS, commit, environment, with_figure
from benchmarks._report import replace_section as replaced

LOG = REPOSITORY / "benchmarks" / "models" / "log"


def main(argv: list[str] | None = None) -> int:
    """Run, and return how many failed (1 at most)."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which; all by default")
    parser.add_argument("--data", help="folder of real data (default: $CFM_DATA)")
    parser.add_argument("--figures", action="store_true", help="draw figures only")
    parser.add_argument("--list", action="store_true", help="list the benchmarks")
    args = parser.parse_args(argv)
    unknown = [name for name in args.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmarks {unknown}; there are {', '.join(BENCHMARKS)}")
    if args.list:
        for name, entry in BENCHMARKS.items():
            print(f"{name:18} {entry.measures}")
        return 0
    names = args.names or list(BENCHMARKS)
    failed = [] if args.figures else [name for name in names if not run(name, args.data)]
    renew_page(names)
    if failed:
        print(f"failed: {', '.join(failed)}; see {LOG}")
    return int(bool(failed))


def run(name: str, data: str | None) -> bool:
    """Run one benchmark with ``--write``; ``False`` if it failed."""
    entry = BENCHMARKS[name]
    command = [sys.executable, "-m", f"benchmarks.{name}", *entry.arguments, "--write"]
    if data and entry.data:
        command += ["--data", data]
    LOG.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    print(f"{name}: {' '.join(command[1:])}", flush=True)
    with (LOG / f"{name}.txt").open("w") as log:
        done = subprocess.run(
            command, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT, check=False
        )
    minutes = (time.perf_counter() - start) / 60
    print(f"{name}: {'done' if done.returncode == 0 else 'FAILED'}, {minutes:.1f} min", flush=True)
    return done.returncode == 0


def renew_page(names: list[str]) -> None:
    """Draw figures, put them into their sections, and write the list at the top."""
    page = DOCUMENT.read_text()
    for name in names:
        page = with_figure(page, name, BENCHMARKS[name].panels)
    page = replaced(page, "list", overview())
    DOCUMENT.write_text(page)


def overview() -> str:
    """Return the table of all benchmarks: what they measure, when, where and at which commit."""
    lines = ["| command | measures | run on | commit |", "|---|---|---|---|"]
    for name, entry in BENCHMARKS.items():
        command = " ".join([f"python -m benchmarks.{name}", *entry.arguments])
        path = RESULTS / f"{name}.json"
        when = "–" if "from the others" in entry.measures else "not run yet"
        at = "–"
        if path.is_file():
            found = json.loads(path.read_text())
            when = found["environment"].rsplit("; ", 1)[-1]
            at = found.get("commit") or last_commit(path)
        lines.append(f"| `{command}` | {entry.measures} | {when} | {at} |")
    note = (
        f"`python -m benchmarks` runs all of them (hours), `python -m benchmarks NAME` some; every "
        f"table and figure below is written by them. In figures, what this package does is orange; "
        f"bars are 95 % intervals. The list was written at {commit()} on "
        f"{environment()}. Where a commit has a `~`, the numbers were put into the repository "
        "with it."
    )
    return note + "\n\n" + "\n".join(lines)


def last_commit(path: Path) -> str:
    """Return the commit that brought a file, with a ``~``."""
    done = subprocess.run(
        ["git", "log", "-1", "--format=%h", "--", os.fspath(path)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    return f"~{done.stdout.strip()}" if done.stdout.strip() else "–"


if __name__ == "__main__":
    sys.exit(main())
