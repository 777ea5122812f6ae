"""Speed and memory of BulkFormer beside the same network built from the authors' libraries.

Run as ``python -m benchmarks.bulkformer``. Needs ``performer-pytorch==1.1.4`` and
``torch_geometric`` beside cfm. Random weights of a published size are saved as the authors save
theirs and loaded by both; each case runs in a process of its own on the same samples. *Peak* is
what a process holds at most while it embeds, weights included, beyond what it held before it had
them. Times are medians of single samples, one at a time, after one to warm up.
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
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from benchmarks._report import REPOSITORY, Report, add_arguments
from benchmarks.attention import peak_resident
from cfm.models.bulkformer import SIZES, BulkFormer, BulkFormerSize

N_GENES = 20_010
#: The reference is of v2.
_V2_SIZES = [name for name in SIZES if name != "latest"]
CASES = ("reference float32", "reference bfloat16", "cfm float32", "cfm auto")
GOLDEN = REPOSITORY / "tests" / "golden" / "bulkformer"


def operations(size: BulkFormerSize, n_genes: int) -> float:
    """Floating-point operations of the matrix products for one sample."""
    d, k = size.dim, size.n_layers
    head = d // size.n_heads
    features = int(head * np.log(head))
    layer = 4 * d * d + 2 * size.ff_mult * d * d + 4 * d * features
    return 2.0 * n_genes * (k * layer + 8 * d * d + d * d) + 2.0 * n_genes * 4 * d


def samples(n: int, n_genes: int) -> torch.Tensor:
    """Made-up log TPM: a third silent, a tenth missing."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(n, n_genes, generator=generator).mul(1.5).add(1.5).clamp(min=0.0)
    x[torch.rand(x.shape, generator=generator) < 0.1] = -10.0
    return x


def write_published(folder: Path, size: BulkFormerSize, n_genes: int) -> None:
    """Save random weights and a random graph as the authors save theirs."""
    from benchmarks._bulkformer_reference import Reference

    torch.manual_seed(0)
    model = Reference(n_genes, size.dim, size.n_layers, size.n_heads)
    state = {f"module.{k}": v for k, v in model.state_dict().items()}
    torch.save(state, folder / "bulkformer_random.pt")
    edges = torch.stack([torch.arange(n_genes).repeat(20), torch.randint(n_genes, (20 * n_genes,))])
    torch.save(edges, folder / "G_tcga.pt")
    torch.save(0.4 + 0.6 * torch.rand(20 * n_genes), folder / "G_tcga_weight.pt")


