"""What PULSAR is trained for: cells from their donor, and donors that know themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from cfm.nn._distributed import gathered, means_over_processes, process_number

if TYPE_CHECKING:
    from cfm.models.pulsar._module import PulsarModule


class Batch(NamedTuple):
    """Two draws of each of ``b`` donors, one after the other: ``2 b`` rows.

    Attributes
    ----------
    visible, visible_padding
        ``(2b, k, input_dim)`` cells that the encoder sees, and ``(2b, k)`` bool.
    hidden, hidden_padding
        ``(2b, m, input_dim)`` cells to reconstruct, and ``(2b, m)`` bool.
    masked
        ``(2b, m, input_dim)`` bool, elements of them that are hidden.
    donor
        ``(2b,)`` int64, whose draw it is.
    label
        ``(2b,)`` int64, what donors are aligned by; −1 without a label.
    """

    visible: Tensor
    visible_padding: Tensor
    hidden: Tensor
    hidden_padding: Tensor
    masked: Tensor
    donor: Tensor
    label: Tensor


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
