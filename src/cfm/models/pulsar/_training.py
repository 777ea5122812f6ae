"""Training of PULSAR: losses, optimiser, held-out donors, and the run."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cfm._adata import warn_user
from cfm._arguments import ABOVE_0, NOT_NEGATIVE, PART
from cfm.models._streams import Drawn, RowStream
from cfm.models._training import Recipe, Training, TrainingPlan, held_out_rows
from cfm.models.pulsar._data import PretrainingStream
from cfm.nn._distributed import gathered, means_over_processes, process_number

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cfm.models._training import TrainingRun
    from cfm.models.pulsar._data import Batch, Donors
    from cfm.models.pulsar._module import PulsarModule


@dataclass(frozen=True, kw_only=True)
class PulsarRecipe(Recipe):
    """How a PULSAR is trained: on cells that are hidden from it, and on finding a donor again.

    Two draws are made of each donor. The encoder sees a few cells of a draw; of the others most
    elements are hidden, and the decoder reconstructs them from the donor embedding and what is left
    of each cell. The embeddings of the two draws are made to find each other among those of other
    donors, and where donors have labels (``labels_key``) those of the same label.

    An open recipe: the authors published the weights of the losses and the shares, not the training
    code. Their masks hide correlated elements together; these hide random ones.

    Parameters
    ----------
    n_cells
        Cells of a draw, fewer of donors with less than twice as many.
    keep_share
        Share of them that the encoder sees, at least one cell.
    mask_share
        Share of the elements of the other cells that is hidden.
    reconstruction_weight, contrastive_weight
        Weights of the two losses; the authors align to labels with 0.1 and 1.
    temperature
        Of the contrastive loss.
    validation_share
        Share of the studies that is held out, at least one if there are three; without
        ``study_key`` share of the donors.
    batch_size
        Donors per batch.
    lr, weight_decay
        Of AdamW; warm-up over 5 % of the steps, then linear decay.
    max_epochs, max_steps, checkpoint_every
        As of :class:`cfm.models.base.Recipe`; an epoch goes through the donors.
    """

    max_epochs: int | None = 100
    batch_size: int = 16
    lr: float = 3e-4
    n_cells: Annotated[int, 2] = 512
    keep_share: Annotated[float, PART] = 0.15
    mask_share: Annotated[float, PART] = 0.85
    reconstruction_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    contrastive_weight: Annotated[float, NOT_NEGATIVE] = 1.0
    temperature: Annotated[float, ABOVE_0] = 0.1
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01


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
    any_hidden = process_number()[1] > 1 or not bool(batch.hidden_padding.all())
    if reconstruction_weight and any_hidden:
        truth = module.standardise(batch.hidden)
        shown = torch.where(batch.masked, module.mask_element.to(truth.dtype), truth)
        tokens = module.in_proj_mask_embedding(shown)
        made = module.decode_tokens(cls, tokens, batch.hidden_padding)[:, 1:]
        hidden = batch.masked & ~batch.hidden_padding.unsqueeze(-1)
        error = (made.float() - truth).square()
        (parts["reconstruction"],) = means_over_processes(((error * hidden).sum(), hidden.sum()))
        total = total + reconstruction_weight * parts["reconstruction"]
    if contrastive_weight:
        parts["contrastive"] = agreement_loss(cls, batch.donor, batch.label, temperature)
        total = total + contrastive_weight * parts["contrastive"]
    return {"loss": total} | parts


def agreement_loss(embedding: Tensor, donor: Tensor, label: Tensor, temperature: float) -> Tensor:
    """Return the contrastive loss of draws of donors.

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
            # a batch of fewer donors than processes: each process has all of them
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


@contextmanager
def pretraining(
    module: PulsarModule, run: TrainingRun, donors: Donors, labels: np.ndarray, studies: np.ndarray
) -> Iterator[Training]:
    """Train a network on donors; see :class:`PulsarRecipe`.

    Parameters
    ----------
    module
        The network, with an input network for masked cells.
    run
        The training.
    donors
        Their cells.
    labels
        ``(n_donors,)`` int64, what donors are aligned by; −1 without a label.
    studies
        ``(n_donors,)`` object, ``""`` where there is none.
    """
    recipe: PulsarRecipe = run.recipe
    held_out = held_out_rows(studies, recipe.validation_share, run.seed, donors.names.to_numpy())
    settings: dict[str, Any] = {
        "n_cells": recipe.n_cells,
        "keep_share": recipe.keep_share,
        "mask_share": recipe.mask_share,
        "labels": labels,
        **run.layout,
    }
    stream = PretrainingStream(donors, np.flatnonzero(~held_out), seed=run.seed, **settings)
    checks = None
    if held_out.any():
        checks = PretrainingStream(
            donors, np.flatnonzero(held_out), seed=run.seed + 1, fixed=True, **settings
        )

    def losses(batch: Batch) -> dict[str, Tensor]:
        return pretraining_losses(
            module,
            batch,
            reconstruction_weight=recipe.reconstruction_weight,
            contrastive_weight=recipe.contrastive_weight,
            temperature=recipe.temperature,
        )

    n_steps = run.count_steps(stream.n_batches)
    plan = TrainingPlan(module, losses, **run.schedule)
    yield Training(plan, stream, checks)
    run.facts |= {"max_steps": n_steps, "n_donors": int((~held_out).sum())}
