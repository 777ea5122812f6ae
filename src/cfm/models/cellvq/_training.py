"""Training of CellVQ in Lightning: steps, the schedules, and how codes are used."""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from cfm.data._warn import warn_user
from cfm.models._training import TrainingPlan
from cfm.models.cellvq._objectives import Weights, perplexity, training_losses
from cfm.models.cellvq._start import CentredProjection, pooled_cells
from cfm.models.cellvq._stream import Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from cfm.models.cellvq._module import CellVQModule
    from cfm.models.cellvq._reading import Tokens

Schedule = Literal["geometric", "cosine"]

#: One cycle: share of the steps that warms up, and first and last rate as shares of the peak.
_WARM_UP, _FIRST_RATE, _LAST_RATE = 0.1, 1 / 25, 1e-3


#: Codes have collapsed if they are used as if there were fewer than this, or than this share of
#: what the cells that are checked could use, over the last epochs.
_LEAST_PERPLEXITY, _LEAST_SHARE, _LAST_EPOCHS = 2.0, 0.005, 3


class CellVQPlan(TrainingPlan):
    """Losses of CellVQ; AdamW in one cycle; codes of cells after every epoch.

    Parameters
    ----------
    module
        The network.
    weights
        Of the terms of the loss.
    code_heads
        What says the properties from the code alone; not part of the model.
    checked
        Whole sentences of the cells whose codes are counted.
    examples
        Those of the cells that the projection to the codes is centred on.
    frozen
        Parts of the network that stay as they are, also what they count in batch norm.
    schedule, last_temperature, anneal_share
        How the temperature falls from 1, to what, and over which share of the steps; it stays
        there afterwards. With ``schedule=None`` it is 0: the nearest code is taken.
    lr, weight_decay
        Peak rate, and decay of matrices.
    n_steps
        Optimiser steps in all.
    """

    def __init__(
        self,
        module: CellVQModule,
        *,
        weights: Weights,
        code_heads: Sequence[nn.Module],
        checked: Sequence[Tokens],
        examples: Sequence[Tokens],
        frozen: Sequence[nn.Module | nn.Parameter],
        schedule: Schedule | None,
        last_temperature: float,
        anneal_share: float,
        lr: float,
        weight_decay: float,
        n_steps: int,
    ) -> None:
        super().__init__(module)
        self.weights = weights
        self.code_heads = torch.nn.ModuleList(code_heads)
        self.checked = checked
        self.examples = examples
        self._frozen = list(frozen)
        self.schedule = schedule
        self.last_temperature = last_temperature
        self.anneal_share = anneal_share
        self.lr = lr
        self.weight_decay = weight_decay
        self.n_steps = n_steps
        #: Perplexity after each epoch.
        self.perplexities: list[float] = []

    readers = ("validation_step", "codes")

    def temperature(self, step: int) -> float:
        """Return the temperature of a step."""
        if self.schedule is None:
            return 0.0
        done = min(1.0, step / max(1.0, self.anneal_share * self.n_steps))
        if self.schedule == "geometric":
            return float(self.last_temperature**done)
        last = self.last_temperature
        return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * done))

    def rate(self, step: int) -> float:
        """Return the learning rate of a step as a share of the peak: up by a cosine, and down."""
        warm_up = max(1, round(_WARM_UP * self.n_steps))
        if step < warm_up:
            low, high, done = _FIRST_RATE, 1.0, (step + 1) / warm_up
        else:
            low, high = 1.0, _LAST_RATE
            done = min(1.0, (step - warm_up + 1) / max(1, self.n_steps - warm_up))
        return low + (high - low) * 0.5 * (1.0 - math.cos(math.pi * done))

    def configure_optimizers(self) -> Any:
        """AdamW over what is trained."""
        trained = [p for p in self.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": self.weight_decay},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW([g for g in groups if g["params"]], lr=self.lr)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def own_state(self) -> dict[str, Any]:
        """Return how codes were used."""
        return {"perplexities": self.perplexities}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.perplexities = list(state["perplexities"])

    def on_train_start(self) -> None:
        """Keep frozen parts from counting or dropping anything."""
        super().on_train_start()
        self.still()

    def still(self) -> None:
        """Put what is frozen into evaluation mode."""
        for part in self._frozen:
            if isinstance(part, torch.nn.Module):
                part.eval()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One step on one batch.

        Raises
        ------
        ValueError
            If the loss is not a finite number.
        """
        temperature = self.temperature(self.global_step)
        found = self.losses(batch, temperature)
        loss = float(found["loss"].detach())
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss became {loss} in step {self.global_step + 1} of {self.n_steps}, so "
                "training was stopped; load or make the model again and train with a smaller lr, "
                "or with precision='32-true'."
            )
        self.write("train", found, batch_idx, len(batch.total))
        self.add("train", "temperature", torch.tensor(temperature), 1)
        return found["loss"]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Losses on cells that are not trained on, with the nearest code."""
        found = self.losses(batch, 0.0)
        self.write("validation", found, batch_idx, len(batch.total))

    def losses(self, batch: Batch, temperature: float) -> dict[str, Tensor]:
        """Return the losses of a batch."""
        return training_losses(
            self.module,
            batch,
            weights=self.weights,
            temperature=temperature,
            code_heads=list(self.code_heads),
        )

    def on_train_epoch_end(self) -> None:
        """Count the codes of the cells that are checked."""
        super().on_train_epoch_end()
        codes = self.codes()
        found, live = perplexity(codes, self.module.quantiser.n_codes)
        self.perplexities.append(found)
        self.log("perplexity", found)
        self.log("n_live_codes", float(live))
        self.log("live_codes", live / self.module.quantiser.n_codes)

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Return the nearest codes of the cells that are checked, ``(n,)`` int64."""
        self.module.eval()
        projection = self.module.quantiser.proj
        pooled = pooled_cells(self.module, self.checked)
        if isinstance(projection, CentredProjection):
            with projection.centred_on(pooled_cells(self.module, self.examples)):
                found = self.module.quantize(pooled).code
        else:
            found = self.module.quantize(pooled).code
        self.module.train()
        self.still()
        return found


def warn_of_collapse(perplexities: Sequence[float], n_cells: int, n_codes: int) -> bool:
    """Say that codes have collapsed, if they have: cells of all kinds share very few.

    Parameters
    ----------
    perplexities
        After each epoch.
    n_cells
        Cells that they are of.
    n_codes
        Codes that there are.

    Warns
    -----
    UserWarning
        If the perplexity of the last three epochs (or of all, if there are fewer) is below 2, or
        below 0.5 % of the codes that so many cells could use.
    """
    last = perplexities[-_LAST_EPOCHS:]
    possible = min(n_cells, n_codes)
    least = max(_LEAST_PERPLEXITY, _LEAST_SHARE * possible)
    if not last or possible <= _LEAST_PERPLEXITY or max(last) >= least:
        return False
    warn_user(
        f"The codes have collapsed: over the last {len(last)} epochs {n_cells} cells had a "
        f"perplexity of {max(last):.2f} at most, of {n_codes} codes, so a code says next to "
        "nothing of a cell. Train for longer or with a smaller lr, let the temperature fall later "
        "(anneal_share=1.0) or less far (last_temperature=0.05), show the decoder the code alone "
        "more often (code_only_share=0.8), or ask for codes to be used alike (balance_weight=0.1)."
    )
    return True


@contextmanager
def without_gradients(parts: Sequence[nn.Module | nn.Parameter]) -> Iterator[None]:
    """Ask for no gradients of some parts, for a while."""
    parameters = [
        p
        for part in parts
        for p in (part.parameters() if isinstance(part, torch.nn.Module) else [part])
        if p.requires_grad
    ]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def check_keep_share(keep: tuple[float, float]) -> None:
    """Check the ``keep_share`` that :meth:`CellVQ.train` takes.

    Raises
    ------
    ValueError
        If it is out of its range.
    """
    if len(keep) != 2 or not 0.0 < keep[0] <= keep[1] <= 1.0:
        raise ValueError(
            f"keep_share must be a share above 0 and at most 1, or two such bounds, the smaller "
            f"first; found {keep}."
        )
