"""A training that was stopped, by a kill or a power cut, goes on as if it had not been."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from scvi.train._logger import SimpleLogger

from cfm.models._checkpoint_files import CheckpointFiles, write_whole
from cfm.models._fingerprint import LEARNED, differences
from cfm.nn._distributed import process_number

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cfm.models._base import PretrainedModel
    from cfm.models._training_plan import TrainingPlan

_RECORD = "run.json"
#: Of models whose training was interrupted: what it followed from, and how they were before.
_interrupted: WeakKeyDictionary[PretrainedModel, dict[str, Any]] = WeakKeyDictionary()


class Checkpoints:
    """Keeps the whole state of a training in a folder, every so many steps and at the end.

    A state is what is needed to go on to the same weights: weights, optimiser, schedule, averages,
    where the stream of batches is, random numbers, and the curves so far. It is taken between two
    batches. Where one is due after the last batch of an epoch, it is taken when the next epoch has
    begun, and says that this is to begin.

    Parameters
    ----------
    folder
        Where to keep it; is made.
    every
        Optimiser steps between two states.
    fingerprint
        What the training follows from; see :func:`cfm.models._fingerprint.fingerprint`.
    model
        Which is trained.

    Attributes
    ----------
    files
        For Lightning.
    start
        The state to go on from, if there is one.

    Raises
    ------
    ValueError
        If the folder holds the states of another training, or is none.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        every: int,
        fingerprint: dict[str, Any],
        model: PretrainedModel,
    ) -> None:
        self.folder = Path(folder).expanduser().absolute()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"checkpoint_dir={str(folder)!r} is a file; expected a folder.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self.every = every
        self.files = CheckpointFiles(self.folder)
        self.start = next(iter(self.files.found()), None)
        self.fingerprint = fingerprint
        if self.start is not None:
            self._check(model)
        self._model_before = {"history": model.history_, "is_trained": model.is_trained_}
        self._random: dict[str, Any] | None = None
        self._epoch_start: dict[str, Any] = {}
        self._point: str | None = None
        self._late = False
        self._step = 0

    def _check(self, model: PretrainedModel) -> None:
        """Refuse the states of another training; put an interrupted model back to its start."""
        record = self.folder / _RECORD
        if not record.exists():
            raise ValueError(
                f"{self.folder} holds states of a training, but no {_RECORD} that says of which; "
                "give another checkpoint_dir."
            )
        try:
            kept = json.loads(record.read_text())
        except (ValueError, RecursionError) as error:
            kept = None
            said = f" ({error})"
        else:
            said = ""
        if not isinstance(kept, dict):
            raise ValueError(
                f"{record} is damaged{said}, so it is unknown of which training the states in "
                f"{self.folder} are; give another checkpoint_dir."
            )
        before = _interrupted.get(model)
        goes_on = before is not None and before["folder"] == self.folder
        if before is not None and goes_on and getattr(model, "_training_can_be_repeated", True):
            self.fingerprint |= {name: before["fingerprint"][name] for name in LEARNED}
        found = differences(kept, json.loads(json.dumps(self.fingerprint)))
        if found:
            more = f"; and {len(found) - 3} more" if len(found) > 3 else ""
            raise ValueError(
                f"checkpoint_dir={str(self.folder)!r} holds the states of another training: "
                f"{'; '.join(found[:3])}{more}. Make the same call on the same model to go on "
                "with it; give another folder, or delete this one, to begin anew."
            )
        if before is not None and goes_on:
            model.history_, model.is_trained_ = before["history"], before["is_trained"]

    def begin(self, plan: TrainingPlan) -> None:
        """Write down what the training follows from."""
        if plan.trainer.is_global_zero and self.start is None:
            text = json.dumps(self.fingerprint, indent=1)
            write_whole(self.folder / _RECORD, lambda file: file.write(text.encode()))

    def left(self, model: PretrainedModel, *, finished: bool) -> None:
        """Note whether the model was left in the middle of this training."""
        _interrupted.pop(model, None)
        if not finished:
            _interrupted[model] = {
                "folder": self.folder,
                "fingerprint": self.fingerprint,
                **self._model_before,
            }

    def on_epoch_start(self, plan: TrainingPlan) -> None:
        """Note where the stream is before the epoch has begun."""
        loader: Any = plan.trainer.train_dataloader
        self._epoch_start = loader.state_dict()

    def on_batch_start(self, plan: TrainingPlan) -> None:
        """Take up the random numbers, now that the iterator over batches has drawn its own."""
        if self._random is not None:
            _set_random_numbers(self._random)
            self._random = None
        if self._late:
            self._late = False
            self._save(plan, "epoch start")

    def on_batch_end(self, plan: TrainingPlan) -> None:
        """Take the state if it is time, and if this was not the last batch of the epoch."""
        step = plan.global_step
        stepped = step != self._step
        self._step = step
        # a job that is told to end has a moment left; several processes are told at various times
        ends = plan.trainer.received_sigterm and process_number()[1] == 1
        due = ends or step % self.every == 0
        if not stepped or not due or step >= plan.trainer.max_steps:
            return
        if plan.trainer.is_last_batch:
            self._late = True
        else:
            self._save(plan, "batch end")

    def on_end(self, plan: TrainingPlan) -> None:
        """Take the final state."""
        self._save(plan, "end")

    def _save(self, plan: TrainingPlan, point: str) -> None:
        self._point = point
        try:
            plan.trainer.save_checkpoint(self.files.path(plan.global_step), weights_only=False)
        finally:
            self._point = None

    def complete(self, plan: TrainingPlan, checkpoint: dict[str, Any]) -> None:
        """Add to what Lightning keeps; called in all processes."""
        if self._point is None:  # somebody else's checkpoint
            return
        checkpoint["cfm"] |= {
            "finished": self._point == "end",
            "random": _of_all_processes(_random_numbers(plan.device)),
            "curves": _curves(plan),
        }
        loops = checkpoint["loops"]["fit_loop"]
        if self._point == "batch end":
            _after_batch(loops)
        elif self._point == "epoch start":
            _before_epoch(loops)
            loops["state_dict"]["combined_loader"] = [self._epoch_start]

    def restore(self, plan: TrainingPlan, checkpoint: Mapping[str, Any]) -> None:
        """Take up what :meth:`complete` added."""
        state = checkpoint["cfm"]
        kept = {k: v.shape for k, v in checkpoint["state_dict"].items()}
        if kept != {k: v.shape for k, v in plan.state_dict().items()}:
            raise ValueError(
                f"The weights kept in {self.folder} do not fit the model: it has changed since its "
                "training began. Make or load it as you did then, and make the same call."
            )
        self._random = state["random"][process_number()[0]]
        self._step = checkpoint["global_step"]
        logger = plan.trainer.logger
        if isinstance(logger, SimpleLogger) and plan.trainer.is_global_zero:
            for name, (kind, times, values) in state["curves"].items():
                curve = pd.DataFrame({name: pd.Series(values, index=times, dtype=object)})
                curve.index.name = kind
                logger.experiment.data[name] = curve
        if state["finished"]:  # also if it was ended early
            plan.trainer.should_stop = True


