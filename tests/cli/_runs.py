"""Files to run commands on, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import anndata as ad
import numpy as np

import cfm
from cfm._cli import main

COMMAND = [sys.executable, "-c", "import sys, cfm._cli; sys.exit(cfm._cli.main())"]
#: No command of these tests takes longer, however busy the machine is.
PATIENCE = 240


def cfm_main(*arguments: object) -> int:
    """Run a command here, quietly."""
    return main([*map(str, arguments), "--quiet"])


def contrasts(n: int = 24) -> ad.AnnData:
    """Profiles of some genes with rows that differ."""
    counts = cfm.datasets.blanco_melo()[:, :2000].copy()
    some = cfm.pp.contrasts(counts, "virus", "none", by="series")
    rng = np.random.default_rng(0)
    adata = some[np.arange(n) % some.n_obs].copy()
    adata.obs_names = [f"profile{i}" for i in range(n)]
    adata.X = (adata.X * rng.uniform(0.5, 2, size=(n, 1))).astype(np.float32)
    adata.obsm["kept"] = rng.random((n, 2))
    return adata


def cells(n: int = 60) -> ad.AnnData:
    """Cells of cytokine-treated blood."""
    return cfm.datasets.toy_perturbation()[:n].copy()


def write(adata: ad.AnnData, path: Path) -> Path:
    """Write a file of either kind."""
    if path.suffix == ".zarr":
        adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
    return path


def read(path: Path) -> ad.AnnData:
    return ad.read_zarr(path) if path.suffix == ".zarr" else ad.read_h5ad(path)


def events(log: Path) -> list[dict]:
    """Lines of a log; the last may be half written."""
    if not log.exists():
        return []
    lines = log.read_text().split("\n")[:-1]
    return [json.loads(line) for line in lines]


def environment() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}


def run_until_chunk(arguments: list[object], log: Path, number: signal.Signals) -> int:
    """Start a command, send it a signal after it has made a chunk, and return how it ended."""
    before = len(events(log))
    process = subprocess.Popen(
        [*COMMAND, *map(str, arguments), "--log", str(log), "--quiet"],
        env=environment(),
        # a shell has what it runs in the background ignore Ctrl-C, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        waited = time.monotonic()
        while not any(e["event"] == "chunk" for e in events(log)[before:]):
            assert process.poll() is None, "it ended before it was stopped"
            assert time.monotonic() - waited < PATIENCE
            time.sleep(0.005)
        process.send_signal(number)
        return process.wait(PATIENCE)
    finally:
        process.kill()
        process.wait()
