"""Training and embedding of all five systems at published size, on a GPU or on this processor.

``python -m benchmarks.gpu [--systems CellVQ PULSAR] [--compile] [--tiny] [--write]``

Everything goes through the public interface: ``train(max_steps=…)`` and the method that embeds (of
Lingshu-Cell the one that generates), on simulated data. Operations are those that PyTorch's
counter sees; their rate is divided by the best rate of one large matrix product in the same run.
``PyTorch's layers`` are a ``TransformerEncoder`` of the same sizes with fused attention, the tokens
of a batch padded to the longest, for the systems whose network that is.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch.utils.flop_counter import FlopCounterMode

import cfm
from benchmarks._report import Report, add_arguments
from cfm.nn._kernels import fast_bfloat16

#: Steps before those that are timed.
WARM = 2


@dataclass(frozen=True)
class Setting:
    """What is measured at: published size, or a tiny one for a test."""

    device: str
    n_genes: int
    n_rows: int
    steps: int
    batch_size: int


@dataclass
class Work:
    """A model with data: its training and its use, and PyTorch's layers of the same sizes."""

    make: Callable[[], Any]
    use: Callable[[Any], Any]
    n_used: int
    rows: str
    layers: dict[str, Any] | None = None
    tokens: list[int] | None = None


def counts(setting: Setting, expressed: float) -> ad.AnnData:
    """Cells of different depth with a label, a study and a donor."""
    rng = np.random.default_rng(0)
    mean = rng.lognormal(0.0, 1.5, setting.n_genes)
    depth = rng.lognormal(0.0, 0.4, (setting.n_rows, 1))
    x = rng.poisson(mean / mean.sum() * expressed * depth).astype(np.float32)
    x[:, 0] += 1
    adata = ad.AnnData(x)
    adata.var_names = [f"gene{i}" for i in range(setting.n_genes)]
    adata.obs["line"] = "line"
    adata.obs["target"] = np.where(np.arange(setting.n_rows) % 2, "target", "control")
    adata.obs["donor"] = [f"donor{i % 4}" for i in range(setting.n_rows)]
    return adata


def cellpulse(setting: Setting, size: dict[str, Any]) -> Work:
    rng = np.random.default_rng(0)
    shape = setting.n_rows, setting.n_genes
    adata = ad.AnnData(rng.normal(size=shape).astype(np.float32))
    adata.var_names = [f"gene{i}" for i in range(setting.n_genes)]
    adata.obs["sample"] = [f"s{i // 2}" for i in range(setting.n_rows)]
    adata.obs["study"] = [f"study{i % 4}" for i in range(setting.n_rows)]
    cfm.models.CellPulse.setup_anndata(adata, sample_key="sample", study_key="study")

    def make() -> Any:
        return cfm.models.CellPulse(adata, **size)

    return Work(make, embed_of(adata, setting), setting.n_rows, "profiles")


def bulkformer(setting: Setting, size: dict[str, Any]) -> Work:
    adata = counts(setting, 20.0 * setting.n_genes)
    adata.X = np.log1p(1e6 * adata.X / adata.X.sum(axis=1, keepdims=True))
    cfm.models.BulkFormer.setup_anndata(adata)
    rng = np.random.default_rng(0)
    n_edges = 20 * setting.n_genes
    ends = rng.integers(setting.n_genes, size=(2, n_edges))
    weights = rng.uniform(0.4, 1.0, n_edges)
    graph = sparse.coo_matrix((weights, ends), shape=(setting.n_genes,) * 2).tocsr()

    def make() -> Any:
        return cfm.models.BulkFormer(adata, graph=graph, **size)

    return Work(make, embed_of(adata, setting), setting.n_rows, "samples")


def lingshu(setting: Setting, size: dict[str, Any]) -> Work:
    adata = counts(setting, 3.0 * setting.n_genes)
    cfm.models.LingshuCell.setup_anndata(
        adata, source_key="line", perturbation_key="target", control="control"
    )

    def make() -> Any:
        return cfm.models.LingshuCell(adata, **size)

    def use(model: Any) -> Any:
        return model.generate(
            setting.batch_size, source="line", perturbation="target", n_steps=WARM
        )

    return Work(make, use, setting.batch_size, f"cells of {WARM} steps")


