"""What CellVQ is trained for: hidden counts through the code of a cell, codes apart, properties."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cfm.models.cellvq._reading import TARGET_SUM
from cfm.nn._distributed import (
    common_numbers,
    means_over_processes,
    numbers_of_all,
    process_number,
    summed,
)
from cfm.nn._zinb import zinb_nll

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from torch import nn

    from cfm.models.cellvq._module import CellVQModule
    from cfm.models.cellvq._stream import Batch
    from cfm.nn._soft_codes import Quantised


#: Codes whose nearest other code is looked for in a step: of 4,096 all would take longer than the
#: rest of the step.
_CODES_AT_ONCE = 512


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of the loss; a term with weight 0 is not computed.

    Attributes
    ----------
    reconstruction, separation, balance
        Of the counts, of codes that lie close, and of codes that go unused.
    properties
        Of each property head, in the order of the heads.
    code_labels
        Of what heads of their own say of the same properties, from the code alone.
    classes
        ``(n_classes,)`` of the classes of each property, or ``None`` where all weigh the same.
    """

    reconstruction: float
    separation: float
    balance: float
    properties: tuple[float, ...] = ()
    code_labels: float = 0.0
    classes: tuple[Tensor | None, ...] = field(default=(), repr=False)

    def balanced(self, labels: np.ndarray, n_classes: Iterable[int]) -> Weights:
        """Let the classes of a property weigh alike, by how many cells have them.

        Parameters
        ----------
        labels
            ``(n_cells, n_properties)`` of the cells to train on; −1 = unknown.
        n_classes
            Of each property.
        """
        classes: list[Tensor | None] = []
        for column, n in zip(labels.T, n_classes, strict=True):
            counts = np.bincount(column[column >= 0], minlength=n).astype(np.float64)
            present = counts > 0
            weight = np.where(present, counts.sum() / np.maximum(counts, 1), 0.0)
            weight /= max(1, int(present.sum()))
            classes.append(torch.from_numpy(weight.astype(np.float32)) if present.any() else None)
        return replace(self, classes=tuple(classes))


def training_losses(
    module: CellVQModule,
    batch: Batch,
    *,
    weights: Weights,
    temperature: float,
    code_heads: Sequence[nn.Module] = (),
) -> dict[str, Tensor]:
    r"""Return the losses of a batch.

    .. math::
        L = w_r \langle -\log \mathrm{ZINB}(x_{cg}; s_c \mu_{cg}, \theta_{cg}, \pi_{cg}) \rangle
            + w_s \frac{1}{K} \sum_k \max_{j \ne k} c_k^\top c_j
            + w_b \Big(1 - \frac{H(\bar{A})}{\log K}\Big)
            + \sum_p w_p \langle -\log q_p(y_{cp}) \rangle
            + w_l \sum_p w_p \langle -\log q^{code}_p(y_{cp}) \rangle

    The first mean is over the counts that are asked for (zeros, and expressed genes that are not
    shown), :math:`\mu` is in counts per 10,000 and :math:`s_c` the counts of the cell over 10,000;
    :math:`\bar{A}` is the mean of the probabilities that the batch drew its codes with. The
    second mean is over up to 512 codes, drawn anew in training; each against all.

    Parameters
    ----------
    module
        The network.
    batch
        Cells of which a part is shown.
    weights
        Of the terms.
    temperature
        Of the quantiser; 0 takes the nearest code.
    code_heads
        What says the properties from the code alone, for :attr:`Weights.code_labels`.

    Returns
    -------
    ``loss``, and the parts that were computed, over the cells of all processes that train
    together: ``reconstruction`` in nats per count,
    ``separation``, ``balance``, ``property_<name>`` in nats per labelled cell and with it
    ``accuracy_<name>``, the share of the labelled cells that the head is right about; and both of
    the code alone, ``code_property_<name>`` and ``code_accuracy_<name>``.
    """
    encoded = module.encode(batch.values, batch.gene_ids, batch.padding)
    cell, maximum = module.pool(encoded, batch.padding)
    parts: dict[str, Tensor] = {}
    total = cell.sum() * 0.0
    quantised = module.quantize(maximum, temperature=temperature)
    if weights.reconstruction:
        parts["reconstruction"] = hidden_counts(module, batch, encoded, quantised.vector)
        total = total + weights.reconstruction * parts["reconstruction"]
    if weights.separation:
        parts["separation"] = crowding(quantised.codebook, all_codes=not module.training)
        total = total + weights.separation * parts["separation"]
    if weights.balance and quantised.probability is not None:
        parts["balance"] = unused_codes(quantised)
        total = total + weights.balance * parts["balance"]
    logits = list(module.classify(cell).values())
    by_code = [head(quantised.vector) for head in code_heads] if weights.code_labels else []
    for i, name in enumerate(module.properties):
        label = batch.labels[:, i]
        if not weights.properties[i] or not any(numbers_of_all(int((label >= 0).sum()))):
            continue
        classes = weights.classes[i] if weights.classes else None
        loss, accuracy = named(logits[i], label, classes)
        parts[f"property_{name}"], parts[f"accuracy_{name}"] = loss, accuracy
        total = total + weights.properties[i] * loss
        if by_code:
            loss, accuracy = named(by_code[i], label, classes)
            parts[f"code_property_{name}"], parts[f"code_accuracy_{name}"] = loss, accuracy
            total = total + weights.code_labels * weights.properties[i] * loss
    return {"loss": total} | parts


