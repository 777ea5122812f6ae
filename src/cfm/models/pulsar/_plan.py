"""Training steps in Lightning that the networks of this folder share."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import torch
from scvi import settings
from scvi.train import TrainRunner

from cfm.models._lightning import quiet_lightning, run_training, training_precision

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from torch import Tensor, nn

    from cfm.models._base import PretrainedModel

_WARM_UP = 0.05


class StepPlan(pl.LightningModule):
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
        super().__init__()
        self.module = module
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
        self._write(found, "train")
        return found["loss"]

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Losses on what is not trained on."""
        self._write(self.losses(batch), "validation")

    def _write(self, losses: dict[str, Tensor], kind: str) -> None:
        for name, value in losses.items():
            # batches may differ in size; each counts once
            self.log(f"{kind}_{name}", value.detach(), on_step=False, on_epoch=True, batch_size=1)


class _Loaders(pl.LightningDataModule):
    """Batches for training and validation, ready made."""

    def __init__(self, training: Iterable[Any], checks: Iterable[Any] | None) -> None:
        super().__init__()
        self.training, self.checks = training, checks

    def train_dataloader(self) -> Any:
        return self.training

    def val_dataloader(self) -> Any:
        return [] if self.checks is None else self.checks


def fit(
    model: PretrainedModel,
    plan: StepPlan,
    training: Iterable[Any],
    checks: Iterable[Any] | None,
    *,
    max_epochs: int,
    accelerator: str,
    devices: int | str,
    precision: str,
    enable_progress_bar: bool | None,
    seed: int,
    **trainer_kwargs: Any,
) -> None:
    """Run a plan to its end.

    Raises
    ------
    KeyboardInterrupt
        If it is interrupted from the keyboard. The model then keeps what it has learned.
    """
    if enable_progress_bar is None:
        enable_progress_bar = settings.verbosity <= logging.INFO
    trainer_kwargs.setdefault("log_every_n_steps", 1)
    with quiet_lightning():
        runner = TrainRunner(
            model,
            training_plan=plan,
            data_splitter=_Loaders(training, checks),
            max_epochs=max_epochs,
            max_steps=plan.n_steps,
            accelerator=accelerator,
            devices=devices,
            precision=training_precision(precision, accelerator),
            check_val_every_n_epoch=1,
            enable_progress_bar=enable_progress_bar,
            gradient_clip_val=1.0,
            **trainer_kwargs,
        )
        finished = run_training(model, runner, seed)
    if not finished:
        raise KeyboardInterrupt(
            f"Training was interrupted after step {plan.trainer.global_step} of {plan.n_steps}; "
            "the model keeps what it has learned."
        )
