"""Time and memory from a thousand to a million cells on disk, and reading beside other loaders.

``python -m benchmarks.scale [--cells 1000 10000 100000 1000000] [--write]``

Each run is a process of its own, whose peak memory is what the system counted for it.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._report import REPOSITORY, Report, add_arguments
from benchmarks._simulated_cells import write_cells

MODEL = "cellvq-mini"
SIZES = (1_000, 10_000, 100_000, 1_000_000)
#: Genes of a file: those of the model, and others up to this number.
N_GENES = 2_000
TRAINING_STEPS = 50


def embed(path: Path, folder: Path) -> None:
    """Embed the cells of a file into a file."""
    import cfm

    cfm.tl.embed(path, MODEL, output=folder / "out.zarr", precision="float32")


def codes(path: Path, folder: Path) -> None:
    """Give the cells of a file codes, with the tables of the codes."""
    import cfm

    cfm.tl.cell_codes(path, MODEL, output=folder / "out.zarr")


def train(path: Path, folder: Path) -> None:
    """Train a new model on the cells of a file for some steps."""
    import cfm

    adata = cfm.data.open_files(path)
    cfm.models.CellVQ.setup_anndata(adata)
    model = cfm.models.CellVQ(adata, vocabulary=list(adata.var_names), seed=0)
    model.train(max_steps=TRAINING_STEPS, enable_progress_bar=False, accelerator="cpu")


TASKS = {"embed": embed, "cell codes": codes, "train": train}


def child(task: str, path: Path) -> None:
    """Run one task and print what it took as JSON."""
    import torch

    import cfm

    torch.set_num_threads(1)
    cfm.models.load_model(MODEL)
    before = _peak()
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        start, cpu = time.perf_counter(), time.process_time()
        TASKS[task](path, Path(folder))
        took = {"seconds": time.perf_counter() - start, "cpu": time.process_time() - cpu}
    print(json.dumps(took | {"before": before, "peak": _peak()}))


def _peak() -> float:
    """Peak memory of this process in MiB."""
    status = Path("/proc/self/status")
    if status.is_file():  # the other count starts from the memory of the process that made this one
        (line,) = [x for x in status.read_text().splitlines() if x.startswith("VmHWM:")]
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure(task: str, path: Path) -> dict[str, float]:
    """Run a task in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--child", task, str(path)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{task} on {path.name} failed:\n{done.stderr[-2000:]}")
    found: dict[str, float] = json.loads(done.stdout.strip().split("\n")[-1])
    return found


def growth(folder: Path, sizes: list[int], tasks: list[str], suffix: str) -> pd.DataFrame:
    """Measure tasks on files of more and more cells."""
    from cfm.models import load_model

    known = list(load_model(MODEL).vocabulary.genes)
    genes = known + [f"other-{i}" for i in range(N_GENES - len(known))]
    rows: list[dict[str, Any]] = []
    for n in sizes:
        path = write_cells(folder / f"cells{suffix}", n, genes)
        for task in tasks:
            found = measure(task, path)
            rows.append(
                {
                    "task": task,
                    "cells": n,
                    "seconds": found["seconds"],
                    "CPU seconds": found["cpu"],
                    "cells/s": n / found["seconds"],
                    "before (MiB)": found["before"],
                    "peak (MiB)": found["peak"],
                }
            )
            print(rows[-1], flush=True)
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return pd.DataFrame(rows)


def laws(table: pd.DataFrame) -> pd.DataFrame:
    """Say how time and memory grow from the second size to the last."""
    rows = []
    for task, part in table.sort_values("cells").groupby("task", sort=False):
        part = part.iloc[1:] if len(part) > 2 else part
        first, last = part.iloc[0], part.iloc[-1]
        times = np.log(last["cells"] / first["cells"])
        rows.append(
            {
                "task": task,
                "from": int(first["cells"]),
                "to": int(last["cells"]),
                "exponent of CPU time": float(
                    np.log(last["CPU seconds"] / first["CPU seconds"]) / times
                )
                if times
                else float("nan"),
                "peak memory, last / first": last["peak (MiB)"] / first["peak (MiB)"],
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser, data=False)
    parser.add_argument("--cells", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--tasks", nargs="+", choices=list(TASKS), default=list(TASKS))
    parser.add_argument("--loader-cells", type=int, default=100_000, help="0: no loaders")
    parser.add_argument("--folder", type=Path, help="where files are written (default: /tmp)")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        child(args.child[0], Path(args.child[1]))
        return
    report = Report("scale", "From a thousand to a million cells on disk")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        table = growth(folder, args.cells, args.tasks, ".h5ad")
        report.text(
            f"Simulated cells with about 100 counts of {N_GENES:,} genes in a `.h5ad` file that "
            f"stays on disk; `{MODEL}`, float32, one thread, results written to a `.zarr` store. "
            f"`train` makes a new model and takes {TRAINING_STEPS} steps: what grows with the "
            "cells is the look through the file before. Peak memory is of the whole process, "
            "libraries (`before`) included."
        )
        report.table("growth", table, "Time and memory", digits=1)
        report.table("laws", laws(table), "Growth (1 = linear; memory: 1 = flat)", digits=2)
        if args.loader_cells:
            report_loaders(report, folder, args.loader_cells)
    report.finish(args.write)


def report_loaders(report: Report, folder: Path, n_cells: int) -> None:
    """Compare what reads batches in random order from one file."""
    from benchmarks._loaders import compare

    tables = []
    genes = [f"gene-{i}" for i in range(N_GENES)]
    for suffix in (".h5ad", ".zarr"):
        path = write_cells(folder / f"loaded{suffix}", n_cells, genes)
        tables.append(compare(path).assign(file=suffix))
    table = pd.concat(tables, ignore_index=True).rename(
        columns={
            "rows_per_second": "rows/s",
            "times_anndataloader": "times AnnDataLoader",
        }
    )
    report.text(
        f"Batches in random order from {n_cells:,} cells of {N_GENES:,} genes, medians of three "
        "rounds in one process. `AnnDataLoader` is that of scvi-tools, with `shuffle=True`, on "
        "the same file opened on disk; scDataset and annbatch (zarr alone) read blocks of rows as "
        "this package does, and are missing where they are not installed."
    )
    report.table("loaders", table, "Reading", digits=1)


if __name__ == "__main__":
    main()
