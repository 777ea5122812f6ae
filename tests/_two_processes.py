"""Small trainings of all models, to be run in one process or in several that train together.

As a script, ``python -m tests._two_processes FOLDER --processes 2``, it trains them all and leaves
in ``FOLDER`` what each process found: weights and curves, and where the model was saved.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cfm.models import BulkFormer, CellPulse, CellVQ, LingshuCell, Pulsar
from tests import _bulk, _lingshu, _planted_codes, _pulsar, _toy

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cfm.models import PretrainedModel

ROOT = Path(__file__).parents[1]
#: Each process has so many rows of a batch; one process alone twice as many.
ROWS = 8
#: Longer than any of these runs takes: a process that waits for a dead one must not wait for ever.
TIMEOUT = 240


def bulkformer(**run: Any) -> PretrainedModel:
    """Train on samples whose number leaves a batch of three at the end of an epoch."""
    adata = _bulk.toy_log_tpm(n=92)[:91].copy()
    BulkFormer.setup_anndata(adata, study_key="study")
    model = BulkFormer(adata, **_bulk.SIZES)
    model.train(max_steps=12, redraw_interval=5, lr=4e-3, **run)
    return model


def lingshu(**run: Any) -> PretrainedModel:
    """Train on counts."""
    adata = _lingshu.toy_counts(n=120)
    LingshuCell.setup_anndata(
        adata, source_key="cell_type", perturbation_key="drug", control="none"
    )
    model = LingshuCell(adata, **_lingshu.SIZES, depth=True)
    model.train(max_steps=10, lr=4e-3, **run)
    return model


def pulsar(**run: Any) -> PretrainedModel:
    """Train on donors, of whom two are left for a last batch."""
    sizes = (60, 40, 50, 45, 70, 55, 48, 52, 33, 21, 64, 58, 39, 41, 47, 30, 35, 29, 31, 37)
    adata = _pulsar.donors(sizes, width=10)
    Pulsar.setup_anndata(adata, use_rep="X_uce", labels_key="disease")
    small = {"dim": 32, "encoder_layers": 1, "encoder_ff": 64, "decoder_ff": 64, "dropout": 0.0}
    model = Pulsar(adata, **small)
    model.train(5, n_cells=20, keep_share=0.3, mask_share=0.5, lr=3e-3, **run)
    return model


def cellpulse(**run: Any) -> PretrainedModel:
    """Train the linear term, then the rest, on contrasts that have a sample in common."""
    adata = _toy.toy_contrasts()
    CellPulse.setup_anndata(adata, study_key="study", sample_key="sample")
    model = CellPulse(adata, **_toy.SIZES, dropout=0.0, attention_dropout=0.0)
    model.train(max_steps=30, n_linear_steps=12, tokens_per_profile=64, **run)
    return model


def cellvq(**run: Any) -> PretrainedModel:
    """Train codes and heads on cells of which some have no label."""
    adata = _planted_codes.planted_cells(150)
    adata.obs["tissue"] = np.where(np.arange(150) % 3 == 0, "lung", None)
    adata.obs["tissue"] = adata.obs["tissue"].astype("category").cat.add_categories("skin")
    adata.obs.loc[adata.obs_names[3::9], "tissue"] = "skin"
    CellVQ.setup_anndata(adata, labels_keys=["cell_type", "tissue"])
    sizes = {"dim": 16, "n_layers": 1, "n_heads": 2, "ff_dim": 24, "n_bins": 8, "dropout": 0.0}
    sizes |= {"decoder_dim": 12, "decoder_layers": 1, "decoder_heads": 2, "n_bits": 6}
    model = CellVQ(adata, **sizes, codebook_dim=16, codebook_layers=2, code_dim=8)
    model.train(max_steps=12, balance_weight=0.1, lr=2e-3, **run)
    return model


TRAININGS: dict[str, Callable[..., PretrainedModel]] = {
    f.__name__: f for f in (bulkformer, lingshu, pulsar, cellpulse, cellvq)
}


def settings(n_processes: int) -> dict[str, Any]:
    """Arguments of a training whose batches are of one size over all processes."""
    shared = {"devices": n_processes, "strategy": "ddp"} if n_processes > 1 else {}
    return {
        "batch_size": 2 * ROWS // n_processes,
        "accelerator": "cpu",
        "enable_progress_bar": False,
        **shared,
    }


def found(model: PretrainedModel) -> dict[str, Any]:
    """Return weights and curves."""
    weights = {k: v.detach().clone() for k, v in model.module.state_dict().items()}
    curves = {k: torch.from_numpy(v.to_numpy(dtype=float)) for k, v in model.history.items()}
    return {"weights": weights, "curves": curves}


def run_script(module: str, *arguments: str, timeout: float = TIMEOUT) -> str:
    """Run a module of the tests as a script, and return what it printed.

    Raises
    ------
    RuntimeError
        If it fails, or takes longer than it may.
    """
    environment = {
        **{k: v for k, v in os.environ.items() if k not in ("LOCAL_RANK", "RANK", "WORLD_SIZE")},
        "OMP_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
    }
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, 9)  # and the processes that it started
        said, _ = process.communicate()
        raise RuntimeError(f"{module} took longer than {timeout} s: {said[-4000:]}") from error
    if process.returncode:
        raise RuntimeError(f"{module} ended with {process.returncode}: {said[-4000:]}")
    return said


def main(given: Sequence[str] | None = None) -> None:
    """Train, and write what was found."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    arguments = parser.parse_args(given)
    torch.set_num_threads(1)
    n_processes, folder = arguments.processes, arguments.folder
    for name, train in TRAININGS.items():
        model = train(**settings(n_processes))
        number = os.environ.get("LOCAL_RANK", "0")
        saved = model.save(folder / f"{name}-{n_processes}")
        torch.save(
            found(model) | {"saved": str(saved)}, folder / f"{name}-{n_processes}-{number}.pt"
        )


if __name__ == "__main__":
    main()
