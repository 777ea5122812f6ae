"""Tools on the workers of dask: two against one and against none, and what a chunk costs.

``python -m benchmarks.workers [--cells 100000] [--rounds 3] [--write]``
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks._report import Report, add_arguments
from benchmarks._simulated_cells import write_cells

MODEL = "cellvq-mini"
N_GENES = 2_000


def seconds(path: Path, out: Path) -> float:
    """Embed the cells of a file into a file."""
    import cfm

    start = time.perf_counter()
    cfm.tl.embed(path, MODEL, output=out, overwrite=True, precision="float32")
    return time.perf_counter() - start


def measure(path: Path, folder: Path, rounds: int) -> tuple[pd.DataFrame, bool]:
    """Time by turns without a client, with one worker and with two; and whether bits agree."""
    import torch
    from distributed import Client, LocalCluster

    import cfm

    torch.set_num_threads(1)
    cfm.models.load_model(MODEL)
    rows: list[dict[str, Any]] = []
    clusters: dict[str, Any] = {
        f"{n} worker{'s' if n > 1 else ''}": LocalCluster(
            n_workers=n, threads_per_worker=2, dashboard_address=None
        )
        for n in (1, 2)
    }
    outputs = {}
    try:
        for turn in range(rounds + 1):  # the first warms up: workers import and load
            for how in ("no client", *clusters):
                out = folder / f"{how}.zarr"
                if how in clusters:
                    with Client(clusters[how]):
                        took = seconds(path, out)
                else:
                    took = seconds(path, out)
                outputs[how] = out
                if turn:
                    rows.append({"round": turn, "how": how, "seconds": took})
                    print(rows[-1], flush=True)
    finally:
        for cluster in clusters.values():
            cluster.close()
    embedded = [
        np.asarray(cfm.data.open_files(out).obsm["X_cellvq"][:]) for out in outputs.values()
    ]
    return pd.DataFrame(rows), all(np.array_equal(embedded[0], other) for other in embedded[1:])


def summarise(table: pd.DataFrame, n_cells: int, n_chunks: int) -> pd.DataFrame:
    """Medians, ratios within a round, and what a chunk costs beside no client."""
    by_round = table.pivot(index="round", columns="how", values="seconds")
    plain, one = by_round["no client"], by_round["1 worker"]
    rows = [
        {
            "how": how,
            "seconds": by_round[how].median(),
            "cells/s": n_cells / by_round[how].median(),
            "times one worker": (one / by_round[how]).median(),
            "ms a chunk beside no client": 1000 * ((by_round[how] - plain) / n_chunks).median(),
        }
        for how in ("no client", "1 worker", "2 workers")
    ]
    return pd.DataFrame(rows)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser, data=False)
    parser.add_argument("--cells", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    import cfm

    report = Report("workers", "Tools on the workers of dask")
    known = list(cfm.models.load_model(MODEL).vocabulary.genes)
    genes = known + [f"other-{i}" for i in range(N_GENES - len(known))]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = write_cells(folder / "cells.zarr", args.cells, genes)
        table, same = measure(path, folder, args.rounds)
    size = cfm.settings.chunk_size
    n_chunks = -(-args.cells // size)
    report.text(
        f"{args.cells:,} simulated cells of {N_GENES:,} genes in a `.zarr` store, `{MODEL}`, "
        f"float32, one thread a process, chunks of {size:,}; {args.rounds} rounds by turns in one "
        f"run, medians. The embeddings are {'the same bits' if same else 'NOT the same'}."
    )
    report.table("workers", summarise(table, args.cells, n_chunks), "Embedding", digits=2)
    report.finish(args.write)


if __name__ == "__main__":
    main()
