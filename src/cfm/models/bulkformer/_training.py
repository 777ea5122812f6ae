"""Masked-expression training of BulkFormer: held-out samples, batches, loss and optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from cfm.models._lightning import held_out_studies
from cfm.models._streams import Drawn, RowStream
from cfm.models._training_plan import TrainingPlan
from cfm.models.bulkformer._module import MISSING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfm.models.bulkformer._module import BulkFormerModule

#: Share of the steps in which the learning rate rises.
_WARM_UP = 0.05


def held_out_samples(studies: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose validation samples, ``(n,)`` bool: whole studies, or single samples without studies.

    Parameters
    ----------
    studies
        ``(n,)`` object, ``""`` where there is none.
    share
        Share of the studies, or of the samples.
    seed
        Of the choice.
    """
    if not (studies != "").any():
        studies = np.arange(len(studies)).astype(str).astype(object)
    # np.isin compares all pairs of objects
    return pd.Index(studies).isin(held_out_studies(studies, share, seed))


def study_weights(studies: np.ndarray) -> np.ndarray:
    """Return one over the root of the size of each sample's study."""
    _, which, size = np.unique(studies, return_inverse=True, return_counts=True)
    return 1.0 / np.sqrt(size[which.ravel()])


class Batch(NamedTuple):
    """``expression`` ``(b, n_genes)`` log TPM, −10 = missing; ``hidden`` bool, to be predicted."""

    expression: Tensor
    hidden: Tensor


def hide(drawn: Drawn, expression: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Choose a random share of the observed entries, ``(b, n_genes)`` bool."""
    draw = torch.rand(len(drawn.rows), expression.shape[1], generator=generator)
    return (expression != MISSING) & (draw[drawn.part] < share)


class SampleStream(RowStream):
    """Batches of samples in random order with random entries hidden; each sample once an epoch.

    Parameters
    ----------
    read
        Returns the expression of some rows, ``(b, n_genes)``.
    rows, batch_size, seed, **kwargs
        See :class:`cfm.models._streams.RowStream`.
    mask_share
        Share of the observed entries to hide.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], Tensor],
        rows: np.ndarray,
        *,
        batch_size: int,
        mask_share: float,
        seed: int,
        **kwargs: Any,
    ) -> None:
        super().__init__(rows, batch_size=batch_size, seed=seed, **kwargs)
        self.read = read
        self.mask_share = mask_share

    def batch(self, drawn: Drawn, generator: torch.Generator) -> Batch:
        """Return the batch of some samples."""
        expression = self.read(drawn.own)
        return Batch(expression, hide(drawn, expression, self.mask_share, generator))


class MaskedExpressionPlan(TrainingPlan):
    """Mean squared error of hidden expression; AdamW with warm-up and linear decay.

    Parameters
    ----------
    module
        The network.
    lr
        Peak learning rate.
    weight_decay
        Of AdamW.
    n_steps
        Optimiser steps in all, for the schedule.
    redraw_interval
        Steps after which the random features of the attention are drawn anew; 0 never does.
    seed
        Of the redrawn features.
    """

    uses_all_weights = True

    def __init__(
        self,
        module: BulkFormerModule,
        *,
        lr: float,
        weight_decay: float,
        n_steps: int,
        redraw_interval: int,
        seed: int,
    ) -> None:
        super().__init__(module)
        self.lr = lr
        self.weight_decay = weight_decay
        self.n_steps = n_steps
        self.redraw_interval = redraw_interval
        self._generator = torch.Generator().manual_seed(seed)
        self._redrawn = 0

    def configure_optimizers(self) -> Any:
        """Return AdamW with its schedule."""
        trained = [p for p in self.module.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=self.lr, weight_decay=self.weight_decay)

        def rate(step: int) -> float:
            done = (step + 1) / max(1, self.n_steps)
            return done / _WARM_UP if done < _WARM_UP else max(0.0, (1.0 - done) / (1.0 - _WARM_UP))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def own_state(self) -> dict[str, Any]:
        """Return the step of the last redraw and the generator of the next."""
        return {"redrawn": self._redrawn, "generator": self._generator.get_state()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`own_state`."""
        self._redrawn = state["redrawn"]
        self._generator.set_state(state["generator"])

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Redraw the random features at their interval."""
        super().on_train_batch_start(batch, batch_idx)
        if self.redraw_interval and self.global_step >= self._redrawn + self.redraw_interval:
            self.module.redraw_features(self._generator)
            self._redrawn = self.global_step

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch."""
        losses = self.module.losses(*batch)
        self.write("train", losses, batch_idx, len(batch.hidden))
        return losses["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log the loss of a validation batch."""
        self.write("validation", self.module.losses(*batch), batch_idx, len(batch.hidden))
