"""Training of a model: recipe, plan, and run in Lightning."""

from __future__ import annotations

import inspect
import logging
import signal
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, Self

import lightning.pytorch as pl
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from scvi import settings as scvi_settings
from scvi.train import Trainer

from cfm._arguments import BELOW_1, check_fields, check_whole
from cfm.models._resume import Checkpoints, fingerprint
from cfm.models._streams import SeededStream, StreamModule, n_rows_of
from cfm.nn._distributed import on_rank_zero
from cfm.nn._kernels import fast_bfloat16

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch import Tensor, nn

    from cfm.models._base import PretrainedModel

#: These start processes that share the memory of this one; their curves and averages would be
#: lost.
_FORKED = ("spawn", "fork", "notebook")
#: Share of the steps in which the learning rate rises.
WARM_UP = 0.05
#: Names of precisions in the tools, and what Lightning calls them.
_PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
#: Loggers of Lightning with messages about itself.
_TALKATIVE = (
    "pytorch.utilities.rank_zero",
    "fabric.utilities.rank_zero",
    "fabric.utilities.distributed",
)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Settings of a training that all models share, beside the arguments of ``train``.

    Parameters
    ----------
    max_epochs, max_steps
        Passes over the data and optimiser steps if ``train`` gets neither; the smaller bound
        holds. ``None`` is no bound.
    batch_size
        Rows per batch and process.
    lr
        Peak learning rate.
    validation_share
        Share of the studies that is held out, at least one if there are three; where no studies
        are registered, share of the rows.
    checkpoint_every
        Optimiser steps between two states that are kept in ``checkpoint_dir``.
    """

    max_epochs: int | None = None
    max_steps: int | None = None
    batch_size: int = 32
    lr: float = 1e-3
    validation_share: Annotated[float, BELOW_1] = 0.1
    checkpoint_every: int = 500

    def __post_init__(self) -> None:
        check_fields(self)

    def changed(self, **settings: Any) -> Self:
        """Return the recipe with other settings, checked."""
        return replace(self, **settings)


class Training(NamedTuple):
    """The parts of a training.

    Attributes
    ----------
    plan
        Losses and optimiser.
    batches, checks
        Streams of training and validation, such as :class:`cfm.models.base.RowStream`.
        ``checks`` may be a list of batches, or ``None`` for no validation.
    """

    plan: TrainingPlan
    batches: SeededStream
    checks: Any


class TrainingPlan(pl.LightningModule):
    """Losses, AdamW with a schedule, and curves; a training can be stopped after any step.

    Plans that override a hook which is here call it, too: ``on_train_batch_start`` first,
    ``on_train_batch_end`` last, ``on_train_epoch_end`` and ``on_validation_epoch_end`` anywhere.

    Parameters
    ----------
    module
        The network.
    losses
        Takes a batch to named losses, of which ``"loss"`` is trained on and all are written; by
        default ``module.losses(*batch)``.
    lr, weight_decay
        Peak learning rate, and decay, of AdamW.
    n_steps
        Optimiser steps in all, for :meth:`rate`.

    Attributes
    ----------
    checkpoints
        Keeps the state of the training, if it is to be kept.
    """

    #: Whether each step uses all weights that are trained.
    uses_all_weights = False
    #: Whether weights that are not matrices decay, too.
    decays_vectors = True
    betas = (0.9, 0.999)

    def __init__(
        self,
        module: nn.Module,
        losses: Callable[[Any], dict[str, Tensor]] | None = None,
        *,
        lr: float,
        weight_decay: float = 0.01,
        n_steps: int,
    ) -> None:
        super().__init__()
        self.module: Any = module
        self._losses = losses
        self.lr, self.weight_decay, self.n_steps = lr, weight_decay, n_steps
        self.checkpoints: Checkpoints | None = None
        # for each kind, sum and weight of each curve in the present epoch
        self._sums: dict[str, dict[str, tuple[Tensor, int]]] = {}

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Return the losses of a batch by name."""
        found: dict[str, Tensor] = (
            self.module.losses(*batch) if self._losses is None else self._losses(batch)
        )
        return found

    def rate(self, step: int) -> float:
        """Return the learning rate of a step as a share of the peak: warm-up, then linear decay."""
        done = (step + 1) / (self.n_steps + 1)
        return done / WARM_UP if done < WARM_UP else max(0.0, (1.0 - done) / (1.0 - WARM_UP))

    def configure_optimizers(self) -> Any:
        """Return AdamW with its schedule."""
        trained = [p for p in self.parameters() if p.requires_grad]
        decays = [p for p in trained if self.decays_vectors or p.ndim > 1]
        others = [p for p in trained if not (self.decays_vectors or p.ndim > 1)]
        groups = [
            {"params": decays, "weight_decay": self.weight_decay},
            {"params": others, "weight_decay": 0.0},
        ]
        used = [group for group in groups if group["params"]]
        return scheduled(torch.optim.AdamW(used, lr=self.lr, betas=self.betas), self.rate)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        found = self.losses(batch)
        self.write("train", found, batch_idx, len(batch[0]))
        return found["loss"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Write the losses of a validation batch."""
        self.write("validation", self.losses(batch), batch_idx, len(batch[0]))

    def own_state(self) -> dict[str, Any]:
        """Return the state of this plan beyond that of torch and Lightning."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`own_state`."""

    def write(self, kind: str, values: Mapping[str, Tensor], number: int, n: int) -> None:
        """Add values of a batch to the curves ``<kind>_<name>``, which are means over an epoch.

        Parameters
        ----------
        kind
            ``"train"`` or ``"validation"``.
        values
            By name; in several processes that of the whole batch.
        number
            Number of the batch.
        n
            Rows of the batch in this process; a batch is weighted by those of all processes.
        """
        n = n_rows_of(self, number, n)
        for name, value in values.items():
            self.add(kind, f"{kind}_{name}", value.detach(), n)

    def add(self, kind: str, name: str, value: Tensor, n: int) -> None:
        """Add a value of a batch to one curve with a weight."""
        if value.dtype not in (torch.float32, torch.float64):
            value = value.float()
        sums = self._sums.setdefault(kind, {})
        total, weight = sums.get(name, (torch.zeros((), device=value.device), 0))
        sums[name] = total + value * n, weight + n

    def _write_means(self, kind: str) -> None:
        for name, (total, weight) in self._sums.pop(kind, {}).items():
            # all processes have the same value
            self.log(name, total / weight, on_epoch=True, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        """Write the validation curves."""
        self._write_means("validation")

    def on_train_epoch_end(self) -> None:
        """Write the training curves."""
        self._write_means("train")

    def on_train_start(self) -> None:
        """Write the fingerprint of the training beside its states."""
        if self.checkpoints is not None:
            self.checkpoints.begin(self)

    def on_train_epoch_start(self) -> None:
        """Record the position of the stream."""
        if self.checkpoints is not None:
            self.checkpoints.on_epoch_start(self)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Restore the random states of a resumed training; store a deferred state."""
        if self.checkpoints is not None:
            self.checkpoints.on_batch_start(self)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Store the state of the training if it is due."""
        if self.checkpoints is not None:
            self.checkpoints.on_batch_end(self)

    def on_train_end(self) -> None:
        """Store the final state."""
        if self.checkpoints is not None:
            self.checkpoints.on_end(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the plan and the curves."""
        sums = self._sums.get("train", {})
        checkpoint["cfm"] = {
            "plan": self.own_state(),
            "sums": {name: [total.cpu(), weight] for name, (total, weight) in sums.items()},
            "curves": _curves(self),
        }
        if self.checkpoints is not None:
            self.checkpoints.complete(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the plan and the curves."""
        state = checkpoint.get("cfm")
        if state is None:
            return
        self.load_own_state(state["plan"])
        sums = {name: (total.to(self.device), n) for name, (total, n) in state["sums"].items()}
        self._sums = {"train": sums}
        if self.checkpoints is not None:
            self.checkpoints.restore(self, checkpoint)
            logger = self.trainer.logger
            if isinstance(logger, CurveLogger) and self.trainer.is_global_zero:
                for name, (kind, times, values) in state["curves"].items():
                    logger.put(name, kind, list(zip(times, values, strict=True)))


def scheduled(optimizer: torch.optim.Optimizer, rate: Any) -> dict[str, Any]:
    """Return an optimiser and its rate by step, one function or one a group, for Lightning."""
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class CurveLogger(Logger):
    """Store the curves of a training in memory, in the format of scvi-tools.

    Attributes
    ----------
    history
        Tables by name, one column, a row per epoch; empty on all ranks but 0.
    """

    def __init__(self) -> None:
        super().__init__()
        self.history: dict[str, pd.DataFrame] = {}

    name = "curves"
    version = 0

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Add a point to each curve."""
        values = dict(metrics)
        kind = "epoch" if "step" not in values and "epoch" in values else "step"
        time = values.pop(kind, step)
        for name, value in values.items():
            self.put(name, kind, [*self._points(name), (int(time or 0), float(value))])

    def put(self, name: str, kind: str, points: list[tuple[int, float]]) -> None:
        """Set a curve by its index and points; the last of two points at one time holds."""
        times = dict(points)
        index = pd.Index(list(times), name=kind)
        self.history[name] = pd.DataFrame({name: list(times.values())}, index=index, dtype=float)

    def _points(self, name: str) -> list[tuple[int, float]]:
        curve = self.history.get(name)
        return [] if curve is None else list(zip(curve.index, curve[name], strict=True))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing: checkpoints of models contain their settings."""


def _curves(plan: TrainingPlan) -> dict[str, Any]:
    """Return the curves so far: name of the index, times, values."""
    if not plan.trainer.is_global_zero:
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


class TrainingRun:
    """One training, from its arguments to its end.

    Parameters
    ----------
    model
        Model that is trained.
    recipe
        Its default settings.
    accelerator, devices, precision, checkpoint_dir, seed
        As of :meth:`cfm.models.PretrainedModel.train`.
    max_epochs, max_steps, batch_size, lr
        Replace those of the recipe.
    **settings
        Further ones: of the recipe, and of :class:`scvi.train.Trainer`.

    Attributes
    ----------
    recipe
        All settings of this training.
    n_processes
        Processes that train together; each has batches of ``batch_size``.
    n_epochs, n_steps
        Passes over the data and optimiser steps, after :meth:`count_steps`.
    finished
        Whether the training reached its end.
    facts
        Entries for the provenance of the model, JSON types.

    Raises
    ------
    TypeError
        If there is no setting of a name.
    ValueError
        If a number is out of its range, or the strategy cannot be used.
    """

    def __init__(
        self,
        model: PretrainedModel,
        recipe: Recipe,
        *,
        max_epochs: int | None = None,
        max_steps: int | None = None,
        batch_size: int | None = None,
        lr: float | None = None,
        accelerator: str = "auto",
        devices: int | str | list[int] = 1,
        precision: str = "auto",
        checkpoint_dir: Any = None,
        seed: int = 0,
        **settings: Any,
    ) -> None:
        self.model, self.seed = model, seed
        given: dict[str, Any] = {"batch_size": batch_size, "lr": lr}
        own: dict[str, Any] = {k: v for k, v in given.items() if v is not None}
        if max_epochs is not None or max_steps is not None:  # bounds go together
            own |= {"max_epochs": max_epochs, "max_steps": max_steps}
        extra = dict(settings)
        known = [field.name for field in fields(recipe)]
        own |= {name: extra.pop(name) for name in known if name in extra}
        _check_names(type(model).__name__, extra, known)
        self.recipe: Any = recipe.changed(**own)
        self.accelerator, self.devices, self.precision = accelerator, devices, precision
        self.num_nodes: int = extra.pop("num_nodes", 1)
        self.strategy: Any = extra.pop("strategy", "auto")
        if any(word in str(self.strategy) for word in _FORKED):
            raise ValueError(
                f"strategy={self.strategy!r} starts copies of this process, whose training "
                "curves do not come back; put the call into a script, and use strategy='ddp'."
            )
        self.n_processes = count_processes(accelerator, devices, self.num_nodes)
        self.n_epochs = self.n_steps = 0
        self.finished = False
        self.facts: dict[str, Any] = {}
        self._step = 0
        self._bar: bool | None = extra.pop("enable_progress_bar", None)
        steps = extra.pop("accumulate_grad_batches", None)
        self._accumulate = 1 if steps is None else check_whole("accumulate_grad_batches", steps)
        self._trainer = extra
        self.checkpoints: Checkpoints | None = None
        if checkpoint_dir is not None:
            follows_from = vars(self.recipe) | extra
            follows_from |= {"precision": precision, "accumulate_grad_batches": self._accumulate}
            self.checkpoints = Checkpoints(
                checkpoint_dir,
                every=self.recipe.checkpoint_every,
                fingerprint=fingerprint(model, follows_from | {"seed": seed}, self.n_processes),
                model=model,
            )

    @property
    def layout(self) -> dict[str, int]:
        """Settings of a :class:`cfm.models.base.RowStream`: batches, processes, blocks of rows."""
        out = {"batch_size": self.recipe.batch_size, "n_processes": self.n_processes}
        size = getattr(self.recipe, "block_size", None)
        return out if size is None else out | {"block_size": size}

    @property
    def schedule(self) -> dict[str, Any]:
        """Settings of a :class:`cfm.models.base.TrainingPlan`: rate, decay and counted steps."""
        names = [name for name in ("lr", "weight_decay") if hasattr(self.recipe, name)]
        return {name: getattr(self.recipe, name) for name in names} | {"n_steps": self.n_steps}

    def count_steps(self, n_batches: int) -> int:
        """Return the number of optimiser steps that ``max_epochs`` and ``max_steps`` allow.

        Parameters
        ----------
        n_batches
            Batches of an epoch, over all processes.

        Raises
        ------
        ValueError
            If there are fewer rows than processes, or there is no bound.
        """
        if n_batches < 1:
            raise ValueError(
                f"There is no batch for {self.n_processes} processes: fewer rows than processes "
                "are left to train on; use fewer devices."
            )
        per_epoch = -(-n_batches // self._accumulate)
        max_epochs, max_steps = self.recipe.max_epochs, self.recipe.max_steps
        if max_epochs is None and max_steps is None:
            raise ValueError(
                f"Neither train() nor {type(self.recipe).__name__} bounds the training; pass "
                "max_epochs= or max_steps=."
            )
        bounds = [max_steps, None if max_epochs is None else max_epochs * per_epoch]
        self.n_steps = min(bound for bound in bounds if bound is not None)
        self.n_epochs = -(-self.n_steps // per_epoch)
        return self.n_steps

    def fit(self, training: Training) -> None:
        """Run a training to its end, or until it is interrupted from the keyboard."""
        plan, start = training.plan, None
        extra = dict(self._trainer)
        extra.setdefault("log_every_n_steps", 1)
        extra.setdefault("gradient_clip_val", 1.0)
        extra.setdefault("check_val_every_n_epoch", 1)
        extra.setdefault("logger", CurveLogger())
        if self.n_processes > 1:  # the streams give each process its part
            extra.setdefault("use_distributed_sampler", False)
        if self.checkpoints is not None:
            plan.checkpoints = self.checkpoints
            plugins = extra.get("plugins") or []
            plugins = list(plugins) if isinstance(plugins, list | tuple) else [plugins]
            extra["plugins"] = [*plugins, self.checkpoints.files]
            start = self.checkpoints.start
        bar = scvi_settings.verbosity <= logging.INFO if self._bar is None else self._bar
        with quiet_lightning():
            trainer = Trainer(
                max_epochs=self.n_epochs,
                max_steps=self.n_steps,
                accelerator=_accelerator(self.accelerator),
                devices=1 if self.devices == "auto" else self.devices,
                num_nodes=self.num_nodes,
                strategy=self._strategy(plan),
                precision=training_precision(self.precision, self.accelerator),
                accumulate_grad_batches=self._accumulate,
                enable_progress_bar=bar,
                **extra,
            )
            try:
                self.finished = self._run(trainer, plan, StreamModule(*training[1:]), start)
            finally:
                if self.checkpoints is not None:
                    self.checkpoints.left(self.model, finished=self.finished)
        self._step = trainer.global_step

    def _strategy(self, plan: TrainingPlan) -> Any:
        """Return the strategy for Lightning."""
        together = self.strategy == "auto" and self.n_processes > 1
        if not together and self.strategy != "ddp":
            return self.strategy
        return "ddp" if plan.uses_all_weights else "ddp_find_unused_parameters_true"

    def _run(self, trainer: Trainer, plan: TrainingPlan, data: StreamModule, start: Any) -> bool:
        """Run the training; ``False`` if it was interrupted from the keyboard."""
        model = self.model
        before = model.history_ or {}
        model.module.train()  # Lightning does not change the mode
        try:
            with torch.random.fork_rng():
                torch.manual_seed(self.seed)
                trainer.fit(plan, data, ckpt_path=start)
        except SIGTERMException as error:
            raise SystemExit(128 + signal.SIGTERM) from error  # Lightning would exit with 0
        except SystemExit as stopped:
            # Lightning turns Ctrl+C into SystemExit
            if not isinstance(stopped.__context__, KeyboardInterrupt):
                raise
            finished = False
        else:
            finished = True
        finally:
            model.module.eval()
            curves = _joined(before, getattr(trainer.logger, "history", None) or {})
            model.history_ = curves
        model.is_trained_ = True
        model.trainer = trainer
        model.to_device(trainer.strategy.root_device)
        if finished:  # only the first process keeps curves
            model.history_ = on_rank_zero(lambda: curves)
        return finished

    def raise_if_interrupted(self) -> None:
        """Raise an error if the training was interrupted, once the model is usable.

        Raises
        ------
        KeyboardInterrupt
            If the training was interrupted.
        """
        if not self.finished:
            raise KeyboardInterrupt(
                f"Training was interrupted after step {self._step} of {self.n_steps}; "
                "the model keeps what it has learned."
            )


def _check_names(model: str, settings: Mapping[str, Any], known: list[str]) -> None:
    """Check that recipe or trainer has each setting."""
    trainers: tuple[Callable[..., Any], ...] = (Trainer.__init__, pl.Trainer.__init__)
    of_trainer = {name for f in trainers for name in inspect.signature(f).parameters}
    unknown = sorted(settings.keys() - of_trainer)
    if unknown:
        raise TypeError(
            f"train() has no setting {', '.join(map(repr, unknown))}. Settings of {model} are "
            f"{', '.join(known)}; further ones are those of scvi.train.Trainer."
        )


def _joined(
    before: Mapping[str, pd.DataFrame], new: Mapping[str, pd.DataFrame]
) -> dict[str, pd.DataFrame]:
    """Return the curves of earlier trainings, continued; new ones start with this training."""
    out = dict(before)
    n_before = max((len(curve) for curve in before.values()), default=0)
    for name, curve in new.items():
        old = before.get(name)
        if before:
            start = n_before if old is None else len(old)
            index = pd.RangeIndex(start, start + len(curve), name=curve.index.name)
            curve = curve.set_axis(index)
        out[name] = curve if old is None else pd.concat([old, curve])
    return out


@contextmanager
def quiet_lightning() -> Iterator[None]:
    """Silence messages of Lightning about itself, such as advice to install packages."""
    loggers = [logging.getLogger(f"lightning.{name}") for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*(LeafSpec|treespec).*", FutureWarning)
            # without validation studies
            warnings.filterwarnings("ignore", "Total length of `.*` across ranks is zero")
            warnings.filterwarnings("ignore", "Your `IterableDataset` has `__len__` defined")
            # scvi-tools warns in any training in several processes
            warnings.filterwarnings("ignore", "early_stopping was automatically disabled")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def _accelerator(accelerator: str) -> str:
    """Return the accelerator; ``"auto"`` as in :meth:`cfm.models.PretrainedModel.to_device`."""
    if accelerator != "auto":
        return accelerator
    return "cuda" if torch.cuda.is_available() else "cpu"


def count_processes(accelerator: str, devices: Any, num_nodes: int) -> int:
    """Return how many processes Lightning will start for these arguments, over all nodes."""
    if devices in (1, "1", "auto"):  # scvi-tools takes one device where it may choose
        return num_nodes
    with quiet_lightning():
        probe = pl.Trainer(
            accelerator=_accelerator(accelerator),
            devices=devices,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    return int(probe.num_devices) * num_nodes


def training_precision(precision: str, accelerator: str) -> str:
    """Return Lightning's name of a precision; ``"auto"`` is bfloat16 on a GPU fast at it."""
    if precision != "auto":
        return _PRECISIONS.get(precision, precision)
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if on_gpu and fast_bfloat16(torch.device("cuda")) else "32-true"


def held_out_studies(studies: np.ndarray, share: float, seed: int) -> list[str]:
    """Choose studies to hold out of training; none if there are fewer than three."""
    names = sorted(set(studies) - {""})
    if len(names) < 3 or share == 0:
        return []
    n = min(max(1, round(share * len(names))), len(names) - 1)
    return list(np.random.default_rng(seed).choice(names, size=n, replace=False))


def held_out_rows(
    studies: np.ndarray, share: float, seed: int, names: np.ndarray | None = None
) -> np.ndarray:
    """Return which rows are held out, ``(n,)`` bool: whole studies, or rows where there are none.

    Parameters
    ----------
    studies
        ``(n,)`` object, ``""`` where there is none.
    share
        Share of the studies, or of the rows; none of fewer than three.
    seed
        Of the choice.
    names
        ``(n,)`` names of the rows, in whose order they are drawn; numbers as text by default.
    """
    if not (studies != "").any():
        studies = np.arange(len(studies)).astype(str) if names is None else names
        studies = studies.astype(object)
    # np.isin compares all pairs of objects
    return pd.Index(studies).isin(held_out_studies(studies, share, seed))


def root_weights(groups: np.ndarray | pd.DataFrame) -> np.ndarray:
    """Return one over the root of the size of each row's group, ``(n,)``, its weight in draws.

    Parameters
    ----------
    groups
        ``(n,)`` names, or a table; equal rows are a group.
    """
    table = pd.DataFrame(groups)
    size = table.groupby(list(table.columns), sort=False)[table.columns[0]].transform("size")
    return 1.0 / np.sqrt(size.to_numpy(dtype=np.float64))