def load_reference(folder: Path):
    """Return a function from samples to embeddings."""
    from benchmarks._bulkformer_reference import Reference, adjacency

    (path,) = folder.glob("bulkformer_*.pt")
    state = torch.load(path, weights_only=True)
    state = {k.removeprefix("module."): v for k, v in state.items()}
    layer = "gb_formers.0.f.0.net.layers.0.0.fn.fast_attention.projection_matrix"
    n_genes, dim = state["gene_emb_onehot_layer.weight"].shape
    n_layers = 1 + max(int(k.split(".")[3]) for k in state if k.startswith("gb_formers.0.f."))
    model = Reference(n_genes, dim, n_layers, dim // state[layer].shape[1])
    model.load_state_dict(state)
    model.eval()
    edges = torch.load(folder / "G_tcga.pt", weights_only=True)
    weights = torch.load(folder / "G_tcga_weight.pt", weights_only=True)
    graph = adjacency(edges, weights, n_genes)
    return lambda x, rate=0.0: model(x, graph, rate)


def check_reference() -> float:
    """Largest difference of the reference to the golden vectors, relative to their scale."""
    from safetensors.torch import load_file

    io = load_file(GOLDEN / "io.safetensors")
    rate = json.loads((GOLDEN / "config.json").read_text())["mask_prob"]
    with torch.no_grad():
        found = load_reference(GOLDEN)(io["x"], rate)
    return float((found - io["emb"]).abs().max() / io["emb"].abs().max())


def resident() -> int:
    """Memory that this process holds, in bytes."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(t for t in status if t.startswith("VmRSS")).split()[1])


def matrix_rate(dtype: torch.dtype, seconds: float = 1.0) -> float:
    """Best rate of the machine at the largest products of the network, operations per second."""
    from cfm.nn._kernels import prepare_linear

    x, weight = torch.randn(1024, 640), torch.randn(2560, 640)
    layer, best, end = prepare_linear(weight, None, dtype), 0.0, time.perf_counter() + seconds
    x = x.to(dtype)
    while time.perf_counter() < end:
        start = time.perf_counter()
        layer(x)
        best = max(best, 2.0 * 1024 * 640 * 2560 / (time.perf_counter() - start))
    return best


def measure(case: str, folder: Path, n: int, out: Path) -> dict[str, float]:
    """Time one case and store its embeddings."""
    kind, precision = case.split()
    before = resident()
    if kind == "reference":
        run = load_reference(folder)
    else:
        module = BulkFormer.from_pretrained(folder, device="cpu").module
        dtype = torch.float32
        if precision == "auto":
            from cfm.nn._kernels import fast_bfloat16

            fast = fast_bfloat16(torch.device("cpu")) and module.bfloat16_agreement() >= 0.999
            dtype = torch.bfloat16 if fast else torch.float32

        def run(x: torch.Tensor) -> torch.Tensor:
            return module.encode(x, 0.0, dtype=dtype)

    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
    x = samples(n + 1, N_GENES)
    wall, cpu = [], []
    with (
        torch.inference_mode(),
        torch.autocast("cpu", torch.bfloat16, enabled=case == "reference bfloat16"),
    ):
        for row in x:
            started = time.perf_counter(), time.process_time()
            embedded = run(row[None])
            wall.append(time.perf_counter() - started[0])
            cpu.append(time.process_time() - started[1])
    peak = peak_resident() - before
    np.save(out, embedded.float().numpy())
    rate = matrix_rate(torch.bfloat16 if case.endswith(("auto", "bfloat16")) else torch.float32)
    return {
        "seconds": statistics.median(wall[1:]),
        "cpu": statistics.median(cpu[1:]),
        "first": wall[0],
        "peak": float(peak),
        "rate": rate,
    }


def compare(name: str, args: argparse.Namespace) -> list[dict]:
    """Measure all cases at one size."""
    size, rows = SIZES[name], []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_published(folder, size, N_GENES)
        exact = None
        for case in CASES:
            out = folder / "embedded.npy"
            command = [sys.executable, "-m", "benchmarks.bulkformer", "--child", case]
            command += ["--folder", str(folder), "--samples", str(args.samples), "--out", str(out)]
            command += ["--threads", str(args.threads)]
            done = subprocess.run(
                command, check=True, capture_output=True, text=True, cwd=REPOSITORY
            )
            found = json.loads(done.stdout.splitlines()[-1])
            embedded = torch.from_numpy(np.load(out))[..., : size.dim]
            exact = embedded if exact is None else exact
            cosine = torch.cosine_similarity(embedded, exact, dim=-1)
            speed = operations(size, N_GENES) / found["seconds"]
            row = {
                "size": name,
                "case": case,
                "samples/s": 1.0 / found["seconds"],
                "seconds a sample": found["seconds"],
                "CPU seconds": found["cpu"],
                "peak (MiB)": found["peak"] / 2**20,
                "share of matrix rate": speed / found["rate"],
                "least cosine": float(cosine.min()),
                "mean cosine": float(cosine.mean()),
            }
            print(row, flush=True)
            rows.append(row)
    for row in rows:
        row["speed-up"] = row["samples/s"] / rows[0]["samples/s"]
        row["CPU speed-up"] = rows[0]["CPU seconds"] / row["CPU seconds"]
        row["memory"] = row["peak (MiB)"] / rows[0]["peak (MiB)"]
    return rows


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, data=False)
    parser.add_argument("--sizes", nargs="+", default=["37M", "147M"], choices=_V2_SIZES)
    parser.add_argument("--samples", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    for name in ("--child", "--folder", "--out"):
        parser.add_argument(name, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    args = parse()
    torch.set_num_threads(args.threads)
    if args.child:
        print(json.dumps(measure(args.child, Path(args.folder), args.samples, Path(args.out))))
        return
    try:
        off = check_reference()
    except ImportError as error:
        raise SystemExit(
            f"{error}: install performer-pytorch==1.1.4 and torch_geometric beside cfm."
        ) from error
    report = Report("bulkformer", "BulkFormer beside the authors' libraries")
    report.text(
        f"{N_GENES:,} genes, {args.threads} threads, one sample at a time, median of "
        f"{args.samples}. `reference` is the network built from performer-pytorch and "
        "torch_geometric (its graph as a sparse tensor), in float32 and under bfloat16 autocast; "
        f"it reproduces the golden vectors to {off:.0e} of their scale. Speed-up and memory are "
        "against the reference in float32; cosines are of each gene's embedding with it."
    )
    table = pd.DataFrame([row for name in args.sizes for row in compare(name, args)])
    digits = {"peak (MiB)": 0, "least cosine": 6, "mean cosine": 6}
    report.table("speed", table, "Embedding of samples", digits)
    report.finish(args.write)


if __name__ == "__main__":
    main()
