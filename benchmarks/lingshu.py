"""Speed and memory of Lingshu-Cell: making cells and training, by genes, steps and group size.

Run as ``python -m benchmarks.lingshu``. Weights are random: what is measured does not depend on
them, but that random cells have no zeros, so that files are ten times as large as of real ones.
Each case runs in a process of its own. *CPU* is the processor time of all threads, which a busy
machine changes less than the clock; *peak* is the most memory that the process held, Python and
libraries included. Rates of one process on a shared machine are no records.
"""

from __future__ import annotations

import argparse
import json
import logging
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks._report import REPOSITORY, Report, add_arguments
from benchmarks.attention import peak_resident
from cfm.models import LingshuCell
from cfm.models.lingshu import ConditionLevels
from cfm.models.lingshu._sampler import Sampler
from cfm.nn._kernels import fast_bfloat16

N_GENES = 18_080
GENES = (1_000, 2_000, 5_000, 10_000, N_GENES)
#: Published steps with and without guidance, and those with a count term.
STEPS = ((3, 2.0), (16, 0.0), (256, 0.0))
ROUNDING = {
    "guidance": 0,
    "CPU s a cell": 3,
    "s a cell": 3,
    "peak (MiB)": 0,
    "tokens": 0,
    "trunk tokens": 0,
}


def levels() -> ConditionLevels:
    """One source and 150 targets, as in the Virtual Cell Challenge."""
    targets = [f"target{i}" for i in range(150)]
    return ConditionLevels("line", ["H1"], "target", targets, "non-targeting")


def build(case: dict[str, Any]) -> LingshuCell:
    names = [f"gene{i}" for i in range(case["genes"])]
    model = LingshuCell(
        vocabulary=names, levels=levels(), size=case["size"], **case.get("changes", {})
    )
    model.to_device(case["device"])
    return model


