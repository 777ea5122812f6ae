"""The shell blocks of the guide run as written, one after the other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli._runs import PATIENCE, environment, events, read

PAGE = Path(__file__).parents[2] / "docs" / "guide" / "command_line.md"


def test_exit_statuses_are_those_of_the_code() -> None:
    from cfm._cli._ending import NAMES

    listed = {int(n) for n in re.findall(r"^\| (\d+) \|", PAGE.read_text("utf-8"), re.MULTILINE)}
    assert set(NAMES) <= listed
    for name in NAMES.values():
        assert f"`{name}`" in PAGE.read_text("utf-8")


@pytest.mark.slow
def test_blocks_run_as_written(tmp_path: Path) -> None:
    blocks = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, call in {
        "cfm": "-c 'import sys, cfm._cli; sys.exit(cfm._cli.main())'",
        "python": "",
    }.items():
        (commands / name).write_text(f'#!/bin/sh\nexec "{sys.executable}" {call} "$@"\n')
        (commands / name).chmod(0o755)
    where = environment() | {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}"}
    work = tmp_path / "work"
    work.mkdir()
    script = "set -euo pipefail\n" + "\n".join(blocks)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=work,
        env=where,
        capture_output=True,
        text=True,
        timeout=2 * PATIENCE,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "ok 4 rows" in done.stdout  # what the log says
    made = {p.name for p in work.iterdir()}
    assert {"calls.csv", "embedding.h5ad", "with_embedding.h5ad", "contrasts.emb.zarr"} <= made
    ends = [e["status"] for e in events(work / "run.jsonl") if e["event"] == "end"]
    assert ends == ["ok", "ok"]
    assert "X_cellpulse" in read(work / "results" / "cells.emb.zarr").obsm
