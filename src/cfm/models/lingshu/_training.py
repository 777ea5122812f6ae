"""Diffusion training of Lingshu-Cell: held-out cells, batches, ranges of counts, steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cfm._arguments import BELOW_1, NOT_NEGATIVE, PART, Range
from cfm.data._row_order import BLOCK_SIZE
from cfm.models._streams import Drawn, RowStream
from cfm.models._training import Recipe, TrainingPlan
from cfm.models.count_model._module import UNKNOWN, Conditions
from cfm.models.lingshu._counts import OVERFLOW, quantise
from cfm.nn._diffusion import PowerAverage, draw_times

if TYPE_CHECKING:
    from collections.abc import Callable

    from cfm.models.count_model._data import DenseCountReader
    from cfm.models.lingshu._module import LingshuModule

#: Counts that any gene may be given beyond twice the largest that was seen of it.
_MARGIN = 5
#: Cells that are read at a time.
_BLOCK = 512


@dataclass(frozen=True, kw_only=True)
class LingshuRecipe(Recipe):
    """How a Lingshu-Cell is trained: on counts that are hidden from it.

    A random share ``t`` of a cell's genes is hidden and predicted from the rest; the loss is their
    cross-entropy weighted by ``1 / t`` (eq. 2), per measured gene: a bound of the negative log
    likelihood of counts, in nats per gene. Genes that the data do not measure are hidden in any
    case and not judged. AdamW with β = (0.9, 0.95), clipping at 1.0, warm-up over 5 % of the steps
    (1,000 at most) and a cosine. Afterwards the model holds the running average of its weights,
    not the last ones.

    Parameters
    ----------
    count_term
        Start from :meth:`cfm.models.LingshuCell.fit_count_term`, which a model with depths that
        was never trained and has no count term does by default. Without it a model learns from its
        own term, if it has one.
    n_validation
        Held-out cells, spread over all of them, on which each epoch is judged.
    balanced
        Draw cells of a combination of source, perturbation and study with ``n`` cells with a
        weight of one over the root of ``n``.
    condition_dropout
        Probability that a cell is shown without any of its conditions, and that each is withheld,
        so that cells can be generated without them. 0 as published.
    stratified
        Spread the shares ``t`` of a batch evenly; each alone is uniform as before.
    least_time
        Lower bound of ``t``.
    batch_size
        Cells per batch. Published: 256 over all devices.
    lr, last_lr
        Peak and last learning rate. Published: 1e-4 to 2e-4, and 2e-5.
    weight_decay
        Of AdamW, on matrices.
    average_width
        Relative width σ of the power-function average of the weights (Karras et al. 2024); 0.05 as
        published, ``None`` keeps the last weights.
    recompute
        Compute the layers again in the backward pass instead of keeping their activations.
    block_size
        Neighbouring rows that are shuffled together where there are more than 8,192; 1 shuffles
        each row alone, which is slow on disk.
    max_epochs, max_steps, validation_share, checkpoint_every
        As of :class:`cfm.models.base.Recipe`.
    """

    max_epochs: int | None = 100
    max_steps: int | None = 4000
    lr: float = 1e-3
    n_validation: int = 512
    count_term: bool | None = None
    balanced: bool = False
    condition_dropout: Annotated[float, BELOW_1] = 0.1
    stratified: bool = True
    least_time: Annotated[float, PART] = 1e-3
    last_lr: Annotated[float, NOT_NEGATIVE] = 2e-5
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.1
    average_width: Annotated[float | None, Range(0, 0.28, "both")] = 0.05
    recompute: bool = False
    block_size: int = BLOCK_SIZE


def count_ranges(reader: DenseCountReader, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the largest value that each gene may be given, and the library size of each cell.

    Parameters
    ----------
    reader
        Of the training data.
    rows
        Training cells.

    Returns
    -------
    largest
        ``(n_genes,)`` int32 tokens: of twice the largest count, as a cell may be made under
        conditions that none was seen under.
    depth
        ``(len(rows),)`` int64.
    """
    largest = np.zeros(len(reader.measured), dtype=np.int64)
    depth = []
    for start in range(0, len(rows), _BLOCK):
        counts = reader.counts(rows[start : start + _BLOCK])
        largest = np.maximum(largest, counts.max(axis=0))
        depth.append(np.maximum(counts, 0).sum(axis=1))
    limit = np.where(reader.measured, quantise(2 * largest + _MARGIN), OVERFLOW)
    return limit.astype(np.int32), np.concatenate(depth)


def depth_quantiles(
    depth: np.ndarray, source: np.ndarray, n_sources: int, n_ranks: int
) -> np.ndarray:
    """Return library sizes at evenly spaced ranks, ``(1 + n_sources, n_ranks)`` float32.

    Row 0 is of all cells, as is that of a source without cells.
    """
    ranks = np.linspace(0.0, 1.0, n_ranks)
    groups = [depth, *(depth[source == s] for s in range(1, 1 + n_sources))]
    rows = [np.quantile(own if len(own) else depth, ranks) for own in groups]
    return np.stack(rows).astype(np.float32)


