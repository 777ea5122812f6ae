"""Resume a training that was stopped, by a kill or a power cut, to the same weights.

The state of a training is stored in files that are written completely or not at all
(:class:`CheckpointFiles`), with a fingerprint of model, data and settings (:func:`fingerprint`):
only the same training is resumed.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch
from lightning.pytorch.plugins.io import CheckpointIO

from cfm._adata import warn_user
from cfm.hub._torch import read_plain
from cfm.nn._distributed import process_number

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.models._base import PretrainedModel
    from cfm.models._training import TrainingPlan

_RECORD = "run.json"
#: Models whose training was interrupted, with its fingerprint and their state before it.
_interrupted: WeakKeyDictionary[PretrainedModel, dict[str, Any]] = WeakKeyDictionary()


class Checkpoints:
    """Store the state of a training in a folder, every n steps and at the end.

    A state contains weights, optimiser, schedule, averages, position of the stream of batches,
    random states, and the curves so far. It is stored between two batches. A state that is due
    after the last batch of an epoch is stored at the start of the next epoch.

    Parameters
    ----------
    folder
        Folder of the states; created if needed.
    every
        Optimiser steps between two states.
    fingerprint
        Fingerprint of the training; see :func:`fingerprint`.
    model
        Model that is trained.

    Attributes
    ----------
    files
        Plugin for Lightning.
    start
        State to resume from, if there is one.

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
        """Refuse the states of another training; reset an interrupted model to its start."""
        record = self.folder / _RECORD
        if not record.exists():
            raise ValueError(
                f"{self.folder} holds states of a training, but no {_RECORD} that identifies it; "
                "pass another checkpoint_dir."
            )
        try:
            kept = json.loads(record.read_text())
        except (ValueError, RecursionError) as error:
            kept = None
            reason = f" ({error})"
        else:
            reason = ""
        if not isinstance(kept, dict):
            raise ValueError(
                f"{record} is damaged{reason}, so the training of the states in {self.folder} is "
                "unknown; pass another checkpoint_dir."
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
        """Write the fingerprint of the training."""
        if plan.trainer.is_global_zero and self.start is None:
            text = json.dumps(self.fingerprint, indent=1)
            write_whole(self.folder / _RECORD, lambda file: file.write(text.encode()))

    def left(self, model: PretrainedModel, *, finished: bool) -> None:
        """Record whether the model was left in the middle of this training."""
        _interrupted.pop(model, None)
        if not finished:
            _interrupted[model] = {
                "folder": self.folder,
                "fingerprint": self.fingerprint,
                **self._model_before,
            }

    def on_epoch_start(self, plan: TrainingPlan) -> None:
        """Record the position of the stream before the epoch."""
        loader: Any = plan.trainer.train_dataloader
        self._epoch_start = loader.state_dict()

    def on_batch_start(self, plan: TrainingPlan) -> None:
        """Restore the random states, once the iterator over batches has drawn its seed."""
        if self._random is not None:
            _set_random_numbers(self._random)
            self._random = None
        if self._late:
            self._late = False
            self._save(plan, "epoch start")

    def on_batch_end(self, plan: TrainingPlan) -> None:
        """Store the state if it is due; after the last batch of an epoch it is deferred."""
        step = plan.global_step
        stepped = step != self._step
        self._step = step
        # a job has a moment left after SIGTERM; several processes get the signal at various times
        ends = plan.trainer.received_sigterm and process_number()[1] == 1
        due = ends or step % self.every == 0
        if not stepped or not due or step >= plan.trainer.max_steps:
            return
        if plan.trainer.is_last_batch:
            self._late = True
        else:
            self._save(plan, "batch end")

    def on_end(self, plan: TrainingPlan) -> None:
        """Store the final state."""
        self._save(plan, "end")

    def _save(self, plan: TrainingPlan, point: str) -> None:
        self._point = point
        try:
            plan.trainer.save_checkpoint(self.files.path(plan.global_step), weights_only=False)
        finally:
            self._point = None

    def complete(self, plan: TrainingPlan, checkpoint: dict[str, Any]) -> None:
        """Add to the state of Lightning; called in all processes."""
        if self._point is None:  # a checkpoint of another callback
            return
        checkpoint["cfm"] |= {
            "finished": self._point == "end",
            "random": _of_all_processes(_random_numbers(plan.device)),
        }
        loops = checkpoint["loops"]["fit_loop"]
        if self._point == "epoch start":
            _before_epoch(loops)
            loops["state_dict"]["combined_loader"] = [self._epoch_start]

    def restore(self, plan: TrainingPlan, checkpoint: Mapping[str, Any]) -> None:
        """Restore what :meth:`complete` added."""
        state = checkpoint["cfm"]
        kept = {k: v.shape for k, v in checkpoint["state_dict"].items()}
        if kept != {k: v.shape for k, v in plan.state_dict().items()}:
            raise ValueError(
                f"The weights kept in {self.folder} do not fit the model: it has changed since its "
                "training began. Make or load it as you did then, and make the same call."
            )
        self._random = state["random"][process_number()[0]]
        self._step = checkpoint["global_step"]
        if state["finished"]:  # also if it was ended early
            plan.trainer.should_stop = True


def _before_epoch(loops: dict[str, Any]) -> None:
    """Mark the current epoch, whose first batch was fetched, as one that is to begin.

    Lightning (since https://github.com/Lightning-AI/pytorch-lightning/pull/20379) goes on after a
    batch inside an epoch by itself. It has no stage between the first batch of an epoch and its
    first step: weights would be the same, but the curves of the last epoch written twice.
    A state after the last batch would lose the validation and the curves of that epoch.
    """
    epochs = loops["epoch_progress"]
    for count in (epochs["total"], epochs["current"]):
        count |= dict.fromkeys(("ready", "started", "processed"), count["completed"])
    batches = loops["epoch_loop.batch_progress"]
    batches["total"]["ready"] -= 1
    batches["current"] = dict.fromkeys(batches["current"], 0)
    batches["is_last_batch"] = False
    # resuming, Lightning counts one pass through its loop without a batch
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] -= 1


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
    """Return the values of all processes, by rank; each must call this."""
    n_processes = process_number()[1]
    if n_processes == 1:
        return [own]
    found: list[Any] = [None] * n_processes
    torch.distributed.all_gather_object(found, own)
    return found