def synchronise(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def generate(case: dict[str, Any]) -> dict[str, float]:
    """Make cells into a file, after one to warm up; as many as fill the batches of the trunk."""
    model = build(case)
    at_once = Sampler(model.module, torch.float32).cells_at_once
    n = -(-case["cells"] // at_once) * at_once
    asked = {
        "source": "H1",
        "perturbation": "target7",
        "n_steps": case["steps"],
        "guidance": case["guidance"],
        "precision": case["precision"],
        "batch_size": case["batch"],
    }
    with tempfile.TemporaryDirectory() as folder:
        model.generate(1, **(asked | {"n_steps": 1}))
        synchronise(case["device"])
        wall, cpu = time.perf_counter(), time.process_time()
        made = model.generate(n, path=Path(folder) / "cells.h5ad", **asked)
        synchronise(case["device"])
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        size = (Path(folder) / "cells.h5ad").stat().st_size
        shape = made.shape
        made.file.close()
    assert shape == (n, case["genes"])
    return {
        "cells": n,
        "s a cell": wall / n,
        "CPU s a cell": cpu / n,
        "file (MiB)": size / 2**20,
        "tokens": model.module.n_prefix + model.module.group.n_groups,
    }


def train(case: dict[str, Any]) -> dict[str, float]:
    """Time single training steps, forward and backward, on Poisson counts."""
    model = build(case)
    module, n = model.module.train(), case["batch"]
    rng = np.random.default_rng(0)
    tokens = torch.from_numpy(rng.poisson(1.0, (n, case["genes"]))).to(case["device"])
    shares = torch.linspace(0.02, 0.98, n, device=case["device"])
    hidden = torch.rand(tokens.shape, device=case["device"]) < shares[:, None]
    told = model.levels.conditions(n, source=["H1"] * n, perturbation=["target3"] * n)
    told = told.to(model.device)
    precision = getattr(torch, case["precision"])
    wall, cpu = [], []
    for _ in range(case["repeats"] + 1):
        start = time.perf_counter(), time.process_time()
        with torch.autocast(case["device"], precision, enabled=precision == torch.bfloat16):
            loss = module.losses(tokens, hidden, shares, told)["loss"]
        loss.backward()
        module.zero_grad(set_to_none=True)
        synchronise(case["device"])
        wall.append((time.perf_counter() - start[0]) / n)
        cpu.append((time.process_time() - start[1]) / n)
    return {
        "s a cell": statistics.median(wall[1:]),
        "CPU s a cell": statistics.median(cpu[1:]),
        "tokens": module.n_prefix + module.group.n_groups,
    }


def measure(case: dict[str, Any]) -> dict[str, float]:
    found = generate(case) if case["task"] == "generate" else train(case)
    found["peak (MiB)"] = peak_resident() / 2**20
    if case["device"] == "cuda":
        found["peak on GPU (MiB)"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def run(args: argparse.Namespace, **case: Any) -> dict[str, float]:
    """Measure one case in a fresh process."""
    base = {"task": "generate", "size": "mini", "precision": "float32", "batch": 64, "steps": 3}
    base |= {"guidance": 0.0, "device": args.device, "repeats": args.repeats}
    command = [sys.executable, "-m", "benchmarks.lingshu", "--child", json.dumps(base | case)]
    command += ["--threads", str(args.threads)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=REPOSITORY)
    found = json.loads(done.stdout.splitlines()[-1])
    print(case, found, flush=True)
    return found


def by_genes(args: argparse.Namespace) -> pd.DataFrame:
    rows = []
    for genes in args.genes:
        for steps, guidance in STEPS:
            if steps > 16 and genes > args.long_genes:
                continue
            found = run(args, genes=genes, steps=steps, guidance=guidance, cells=args.cells)
            rows.append({"genes": genes, "steps": steps, "guidance": guidance} | found)
    table = pd.DataFrame(rows)
    return table.drop(columns="file (MiB)")


def by_group(args: argparse.Namespace) -> pd.DataFrame:
    rows = []
    for genes in args.group_genes:
        for size in (1, 8, 16, 32):
            case = {"genes": genes, "changes": {"group_size": size}}
            made = run(args, cells=args.cells, steps=3, guidance=2.0, **case)
            step = run(args, task="train", batch=8, **case)
            rows.append(
                {
                    "genes": genes,
                    "genes per group": size,
                    "trunk tokens": made["tokens"],
                    "generation: CPU s a cell": made["CPU s a cell"],
                    "generation: peak (MiB)": made["peak (MiB)"],
                    "training: CPU s a cell": step["CPU s a cell"],
                    "training: peak (MiB)": step["peak (MiB)"],
                }
            )
    table = pd.DataFrame(rows)
    for task in ("generation", "training"):
        plain = table.groupby("genes")[f"{task}: CPU s a cell"].transform("first")
        table[f"{task}: speed-up"] = plain / table[f"{task}: CPU s a cell"]
    return table


def published(args: argparse.Namespace) -> pd.DataFrame:
    """The published configurations, written to a file.

    Of a thousand cells one step is made: each step takes the same memory, and the first of all
    cells of a condition is quick.
    """
    rows = []
    cases = (
        ("vcc", args.published // 2, 3, 2.0),
        ("vcc", args.published, 3, 2.0),
        ("vcc", 1_000, 1, 0.0),
        ("default", 2, 3, 2.0),
    )
    for size, cells, steps, guidance in cases:
        case = {"size": size, "genes": N_GENES, "steps": steps, "guidance": guidance}
        found = run(args, cells=cells, batch=8, **case)
        rows.append({"size": size, "steps": steps, "guidance": guidance} | found)
    return pd.DataFrame(rows)


def by_precision(args: argparse.Namespace) -> pd.DataFrame:
    rows = []
    for size, genes, cells in (("mini", 2_000, args.cells), ("vcc", N_GENES, 4)):
        for precision in ("float32", "bfloat16"):
            case = {"size": size, "genes": genes, "precision": precision}
            made = run(args, cells=cells, steps=3, guidance=2.0, **case)
            step = run(args, task="train", batch=8 if size == "mini" else 1, **case)
            rows.append(
                {
                    "size": size,
                    "genes": genes,
                    "precision": precision,
                    "generation: CPU s a cell": made["CPU s a cell"],
                    "training: CPU s a cell": step["CPU s a cell"],
                }
            )
    return pd.DataFrame(rows)


def same_numbers() -> dict[str, float]:
    """Largest difference of a cell's scores when others are computed beside it."""
    torch.manual_seed(0)
    model = LingshuCell(vocabulary=[f"g{i}" for i in range(500)], levels=levels())
    sampler = Sampler(model.module.eval(), torch.float32)
    n = sampler.cells_at_once
    tokens = torch.randint(0, 282, (n, 500))
    told = model.levels.conditions(n, source=["H1"] * n, perturbation=["target3"] * n)
    full = sampler.states(tokens, told)
    order = torch.randperm(n)
    alone = torch.cat([sampler.states(tokens[[i]], told.rows([i])) for i in range(n)])
    with torch.inference_mode():
        plain = model.module.encode(tokens, told)
        single = torch.cat([model.module.encode(tokens[[i]], told.rows([i])) for i in range(n)])
    return {
        "alone, filled up": float((full - alone).abs().max()),
        "in another order": float((sampler.states(tokens[order], told) - full[order]).abs().max()),
        "alone, not filled up": float((plain - single).abs().max()),
    }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, data=False)
    parser.add_argument("--genes", type=int, nargs="+", default=list(GENES))
    parser.add_argument("--long-genes", type=int, default=1_000, help="most genes at 256 steps")
    parser.add_argument("--group-genes", type=int, nargs="+", default=[1_000, 4_000])
    parser.add_argument("--cells", type=int, default=16)
    parser.add_argument("--published", type=int, default=24, help="cells of the published size")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if args.child:
        from scvi import settings

        settings.verbosity = logging.WARNING
        print(json.dumps(measure(json.loads(args.child))))
        return
    report = Report("lingshu", "Lingshu-Cell: speed and memory")
    threads = "1 CPU thread" if args.threads == 1 else f"{args.threads} CPU threads"
    where = torch.cuda.get_device_name() if args.device == "cuda" else threads
    report.text(
        f"Random weights, {where}, one process per case; peak memory is that of the whole process, "
        "Python and libraries included. Where other work runs beside, as it did here, processor "
        "time says more than the clock. Random cells have no zeros, so files are larger than those "
        "of real ones."
    )
    table = by_genes(args)
    report.table("genes", table, "Making cells, size mini (groups of 16)", ROUNDING)
    groups = by_group(args)
    digits = {c: 0 for c in groups.columns if "MiB" in c or c == "trunk tokens"}
    digits |= {c: 1 for c in groups.columns if "speed-up" in c}
    report.table(
        "groups", groups, "Compressed and uncompressed (1 gene per group) trunk, size mini", digits
    )
    table = published(args)
    report.table(
        "published",
        table,
        f"Published sizes, {N_GENES:,} genes, streamed to .h5ad",
        ROUNDING | {"file (MiB)": 1},
    )
    most = table["peak (MiB)"].max() / 1024
    report.text(
        f"At most {most:.1f} GiB, whatever the number of cells. A thousand cells of size vcc in 3 "
        f"steps with guidance take {1000 * table['CPU s a cell'].iloc[1] / 3600:.1f} hours of one "
        "core."
    )
    if fast_bfloat16(torch.device(args.device)):
        report.table("precision", by_precision(args), "bfloat16 beside float32", 4)
    else:
        report.text(
            "This processor does not multiply bfloat16 in hardware, so it is not compared; "
            "precision='auto' uses float32 on it."
        )
    found = same_numbers()
    report.value("same numbers", found)
    report.text(
        f"States of a cell alone and among others: they differ by {found['alone, filled up']:.0e} "
        f"as cells are made (fewer are filled up to a fixed number), by "
        f"{found['in another order']:.0e} in another order, and would by "
        f"{found['alone, not filled up']:.0e} in batches of any size."
    )
    report.finish(args.write)


if __name__ == "__main__":
    main()
