"""Simulated bulk samples on disk, and what is measured of pairs of them."""

from __future__ import annotations

import time
from pathlib import Path

import h5py
import numpy as np
import pandas as pd

#: 3,586 cases × 6,414 controls of 10,000 samples are 23 million pairs.
CASE_SHARE = 0.3586
N_VIRUSES = 10
_BLOCK = 200  # samples that are made and written at a time


def write_samples(path: Path, n_samples: int, n_genes: int, *, seed: int = 0) -> None:
    """Write counts of one study as ``.h5ad``, block by block: dense float32, 4 bytes per value.

    Counts are negative binomial (dispersion 0.1) around log-normal levels; each virus moves 500
    genes of its own up to four times.
    """
    import anndata as ad

    rng = np.random.default_rng(seed)
    level = rng.lognormal(3.0, 2.0, size=n_genes)
    level /= level.sum()
    effect = np.zeros((N_VIRUSES + 1, n_genes))
    for row in effect[1:]:
        row[rng.choice(n_genes, size=min(500, n_genes), replace=False)] = rng.uniform(
            -2, 2, size=min(500, n_genes)
        )
    n_cases = round(n_samples * CASE_SHARE)
    virus = np.zeros(n_samples, dtype=np.int64)
    virus[rng.choice(n_samples, size=n_cases, replace=False)] = 1 + np.arange(n_cases) % N_VIRUSES
    library = rng.uniform(5e6, 3e7, size=n_samples)
    names = np.array(["none", *(f"virus{i}" for i in range(N_VIRUSES))])
    obs = pd.DataFrame(
        {"virus": pd.Categorical(names[virus]), "study": "simulated"},
        index=[f"S{i}" for i in range(n_samples)],
    )
    var = pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])
    ad.AnnData(obs=obs, var=var).write_h5ad(path)
    with h5py.File(path, "r+") as file:
        file.pop("X", None)
        matrix = file.create_dataset("X", (n_samples, n_genes), "f4")
        matrix.attrs.update({"encoding-type": "array", "encoding-version": "0.2.0"})
        for start in range(0, n_samples, _BLOCK):
            rows = slice(start, min(start + _BLOCK, n_samples))
            share = level * np.exp2(effect[virus[rows]])
            mean = share / share.sum(axis=1, keepdims=True) * library[rows, None]
            matrix[rows] = rng.poisson(mean * rng.standard_gamma(10.0, size=mean.shape) / 10.0)


def open_pairs(path: Path, memory_mib: float):
    """Return the pairs of a file of samples, and the seconds that this took."""
    import anndata as ad

    from cfm.pp import contrasts

    adata = ad.read_h5ad(path, backed="r")
    start = time.perf_counter()
    pairs = contrasts(adata, "virus", "none", by="study", mode="pairs", memory_mib=memory_mib)
    return pairs, time.perf_counter() - start


def write_profiles(pairs, path: Path, n: int) -> float:
    """Write ``n`` profiles as a file on disk; returns the seconds that this took."""
    start = time.perf_counter()
    with h5py.File(path, "w") as file:
        matrix = file.create_dataset("X", (n, pairs.shape[1]), "f4")
        for first in range(0, n, _BLOCK):
            last = min(first + _BLOCK, n)
            matrix[first:last] = pairs.draw(last - first, np.random.default_rng(first)).effects
        file.flush()
    return time.perf_counter() - start


def train(pairs, n_steps: int):
    """Train a CellPulse of the mini size from pairs; a few of them are its registered contrasts.

    Returns
    -------
    Seconds per step, without the first ones.
    """
    import lightning.pytorch as pl

    from cfm.models import CellPulse

    class Clock(pl.Callback):
        """Notes when steps end."""

        def __init__(self) -> None:
            self.times: list[float] = []

        def on_train_batch_end(self, *arguments) -> None:
            self.times.append(time.perf_counter())

    some = pairs.to_adata(n=60)
    some.obs["study"] = [f"part{i % 3}" for i in range(some.n_obs)]
    CellPulse.setup_anndata(some, study_key="study", sample_key="case")
    model = CellPulse(some)
    clock = Clock()
    model.train(
        n_steps,
        sources={"corpus": pairs},
        source_share=0.9,
        n_linear_steps=0,
        callbacks=[clock],
        enable_progress_bar=False,
        accelerator="cpu",
    )
    return float(np.median(np.diff(clock.times)))
