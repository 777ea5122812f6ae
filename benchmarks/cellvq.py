"""Speed and memory of CellVQ beside a loop over cells on PyTorch's transformer layers.

Run as ``python -m benchmarks.cellvq``. Random weights of the published size (2 GB) are saved as
the authors save theirs, into a temporary folder, and loaded by both. The cases take turns, cell by
cell, so that whatever else the machine does slows all of them; times are medians over cells after
one to warm up. *Peak* is what a process of its own holds at most, beyond what it held before it
had the weights: while it loads them, and while it embeds. ``--round-trip`` only writes, loads and
compares.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks._cellvq_reference import CONFIG, Reference, load_reference, write_published
from benchmarks._report import REPOSITORY, Report, add_arguments
from benchmarks.attention import peak_resident
from cfm.models import CellVQ
from cfm.models.cellvq import CellVQModule
from cfm.nn._kernels import fast_bfloat16, prepare_linear

GOLDEN = REPOSITORY / "tests" / "golden" / "cellvq"
N_GENES, N_EXPRESSED = 19_264, 2_000
CASES = (
    "reference float32",
    "reference float32, all rows",
    "reference bfloat16",
    "reference float32, tuned",
    "reference bfloat16, tuned",
    "cfm float32",
    "cfm auto",
)
#: Those whose memory is measured; the others are like one of these.
MEASURED = ("reference float32", "reference bfloat16", "cfm float32", "cfm auto")
Run = Callable[[Tensor, Tensor], Tensor]


def operations(n: int, config: dict = CONFIG) -> float:
    """Floating-point operations of the encoder for ``n`` tokens, products and attention."""
    dim, depth = config["encoder"]["hidden_dim"], config["encoder"]["depth"]
    return depth * (2.0 * n * 12 * dim**2 + 4.0 * n**2 * dim)


def check_reference() -> float:
    """Largest difference of the reference to the golden vectors, relative to their scale."""
    io, model = load_file(GOLDEN / "io.safetensors"), load_reference(GOLDEN / "models.ckpt")
    worst = 0.0
    with torch.no_grad():
        for i in range(6):
            cell = io[f"cell{i}_values"], io[f"cell{i}_gene_ids"]
            for all_rows in (False, True):
                off = model.embed(*cell, all_rows=all_rows)[0] - io["cell_embedding"][i]
                worst = max(worst, float(off.abs().max() / io["cell_embedding"].abs().max()))
            code, vector = model.cell_vq(model.encode(*cell).amax(1))
            off = vector[0] - io["quantized"][i]
            worst = max(worst, float(off.abs().max() / io["quantized"].abs().max()))
            if int(code) != int(io["cell_code"][i]):
                raise SystemExit(f"The reference gives cell {i} another code than the original.")
    return worst


def cell(seed: int, n_genes: int = N_GENES, n: int = N_EXPRESSED) -> tuple[Tensor, Tensor]:
    """Make up a cell: ``(1, n + 2)`` values and positions."""
    generator = torch.Generator().manual_seed(seed)
    genes = torch.randperm(n_genes, generator=generator)[:n].sort().values
    counts = (1.5 * torch.randn(n, generator=generator)).exp().ceil()
    values = torch.log1p(1e4 * counts / counts.sum())
    last = torch.tensor([4.0, float(counts.sum().log10())])
    positions = torch.cat([genes, n_genes + torch.arange(2)])
    return torch.cat([values, last])[None], positions[None]


def reference_runs(model: Reference) -> dict[str, Run]:
    """Return what embeds a cell with the reference, by name."""
    dtype = model.go.dtype
    name = f"reference {'float32' if dtype == torch.float32 else 'bfloat16'}"

    def run(**options: bool) -> Run:
        return lambda values, genes: model.embed(values.to(dtype), genes, **options).float()

    def tuned(values: Tensor, genes: Tensor) -> Tensor:
        # What is fastest here: in float32 without the fused layers that PyTorch would take.
        torch.backends.mha.set_fastpath_enabled(dtype != torch.float32)
        try:
            return run(mask=False)(values, genes)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)

    return {name: run(), f"{name}, all rows": run(all_rows=True), f"{name}, tuned": tuned}


def our_runs(module: CellVQModule) -> dict[str, Run]:
    """Return what embeds a cell with this package, by name."""

    def run(dtype: torch.dtype) -> Run:
        return lambda values, genes: module.pool(module.encode(values, genes, dtype=dtype))[0]

    auto = torch.bfloat16 if ours_is_rough(module) else torch.float32
    return {"cfm float32": run(torch.float32), "cfm auto": run(auto)}


def ours_is_rough(module: CellVQModule) -> bool:
    """Whether automatic precision is bfloat16 here."""
    fast = fast_bfloat16(torch.device("cpu"))
    return fast and module.bfloat16_agreement() >= CellVQ.least_agreement


def compare(runs: dict[str, Run], cells: list[tuple[Tensor, Tensor]]) -> pd.DataFrame:
    """Time all cases by turns; the first cell warms them up."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    made: dict[str, list[Tensor]] = {name: [] for name in runs}
    with torch.inference_mode():
        for i, one in enumerate(cells):
            for name, run in runs.items():
                started = time.perf_counter(), time.process_time()
                embedded = run(*one)
                if i:
                    wall[name].append(time.perf_counter() - started[0])
                    cpu[name].append(time.process_time() - started[1])
                made[name].append(embedded)
    names = list(runs)
    first = names[0]
    every, best = (f"{first}, {kind}" for kind in ("all rows", "tuned"))
    exact = torch.cat(made[first])
    done = operations(cells[0][0].shape[1])
    rows = []
    for name in names:
        found = torch.cat(made[name])
        rows.append(
            {
                "case": name,
                "cells/s": 1.0 / statistics.median(wall[name]),
                "CPU seconds a cell": statistics.median(cpu[name]),
                "speed-up": float(np.median(np.divide(wall[first], wall[name]))),
                "CPU speed-up": float(np.median(np.divide(cpu[first], cpu[name]))),
                "CPU speed-up to all rows": float(np.median(np.divide(cpu[every], cpu[name]))),
                "CPU speed-up to tuned": float(np.median(np.divide(cpu[best], cpu[name]))),
                "GFLOP per CPU second": done / statistics.median(cpu[name]) / 1e9,
                "largest difference": float((found - exact).abs().max() / exact.abs().max()),
                "least cosine": float(torch.cosine_similarity(found, exact).min()),
            }
        )
    return pd.DataFrame(rows)


