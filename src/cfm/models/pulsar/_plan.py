"""Training steps in Lightning that the networks of this folder share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cfm.models._streams import Drawn, RowStream
from cfm.models._training import TrainingPlan

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import nn

_WARM_UP = 0.05


class StepPlan(TrainingPlan):
    """AdamW with warm-up and linear decay on any losses.

    Parameters
    ----------
    module
        The network; what does not require gradients stays as it is.
    losses
        Turns a batch into named losses, of which ``"loss"`` is trained on and all are logged.
    lr
        Peak learning rate.
    weight_decay
        Of AdamW.
    n_steps
        Optimiser steps in all, for the schedule.
    """

    def __init__(
        self,
        module: nn.Module,
        losses: Callable[[Any], dict[str, Tensor]],
        *,
        lr: float,
        weight_decay: float,
        n_steps: int,
    ) -> None:
        super().__init__(module)
        self.losses = losses
        self.lr = lr
        self.weight_decay = weight_decay
        self.n_steps = n_steps

    def configure_optimizers(self) -> Any:
        """AdamW over what is trained."""
        trained = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay)

        def rate(step: int) -> float:
            done = (step + 1) / (self.n_steps + 1)
            return done / _WARM_UP if done < _WARM_UP else max(0.0, (1.0 - done) / (1.0 - _WARM_UP))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """One step on one batch."""
        found = self.losses(batch)
        self._write_once("train", found)
        return found["loss"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Losses on what is not trained on."""
        self._write_once("validation", self.losses(batch))

    def _write_once(self, kind: str, found: dict[str, Tensor]) -> None:
        """Add values to the curves; batches may differ in size, and each counts once."""
        for name, value in found.items():
            self.add(kind, f"{kind}_{name}", value.detach(), 1)


class TensorStream(RowStream):
    """Batches of the rows of some tensors.

    Parameters
    ----------
    tensors
        Of the same length.
    **kwargs
        See :class:`cfm.models._streams.RowStream`.
    """

    def __init__(self, *tensors: Tensor, **kwargs: Any) -> None:
        super().__init__(np.arange(len(tensors[0])), **kwargs)
        self.tensors = tensors

    def batch(self, drawn: Drawn, generator: torch.Generator) -> tuple[Tensor, ...]:
        """Make the batch of some rows."""
        own = torch.from_numpy(drawn.own)
        return tuple(tensor[own] for tensor in self.tensors)