def named(logits: Tensor, label: Tensor, classes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the cross-entropy and the accuracy of the cells that have a label.

    Parameters
    ----------
    logits
        ``(b, n_classes)``.
    label
        ``(b,)`` int64; −1 = unknown.
    classes
        ``(n_classes,)``, how much cells of a class weigh.
    """
    known = label >= 0
    found, label = logits[known].float(), label[known]
    weight = None if classes is None else classes.to(found.device)
    surprise = F.cross_entropy(found, label, weight=weight, reduction="sum")
    n = len(label) if weight is None else weight[label].sum()
    right = (found.detach().argmax(-1) == label).float().sum()
    loss, accuracy = means_over_processes((surprise, n), (right, len(label)))
    return loss, accuracy


def crowding(codes: Tensor, *, all_codes: bool) -> Tensor:
    """Return the mean of the largest cosine of a code to another one.

    Parameters
    ----------
    codes
        ``(n_codes, code_dim)`` of unit length.
    all_codes
        Look at all of them, not at up to 512 that are drawn.
    """
    rows = torch.arange(len(codes), device=codes.device)
    if not all_codes and len(codes) > _CODES_AT_ONCE:
        with common_numbers(codes.device) as generator:  # all processes look at the same ones
            rows = torch.randperm(len(codes), generator=generator, device=codes.device)
        rows = rows[:_CODES_AT_ONCE]
    nearest = []
    for part in rows.split(_CODES_AT_ONCE):
        cosine = codes.detach()[part] @ codes.detach().T
        cosine[torch.arange(len(part), device=codes.device), part] = -torch.inf
        nearest.append(cosine.argmax(dim=-1))
    return (codes[rows] * codes[torch.cat(nearest)]).sum(-1).mean()


def hidden_counts(module: CellVQModule, batch: Batch, encoded: Tensor, vector: Tensor) -> Tensor:
    """Return how surprising the counts are that were asked for, in nats per count."""
    hidden = batch.padding | batch.alone.unsqueeze(1)
    mean, dispersion, dropout = module.decode(encoded, batch.gene_ids, hidden, vector=vector)
    scale = (batch.total / TARGET_SUM).unsqueeze(1)
    surprise = zinb_nll(batch.counts, mean * scale, dispersion, dropout)
    total = torch.where(batch.asked, surprise, 0.0).sum()
    return means_over_processes((total, batch.asked.sum()))[0]


def unused_codes(quantised: Quantised) -> Tensor:
    """Return how far a batch is from using all codes alike: 0 if it does, 1 if it uses one."""
    if quantised.probability is None:
        raise ValueError("The nearest codes were taken, so there are no probabilities.")
    used = quantised.probability.mean(0)
    if process_number()[1] > 1:
        n = sum(numbers_of_all(len(quantised.probability)))
        used = summed(quantised.probability.sum(0)) / n
    entropy = -(used * used.clamp(min=1e-12).log()).sum()
    return 1.0 - entropy / math.log(len(used))


def perplexity(codes: Tensor, n_codes: int) -> tuple[float, int]:
    """Return over how many codes cells are spread, and how many they use at all.

    Parameters
    ----------
    codes
        ``(n,)`` int64.
    n_codes
        Number of codes that there are.

    Returns
    -------
    perplexity
        Exponential of the entropy of the shares of the codes: ``k`` if ``k`` codes are used alike.
    live
        Number of codes that at least one cell has.
    """
    counts = torch.bincount(codes.cpu(), minlength=n_codes).double()
    shares = counts[counts > 0] / counts.sum()
    return float((-(shares * shares.log()).sum()).exp()), int((counts > 0).sum())