def matrix_rate(dtype: torch.dtype, n: int, seconds: float = 2.0) -> float:
    """Best rate at the largest products of the network, operations per processor second."""
    x, weight = torch.randn(n, 768).to(dtype), torch.randn(3072, 768)
    layer, best = prepare_linear(weight, None, dtype), 0.0
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        start = time.process_time()
        layer(x)
        best = max(best, 2.0 * n * 768 * 3072 / (time.process_time() - start))
    return best


def codes_table(model: Reference, module: CellVQModule, rounds: int) -> pd.DataFrame:
    """Time a code for one embedded cell, codes made anew against codes kept."""
    maximum = torch.randn(1, module.size.dim)
    runs = {
        "reference float32": lambda: model.cell_vq(maximum)[0],
        "cfm float32": lambda: module.quantize(maximum).code,
    }
    spent: dict[str, list[float]] = {name: [] for name in runs}
    with torch.inference_mode():
        if not torch.equal(*(run() for run in runs.values())):
            raise SystemExit("The two give a cell different codes.")
        for _ in range(rounds):
            for name, run in runs.items():
                start = time.process_time()
                run()
                spent[name].append(time.process_time() - start)
    return pd.DataFrame(
        [
            {"case": k, "CPU milliseconds a code": 1e3 * statistics.median(v)}
            for k, v in spent.items()
        ]
    )


