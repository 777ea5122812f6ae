"""Training steps: what the models' plans share, so that a training can stop and go on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor, nn

from cfm.models._sharding import is_sharded, join, shard
from cfm.models._streams import n_rows_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cfm.models._resume import Checkpoints


class TrainingPlan(pl.LightningModule):
    """Steps of a training that can be stopped after any of them, and gone on with.

    Plans that override a hook which is here call it, too: ``on_train_batch_start`` first,
    ``on_train_batch_end`` last, ``on_train_epoch_end`` and ``on_validation_epoch_end`` anywhere.

    Parameters
    ----------
    module
        The network.

    Attributes
    ----------
    checkpoints
        Keeps the state of the training, if it is to be kept.
    """

    #: Whether each step uses all weights that are trained.
    uses_all_weights = False
    #: Methods that read weights without gradients, wherever they are called.
    readers: tuple[str, ...] = ("validation_step",)

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module: Any = module
        self.checkpoints: Checkpoints | None = None
        # Processes that train together need not exchange them, and cannot: no backend sends them.
        self._ddp_params_and_buffers_to_ignore = [
            name
            for name, buffer in self.named_buffers()
            if buffer.dtype in (torch.int8, torch.int16)
        ]
        # for each kind, sum and weight of each curve in the present epoch
        self._sums: dict[str, dict[str, tuple[Tensor, int]]] = {}

    def configure_model(self) -> None:
        """Deal the weights out to the processes, where that is asked for."""
        if isinstance(self.trainer.strategy, ModelParallelStrategy) and not is_sharded(self):
            mesh = self.device_mesh
            shard(self, self.readers, None if mesh is None else mesh["data_parallel"])

    def on_fit_end(self) -> None:
        """Give every process all weights."""
        if is_sharded(self):
            join(self)

    def own_state(self) -> dict[str, Any]:
        """Return what this plan must know to go on, beside what torch and Lightning keep."""
        return {}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""

    def write(self, kind: str, values: Mapping[str, Tensor], number: int, n: int) -> None:
        """Add values of a batch to the curves ``<kind>_<name>``, which are means over an epoch.

        Parameters
        ----------
        kind
            ``"train"`` or ``"validation"``.
        values
            By name; in several processes that of the batch of all.
        number
            Of the batch.
        n
            Rows of it that this process has; a batch counts by those of all processes.
        """
        n = n_rows_of(self, number, n)
        for name, value in values.items():
            self.add(kind, f"{kind}_{name}", value.detach(), n)

    def add(self, kind: str, name: str, value: Tensor, n: int) -> None:
        """Add a value of a batch to one curve, with this weight; as :meth:`write`."""
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
        """Say what the states to come are of."""
        if self.checkpoints is not None:
            self.checkpoints.begin(self)

    def on_train_epoch_start(self) -> None:
        """Note where the epoch begins."""
        if self.checkpoints is not None:
            self.checkpoints.on_epoch_start(self)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Go on with the random numbers of a training that was stopped; keep its state if due."""
        if self.checkpoints is not None:
            self.checkpoints.on_batch_start(self)

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Keep the state of the training if it is time."""
        if self.checkpoints is not None:
            self.checkpoints.on_batch_end(self)

    def on_train_end(self) -> None:
        """Keep the final state."""
        if self.checkpoints is not None:
            self.checkpoints.on_end(self)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what Lightning does not know."""
        sums = self._sums.get("train", {})
        checkpoint["cfm"] = {
            "plan": self.own_state(),
            "sums": {name: [total.cpu(), weight] for name, (total, weight) in sums.items()},
        }
        if self.checkpoints is not None:
            self.checkpoints.complete(self, checkpoint)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it up again."""
        state = checkpoint.get("cfm")
        if state is None:
            return
        self.load_own_state(state["plan"])
        sums = {name: (total.to(self.device), n) for name, (total, n) in state["sums"].items()}
        self._sums = {"train": sums}
        if self.checkpoints is not None:
            self.checkpoints.restore(self, checkpoint)
