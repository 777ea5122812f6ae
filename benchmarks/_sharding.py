"""Training steps of the largest networks with weights dealt out to processes: memory and time.

``python -m benchmarks._sharding {bulkformer,cellpulse,cellvq,lingshu} [--processes 2]
[--strategy fsdp] [--accelerator cpu] [--precision 32-true] [--steps 2] [--genes N]``

Prints a line per process: weights of the network, seconds of each step, loss, and peak memory.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from pathlib import Path
from typing import Any

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from scipy import sparse

import cfm

#: Genes of the published networks.
GENES = {"bulkformer": 20_010, "cellpulse": 20_000, "cellvq": 19_264, "lingshu": 18_080}
#: Genes that a made-up cell expresses.
N_EXPRESSED = 1_000


class Clock(pl.Callback):
    """Time of each step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self._start = 0.0

    def on_train_batch_start(self, *args: Any) -> None:
        """Start."""
        self._start = time.perf_counter()

    def on_train_batch_end(self, *args: Any) -> None:
        """Stop, once the device is done."""
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.seconds.append(round(time.perf_counter() - self._start, 3))


def cells(n: int, n_genes: int) -> ad.AnnData:
    """Counts of made-up cells."""
    rng = np.random.default_rng(0)
    columns = [rng.choice(n_genes, N_EXPRESSED, replace=False) for _ in range(n)]
    indptr = np.arange(0, (n + 1) * N_EXPRESSED, N_EXPRESSED)
    counts = rng.integers(1, 20, n * N_EXPRESSED).astype(np.float32)
    x = sparse.csr_matrix((counts, np.concatenate(columns), indptr), shape=(n, n_genes))
    return ad.AnnData(x, var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]))


def bulkformer(n: int, n_genes: int, **training: Any) -> Any:
    """The network of 147 million weights."""
    rng = np.random.default_rng(0)
    adata = cells(n, n_genes)
    adata.X = rng.gamma(1.0, 1.0, (n, n_genes)).astype(np.float32)
    edges = rng.integers(0, n_genes, (20 * n_genes, 2))
    graph = sparse.coo_matrix((rng.uniform(0.4, 1.0, len(edges)), edges.T), (n_genes, n_genes))
    cfm.models.BulkFormer.setup_anndata(adata)
    model = cfm.models.BulkFormer(adata, size="147M", graph=graph.tocsr())
    model.train(recompute=True, validation_share=0.0, **training)
    return model


def cellpulse(n: int, n_genes: int, **training: Any) -> Any:
    """The network of the published scale, some 100 million weights."""
    adata = cells(n, n_genes)
    adata.X = np.random.default_rng(0).normal(size=(n, n_genes)).astype(np.float32)
    adata.obs["study"] = [f"s{i % 4}" for i in range(n)]
    cfm.models.CellPulse.setup_anndata(adata, study_key="study")
    model = cfm.models.CellPulse(adata, size="published")
    model.train(n_linear_steps=1, validation_share=0.0, **training)
    return model


def cellvq(n: int, n_genes: int, **training: Any) -> Any:
    """The network of 514 million weights."""
    adata = cells(n, n_genes)
    cfm.models.CellVQ.setup_anndata(adata)
    model = cfm.models.CellVQ(adata, size="published")
    model.train(validation_share=0.0, n_validation=2, **training)
    return model


def lingshu(n: int, n_genes: int, **training: Any) -> Any:
    """The network for genetic perturbations."""
    adata = cells(n, n_genes)
    cfm.models.LingshuCell.setup_anndata(adata)
    model = cfm.models.LingshuCell(adata, size="vcc")
    model.train(validation_share=0.0, **training)
    return model


MODELS = {f.__name__: f for f in (bulkformer, cellpulse, cellvq, lingshu)}


def peak_memory() -> float:
    """Return the most memory that this process had, in GiB."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(x for x in status.read_text().splitlines() if x.startswith("VmHWM"))
        return int(line.split()[1]) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30


def main() -> None:
    """Take some steps."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--strategy", default="fsdp")
    parser.add_argument("--accelerator", default="cpu")
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--genes", type=int)
    given = parser.parse_args()
    clock = Clock()
    model = MODELS[given.model](
        given.rows * given.processes * given.steps,
        given.genes or GENES[given.model],
        max_steps=given.steps,
        batch_size=given.rows,
        accelerator=given.accelerator,
        devices=given.processes,
        strategy=given.strategy,
        precision=given.precision,
        enable_progress_bar=False,
        callbacks=[clock],
    )
    weights = sum(p.numel() for p in model.module.parameters())
    found = {
        "model": given.model,
        "strategy": given.strategy,
        "process": int(os.environ.get("LOCAL_RANK", "0")),
        "million_weights": round(weights / 1e6, 1),
        "seconds": clock.seconds,
        "loss": {k: float(v.to_numpy().ravel()[-1]) for k, v in model.history.items()},
        "peak_gib": round(peak_memory(), 2),
    }
    if torch.cuda.is_available() and given.accelerator != "cpu":
        found["device_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