class Batch(NamedTuple):
    """What :meth:`LingshuModule.losses` takes."""

    tokens: Tensor
    hidden: Tensor
    time: Tensor
    conditions: Conditions


class CellStream(RowStream):
    """Batches of cells in random order with random genes hidden.

    Parameters
    ----------
    read
        Turns row numbers into ``(b, n_genes)`` tokens and conditions.
    rows, batch_size, seed, **kwargs
        See :class:`cfm.models._streams.RowStream`.
    least_time, stratified
        See :func:`cfm.nn._diffusion.draw_times`.
    condition_dropout
        Probability that all conditions of a cell are withheld, and that each single one is.
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], tuple[Tensor, Conditions]],
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        least_time: float,
        stratified: bool,
        condition_dropout: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(rows, batch_size=batch_size, seed=seed, **kwargs)
        self.read = read
        self.least_time = least_time
        self.stratified = stratified
        self.condition_dropout = condition_dropout

    def batch(self, drawn: Drawn, generator: torch.Generator) -> Batch:
        """Return the batch of some cells."""
        tokens, conditions = self.read(drawn.own)
        n, own = len(drawn.rows), drawn.part
        times = draw_times(n, generator, least=self.least_time, stratified=self.stratified)
        time = times[own]
        draw = torch.rand(n, tokens.shape[1], generator=generator)
        hidden = draw[own] < time.unsqueeze(1)
        if self.condition_dropout:
            draw = torch.rand(n, 4 + conditions.covariates.shape[1], generator=generator)
            conditions = withhold(conditions, draw[own] < self.condition_dropout)
        return Batch(tokens, hidden, time, conditions)


def withhold(conditions: Conditions, drop: Tensor) -> Conditions:
    """Replace conditions by *unknown*.

    Parameters
    ----------
    conditions
        Of ``b`` cells.
    drop
        ``(b, 4 + n_covariates)`` bool: all conditions of a cell, then each alone.
    """
    source, parts, covariates, depth, _ = conditions
    drop = drop[:, 1:] | drop[:, :1]
    unknown = torch.full_like(parts, -1)
    unknown[:, 0] = UNKNOWN
    return conditions._replace(
        source=source.masked_fill(drop[:, 0], UNKNOWN),
        parts=torch.where(drop[:, 1:2], unknown, parts),
        covariates=covariates.masked_fill(drop[:, 3:], UNKNOWN),
        depth=depth.masked_fill(drop[:, 2], torch.nan),
    )


class DiffusionPlan(TrainingPlan):
    """Diffusion loss; warm-up and a cosine to a last rate; running average of weights.

    Validation is of the average, if there is one.

    Parameters
    ----------
    last_lr
        Last learning rate.
    warm_up
        Steps until the peak.
    average_width
        Relative width of the running average; ``None`` for none.
    module, **settings
        See :class:`cfm.models.base.TrainingPlan`.
    """

    uses_all_weights = True
    decays_vectors = False
    betas = (0.9, 0.95)

    def __init__(
        self,
        module: LingshuModule,
        *,
        last_lr: float,
        warm_up: int,
        average_width: float | None,
        **settings: Any,
    ) -> None:
        super().__init__(module, **settings)
        self.last_lr = min(last_lr, self.lr)
        self.warm_up = warm_up
        self.average = None if average_width is None else PowerAverage(module, average_width)
        self._shows_average = False

    def rate(self, step: int) -> float:
        """Return the learning rate of a step as a share of the peak."""
        if step < self.warm_up:
            return (step + 1) / self.warm_up
        done = (step - self.warm_up) / max(1, self.n_steps - self.warm_up)
        last = self.last_lr / self.lr
        return last + (1.0 - last) * 0.5 * (1.0 + math.cos(math.pi * min(done, 1.0)))

    def own_state(self) -> dict[str, Any]:
        """Return the average of the weights."""
        return {} if self.average is None else {"average": self.average.state_dict()}

    def load_own_state(self, state: dict[str, Any]) -> None:
        """Restore :meth:`own_state`."""
        if self.average is not None:
            self.average.load_state_dict(state["average"])

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Add the new weights to the average, once per optimiser step."""
        if self.average is not None and self.global_step > self.average.n_steps:
            self.average.update()
        super().on_train_batch_end(outputs, batch, batch_idx)

    def on_validation_epoch_start(self) -> None:
        """Validate the average."""
        self.show_average(True)

    def on_validation_epoch_end(self) -> None:
        """Put the trained weights back."""
        super().on_validation_epoch_end()
        self.show_average(False)

    def show_average(self, wanted: bool) -> None:
        """Swap the average in for the weights, or out again, if a step was taken."""
        if self.average is not None and self.average.n_steps and wanted != self._shows_average:
            self.average.swap()
            self._shows_average = wanted
