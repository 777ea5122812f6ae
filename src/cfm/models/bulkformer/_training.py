"""Masked-expression training of BulkFormer: settings, batches, loss and optimiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cfm._arguments import NOT_NEGATIVE, PART
from cfm.data._row_order import BLOCK_SIZE
from cfm.models._streams import Drawn, RowStream
from cfm.models._training import WARM_UP, Recipe, TrainingPlan
from cfm.models.bulkformer._module import MISSING

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfm.models.bulkformer._module import BulkFormerModule


@dataclass(frozen=True, kw_only=True)
class BulkFormerRecipe(Recipe):
    """How a BulkFormer is trained: on expression that is hidden from it.

    A part of the observed genes of each sample is hidden and predicted from the rest; the loss is
    the mean squared error of log TPM. A model that was never trained starts as the mean of each
    gene. AdamW; the learning rate rises over 5 % of the steps, then falls linearly. The curves in
    ``history`` are of the network alone. A linear term is not trained; fit it again
    (:meth:`cfm.models.BulkFormer.fit_linear_term`). A compound head is removed.

    Parameters
    ----------
    mask_share
        Share of the observed genes that is hidden.
    balanced
        Draw samples of a study of ``n`` with a weight of one over the root of ``n``, so that a few
        large studies do not fill the batches.
    lr
        Peak learning rate. The published models were trained with 1e-4.
    weight_decay
        Of AdamW.
    redraw_interval
        Steps after which the random features of the attention are drawn anew; 0 keeps them.
    recompute
        Compute the layers again in the backward pass instead of keeping their activations: a third
        slower, and memory for one layer instead of all.
    block_size
        Neighbouring rows that are shuffled together where there are more than 8,192; 1 shuffles
        each row alone, which is slow on disk.
    max_epochs, max_steps, batch_size, validation_share, checkpoint_every
        As of :class:`cfm.models.base.Recipe`.
    """

    max_epochs: int | None = 30
    batch_size: int = 8
    lr: float = 5e-4
    mask_share: Annotated[float, PART] = 0.15
    balanced: bool = False
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01
    redraw_interval: Annotated[int, 0] = 1000
    recompute: bool = False
    block_size: int = BLOCK_SIZE


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
    """Mean squared error of hidden expression; random features are drawn anew now and then.

    Parameters
    ----------
    redraw_interval
        Steps after which the random features of the attention are drawn anew; 0 never does.
    seed
        Of the redrawn features.
    module, **settings
        See :class:`cfm.models.base.TrainingPlan`.
    """

    uses_all_weights = True

    def __init__(
        self, module: BulkFormerModule, *, redraw_interval: int, seed: int, **settings: Any
    ) -> None:
        super().__init__(module, **settings)
        self.redraw_interval = redraw_interval
        self._generator = torch.Generator().manual_seed(seed)
        self._redrawn = 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step as a share of the peak; 0 in the last step."""
        done = (step + 1) / max(1, self.n_steps)
        return done / WARM_UP if done < WARM_UP else max(0.0, (1.0 - done) / (1.0 - WARM_UP))

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
