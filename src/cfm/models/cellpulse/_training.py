"""Pretraining of CellPulse in Lightning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from cfm.models._training_plan import TrainingPlan
from cfm.models.cellpulse._constants import DOWN, UNCHANGED, UP
from cfm.models.cellpulse._module import mean_or_zero

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor

    from cfm.models.cellpulse._module import CellPulseModule
    from cfm.models.cellpulse._stream import Batch

#: Weights of the losses beside the direction loss.
LOSS_WEIGHTS = {"direction": 1.0, "magnitude": 0.2, "summary": 0.2, "agreement": 0.1}
CORRECTION_GRID = (0.0, 0.1, 0.2, 0.3, 0.5, 0.75, 1.0)


class PretrainingPlan(TrainingPlan):
    """Masked direction and magnitude, after the relevance of the gene factors has been fitted.

    The first ``n_linear_steps`` fit the linear term alone; it is then frozen and the transformer
    learns what is left.

    Parameters
    ----------
    module
        The network.
    lr, linear_lr
        Peak learning rates of the transformer and of the linear term.
    weight_decay
        Of the transformer.
    n_steps
        Total number of steps, for the schedule.
    n_linear_steps
        Steps for the linear term.
    """

    def __init__(
        self,
        module: CellPulseModule,
        *,
        lr: float = 1e-3,
        linear_lr: float = 0.03,
        weight_decay: float = 0.05,
        n_steps: int = 500,
        n_linear_steps: int = 80,
    ) -> None:
        super().__init__(module)
        self.lr = lr
        self.linear_lr = linear_lr
        self.weight_decay = weight_decay
        self.n_steps = n_steps
        self.n_linear_steps = n_linear_steps

    def linear_parameters(self) -> list[torch.nn.Parameter]:
        """Parameters of the linear term."""
        m = self.module
        return [m.log_relevance, m.linear.log_ridge, m.linear_weight]

    def configure_optimizers(self) -> Any:
        """AdamW; each part has its learning rate at 0 while the other one learns."""
        linear = self.linear_parameters()
        ids = {id(p) for p in linear}
        rest = [p for p in self.module.parameters() if id(p) not in ids]
        optimizer = torch.optim.AdamW(
            [
                {"params": linear, "lr": self.linear_lr, "weight_decay": 0.0},
                {"params": rest, "lr": self.lr, "weight_decay": self.weight_decay},
            ]
        )
        n_linear, n_rest = self.n_linear_steps, max(1, self.n_steps - self.n_linear_steps)

        def linear_rate(step: int) -> float:
            return float(step < n_linear)

        def rest_rate(step: int) -> float:
            if step < n_linear:
                return 0.0
            done = (step - n_linear) / n_rest
            warm = 0.1
            return done / warm if done < warm else max(0.0, (1.0 - done) / (1.0 - warm))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, [linear_rate, rest_rate])
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on one batch."""
        hidden, target, asked, groups, mask = batch
        if self.global_step < self.n_linear_steps:
            loss = self.module.linear_loss(hidden, target, asked, mask)
            self.write("train", {"linear_loss": loss}, batch_idx, len(groups))
            return loss
        losses = self._losses(batch)
        self.write("train", losses, batch_idx, len(groups))
        return losses["loss"]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Freeze the linear term once its steps are done."""
        super().on_train_batch_start(batch, batch_idx)
        if self.global_step >= self.n_linear_steps:
            for parameter in self.linear_parameters():
                parameter.requires_grad_(False)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses and direction accuracy on studies that are not trained on."""
        hidden, target, asked, groups, mask = batch
        losses = self._losses(batch)
        logits, _ = self.module.predict_tokens(self.module.encode(hidden, mask))
        moved = asked & (target.state != UNCHANGED)
        right = (logits[..., UP] > logits[..., DOWN]) == (target.state == UP)
        accuracy = {"direction_accuracy": mean_or_zero(right[moved].float())}
        self.write("validation", losses | accuracy, batch_idx, len(groups))

    def _losses(self, batch: Batch) -> dict[str, Tensor]:
        """Return the parts of the loss by name, and ``loss``."""
        hidden, target, asked, groups, mask = batch
        losses = self.module.losses(hidden, target, asked, groups=groups, factor_mask=mask)
        total = torch.stack([LOSS_WEIGHTS[k] * v for k, v in losses.items()]).sum()
        return {f"{k}_loss": v for k, v in losses.items()} | {"loss": total}


@torch.no_grad()
def fit_correction_weights(module: CellPulseModule, batches: Sequence[Batch]) -> None:
    """Choose how much of the transformer's corrections to use, on batches of held-out studies.

    Stores in the module the weights of :data:`CORRECTION_GRID` with the fewest wrong hidden
    directions and the smallest absolute error of the hidden magnitudes; the smaller wins ties.
    """
    module.eval()
    direction = torch.zeros(len(CORRECTION_GRID))
    size = torch.zeros(len(CORRECTION_GRID))
    for hidden, target, asked, _, mask in batches:
        encoded = module.encode(hidden, mask)
        moved = asked & (target.state != UNCHANGED)
        sized = asked & ~torch.isnan(target.magnitude)
        up = target.state[moved] == UP
        for i, weight in enumerate(CORRECTION_GRID):
            module.correction_weight.fill_(weight)
            module.size_correction_weight.fill_(weight)
            logits, magnitude = module.predict_tokens(encoded)
            odds = (logits[..., UP] - logits[..., DOWN])[moved]
            direction[i] += mean_or_zero(((odds > 0) != up).float()).cpu()
            error = (magnitude[sized] - target.magnitude[sized]).abs()
            size[i] += mean_or_zero(error).cpu()
    module.correction_weight.fill_(CORRECTION_GRID[int(direction.argmin())])
    module.size_correction_weight.fill_(CORRECTION_GRID[int(size.argmin())])
