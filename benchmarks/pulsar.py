"""Speed and memory of PULSAR beside the same network on PyTorch's ``TransformerEncoder``.

Run as ``python -m benchmarks.pulsar``. Random weights of the released size are saved as the
authors save theirs and loaded by both. The cases take turns, donor by donor, so that whatever else
the machine does slows all of them; times are medians over rounds after one to warm up. *Peak* is
what a process holds at most while it embeds, beyond what it held before, weights and all.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks._pulsar_reference import load_reference, write_released
from benchmarks._report import REPOSITORY, Report, add_arguments
from benchmarks.attention import peak_resident
from cfm.models import Pulsar
from cfm.models.pulsar._module import PreparedEncoder
from cfm.nn._kernels import fast_bfloat16

N_CELLS, WIDTH = 1024, 1280
GOLDEN = REPOSITORY / "tests" / "golden" / "pulsar"
#: Floating-point operations of one donor of 1,024 cells, matrix products and attention.
OPERATIONS = 2.0 * N_CELLS * (WIDTH * WIDTH + WIDTH * 512) + 8 * (
    2.0 * (N_CELLS + 1) * (4 * 512**2 + 2 * 512 * 4096) + 4.0 * (N_CELLS + 1) ** 2 * 512
)


def check_reference() -> float:
    """Largest difference of the reference to the golden vectors, relative to their scale."""
    io = load_file(GOLDEN / "io.safetensors")
    with torch.no_grad():
        found = load_reference(GOLDEN / "PULSAR-tiny")(io["cells"])
    expected = io["donor_embedding"]
    return float((found - expected).abs().max() / expected.abs().max())


def donors(sizes: list[int], seed: int, width: int = WIDTH) -> list[Tensor]:
    """Cells of six kinds in shares that differ between donors, of length 1 as those of UCE."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(6, width, generator=torch.Generator().manual_seed(99))
    made = []
    for n in sizes:
        share = torch.rand(6, generator=generator) ** 2
        kind = torch.multinomial(share, n, replacement=True, generator=generator)
        cells = centres[kind] + torch.randn(n, width, generator=generator)
        made.append(torch.nn.functional.normalize(cells, dim=-1))
    return made


def padded(cells: list[Tensor]) -> tuple[Tensor, Tensor | None]:
    """Donors side by side, as the reference needs them."""
    lengths = [len(part) for part in cells]
    if len(set(lengths)) == 1:
        return torch.stack(cells), None
    out = torch.zeros(len(cells), max(lengths), cells[0].shape[1])
    padding = torch.ones(len(cells), max(lengths), dtype=torch.bool)
    for i, part in enumerate(cells):
        out[i, : len(part)], padding[i, : len(part)] = part, False
    return out, padding


def cases(folder: Path) -> dict[str, Callable[[list[Tensor]], Tensor]]:
    """Return what embeds donors, by name."""
    exact = load_reference(folder)
    rough = load_reference(folder).to(torch.bfloat16)
    module = Pulsar.from_pretrained(folder, device="cpu").module

    def reference(model: torch.nn.Module, dtype: torch.dtype) -> Callable[[list[Tensor]], Tensor]:
        def run(cells: list[Tensor]) -> Tensor:
            x, padding = padded(cells)
            return model(x.to(dtype), padding).float()

        return run

    agrees = module.bfloat16_agreement() >= Pulsar.least_agreement
    fast = fast_bfloat16(torch.device("cpu")) and agrees
    auto = PreparedEncoder(module, torch.bfloat16 if fast else torch.float32)
    return {
        "reference float32": reference(exact, torch.float32),
        "reference bfloat16": reference(rough, torch.bfloat16),
        "cfm float32": PreparedEncoder(module, torch.float32),
        f"cfm auto ({'bfloat16' if fast else 'float32'})": auto,
    }


def peak(run: Callable[[list[Tensor]], Tensor], cells: list[Tensor]) -> float:
    """Memory that embedding takes at most, MiB."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    status = Path("/proc/self/status").read_text().splitlines()
    before = 1024 * int(next(t for t in status if t.startswith("VmRSS")).split()[1])
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    run(cells)
    return (peak_resident() - before) / 2**20


def compare(
    runs: dict[str, Callable[[list[Tensor]], Tensor]],
    sizes: list[int],
    rounds: int,
    width: int = WIDTH,
) -> pd.DataFrame:
    """Measure all cases on donors of these sizes, by turns."""
    wall: dict[str, list[float]] = {name: [] for name in runs}
    cpu: dict[str, list[float]] = {name: [] for name in runs}
    made: dict[str, list[Tensor]] = {name: [] for name in runs}
    with torch.inference_mode():
        for i in range(rounds + 1):
            cells = donors(sizes, i, width)
            for name, run in runs.items():
                started = time.perf_counter(), time.process_time()
                embedded = run(cells)
                if i:
                    wall[name].append(time.perf_counter() - started[0])
                    cpu[name].append(time.process_time() - started[1])
                    made[name].append(embedded)
        memory = {name: peak(run, donors(sizes, 0, width)) for name, run in runs.items()}
    first = next(iter(runs))
    exact = torch.cat(made[first])
    centred = exact - exact.mean(0)
    rows = []
    for name in runs:
        found = torch.cat(made[name])
        cosine = torch.cosine_similarity(found - found.mean(0), centred)
        rows.append(
            {
                "case": name,
                "donors/s": len(sizes) / statistics.median(wall[name]),
                "speed-up": float(np.median(np.divide(wall[first], wall[name]))),
                "CPU speed-up": float(np.median(np.divide(cpu[first], cpu[name]))),
                "peak (MiB)": memory[name],
                "largest difference": float((found - exact).abs().max() / exact.abs().max()),
                "cosine of differences": float(cosine.mean()),
            }
        )
    return pd.DataFrame(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, data=False)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    report = Report("pulsar", "PULSAR beside PyTorch's TransformerEncoder")
    ragged = [64, 128, 256, 512, N_CELLS]
    report.text(
        f"Released size (87.4 million parameters, {OPERATIONS / 1e9:.0f} GFLOP a donor of "
        f"{N_CELLS:,} cells), random weights, {args.threads} threads, {args.rounds} rounds in "
        "which the cases take turns. `reference` is the encoder on PyTorch's TransformerEncoder "
        "in float32 and in bfloat16; it reproduces the golden vectors to "
        f"{check_reference():.0e} of their scale. Speed-ups are medians of the ratio within a "
        "round, of wall-clock and of processor time. The largest difference is to the reference in "
        "float32, relative to its scale; the cosine is of what sets a donor apart from the mean."
    )
    with tempfile.TemporaryDirectory() as temporary:
        write_released(Path(temporary))
        runs = cases(Path(temporary))
        digits = {"peak (MiB)": 0, "largest difference": 6, "cosine of differences": 5}
        table = compare(runs, [N_CELLS], args.rounds)
        report.table("whole", table, f"One donor of {N_CELLS:,} cells at a time", digits)
        table = compare(runs, ragged, args.rounds)
        sizes = f"{ragged[0]} to {ragged[-1]:,} cells"
        report.table("ragged", table, f"{len(ragged)} donors of {sizes} together", digits)
    report.finish(args.write)


if __name__ == "__main__":
    main()
