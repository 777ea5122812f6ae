"""What direction-aware attention costs beside plain attention and an explicit bias.

Run as ``python -m benchmarks.attention``. Three layers with the same projections are compared:
*plain* multi-head attention, :class:`cfm.nn.DirectionAttention` (the bias of each pair of
directions folded into reserved query and key dimensions) and *explicit*, the same bias built as
an ``n × n`` mask. Times are medians over rounds in which the three take turns, so that a slow
spell of the machine hits all of them; peak memory is measured in a fresh process per case.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks._report import REPOSITORY, Report, add_arguments
from cfm.nn import DirectionAttention

N_STATES = 4  # down, unchanged, up, hidden
KINDS = ("plain", "direction", "explicit")
LENGTHS = (512, 1024, 2048, 4096)


class PlainAttention(nn.Module):
    """Multi-head self-attention without a bias."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__()
        self.n_heads = n_heads
        self.to_q, self.to_k = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.to_v, self.to_out = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def bias(self, state: Tensor) -> Tensor | None:
        return None

    def forward(self, x: Tensor, state: Tensor) -> Tensor:
        b, n, dim = x.shape
        q, k, v = (
            layer(x).view(b, n, self.n_heads, -1).transpose(1, 2)  # (b, h, n, d)
            for layer in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=self.bias(state))
        return self.to_out(out.transpose(1, 2).reshape(b, n, dim))


class ExplicitBiasAttention(PlainAttention):
    """The same with the bias of every pair of directions as an ``n × n`` tensor."""

    def __init__(self, dim: int, n_heads: int) -> None:
        super().__init__(dim, n_heads)
        self.direction_bias = nn.Parameter(torch.zeros(n_heads, N_STATES, N_STATES))

    def bias(self, state: Tensor) -> Tensor:
        table = self.direction_bias.transpose(0, 1)  # (s, h, s)
        rows = table[state].transpose(1, 2)  # (b, h, n, s)
        index = state[:, None, None, :].expand(-1, rows.shape[1], rows.shape[2], -1)
        return rows.gather(-1, index)  # (b, h, n, n)


def build(kind: str, dim: int, n_heads: int) -> nn.Module:
    """Return a layer with a random bias where it has one."""
    torch.manual_seed(0)
    if kind == "plain":
        return PlainAttention(dim, n_heads)
    layer = (
        DirectionAttention(dim, n_heads, N_STATES)
        if kind == "direction"
        else ExplicitBiasAttention(dim, n_heads)
    )
    nn.init.normal_(layer.direction_bias)
    return layer


def case(kind: str, n: int, args: argparse.Namespace) -> tuple[Callable[[], None], Callable]:
    """Return a function that runs forward only, and one that runs forward and backward."""
    dtype = getattr(torch, args.dtype)
    layer = build(kind, args.dim, args.heads).to(args.device, dtype)
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(args.batch, n, args.dim, generator=generator).to(args.device, dtype)
    state = torch.randint(0, N_STATES, (args.batch, n), generator=generator).to(args.device)

    def forward() -> None:
        with torch.no_grad():
            layer(x, state)

    def training() -> None:
        layer.zero_grad(set_to_none=True)
        layer(x, state).sum().backward()

    return forward, training