def cellvq(setting: Setting, size: dict[str, Any]) -> Work:
    adata = counts(setting, 0.3 * setting.n_genes)
    cfm.models.CellVQ.setup_anndata(adata)

    def make() -> Any:
        return cfm.models.CellVQ(adata, **size)

    sizes = make().size
    tokens = (np.asarray(adata.X) > 0).sum(axis=1)[: setting.batch_size] + 2
    return Work(
        make,
        embed_of(adata, setting),
        setting.n_rows,
        "cells",
        {
            "d_model": sizes.dim, "nhead": sizes.n_heads, "dim_feedforward": sizes.ff_dim,
            "num_layers": sizes.n_layers, "activation": "relu",
        },
        tokens.tolist(),
    )  # fmt: skip


def pulsar(setting: Setting, size: dict[str, Any]) -> Work:
    cells = ad.AnnData(np.zeros((4 * setting.n_rows, 1), dtype=np.float32))
    probe = cfm.models.Pulsar(**size)
    width = probe.size.input_dim
    rng = np.random.default_rng(0)
    cells.obsm["X_uce"] = rng.normal(size=(cells.n_obs, width)).astype(np.float32)
    cells.obs["donor"] = [f"donor{i % 4}" for i in range(cells.n_obs)]
    cfm.models.Pulsar.setup_anndata(cells, donor_key="donor", use_rep="X_uce")

    def make() -> Any:
        return cfm.models.Pulsar(cells, **size)

    def use(model: Any) -> Any:
        return model.get_donor_embeddings(n_cells=setting.n_rows, n_draws=1)

    sizes = probe.size
    return Work(
        make,
        use,
        4,
        "donors",
        {
            "d_model": sizes.dim, "nhead": sizes.encoder_heads, "dim_feedforward": sizes.encoder_ff,
            "num_layers": sizes.encoder_layers, "activation": "gelu",
        },
        [setting.n_rows + 1] * 4,
    )  # fmt: skip


def embed_of(adata: ad.AnnData, setting: Setting) -> Callable[[Any], Any]:
    def use(model: Any) -> Any:
        return model.get_latent_representation(adata, batch_size=setting.batch_size)

    return use


#: Published and tiny sizes.
SYSTEMS: dict[str, tuple[Callable[..., Work], dict[str, Any], dict[str, Any]]] = {
    "CellPulse": (cellpulse, {"size": "published"}, {"size": "mini", "dim": 32, "n_factors": 4}),
    "BulkFormer": (bulkformer, {"size": "147M"}, {"size": "mini", "dim": 16}),
    "Lingshu-Cell": (
        lingshu,
        {"size": "default"},
        {"size": "mini", "dim": 16, "n_layers": 1, "ff_dim": 16},
    ),
    "CellVQ": (
        cellvq,
        {"size": "published"},
        {"size": "mini", "expression_codes": False, "expression_term": False},
    ),
    "PULSAR": (pulsar, {"size": "base"}, {"size": "mini", "input_dim": 16}),
}


def matrix_rate(device: torch.device, dtype: torch.dtype, n: int) -> float:
    """Best rate of a product of two square matrices, operations per second."""
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    best = min(seconds(device, lambda: a @ b) for _ in range(10))
    return 2.0 * n**3 / best


