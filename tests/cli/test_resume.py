"""Commands in processes of their own, killed, stopped, out of disk, and run again."""

from __future__ import annotations

import signal
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

import cfm
from tests.cli._runs import (
    COMMAND,
    PATIENCE,
    cfm_main,
    contrasts,
    environment,
    events,
    read,
    run_until_chunk,
    write,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Only .* of the model"),
]


def run(arguments: list[object], log: Path, *, file_kib: int | None = None) -> int:
    """Run a command; ``file_kib`` is the size that files may have, as if the disk were full."""
    command = [*COMMAND, *map(str, arguments), "--log", str(log), "--quiet"]
    if file_kib is not None:
        command = ["bash", "-c", f'ulimit -f {file_kib}; exec "$@"', "bash", *command]
    return subprocess.run(command, env=environment(), timeout=PATIENCE).returncode


def chunks(lines: list[dict]) -> list[int]:
    return [line["done"] for line in lines if line["event"] == "chunk"]


def test_killed_stopped_and_interrupted(tmp_path: Path) -> None:
    """Each run goes on where the one before it was, and the last gives what one alone gives."""
    adata = contrasts(200)  # enough chunks that none of the runs is done before its signal
    source, out = write(adata, tmp_path / "in.h5ad"), tmp_path / "out.zarr"
    log = tmp_path / "log.jsonl"
    call = ["embed", source, "-o", out, "--chunk-size", 4, "--batch-size", 4]
    ends = {signal.SIGKILL: -9, signal.SIGINT: 130}
    for number, status in ends.items():
        assert run_until_chunk(call, log, number) == status
        assert not out.exists()
        assert (tmp_path / ".out.zarr.partial").is_dir()
    assert cfm_main(*call, "--log", log) == 0

    lines = events(log)
    starts = [i for i, line in enumerate(lines) if line["event"] == "start"]
    assert len(starts) == len(ends) + 1
    runs = [lines[a:b] for a, b in zip(starts, [*starts[1:], None], strict=True)]
    # chunks that were there are not made again: at most the one that was under way is
    for earlier, later in pairwise(runs):
        assert chunks(earlier)[-1] < chunks(later)[0] <= chunks(earlier)[-1] + 2
        assert later[1]["event"] == "resumed"
    assert chunks(runs[-1])[-1] == 50
    told = [r[-1]["status"] for r in runs if r[-1]["event"] == "end"]
    assert told == ["interrupted", "ok"]
    assert runs[-1][-1]["rows"] == 200
    assert runs[-1][-1]["peak_rss_mib"] > 50

    cfm.tl.embed(adata, batch_size=4)
    np.testing.assert_array_equal(read(out).obsm["X_cellpulse"], adata.obsm["X_cellpulse"])
    assert not list(tmp_path.glob(".out*"))
    assert cfm_main(*call, "--log", log) == 2  # it is there
    assert "exists" in events(log)[-1]["message"]


def test_full_disk(tmp_path: Path) -> None:
    """What was done is kept, and the file that did not fit is not there.

    HDF5 crashes at the end of a process that it could not write in.
    """
    adata = contrasts(40)
    source, out = write(adata, tmp_path / "in.h5ad"), tmp_path / "out.h5ad"
    log = tmp_path / "log.jsonl"
    call = ["embed", source, "-o", out, "--chunk-size", 10]
    assert run(call, log, file_kib=12) == 75  # a chunk fits, not all of them
    end = events(log)[-1]
    assert end["status"] == "failed for now"
    assert not out.exists()
    n_made = len(chunks(events(log)))
    assert cfm_main(*call, "--log", log) == 0
    assert len(chunks(events(log))) == 4
    assert n_made >= 1
    assert len(read(out).obsm["X_cellpulse"]) == 40
