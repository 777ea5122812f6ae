"""Training of PULSAR: losses, optimiser, held-out donors, and the run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cfm.data._warn import warn_user
from cfm.models._lightning import held_out_studies
from cfm.models._streams import Drawn, RowStream
from cfm.models._training_plan import TrainingPlan
from cfm.models.pulsar._data import PretrainingStream
from cfm.nn._distributed import gathered, means_over_processes, process_number

if TYPE_CHECKING:
    from collections.abc import Callable

    import pandas as pd
    from torch import nn

    from cfm.models._run import TrainingRun
    from cfm.models.pulsar._data import Batch, Donors
    from cfm.models.pulsar._module import PulsarModule

_MAX_EPOCHS = 100
#: Share of the steps in which the learning rate rises.
_WARM_UP = 0.05


def pretraining_losses(
    module: PulsarModule,
    batch: Batch,
    *,
    reconstruction_weight: float,
    contrastive_weight: float,
    temperature: float,
) -> dict[str, Tensor]:
    """Return the losses of a batch.

    Parameters
    ----------
    module
        The network.
    batch
        Two draws of donors.
    reconstruction_weight, contrastive_weight
        Weights of the two parts; a part with weight 0 is not computed.
    temperature
        Of the contrastive loss.

    Returns
    -------
    ``loss``; with it ``reconstruction``, the mean squared error of hidden elements in the scale
    that the network reads, and ``contrastive``, see :func:`agreement_loss`. Processes that train
    together take both over the draws of all.
    """
    cls = module.encode(batch.visible, batch.visible_padding)[:, 0]
    parts = {}
    total = cls.sum() * 0.0
    # another process may have hidden cells if this one has none
    asks = process_number()[1] > 1 or not bool(batch.hidden_padding.all())
    if reconstruction_weight and asks:
        truth = module.standardise(batch.hidden)
        shown = torch.where(batch.masked, module.mask_element.to(truth.dtype), truth)
        tokens = module.in_proj_mask_embedding(shown)
        made = module.decode_tokens(cls, tokens, batch.hidden_padding)[:, 1:]
        asked = batch.masked & ~batch.hidden_padding.unsqueeze(-1)
        error = (made.float() - truth).square()
        (parts["reconstruction"],) = means_over_processes(((error * asked).sum(), asked.sum()))
        total = total + reconstruction_weight * parts["reconstruction"]
    if contrastive_weight:
        parts["contrastive"] = agreement_loss(cls, batch.donor, batch.label, temperature)
        total = total + contrastive_weight * parts["contrastive"]
    return {"loss": total} | parts


def agreement_loss(embedding: Tensor, donor: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Return how badly draws find those that belong to them among all others.

    The supervised contrastive loss of Khosla et al. (NeurIPS 2020, equation 2) on cosine
    similarities: draws of one donor belong together, and of donors with the same label.

    Parameters
    ----------
    embedding
        ``(n, dim)``.
    donor, label
        ``(n,)`` int64; −1 is no label.
    temperature
        Divides the similarities.

    Returns
    -------
    Mean over draws that have another one; 0 if none has.
    """
    n_processes = process_number()[1]
    if n_processes > 1:
        embedding, donor, label = gathered(embedding), gathered(donor), gathered(label)
        n = len(donor) // n_processes
        if torch.equal(donor[:n].repeat(n_processes), donor):
            # a batch of fewer donors than processes, each of which has all of them
            embedding, donor, label = embedding[:n], donor[:n], label[:n]
    z = F.normalize(embedding.float(), dim=-1)
    same = (donor[:, None] == donor) | ((label[:, None] == label) & (label >= 0))
    own = torch.eye(len(z), dtype=torch.bool, device=z.device)
    same = same & ~own
    logits = (z @ z.T / temperature).masked_fill(own, -torch.inf)
    surprise = torch.where(same, -torch.log_softmax(logits, dim=1), 0.0).sum(1)
    n_same = same.sum(1)
    has = n_same > 0
    if not bool(has.any()):
        return embedding.sum() * 0.0
    return (surprise[has] / n_same[has]).mean()


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
        return self._write("train", self.losses(batch))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        """Losses on what is not trained on."""
        self._write("validation", self.losses(batch))

    def _write(self, kind: str, found: dict[str, Tensor]) -> Tensor:
        """Add the losses of a batch to the curves, and return that which is trained on."""
        for name, value in found.items():
            self.add(kind, f"{kind}_{name}", value.detach(), 1)  # each batch counts once
        return found["loss"]


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


def held_out_donors(names: pd.Index, studies: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose a share of the studies, or without studies of the donors, ``(n,)`` bool."""
    groups = studies if (studies != "").any() else names.to_numpy(dtype=object)
    return np.isin(groups, held_out_studies(groups, share, seed))


def label_numbers(labels: np.ndarray) -> np.ndarray:
    """Return labels ``(n,)`` as int64, −1 where there is none, and warn of those of one donor."""
    known, numbers = np.unique(labels.astype(str), return_inverse=True)
    numbers = np.where(labels == "", -1, numbers).astype(np.int64)
    single = [str(k) for i, k in enumerate(known) if k and (numbers == i).sum() == 1]
    if single:
        warn_user(
            f"The label {', '.join(map(repr, single[:3]))} is present in one donor only: "
            "nothing can be aligned to it."
        )
    return numbers


def pretrain(
    module: PulsarModule, run: TrainingRun, donors: Donors, labels: np.ndarray, studies: np.ndarray
) -> int:
    """Train a network on donors; see :meth:`cfm.models.Pulsar.train`.

    Parameters
    ----------
    module
        The network, with an input network for masked cells.
    run
        With the arguments of ``train``.
    donors
        Their cells.
    labels
        ``(n_donors,)`` int64, what donors are aligned by; −1 without a label.
    studies
        ``(n_donors,)`` object, ``""`` where there is none.

    Returns
    -------
    The number of donors that were trained on.
    """
    given = run.arguments
    held_out = held_out_donors(donors.names, studies, given["validation_share"], given["seed"])
    settings: dict[str, Any] = {
        name: given[name] for name in ("batch_size", "n_cells", "keep_share", "mask_share")
    } | {"labels": labels, "n_processes": run.n_processes}
    seed = given["seed"]
    stream = PretrainingStream(donors, np.flatnonzero(~held_out), seed=seed, **settings)
    checks = None
    if held_out.any():
        checks = PretrainingStream(
            donors, np.flatnonzero(held_out), seed=seed + 1, fixed=True, **settings
        )
    n_steps = run.count_steps(stream.n_batches, default_epochs=_MAX_EPOCHS)

    def losses(batch: Batch) -> dict[str, Tensor]:
        return pretraining_losses(
            module,
            batch,
            reconstruction_weight=given["reconstruction_weight"],
            contrastive_weight=given["contrastive_weight"],
            temperature=given["temperature"],
        )

    plan = StepPlan(
        module, losses, lr=given["lr"], weight_decay=given["weight_decay"], n_steps=n_steps
    )
    run.fit(plan, stream, checks)
    return int((~held_out).sum())
