"""Training in Lightning: what the models share."""

from __future__ import annotations

import logging
import signal
import warnings
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cfm.nn._distributed import first_process_does
from cfm.nn._linear import fast_bfloat16

if TYPE_CHECKING:
    from collections.abc import Iterator

    from scvi.train import TrainRunner

    from cfm.models._base import PretrainedModel

#: Names of precisions in the tools, and what Lightning calls them.
_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
#: Loggers of Lightning that tell of its own doing.
_TALKATIVE = (
    "pytorch.utilities.rank_zero",
    "fabric.utilities.rank_zero",
    "fabric.utilities.distributed",
)


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Keep from the user what Lightning says of itself: advice to install more, its own notes."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(LeafSpec|treespec).*", FutureWarning)
            # no validation studies: nothing to check is not an error
            warnings.filterwarnings("ignore", "Total length of `.*` across ranks is zero")
            warnings.filterwarnings("ignore", "Your `IterableDataset` has `__len__` defined")
            # scvi-tools says so of any training in several processes, asked for or not
            warnings.filterwarnings("ignore", "early_stopping was automatically disabled")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def run_training(model: PretrainedModel, runner: TrainRunner, seed: int) -> bool:
    """Run the training; ``False`` if it was interrupted from the keyboard."""
    if not model.history_:  # a loaded model: its curves begin here
        model.is_trained_ = False
    model.module.train()  # Lightning leaves the mode as it finds it
    before = dict(model.history_ or {})
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            runner()
        _add_new_curves(model, before, runner)
        # only the first process keeps curves
        model.history_ = first_process_does(lambda: _as_numbers(model.history_))
    except SIGTERMException as told:
        raise SystemExit(128 + signal.SIGTERM) from told  # Lightning's own would be a success
    except SystemExit as stopped:
        # What Lightning makes of Ctrl+C.
        if not isinstance(stopped.__context__, KeyboardInterrupt):
            raise
        model.is_trained_ = True
        model.to_device(runner.device)
        return False
    finally:
        model.module.eval()
    return True


def _as_numbers(history: Any) -> Any:
    """Return curves as floats; scvi-tools keeps them as objects, which cannot be rounded."""
    return history and {name: curve.apply(pd.to_numeric) for name, curve in history.items()}


def _add_new_curves(
    model: PretrainedModel, before: dict[str, pd.DataFrame], runner: TrainRunner
) -> None:
    """Add the curves that earlier training did not have; scvi-tools goes on with known ones only.

    They begin at the epoch at which this training began.
    """
    found = getattr(runner.trainer.logger, "history", None) or {}
    if not before or not isinstance(model.history_, dict):
        return
    n_before = max(len(curve) for curve in before.values())
    for name in (name for name in found if name not in before):
        curve = found[name].copy()
        curve.index = pd.RangeIndex(n_before, n_before + len(curve), name=curve.index.name)
        model.history_[name] = curve


def held_out_studies(studies: np.ndarray, share: float, seed: int) -> list[str]:
    """Choose studies to hold out of training; none if there are fewer than three."""
    names = sorted(set(studies) - {""})
    if len(names) < 3 or share == 0:
        return []
    n = min(max(1, round(share * len(names))), len(names) - 1)
    return list(np.random.default_rng(seed).choice(names, size=n, replace=False))


def training_precision(precision: str, accelerator: str) -> str:
    """Return Lightning's name of a precision; ``"auto"`` is bfloat16 on a GPU fast at it."""
    if precision != "auto":
        return _PRECISIONS.get(precision, precision)
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and fast_bfloat16(torch.device("cuda")) else "32-true"
