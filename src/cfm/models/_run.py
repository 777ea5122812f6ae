"""One training of a model: what was asked for, its run in Lightning, and how it ends."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import ModelParallelStrategy
from scvi import settings
from scvi.model._utils import parse_device_args
from scvi.train import TrainRunner
from scvi.train._logger import SimpleLogger

from cfm.models._fingerprint import fingerprint
from cfm.models._lightning import quiet_lightning, run_training, training_precision
from cfm.models._resume import Checkpoints
from cfm.models._streams import SeededStream, StreamModule

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cfm.models._base import PretrainedModel
    from cfm.models._training_plan import TrainingPlan

#: These start processes that share the memory of this one; what they learn beside the weights
#: (curves, averages) would be lost with them.
_FORKED = ("spawn", "fork", "notebook")


class TrainingRun:
    """What the ``train`` methods have in common, from their arguments to the end of a training.

    Parameters
    ----------
    arguments
        ``locals()`` at the start of a ``train`` method.

    Attributes
    ----------
    n_processes
        Processes that train together; each has batches of ``batch_size``.
    n_epochs, n_steps
        Passes over the data and optimiser steps, once :meth:`count_steps` knows them.
    finished
        Whether the training went on to its end.

    Raises
    ------
    ValueError
        If a number is out of its range, or the strategy cannot be used.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.arguments = {k: v for k, v in arguments.items() if k not in ("self", "__class__")}
        self.model: PretrainedModel = arguments["self"]
        given = self.arguments
        if any(word in str(given["strategy"]) for word in _FORKED):
            raise ValueError(
                f"strategy={given['strategy']!r} starts copies of this process, whose training "
                "curves do not come back; put the call into a script, and use strategy='ddp'."
            )
        self.n_processes = count_processes(
            given["accelerator"], given["devices"], given["num_nodes"]
        )
        self.n_epochs = self.n_steps = 0
        self.finished = False
        self.checkpoints: Checkpoints | None = None
        self._step = 0
        self._extra = dict(given["trainer_kwargs"])
        self._accumulate = given.get("accumulate_grad_batches") or self._extra.pop(
            "accumulate_grad_batches", 1
        )

        if given["checkpoint_dir"] is not None:
            self.checkpoints = Checkpoints(
                given["checkpoint_dir"],
                every=given["checkpoint_every"],
                fingerprint=fingerprint(self.model, self.arguments, self.n_processes),
                model=self.model,
            )

    @property
    def layout(self) -> dict[str, int]:
        """Of a :class:`cfm.models._streams.RowStream`: size of blocks, number of processes."""
        return {"block_size": self.arguments["block_size"], "n_processes": self.n_processes}

    def count_steps(
        self, n_batches: int, *, default_epochs: int, default_steps: int | None = None
    ) -> int:
        """Return the number of optimiser steps that ``max_epochs`` and ``max_steps`` allow.

        Parameters
        ----------
        n_batches
            Batches of an epoch, over all processes.
        default_epochs, default_steps
            What holds if neither is given: the smaller one.

        Raises
        ------
        ValueError
            If there are fewer rows than processes.
        """
        if n_batches < 1:
            raise ValueError(
                f"There is no batch for {self.n_processes} processes: fewer rows than processes "
                "are left to train on; use fewer devices."
            )
        max_epochs, max_steps = self.arguments.get("max_epochs"), self.arguments.get("max_steps")
        per_epoch = -(-n_batches // self._accumulate)
        if max_epochs is None and max_steps is None:
            max_epochs, max_steps = default_epochs, default_steps
            if default_steps is not None:
                max_steps = min(default_steps, default_epochs * per_epoch)
                max_epochs = None
        if max_epochs is None:
            max_epochs = -(-int(max_steps or 1) // per_epoch)
        self.n_epochs = int(max_epochs)
        self.n_steps = min(self.n_epochs * per_epoch, max_steps or self.n_epochs * per_epoch)
        return self.n_steps

    def fit(self, plan: TrainingPlan, training: SeededStream, checks: Any) -> None:
        """Run a plan on its batches to the end, or until it is interrupted from the keyboard.

        Parameters
        ----------
        plan
            Losses and optimiser.
        training, checks
            Batches to learn from, and to judge by; see :class:`cfm.models._streams.StreamModule`.
        """
        given = self.arguments
        bar = given["enable_progress_bar"]
        extra = dict(self._extra)
        extra.setdefault("log_every_n_steps", 1)
        extra.setdefault("gradient_clip_val", 1.0)
        extra.setdefault("check_val_every_n_epoch", 1)
        if self.n_processes > 1:
            # the one of scvi-tools would write a file for several processes into the work folder
            extra.setdefault("logger", SimpleLogger())
            # the streams give each process its part
            extra.setdefault("use_distributed_sampler", False)
        if self.checkpoints is not None:
            plan.checkpoints = self.checkpoints
            extra["plugins"] = [*as_list(extra.get("plugins")), self.checkpoints.files]
            extra["ckpt_path"] = self.checkpoints.start
        with quiet_lightning():
            runner = TrainRunner(
                self.model,
                training_plan=plan,
                data_splitter=StreamModule(training, checks),
                max_epochs=self.n_epochs,
                max_steps=self.n_steps,
                accelerator=given["accelerator"],
                devices=given["devices"],
                num_nodes=given["num_nodes"],
                strategy=self._strategy(plan),
                precision=training_precision(given["precision"], given["accelerator"]),
                accumulate_grad_batches=self._accumulate,
                enable_progress_bar=settings.verbosity <= logging.INFO if bar is None else bar,
                **extra,
            )
            try:
                self.finished = run_training(self.model, runner, given["seed"])
            finally:
                if self.checkpoints is not None:
                    self.checkpoints.left(self.model, finished=self.finished)
        self._step = runner.trainer.global_step

    def _strategy(self, plan: TrainingPlan) -> Any:
        """Return the strategy for Lightning."""
        given = self.arguments["strategy"]
        if given == "auto" and self.n_processes > 1:
            given = "ddp"
        if given == "fsdp":
            if self.checkpoints is not None:
                raise ValueError(
                    "strategy='fsdp' cannot keep the state of a training yet; leave checkpoint_dir "
                    "out, or use strategy='ddp' if each device can hold the model."
                )
            return ModelParallelStrategy(
                data_parallel_size=self.n_processes, tensor_parallel_size=1
            )
        if given == "ddp" and not plan.uses_all_weights:
            return "ddp_find_unused_parameters_true"
        return given

    def raise_if_interrupted(self) -> None:
        """Say so if the training was interrupted, once the model is in order.

        Raises
        ------
        KeyboardInterrupt
            If it was.
        """
        if not self.finished:
            raise KeyboardInterrupt(
                f"Training was interrupted after step {self._step} of {self.n_steps}; "
                "the model keeps what it has learned."
            )


def count_processes(accelerator: str, devices: Any, num_nodes: int) -> int:
    """Return how many processes Lightning will start for these arguments, over all nodes."""
    if devices in (1, "1"):
        return num_nodes
    accelerator, devices, _ = parse_device_args(accelerator, devices, return_device="torch")
    with quiet_lightning():
        probe = pl.Trainer(
            accelerator=accelerator,
            devices=devices,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    return int(probe.num_devices) * num_nodes


def as_list(given: Any) -> list[Any]:
    """Return what may be one thing, several, or ``None`` as a list."""
    if given is None:
        return []
    return list(given) if isinstance(given, list | tuple) else [given]