def _after_batch(loops: dict[str, Any]) -> None:
    """Say of Lightning's loops that the present batch is done, as it will be in a moment."""
    progress = loops["epoch_loop.batch_progress"]
    for count in (progress["total"], progress["current"]):
        count["completed"] = count["processed"]
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] += 1


def _before_epoch(loops: dict[str, Any]) -> None:
    """Say of Lightning's loops that the present epoch, whose first batch is there, is to begin."""
    epochs = loops["epoch_progress"]
    for count in (epochs["total"], epochs["current"]):
        count |= dict.fromkeys(("ready", "started", "processed"), count["completed"])
    batches = loops["epoch_loop.batch_progress"]
    batches["total"]["ready"] -= 1
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
    # going on, Lightning once passes through its loop without a batch, and counts that
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


def _curves(plan: TrainingPlan) -> dict[str, Any]:
    """Return the curves so far: what they are over, times, values."""
    if not plan.trainer.is_global_zero:  # only the first process keeps them, and writes
        return {}
    found = getattr(plan.trainer.logger, "history", None) or {}
    return {
        name: [
            str(curve.index.name),
            [int(time) for time in curve.index],
            [float(v) for v in curve[name]],
        ]
        for name, curve in found.items()
    }


def _random_numbers(device: torch.device) -> dict[str, Any]:
    """Return the states of the global generators of this process."""
    numpy_state: Any = np.random.get_state(legacy=False)  # noqa: NPY002
    out: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": numpy_state
        | {
            "state": {
                "key": torch.from_numpy(numpy_state["state"]["key"].astype(np.int64)),
                "pos": int(numpy_state["state"]["pos"]),
            }
        },
    }
    if device.type == "cuda":
        out["cuda"] = torch.cuda.get_rng_state(device)
    return out


def _set_random_numbers(state: Mapping[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    random.setstate(state["python"])
    inner = state["numpy"]["state"]
    key = inner["key"].numpy().astype(np.uint32)
    np.random.set_state(  # noqa: NPY002
        dict(state["numpy"]) | {"state": {"key": key, "pos": inner["pos"]}}
    )
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"])


def _of_all_processes(own: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what each process has, in their order; each must call this."""
    n_processes = process_number()[1]
    if n_processes == 1:
        return [own]
    found: list[Any] = [None] * n_processes
    torch.distributed.all_gather_object(found, own)
    return found
