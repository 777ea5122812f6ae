"""What torch.compile, bfloat16 and batches of cells of like length bring on this processor.

``python -m benchmarks.settings [--rounds 7] [--write]``
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import torch

import cfm
from benchmarks._report import Report, add_arguments
from cfm.models.cellvq._data import CellReader, Cells
from cfm.nn._transformers import LlamaTrunk

Function = Callable[..., torch.Tensor]


def median_seconds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Return median seconds of calls that take turns; the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(rounds + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if i:
                seconds[name].append(time.perf_counter() - start)
    return {name: float(np.median(found)) for name, found in seconds.items()}


def simulated_cells(genes: list[str], n_cells: int, counts: float, seed: int = 0) -> ad.AnnData:
    """Return counts of cells of very different depth."""
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(0.0, 1.5, len(genes))
    depth = rng.lognormal(0.0, 0.8, (n_cells, 1))
    found = rng.poisson(mean / mean.sum() * counts * depth).astype(np.float32)
    adata = ad.AnnData(found[found.sum(axis=1) > 0])
    adata.var_names = genes
    return adata


def functions() -> dict[str, tuple[Function, tuple[Any, ...], bool]]:
    """Return what may be compiled: the function, its input, and whether gradients are taken."""
    random = torch.Generator().manual_seed(0)
    mini, published = LlamaTrunk(128, 4, 4, 512), LlamaTrunk(640, 13, 10, 2560)
    few = torch.randn(16, 80, 128, generator=random)
    many = torch.randn(1, 568, 640, generator=random)
    cells = cfm.models.load_model("cellvq-mini")
    reader = CellReader(simulated_cells(list(cells.vocabulary.genes), 64, 300), cells.vocabulary)
    tokens = next(iter(reader.batches(32)))[1].tokens()
    pulse = cfm.models.load_model("cellpulse-mini")
    effects = np.random.default_rng(0).normal(size=(8, len(pulse.vocabulary)))
    profiles = pulse.tokenizer.encode(effects.astype(np.float32))
    return {
        "Lingshu-Cell mini, trunk": (mini, (few,), False),
        "Lingshu-Cell mini, trunk, training": (mini, (few,), True),
        "Lingshu-Cell published, trunk": (published, (many,), False),
        "Lingshu-Cell published, trunk, training": (published, (many,), True),
        "CellVQ mini, encoder": (cells.module.encode, tuple(tokens), False),
        "CellPulse mini, encoder": (lambda t: pulse.module(t).tokens, (profiles,), False),
    }


def compiled(rounds: int) -> pd.DataFrame:
    """Time functions as they are and compiled, and what compiling costs."""
    rows = []
    for name, (function, inputs, training) in functions().items():
        faster = torch.compile(function)

        def call(f: Function, inputs: tuple[Any, ...] = inputs, training: bool = training) -> Any:
            with torch.inference_mode(not training):
                found = f(*inputs)
                if training:
                    found.square().mean().backward()
                return found.detach()

        plain = call(function)
        start = time.perf_counter()
        try:
            other = call(faster)
        except Exception as error:  # noqa: BLE001  anything that the compiler may say
            print(f"{name}: not compiled: {type(error).__name__}: {str(error)[:300]}", flush=True)
            rows.append({"case": name, "eager (ms)": np.nan, "speed-up": np.nan})
            continue
        compiling = time.perf_counter() - start
        both = {"eager": partial(call, function), "compiled": partial(call, faster)}
        took = median_seconds(both, rounds)
        gain = took["eager"] - took["compiled"]
        rows.append(
            {
                "case": name,
                "eager (ms)": 1e3 * took["eager"],
                "compiled (ms)": 1e3 * took["compiled"],
                "speed-up": took["eager"] / took["compiled"],
                "compiling (s)": compiling,
                "calls until it pays": compiling / gain if gain > 0 else np.inf,
                "largest difference": float((plain - other).abs().max() / plain.abs().max()),
            }
        )
        print(rows[-1], flush=True)
    return pd.DataFrame(rows)


def precisions(rounds: int) -> pd.DataFrame:
    """Embed with bundled models in float32 and bfloat16."""
    rows = []
    cells = ("cellvq-mini", "lingshu-pbmc-mini")
    for name in cells:
        model = cfm.models.load_model(name)
        adata = simulated_cells(list(model.vocabulary.genes), 512, 600)
        calls = {
            kind: lambda k=kind, m=model, a=adata: m.get_latent_representation(a, precision=k)
            for kind in ("float32", "bfloat16")
        }
        took = median_seconds(calls, rounds)
        exact, rough = calls["float32"](), calls["bfloat16"]()
        cosine = (
            (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
        )
        rows.append(
            {
                "model": name,
                "float32 (cells/s)": adata.n_obs / took["float32"],
                "bfloat16 (cells/s)": adata.n_obs / took["bfloat16"],
                "speed-up": took["float32"] / took["bfloat16"],
                "least cosine": float(cosine.min()),
            }
        )
    return pd.DataFrame(rows)


def like_lengths(rounds: int) -> pd.DataFrame:
    """Encode cells of very different length, as they come and those of like length together."""
    model = cfm.models.load_model("cellvq-mini")
    adata = simulated_cells(list(model.vocabulary.genes), 2048, 300)
    reader = CellReader(adata, model.vocabulary)
    cells = reader.cells(np.arange(adata.n_obs))

    def encode(batches: list[Cells]) -> None:
        with torch.inference_mode():
            for part in batches:
                model.module.encode(*part.tokens())

    rows = []
    for size in (16, 64):
        as_they_come = [
            cells.rows(r) for r in np.array_split(np.arange(adata.n_obs), adata.n_obs // size)
        ]
        alike = [part for _, part in reader.batches(size)]
        took = median_seconds(
            {"come": lambda b=as_they_come: encode(b), "alike": lambda b=alike: encode(b)}, rounds
        )
        rows.append(
            {
                "cells at a time": size,
                "padding as they come": padding(as_they_come),
                "padding, like lengths": padding(alike),
                "as they come (cells/s)": adata.n_obs / took["come"],
                "like lengths (cells/s)": adata.n_obs / took["alike"],
                "speed-up": took["come"] / took["alike"],
            }
        )
    return pd.DataFrame(rows)


def padding(batches: list[Cells]) -> float:
    """Return the share of tokens that say nothing."""
    masks = [part.tokens().padding for part in batches]
    return float(sum(m.sum() for m in masks) / sum(m.numel() for m in masks))


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser, data=False)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("settings", "Compiling, bfloat16 and batches of like length")
    report.text("One thread, medians of rounds in which the cases take turns.")
    report.table(
        "compile",
        compiled(args.rounds),
        "torch.compile; differences as a share of the largest output",
        {
            "eager (ms)": 1,
            "compiled (ms)": 1,
            "speed-up": 2,
            "compiling (s)": 1,
            "calls until it pays": 0,
            "largest difference": 7,
        },
    )
    report.table(
        "precision",
        precisions(args.rounds),
        "bfloat16, bundled models",
        {"least cosine": 4, "speed-up": 2, "float32 (cells/s)": 0, "bfloat16 (cells/s)": 0},
    )
    report.table(
        "lengths", like_lengths(args.rounds), "CellVQ mini, cells of 30 to 1,500 counts", 2
    )
    report.finish(args.write)


if __name__ == "__main__":
    main()
