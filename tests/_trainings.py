"""Short trainings of all models, that can be stopped where a test wants, or killed.

``python -m tests._trainings NAME FOLDER OUTPUT [STEP WHEN [PROCESSES]]`` runs one with its state
kept in FOLDER, and writes weights and curves to OUTPUT. With STEP it kills itself there with
SIGKILL: WHEN is ``batch``, after that step, or ``write``, in the middle of writing the state of
that step.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch

from cfm.models._base import PretrainedModel
from cfm.nn._distributed import process_number
from tests import _bulk, _lingshu, _planted_codes, _toy
from tests._small import QUIET, TRAINED


class Case(NamedTuple):
    """A model as it is made, and how it is trained: ``n_steps`` in epochs of ``n_batches``."""

    make: Callable[[], Any]
    train: Callable[..., None]
    n_steps: int
    n_batches: int


def _bulkformer(model: Any, **kwargs: Any) -> None:
    model.train(max_steps=7, redraw_interval=2, **_bulk.TRAINING | {"batch_size": 24} | kwargs)


CASES = {
    "bulkformer": Case(TRAINED["BulkFormer"].make, _bulkformer, 7, 3),
    "bulkformer, two batches a step": Case(
        TRAINED["BulkFormer"].make,
        lambda m, **k: _bulkformer(m, accumulate_grad_batches=2, **k),
        7,
        2,
    ),
    "bulkformer, one batch an epoch": Case(
        TRAINED["BulkFormer"].make,
        lambda m, **k: _bulkformer(m, **{"batch_size": 96} | k),
        7,
        1,
    ),
    "lingshu": Case(
        TRAINED["LingshuCell"].make,
        lambda m, **k: m.train(max_steps=8, **_lingshu.TRAINING | k),
        8,
        3,
    ),
    "cellvq": Case(
        lambda: _planted_codes.untrained(labels_keys=["cell_type"]),
        lambda m, **k: m.train(
            max_steps=7, code_label_weight=1.0, batch_size=16, **_planted_codes.TRAINING | k
        ),
        7,
        4,
    ),
    "cellvq, frozen": Case(
        lambda: _planted_codes.untrained(labels_keys=["cell_type"]),
        lambda m, **k: m.train(max_steps=5, freeze="encoder", **_planted_codes.TRAINING | k),
        5,
        2,
    ),
    "cellpulse": Case(
        lambda: TRAINED["CellPulse"].make(dropout=0.1),
        lambda m, **k: m.train(
            max_steps=30,
            n_linear_steps=4,
            **_toy.TRAINING | {"batch_size": 4, "tokens_per_profile": 16} | k,
        ),
        30,
        25,
    ),
    "pulsar": Case(
        TRAINED["Pulsar"].make,
        lambda m, **k: m.train(3, n_cells=20, batch_size=3, **QUIET | k),
        9,
        3,
    ),
    "pulsar, head": Case(
        TRAINED["Pulsar"].make,
        lambda m, **k: m.train_head(
            "age", "regression", max_epochs=3, n_cells=20, batch_size=8, **QUIET | k
        ),
        12,
        4,
    ),
    "pulsar, unfrozen": Case(
        TRAINED["Pulsar"].make,
        lambda m, **k: m.train_head(
            "disease", frozen_layers=0, max_epochs=3, n_cells=20, batch_size=3, **QUIET | k
        ),
        9,
        3,
    ),
    "instrument": Case(
        TRAINED["VirtualInstrument"].make,
        lambda m, **k: m.train(control="none", max_epochs=2, batch_size=20, **QUIET | k),
        8,
        4,
    ),
}


class StoppedError(Exception):
    """What a test stops a training with."""


class StopAfter(pl.Callback):
    """Stops a training after an optimiser step, before its state is kept."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step >= self.step:
            raise StoppedError


class KillAfter(pl.Callback):
    """Ends the process as a power cut would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step >= self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_in_write(step: int) -> None:
    """End the process when half of the state of a step is written."""
    from cfm.models import _resume

    whole = _resume._save

    def half(checkpoint: dict[str, Any], file: Any) -> None:
        whole(checkpoint, file)
        if checkpoint["global_step"] >= step:
            file.truncate(file.tell() // 2)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    _resume._save = half


def state(model: PretrainedModel) -> dict[str, torch.Tensor]:
    """Return weights and curves of a trained model."""
    out = {k: v.detach().clone() for k, v in model.module.state_dict().items()}
    for name, curve in (model.history or {}).items():
        out[f"curve {name}"] = torch.from_numpy(curve[name].to_numpy(dtype=np.float64, copy=True))
        out[f"time of {name}"] = torch.tensor(curve.index.tolist())
    return out


def main(
    name: str,
    folder: str,
    output: str,
    step: str = "0",
    when: str = "batch",
    processes: str = "1",
) -> None:
    """Run a training as the module says."""
    torch.set_num_threads(1)
    case = CASES[name]
    more: dict[str, Any] = {"devices": int(processes)}
    if int(step) and when == "write":
        kill_in_write(int(step))
    elif int(step):
        more["callbacks"] = [KillAfter(int(step))]
    model = case.make()
    case.train(model, checkpoint_dir=folder, checkpoint_every=1, **more)
    torch.save(state(model), Path(f"{output}.{process_number()[0]}"))


if __name__ == "__main__":
    main(*sys.argv[1:])