def resident() -> int:
    """Memory that this process holds, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(t for t in status if t.startswith("VmRSS")).split()[1])


def measure_peaks(case: str, path: Path) -> dict[str, float]:
    """Memory that loading and embedding take at most, MiB, in a process of its own."""
    before = resident()
    if case.startswith("reference"):
        loaded = load_reference(path)
        runs = reference_runs(loaded.to(torch.bfloat16) if "bfloat16" in case else loaded)
    else:
        runs = our_runs(CellVQ.from_pretrained(path, device="cpu").module)
    loading = peak_resident() - before
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    with torch.inference_mode():
        runs[case](*cell(0))
    return {"load": loading / 2**20, "embed": (peak_resident() - before) / 2**20}


def peaks(path: Path, threads: int) -> dict[str, dict[str, float]]:
    """Measure the memory of cases."""
    found = {}
    for case in MEASURED:
        command = [sys.executable, "-m", "benchmarks.cellvq", "--child", case, "--path", str(path)]
        done = subprocess.run(
            [*command, "--threads", str(threads)],
            check=True,
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
        )
        found[case] = json.loads(done.stdout.splitlines()[-1])
    return found


def round_trip(path: Path, module: CellVQModule, model: Reference) -> dict[str, float]:
    """Compare what was written with what was loaded."""
    n = module.n_genes
    with torch.inference_mode():
        values, genes = cell(1, n, min(N_EXPRESSED, n // 2))
        ours, theirs = module.encode(values, genes), model.encode(values, genes)
        codes = module.quantize(module.pool(ours)[1]).code, model.cell_vq(theirs.amax(1))[0]
    off = (ours - theirs).abs().max() / theirs.abs().max()
    return {
        "file (GB)": path.stat().st_size / 1e9,
        "parameters (million)": sum(p.numel() for p in module.parameters()) / 1e6,
        "largest difference": float(off),
        "same code": float(torch.equal(*codes)),
    }


def verdict(table: pd.DataFrame) -> str:
    """Say in a sentence what the table shows."""
    cases = table.set_index("case")
    plain, auto = (cases.loc[f"cfm {kind}"] for kind in ("float32", "auto"))
    half = cases.loc["reference bfloat16, tuned", "CPU seconds a cell"]
    return (
        f"In processor time a cell is embedded {plain['CPU speed-up']:.1f} times as fast as by the "
        f"reference in float32 and {auto['CPU speed-up']:.1f} times with automatic precision "
        f"(aims: 2 and 6), at {plain['share of matrix rate']:.0%} and "
        f"{auto['share of matrix rate']:.0%} of the matrix rate. Beside the tuned reference in "
        f"float32 it is {plain['CPU speed-up to tuned']:.1f} and "
        f"{auto['CPU speed-up to tuned']:.1f} times as fast; automatic precision beside the "
        f"tuned reference in bfloat16 {half / auto['CPU seconds a cell']:.1f} times."
    )


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, data=False)
    parser.add_argument("--cells", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--round-trip", action="store_true")
    for name in ("--child", "--path"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if args.child:
        print(json.dumps(measure_peaks(args.child, Path(args.path))))
        return
    report = Report("cellvq", "CellVQ beside a loop over cells")
    off = check_reference()
    n_tokens = N_EXPRESSED + 2
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / "models.ckpt"
        write_published(path)
        model = load_reference(path)
        module = CellVQ.from_pretrained(path, device="cpu").module
        found = round_trip(path, module, model)
        if args.round_trip:
            print(json.dumps(found))
            return
        memory = peaks(path, args.threads)
        half = reference_runs(load_reference(path).to(torch.bfloat16))
        runs = reference_runs(model) | half | our_runs(module)
        table = compare({k: runs[k] for k in CASES}, [cell(i) for i in range(args.cells + 1)])
        codes = codes_table(model, module, 5)
    rates = {d: matrix_rate(d, n_tokens) / 1e9 for d in (torch.float32, torch.bfloat16)}
    rough = [n for n in CASES if "bfloat16" in n or (n == "cfm auto" and ours_is_rough(module))]
    kinds = [rates[torch.bfloat16 if n in rough else torch.float32] for n in CASES]
    table["share of matrix rate"] = table["GFLOP per CPU second"] / kinds
    for kind in ("load", "embed"):
        table[f"peak to {kind} (MiB)"] = [memory.get(n, {}).get(kind, np.nan) for n in CASES]
    report.text(
        f"Published size ({found['parameters (million)']:.1f} million parameters, {N_GENES:,} "
        f"genes), random weights, {N_EXPRESSED:,} expressed genes a cell "
        f"({operations(n_tokens) / 1e9:.0f} GFLOP in the encoder), threads: {args.threads}, "
        f"{args.cells} cells, one at a time, by turns. `reference` is the arithmetic of the "
        "original, a cell at a time on PyTorch's TransformerEncoderLayer; it reproduces the golden "
        f"vectors {'exactly' if not off else f'to {off:.0e} of their scale'}. `tuned` is the "
        "fastest that these layers run here, without the padding mask that says that nothing is "
        "padding. The reference projects the relations of the "
        "genes of each cell, with `all rows` those of all genes for each cell (which of the two "
        "the original does is open); cfm does so once. Speed-ups are medians of the ratio by turn, "
        "of wall-clock and of processor time; the largest difference is relative to the scale of "
        "the cell embeddings. The matrix rate is the best of this machine at the network's "
        f"largest products, {rates[torch.float32]:.0f} GFLOP per processor second in float32 and "
        f"{rates[torch.bfloat16]:.0f} in bfloat16."
    )
    report.text(
        f"Round trip: random weights written as models.ckpt ({found['file (GB)']:.2f} GB) and "
        f"loaded by `CellVQ.from_pretrained` encode a cell to {found['largest difference']:.0e} of "
        f"the scale of what was written, and give it "
        f"{'the same' if found['same code'] else 'another'} code."
    )
    report.text(verdict(table))
    digits = {"peak to load (MiB)": 0, "peak to embed (MiB)": 0, "GFLOP per CPU second": 0}
    digits |= {"largest difference": 6, "least cosine": 5}
    report.table("speed", table, "Embedding of cells", digits)
    report.table("codes", codes, "Code of an embedded cell", 2)
    report.value("round_trip", found)
    report.finish(args.write)


if __name__ == "__main__":
    main()