def seconds(step: Callable[[], None], device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    step()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def time_lengths(args: argparse.Namespace) -> list[dict]:
    """Time the three layers in turns, for every length."""
    rows = []
    for n in args.lengths:
        steps = {kind: case(kind, n, args) for kind in KINDS}
        for part, name in enumerate(("forward", "forward+backward")):
            taken: dict[str, list[float]] = {kind: [] for kind in KINDS}
            for repeat in range(args.repeats + 2):
                for kind in KINDS:
                    duration = seconds(steps[kind][part], args.device)
                    if repeat >= 2:  # the first rounds warm up
                        taken[kind].append(duration)
            row: dict = {"n": n, "pass": name}
            for kind in KINDS:
                row[f"{kind} (ms)"] = 1e3 * statistics.median(taken[kind])
            for kind in KINDS[1:]:
                ratios = [a / b for a, b in zip(taken[kind], taken["plain"], strict=True)]
                row[f"{kind} / plain"] = statistics.median(ratios)
            rows.append(row)
    return rows


def peak_resident() -> int:
    """Largest resident memory of this process in bytes."""
    status = Path("/proc/self/status")
    if status.is_file():
        # Not ru_maxrss: on Linux a child process starts with the peak of its parent in it.
        line = next(t for t in status.read_text().splitlines() if t.startswith("VmHWM"))
        return 1024 * int(line.split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if platform.system() == "Darwin" else 1024)


def peak_bytes(kind: str, n: int, args: argparse.Namespace) -> float:
    """Peak memory of one forward and backward pass beyond what was there before it."""
    _, training = case(kind, n, args)
    if args.device == "cuda":
        case("plain", 16, args)[1]()  # libraries take their workspace before we look
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        training()
        torch.cuda.synchronize()
        return float(torch.cuda.max_memory_allocated() - before)
    case("plain", 16, args)[1]()
    before = peak_resident()
    training()
    return float(peak_resident() - before)


def memory_lengths(args: argparse.Namespace) -> list[dict]:
    """Measure peak memory, each case in a process of its own."""
    rows = []
    for n in args.lengths:
        row: dict = {"n": n}
        for kind in KINDS:
            command = [sys.executable, "-m", "benchmarks.attention", "--child", kind, str(n)]
            for name in ("dim", "heads", "batch", "device", "dtype", "threads"):
                command += [f"--{name}", str(getattr(args, name))]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, cwd=REPOSITORY
            )
            row[f"{kind} (MiB)"] = json.loads(done.stdout)["bytes"] / 2**20
        row["explicit / direction"] = row["explicit (MiB)"] / max(row["direction (MiB)"], 1e-9)
        rows.append(row)
    return rows


def properties(args: argparse.Namespace, n: int = 256) -> dict[str, float]:
    """Check what the layer promises; largest absolute differences in float64."""
    layer = build("direction", args.dim, args.heads).double().eval()
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(2, n, args.dim, generator=generator, dtype=torch.float64)
    state = torch.randint(0, N_STATES, (2, n), generator=generator)
    flipped = torch.where(state == 0, 2, torch.where(state == 2, 0, state))
    order = torch.randperm(n, generator=generator)
    with torch.no_grad():
        out = layer(x, state)
        q, k, v = layer.queries_keys_values(x, state)
        c = layer.content_dim
        table = layer.bias_table()  # (h, s, s)
        bias = torch.stack([table[:, s][:, :, s] for s in state])  # (b, h, n, n)
        logits = q[..., :c] @ k[..., :c].transpose(-1, -2) / math.sqrt(layer.head_dim) + bias
        explicit = (logits.softmax(-1) @ v).transpose(1, 2).reshape(x.shape)
        return {
            "folded against explicit bias": float((layer.to_out(explicit) - out).abs().max()),
            "genes permuted": float(
                (layer(x[:, order], state[:, order]) - out[:, order]).abs().max()
            ),
            "all directions flipped": float((layer(x, flipped) - out).abs().max()),
        }


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, data=False)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if args.child:
        print(json.dumps({"bytes": peak_bytes(args.child[0], int(args.child[1]), args)}))
        return
    report = Report("attention", "Direction-aware attention")
    where = torch.cuda.get_device_name() if args.device == "cuda" else f"{args.threads} CPU thread"
    report.text(
        f"One layer, width {args.dim}, {args.heads} heads, batch {args.batch}, {args.dtype}, "
        f"{where}; medians over {args.repeats} rounds in which the layers take turns. "
        "`explicit` builds the same bias as an n × n mask."
    )
    times = pd.DataFrame(time_lengths(args))
    digits = {c: 2 for c in times.columns if c not in ("n", "pass")}
    report.table("time", times, "Time", digits)
    memory = pd.DataFrame(memory_lengths(args))
    digits = {c: 1 for c in memory.columns if c != "n"}
    report.table("memory", memory, "Peak memory of forward and backward, fresh process", digits)
    checks = properties(args)
    report.value("properties", checks)
    report.text(
        f"In float64 the folded bias equals the explicit one to "
        f"{checks['folded against explicit bias']:.0e}; permuting the genes permutes the output "
        f"(largest difference {checks['genes permuted']:.0e}); flipping all directions changes "
        f"it (by up to {checks['all directions flipped']:.2f})."
    )
    report.finish(args.write)


if __name__ == "__main__":
    main()