_KEPT = 2
_STATE_FILES = "step-*.ckpt"
#: Parts of a state: those of Lightning, and under "cfm" those of the plan and its checkpoints.
_PARTS = {"cfm", "global_step", "loops", "lr_schedulers", "optimizer_states", "state_dict"}
_OWN_PARTS = {"curves", "finished", "plan", "random", "sums"}


class CheckpointFiles(CheckpointIO):
    """Write and read the states of a training in a folder.

    A state is written under a temporary name, synchronised to disk and renamed, so that it is
    complete whenever the machine stops. A full disk gives a warning; existing states stay.

    Parameters
    ----------
    folder
        Folder of the states.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        """Return the file of the state after an optimiser step."""
        return self.folder / f"step-{step:09d}.ckpt"

    def found(self) -> list[Path]:
        """Return the existing states, the newest first."""
        return sorted(self.folder.glob(_STATE_FILES), reverse=True)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None
    ) -> None:
        """Write a state, and remove all but the newest two.

        Warns
        -----
        UserWarning
            If it could not be written.
        """
        path = Path(path)
        for draft in self.folder.glob(f".{_STATE_FILES}.*.partial"):  # of a run that was killed
            draft.unlink(missing_ok=True)
        try:
            write_whole(path, lambda file: _save(checkpoint, file))
        except OSError as error:
            kept = ", ".join(p.name for p in self.found()) or "none"
            warn_user(
                f"The state of the training could not be written to {path} ({error}); training "
                f"continues. Existing states: {kept}. Make room, or a kill loses the steps since."
            )
            return
        for old in self.found()[_KEPT:]:
            old.unlink(missing_ok=True)

    def load_checkpoint(
        self, path: str | Path, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a state, or the one before it if it is damaged; code in it is never run.

        Raises
        ------
        ValueError
            If all are damaged.

        Warns
        -----
        UserWarning
            If one is damaged.
        """
        path = Path(path)
        for candidate in [path, *(p for p in self.found() if p.name < path.name)]:
            try:
                found: dict[str, Any] = read_plain(candidate)
            except (ValueError, OSError) as error:
                reason = (str(error).splitlines() or [type(error).__name__])[0]
                warn_user(f"{candidate.name} cannot be read ({reason}).")
                continue
            if _is_state(found):
                return found
            warn_user(f"{candidate} cannot be read as a state of a training: parts are missing.")
        raise ValueError(
            f"No state of the training in {self.folder} can be read; delete the folder to begin "
            "anew."
        )

    def remove_checkpoint(self, path: str | Path) -> None:
        """Remove a state."""
        Path(path).unlink(missing_ok=True)


