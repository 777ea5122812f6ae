"""Training of a compound head on signatures."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import torch
from scvi import settings
from scvi.utils import track

if TYPE_CHECKING:
    from torch import Tensor

    from cfm.models.bulkformer._compound_head import CompoundHead
    from cfm.models.bulkformer._compound_signatures import Signatures

#: Least number of held-out compounds that shrinkage is fitted to.
MIN_HELD_OUT = 3
#: Learning rate of what every gene has of its own, relative to the networks'.
_OWN_RATE = 0.1


def split_compounds(names: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Choose compounds to hold out, ``(n,)`` bool over signatures: all of a compound or none."""
    unique = sorted(set(names))
    n = round(share * len(unique))
    if n < MIN_HELD_OUT or len(unique) - n < MIN_HELD_OUT:
        return np.zeros(len(names), dtype=bool)
    return np.isin(names, np.random.default_rng(seed).permutation(unique)[:n])


def fit_head(
    head: CompoundHead,
    embedded: Tensor,
    signatures: Signatures,
    *,
    sample: np.ndarray,
    compound: np.ndarray,
    held_out: np.ndarray,
    n_steps: int,
    batch_size: int,
    lr: float,
    weight_decay: float,
    unlisted_weight: float,
    seed: int,
) -> dict[str, float]:
    """Train a head, then the shrinkage of what it says beyond the mean, then the mean of all.

    Parameters
    ----------
    head
        Changed in place.
    embedded
        ``(samples, g, dim)`` embeddings of the signatures' genes in the baseline samples.
    signatures
        What to learn.
    sample, compound
        ``(n,)`` int64, of each signature the number of its sample and of its compound.
    held_out
        ``(n,)`` bool, signatures of compounds that are held out.
    n_steps, batch_size, lr, weight_decay
        Of AdamW.
    unlisted_weight
        Weight of a 0 in directions; of sizes every known value counts 1.
    seed
        Of initial weights, order and dropout.

    Returns
    -------
    ``shrinkage``, and if compounds were held out ``validation_correlation`` and
    ``validation_centred_correlation``: means over them of Pearson's r between signature and
    prediction, and of the same after the mean of the training compounds is taken off both.
    """
    values = torch.from_numpy(np.nan_to_num(signatures.values)).to(embedded.device)
    weight = torch.from_numpy((~np.isnan(signatures.values)).astype(np.float32))
    weight = weight.to(embedded.device)
    if signatures.signed:
        weight = torch.where(values != 0, weight, weight * unlisted_weight)
    train = np.flatnonzero(~held_out)
    mean = _mean(weight[train], values[train])
    head.start_from(mean, torch.where(weight[train] > 0, values[train] - mean, 0.0))
    own = [head.gene_factors]
    networks = [p for p in head.parameters() if p is not head.gene_factors]
    optimizer = torch.optim.AdamW(
        [
            {"params": networks, "lr": lr, "weight_decay": weight_decay},
            {"params": own, "lr": lr * _OWN_RATE, "weight_decay": 0.0},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 - step / n_steps)
    rng = np.random.default_rng(seed)
    head.train()
    for _ in track(
        range(n_steps),
        description="Learning compounds",
        style="tqdm",
        disable=settings.verbosity > logging.INFO,
    ):
        # A batch has one baseline sample, so that its genes are looked at once.
        of_sample = train[sample[train] == sample[rng.choice(train)]]
        rows = rng.choice(of_sample, min(batch_size, len(of_sample)), replace=False)
        described = head.describe(torch.from_numpy(compound[rows]).to(embedded.device))
        made = head(embedded[sample[rows[0]]], described)
        loss = (weight[rows] * (made - values[rows]).square()).sum()
        loss = loss / weight[rows].sum().clamp(min=1e-9)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    head.eval()
    scores = _shrink(head, embedded, values, weight, sample, compound, np.flatnonzero(held_out))
    # What was held out has served to judge; the mean may know it now.
    head.mean.copy_(_mean(weight, values))
    return scores


def _mean(weight: Tensor, values: Tensor) -> Tensor:
    """Return the weighted mean of each column."""
    return (weight * values).sum(0) / weight.sum(0).clamp(min=1e-9)


@torch.inference_mode()
def _shrink(
    head: CompoundHead,
    embedded: Tensor,
    values: Tensor,
    weight: Tensor,
    sample: np.ndarray,
    compound: np.ndarray,
    rows: np.ndarray,
) -> dict[str, float]:
    """Fit the shrinkage by least squares on held-out signatures, between 0 and 1.

    A standard error over signatures is taken off, as what helps some by chance is not learned.
    """
    if not len(rows):
        return {"shrinkage": 1.0}
    across, within = [], []
    whole, centred = [], []
    for row in rows:
        described = head.describe(torch.tensor([compound[row]], device=embedded.device))
        deviation = head.deviation(embedded[sample[row]], described)[0]
        left = values[row] - head.mean
        across.append(float((weight[row] * deviation * left).sum()))
        within.append(float((weight[row] * deviation.square()).sum()))
        known = weight[row] > 0
        whole.append((values[row][known], head.mean[known], deviation[known]))
        centred.append(_correlation(left[known], deviation[known]))
    certain = np.mean(across) - np.std(across, ddof=1) / np.sqrt(len(rows))
    shrinkage = float(np.clip(certain / max(np.mean(within), 1e-12), 0.0, 1.0))
    head.shrinkage.fill_(shrinkage)
    plain = [_correlation(y, mean + shrinkage * d) for y, mean, d in whole]
    return {
        "shrinkage": shrinkage,
        "validation_correlation": float(np.mean(plain)),
        "validation_centred_correlation": float(np.mean(centred)),
    }


def _correlation(x: Tensor, y: Tensor) -> float:
    x, y = x - x.mean(), y - y.mean()
    length = float(x.norm() * y.norm())
    return float(x @ y) / length if length > 1e-12 else 0.0
