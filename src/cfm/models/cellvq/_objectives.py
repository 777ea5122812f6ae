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
from cfm.nn._zinb import zinb_nll

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cfm.models.cellvq._module import CellVQModule
    from cfm.models.cellvq._stream import Batch
    from cfm.nn._soft_codes import Quantised


@dataclass(frozen=True)
class Weights:
    """Weights of the terms of the loss; a term with weight 0 is not computed.

    Attributes
    ----------
    reconstruction, separation, balance
        Of the counts, of codes that lie close, and of codes that go unused.
    properties
        Of each property head, in the order of the heads.
    classes
        ``(n_classes,)`` of the classes of each property, or ``None`` where all weigh the same.
    """

    reconstruction: float
    separation: float
    balance: float
    properties: tuple[float, ...] = ()
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
    module: CellVQModule, batch: Batch, *, weights: Weights, temperature: float
) -> dict[str, Tensor]:
    r"""Return the losses of a batch.

    .. math::
        L = w_r \langle -\log \mathrm{ZINB}(x_{cg}; s_c \mu_{cg}, \theta_{cg}, \pi_{cg}) \rangle
            + w_s \frac{1}{K} \sum_k \max_{j \ne k} c_k^\top c_j
            + w_b \Big(1 - \frac{H(\bar{A})}{\log K}\Big)
            + \sum_p w_p \langle -\log q_p(y_{cp}) \rangle

    The first mean is over the counts that are asked for (zeros, and expressed genes that are not
    shown), :math:`\mu` is in counts per 10,000 and :math:`s_c` the counts of the cell over 10,000;
    :math:`\bar{A}` is the mean of the probabilities that the batch drew its codes with.

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

    Returns
    -------
    ``loss``, and the parts that were computed: ``reconstruction`` in nats per count,
    ``separation``, ``balance``, ``property_<name>`` in nats per labelled cell and with it
    ``accuracy_<name>``, the share of the labelled cells that the head is right about.
    """
    encoded = module.encode(batch.values, batch.gene_ids, batch.padding)
    cell, maximum = module.pool(encoded, batch.padding)
    total = cell.sum() * 0.0
    parts: dict[str, Tensor] = {}
    if weights.reconstruction or weights.separation or weights.balance:
        quantised = module.quantize(maximum, temperature=temperature)
        if weights.reconstruction:
            parts["reconstruction"] = hidden_counts(module, batch, encoded, quantised.vector)
            total = total + weights.reconstruction * parts["reconstruction"]
        if weights.separation:
            parts["separation"] = module.quantiser.separation(quantised.codebook)
            total = total + weights.separation * parts["separation"]
        if weights.balance and quantised.probability is not None:
            parts["balance"] = unused_codes(quantised)
            total = total + weights.balance * parts["balance"]
    if any(weights.properties) and bool((batch.labels >= 0).any()):
        logits = module.classify(cell)
        for i, (name, found) in enumerate(logits.items()):
            known = batch.labels[:, i] >= 0
            if not weights.properties[i] or not bool(known.any()):
                continue
            classes = weights.classes[i] if weights.classes else None
            parts[f"property_{name}"] = F.cross_entropy(
                found[known].float(),
                batch.labels[known, i],
                weight=None if classes is None else classes.to(found.device),
            )
            total = total + weights.properties[i] * parts[f"property_{name}"]
            right = found[known].argmax(-1) == batch.labels[known, i]
            parts[f"accuracy_{name}"] = right.float().mean()
    return {"loss": total} | parts


def hidden_counts(module: CellVQModule, batch: Batch, encoded: Tensor, vector: Tensor) -> Tensor:
    """Return how surprising the counts are that were asked for, in nats per count."""
    hidden = batch.padding | batch.alone.unsqueeze(1)
    mean, dispersion, dropout = module.decode(encoded, batch.gene_ids, hidden, vector=vector)
    scale = (batch.total / TARGET_SUM).unsqueeze(1)
    surprise = zinb_nll(batch.counts, mean * scale, dispersion, dropout)
    return torch.where(batch.asked, surprise, 0.0).sum() / batch.asked.sum().clamp(min=1)


def unused_codes(quantised: Quantised) -> Tensor:
    """Return how far a batch is from using all codes alike: 0 if it does, 1 if it uses one."""
    if quantised.probability is None:
        raise ValueError("The nearest codes were taken, so there are no probabilities.")
    used = quantised.probability.mean(0)
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
