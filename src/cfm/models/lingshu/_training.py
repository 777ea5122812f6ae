"""Diffusion training of Lingshu-Cell in Lightning: batches and steps."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cfm.models._streams import Drawn, RowStream
from cfm.models._training import TrainingPlan
from cfm.models.lingshu._conditions import UNKNOWN, Conditions
from cfm.nn._absorbing import draw_times
from cfm.nn._ema import PowerAverage

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfm.models.lingshu._module import LingshuModule

_BETAS = (0.9, 0.95)


class Batch(NamedTuple):
    """What :meth:`LingshuModule.losses` takes."""

    tokens: Tensor
    hidden: Tensor
    time: Tensor
    conditions: Conditions


class CellStream(RowStream):
    """Batches of cells in random order with random genes hidden.

    Parameters
    ----------
    read
        Turns row numbers into ``(b, n_genes)`` tokens and conditions.
    rows, batch_size, seed, **kwargs
        See :class:`cfm.models._streams.RowStream`.
    least_time, stratified
        See :func:`cfm.nn._absorbing.draw_times`.
    condition_dropout
        Probability that nothing is said of a cell, and that each single condition is withheld.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], tuple[Tensor, Conditions]],
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        least_time: float,
        stratified: bool,
        condition_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(rows, batch_size=batch_size, seed=seed, **kwargs)
        self.read = read
        self.least_time = least_time
        self.stratified = stratified
        self.condition_dropout = condition_dropout

    def batch(self, drawn: Drawn, generator: torch.Generator) -> Batch:
        """Make the batch of some cells."""
        tokens, conditions = self.read(drawn.own)
        n, own = len(drawn.rows), drawn.part
        times = draw_times(n, generator, least=self.least_time, stratified=self.stratified)
        time = times[own]
        draw = torch.rand(n, tokens.shape[1], generator=generator)
        hidden = draw[own] < time.unsqueeze(1)
        if self.condition_dropout:
            draw = torch.rand(n, 4 + conditions.covariates.shape[1], generator=generator)
            conditions = withhold(conditions, draw[own] < self.condition_dropout)
        return Batch(tokens, hidden, time, conditions)


def withhold(conditions: Conditions, drop: Tensor) -> Conditions:
    """Replace conditions by *unknown*.

    Parameters
    ----------
    conditions
        Of ``b`` cells.
    drop
        ``(b, 4 + n_covariates)`` bool: all conditions of a cell, then each alone.
    """
    source, parts, covariates, depth, _ = conditions
    drop = drop[:, 1:] | drop[:, :1]
    unknown = torch.full_like(parts, -1)
    unknown[:, 0] = UNKNOWN
    return conditions._replace(
        source=source.masked_fill(drop[:, 0], UNKNOWN),
        parts=torch.where(drop[:, 1:2], unknown, parts),
        covariates=covariates.masked_fill(drop[:, 3:], UNKNOWN),
        depth=depth.masked_fill(drop[:, 2], torch.nan),
    )


class DiffusionPlan(TrainingPlan):
    """Diffusion loss; AdamW with warm-up and a cosine to a last rate; running average of weights.

    Validation is of the average, if there is one.

    Parameters
    ----------
    module
        The network.
    lr, last_lr
        Peak and last learning rate.
    weight_decay
        Of AdamW, on matrices.
    warm_up
        Steps until the peak.
    n_steps
        Optimiser steps in all.
    average_width
        Relative width of the running average; ``None`` for none.
    """

    uses_all_weights = True

    def __init__(
        self,
        module: LingshuModule,
        *,
        lr: float,
        last_lr: float,
        weight_decay: float,
        warm_up: int,
        n_steps: int,
        average_width: float | None,
    ) -> None:
        super().__init__(module)
        self.lr = lr
        self.last_lr = min(last_lr, lr)
        self.weight_decay = weight_decay
        self.warm_up = warm_up
        self.n_steps = n_steps
        self.average = None if average_width is None else PowerAverage(module, average_width)
        self._shows_average = False

    def rate(self, step: int) -> float:
        """Return the learning rate of a step as a share of the peak."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.n_steps - self.warm_up)
        last = self.last_lr / self.lr
        return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))

    def configure_optimizers(self) -> Any:
        """AdamW over what is trained."""
        trained = [p for p in self.module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.lr, betas=_BETAS)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def own_state(self) -> dict[str, Any]:
        """Return the average of the weights."""
        return {} if self.average is None else {"average": self.average.state_dict()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on one batch."""
        losses = self.module.losses(*batch)
        self.write("train", losses, batch_idx, len(batch.time))
        return losses["loss"]

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Take the new weights into the average, once per optimiser step."""
        if self.average is not None and self.global_step > self.average.n_steps:
            self.average.update()
        super().on_train_batch_end(outputs, batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Judge the average."""
        self.show_average(True)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Loss on cells that are not trained on."""
        self.write("validation", self.module.losses(*batch), batch_idx, len(batch.time))

    def on_validation_epoch_end(self) -> None:
        """Go on with the weights that are trained."""
        super().on_validation_epoch_end()
        self.show_average(False)

    def on_fit_end(self) -> None:
        """Give every process all weights, and their average."""
        super().on_fit_end()
        if self.average is not None:
            self.average.join()

    def show_average(self, wanted: bool) -> None:
        """Put the average in the place of the weights, or take it away, if a step was taken."""
        if self.average is not None and self.average.n_steps and wanted != self._shows_average:
            self.average.swap()
            self._shows_average = wanted