def _is_state(found: object) -> bool:
    return (
        isinstance(found, dict)
        and found.keys() >= _PARTS
        and isinstance(found["cfm"], dict)
        and found["cfm"].keys() >= _OWN_PARTS
    )


def write_whole(path: Path, write: Any) -> None:
    """Write a file completely or not at all; ``write`` takes the open file.

    Raises
    ------
    OSError
        If it could not be written; an existing file stays.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with draft.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    finally:  # after the rename there is nothing to remove
        draft.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _save(checkpoint: Mapping[str, Any], file: Any) -> None:
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:  # raised by torch on a full disk
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise


#: Arguments that do not change the weights: devices, logs and progress bars.
_WITHOUT_EFFECT = frozenset(
    {
        *("accelerator", "devices", "num_nodes", "strategy", "enable_progress_bar"),
        *("checkpoint_dir", "checkpoint_every", "callbacks", "logger", "plugins", "profiler"),
        *("default_root_dir", "log_every_n_steps", "enable_model_summary", "log_save_dir"),
        *("simple_progress_bar", "progress_bar_refresh_rate", "use_distributed_sampler"),
    }
)
#: Entries that an interrupted training has changed.
LEARNED = ("starting weights", "sizes")


def fingerprint(
    model: PretrainedModel, arguments: Mapping[str, Any], n_processes: int
) -> dict[str, Any]:
    """Return model, data and settings of a training by name, all JSON types.

    Of the matrix only the number of rows and the genes enter, not its values; of ``obs`` the
    registered columns.
    """
    given = {k: v for k, v in arguments.items() if k != "trainer_kwargs"}
    given |= arguments.get("trainer_kwargs", {})
    out: dict[str, Any] = {"model": type(model).__name__, "version of cfm": _version()}
    out |= {k: _described(v) for k, v in given.items() if k not in _WITHOUT_EFFECT}
    out["number of processes"] = n_processes
    if model.adata is not None:
        out |= _data(model, model.adata)
    out["sizes"], out["starting weights"] = _weights(model.module)
    return out


def _version() -> str:
    try:
        return version("cfm-tools")
    except PackageNotFoundError:  # run from a folder that was never installed
        return "0.0.0"


def differences(kept: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Name the entries that differ, with both values."""
    return [
        f"{name} is {_short(now.get(name))} and was {_short(kept.get(name))}"
        for name in dict.fromkeys([*kept, *now])
        if kept.get(name) != now.get(name)
    ]


def _data(model: PretrainedModel, adata: AnnData) -> dict[str, Any]:
    out: dict[str, Any] = {
        "number of rows": adata.n_obs,
        "names of rows": _digest_values(adata.obs_names),
        "genes": _digest_values(adata.var_names),
    }
    for name, entry in model.adata_manager.data_registry.items():
        where, key = entry["attr_name"], entry["attr_key"]
        if where == "obs":
            out[f"adata.obs[{key!r}]"] = _digest_values(adata.obs[key])
        else:
            out[f"registered {name}"] = where if key is None else f"{where}[{key!r}]"
    return out


def _weights(module: torch.nn.Module) -> tuple[str, str]:
    """Return digests of the shapes, and of the values, of all parameters and buffers."""
    shapes, values = hashlib.sha256(), hashlib.sha256()
    for name, tensor in module.state_dict().items():
        shapes.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        values.update(flat.view(torch.uint8).numpy().data)
    return shapes.hexdigest()[:16], values.hexdigest()[:16]


def _described(value: Any) -> Any:
    """Return a value, or a digest of it, in JSON types."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.integer | np.floating):
        return value.item()
    if isinstance(value, Mapping):
        return {str(k): _described(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_described(v) for v in value]
    if isinstance(value, np.ndarray | pd.Series | pd.Index):
        return _digest_values(value)
    if isinstance(value, pd.DataFrame):
        return [_digest_values(value.index), *(_digest_values(value[c]) for c in value)]
    names = getattr(value, "var_names", None)
    kind = type(value).__qualname__
    return kind if names is None else f"{kind} of genes {_digest_values(pd.Index(names))}"


def _digest_values(values: np.ndarray | pd.Series | pd.Index) -> str:
    found = values.astype(str) if values.dtype.kind not in "biuf" else values
    hashed = pd.util.hash_array(np.asarray(found).ravel())
    return hashlib.sha256(hashed.tobytes()).hexdigest()[:16]


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