def seconds(device: torch.device, call: Callable[[], Any]) -> float:
    """Seconds until a call and what it started on the device are done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _by_onednn(x: Any, weight: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x) * int(weight[0])


def operations(call: Callable[[], Any]) -> float:
    """Operations of a call: matrix products and attention."""
    mapping = {torch.ops.mkldnn._linear_pointwise.default: _by_onednn}
    counter = FlopCounterMode(display=False, custom_mapping=mapping)
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the counter does not see into it
    try:
        with counter:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
    return float(counter.get_total_flops())


def measure(name: str, setting: Setting, *, tiny: bool, compiled: bool) -> list[dict[str, Any]]:
    """Train, embed, and run PyTorch's layers of the same sizes."""
    build, published, small = SYSTEMS[name]
    device = torch.device(setting.device)
    accelerator = "gpu" if device.type == "cuda" else "cpu"
    dtype = torch.bfloat16 if fast_bfloat16(device) else torch.float32
    rate = matrix_rate(device, dtype, 512 if tiny else 8192 if device.type == "cuda" else 2048)
    work = build(setting, small if tiny else published)

    def train(model: Any, steps: int) -> None:
        model.train(
            max_steps=steps, batch_size=setting.batch_size, accelerator=accelerator,
            enable_progress_bar=False, validation_share=0.0,
        )  # fmt: skip

    def fresh() -> Any:
        model = work.make()
        model.to_device(setting.device)
        if compiled:
            model.module.compile()
        return model

    rows = []

    def add(task: str, unit: str, n: int, took: float, done: float) -> None:
        peak = torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else np.nan
        rows.append(
            {
                "system": name,
                "task": task,
                "unit": unit,
                "units/s": n / took,
                "GFLOP per unit": done / n / 1e9,
                "TFLOP/s": done / took / 1e12,
                "share of matrix rate": done / took / rate,
                "peak (MiB)": peak,
            }
        )
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    model = fresh()
    begin = seconds(device, lambda: train(model, WARM))
    model = fresh()
    whole = seconds(device, lambda: train(model, WARM + setting.steps))
    one, two = (operations(lambda n=n: train(fresh(), n)) for n in (1, 2))
    took = whole - begin if whole > begin else float("nan")  # so few steps that noise decides
    n = setting.batch_size
    add("train", f"steps of {n}", setting.steps, took, setting.steps * (two - one))
    work.use(model)
    took = float(np.median([seconds(device, lambda: work.use(model)) for _ in range(3)]))
    add("use", work.rows, work.n_used, took, operations(lambda: work.use(model)))
    if work.layers is not None and work.tokens is not None:
        beside(work, device, dtype, add)
    return rows


def beside(work: Work, device: torch.device, dtype: torch.dtype, add: Callable[..., None]) -> None:
    """Measure PyTorch's encoder, forward and with gradients, on the tokens of a batch, padded."""
    options = dict(work.layers or {})
    n_layers = options.pop("num_layers")
    layer = torch.nn.TransformerEncoderLayer(batch_first=True, dropout=0.0, **options)
    encoder = torch.nn.TransformerEncoder(layer, n_layers, enable_nested_tensor=False).to(device)
    lengths = torch.tensor(work.tokens, device=device)
    longest = int(lengths.max())
    x = torch.randn(len(lengths), longest, options["d_model"], device=device)
    padding = torch.arange(longest, device=device) >= lengths[:, None]
    mask = padding if bool(padding.any()) else None

    def forward() -> torch.Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=dtype == torch.bfloat16):
            out: torch.Tensor = encoder(x, src_key_padding_mask=mask)
            return out

    def step() -> None:
        forward().float().square().mean().backward()
        encoder.zero_grad()

    step()
    took = float(np.median([seconds(device, step) for _ in range(3)]))
    add("train, PyTorch's layers", f"steps of {len(lengths)}", 1, took, operations(step))
    encoder.eval()
    with torch.no_grad():
        forward()
        took = float(np.median([seconds(device, forward) for _ in range(3)]))
        add("use, PyTorch's layers", work.rows, len(lengths), took, operations(forward))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_arguments(parser, data=False)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--compile", action="store_true", help="compile the networks")
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    tiny = Setting(args.device, 60, 24, 2, 8)
    whole = Setting(args.device, 20_000, 256, args.steps, 16)
    table = pd.DataFrame(
        [
            row
            for name in args.systems
            for row in measure(
                name, tiny if args.tiny else whole, tiny=args.tiny, compiled=args.compile
            )
        ]
    )
    where = torch.cuda.get_device_name() if args.device == "cuda" else "this processor"
    report = Report("gpu", "All systems at published size")
    report.text(
        f"On {where}, simulated data, {'tiny' if args.tiny else 'published'} sizes, "
        f"{args.steps} steps after {WARM}. `train` is one step of `train()` over its rows, with "
        "reading; `use` embeds (Lingshu-Cell generates). The share is of the best rate of one "
        "large matrix product in the same run and dtype."
    )
    report.table("systems", table, "Training and use", {"peak (MiB)": 0})
    report.finish(args.write)


if __name__ == "__main__":
    main()
