"""Heads on the donor embedding: classes or values, with some layers frozen."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._arguments import NOT_NEGATIVE
from cfm.models._training import Recipe, Training, TrainingPlan, held_out_rows
from cfm.models.pulsar._data import DonorStream
from cfm.models.pulsar._training import TensorStream
from cfm.nn._distributed import means_over_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cfm.models._streams import SeededStream
    from cfm.models._training import TrainingRun
    from cfm.models.pulsar._data import Donors
    from cfm.models.pulsar._module import PulsarModule

Task = Literal["classification", "regression"]


@dataclass(frozen=True, kw_only=True)
class HeadRecipe(Recipe):
    """How a head of a PULSAR is trained, beside its target.

    Parameters
    ----------
    target, task
        Arguments of :meth:`cfm.models.Pulsar.train_head`.
    frozen_layers
        ``"all"`` learns the head alone. A number also learns the encoder but for so many of its
        first layers; with at least one, the input network is frozen, too.
    n_cells
        Cells of a draw; donors with fewer are taken whole.
    n_draws
        Draws of each donor that a head alone learns from; with unfrozen layers cells are drawn
        anew every epoch.
    max_epochs, max_steps, batch_size, lr, weight_decay, validation_share, checkpoint_every
        As of :class:`PulsarRecipe`.
    """

    max_epochs: int | None = 50
    batch_size: int = 16
    target: str | list[str] = ""
    task: Task = "classification"
    frozen_layers: int | Literal["all"] = "all"
    n_cells: int = 1024
    n_draws: int = 4
    weight_decay: Annotated[float, NOT_NEGATIVE] = 0.01


class Targets(NamedTuple):
    """Targets of a head.

    Attributes
    ----------
    task
        ``"classification"`` or ``"regression"``.
    values
        ``(n_donors, 1)`` float64, the number of the class, or ``(n_donors, n_outputs)`` values in
        standard units; ``NaN`` where there is none.
    outputs
        Names of the outputs: the classes, or the columns.
    mean, spread
        Units of the values, one or ``(n_outputs,)``.
    """

    task: Task
    values: np.ndarray
    outputs: list[str]
    mean: np.ndarray
    spread: np.ndarray

    @property
    def known(self) -> np.ndarray:
        """``(n_donors,)`` bool: at least one value is known."""
        return (~np.isnan(self.values)).any(axis=1)


def read_targets(columns: dict[str, np.ndarray], task: Task) -> Targets:
    """Return the targets of each donor.

    Parameters
    ----------
    columns
        By the name of a column of ``obs``, ``(n_donors,)`` object, its value for each donor.
    task
        ``"classification"`` (of one column) or ``"regression"``.

    Raises
    ------
    ValueError
        If values do not fit the task, or there are too few of them or of a class.
    """
    if task == "regression":
        every = np.stack([_numbers(c, name) for name, c in columns.items()], axis=1)
        mean, spread = np.nanmean(every, axis=0), np.nanstd(every, axis=0)
        return Targets(task, (every - mean) / spread, list(columns), mean, spread)
    if len(columns) > 1:
        raise ValueError(f"target names {len(columns)} columns; a classification takes one.")
    ((name, column),) = columns.items()
    missing = pd.isna(column)
    values = np.full((len(column), 1), np.nan)
    classes, numbers, times = np.unique(
        column[~missing].astype(str), return_inverse=True, return_counts=True
    )
    if len(classes) < 2:
        raise ValueError(
            f"adata.obs[{name!r}] has the class {classes.tolist()} only; at least two are expected."
        )
    if times.min() < 2:
        rare = [str(c) for c, n in zip(classes, times, strict=True) if n < 2]
        raise ValueError(
            f"adata.obs[{name!r}] has the class {rare[0]!r} in one donor only; at least two donors "
            "of each class are expected: leave it out by setting it to NaN, or merge classes."
        )
    values[~missing, 0] = numbers
    return Targets(task, values, [str(c) for c in classes], np.zeros(1), np.ones(1))


def _numbers(column: np.ndarray, name: str) -> np.ndarray:
    """Return a column as float64, ``NaN`` where it is missing."""
    missing = pd.isna(column)
    try:
        found = column[~missing].astype(np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"adata.obs[{name!r}] holds text ({error}); numbers are expected for a "
            "regression: pass task='classification' for classes."
        ) from error
    if len(found) < 2 or np.ptp(found) == 0 or not np.isfinite(found).all():
        raise ValueError(
            f"adata.obs[{name!r}] has {len(set(found))} different finite values among "
            f"{len(column)} donors; at least two are expected."
        )
    values = np.full(len(column), np.nan)
    values[~missing] = found
    return values


@contextmanager
def fit_head(
    module: PulsarModule,
    run: TrainingRun,
    donors: Donors,
    targets: Targets,
    studies: np.ndarray,
    *,
    n_frozen: int | None,
    embed: Callable[[list[np.ndarray]], np.ndarray],
) -> Iterator[Training]:
    """Train a new head on donor embeddings; see :meth:`cfm.models.Pulsar.train_head`.

    Parameters
    ----------
    module
        The network, with a new head.
    run
        The training.
    donors
        Their cells.
    targets
        What to learn.
    studies
        ``(n_donors,)`` object, ``""`` where there is none.
    n_frozen
        First layers of the encoder that are frozen; ``None`` for everything but the head.
    embed
        Takes rows of draws to their embeddings ``(n_draws, dim)``, for a head alone.
    """
    recipe: HeadRecipe = run.recipe
    chosen, seed = np.flatnonzero(targets.known), run.seed
    names = donors.names[chosen].to_numpy()
    held_out = held_out_rows(studies[chosen], recipe.validation_share, seed, names)
    sides = chosen[~held_out], chosen[held_out]
    layout: dict[str, Any] = run.layout
    mean, spread = torch.zeros(module.size.dim), torch.ones(module.size.dim)
    streams: Sequence[SeededStream]
    if n_frozen is None:
        draws = [
            (donor, rows)
            for donor, rows in donors.draws(recipe.n_cells, recipe.n_draws, seed)
            if targets.known[donor]
        ]
        whose = np.array([donor for donor, _ in draws], dtype=np.int64)
        embedded = embed([rows for _, rows in draws])
        # What donors have in common is most of an embedding, and would hide how they differ.
        learned = embedded[np.isin(whose, sides[0])]
        mean, spread = torch.from_numpy(learned.mean(axis=0)), torch.from_numpy(learned.std(axis=0))
        spread[spread == 0] = 1.0
        inputs = (torch.from_numpy(embedded) - mean) / spread
        rows_of = [torch.from_numpy(np.flatnonzero(np.isin(whose, side))) for side in sides]
        streams = [
            TensorStream(
                inputs[rows], torch.from_numpy(whose)[rows], seed=seed, fixed=bool(k), **layout
            )
            for k, rows in enumerate(rows_of)
        ]
    else:
        streams = [
            DonorStream(
                donors, side, n_cells=recipe.n_cells, seed=seed + k, fixed=bool(k), **layout
            )
            for k, side in enumerate(sides)
        ]
    answers = torch.from_numpy(targets.values.astype(np.float32))
    loss = head_loss(targets.task, targets.values[sides[0]], len(targets.outputs))

    def losses(batch: Any) -> dict[str, Tensor]:
        """Take donor embeddings, or cells and padding, and last the numbers of the donors."""
        embedding = batch[0] if n_frozen is None else module.encode(batch[0], batch[1])[:, 0]
        made = module.apply_head(embedding).float()
        return {"loss": loss(made, answers[batch[-1].cpu()].to(made.device))}

    n_steps = run.count_steps(streams[0].n_batches)
    plan = TrainingPlan(module, losses, **run.schedule)
    try:
        with _frozen(module, n_frozen):
            yield Training(plan, streams[0], streams[1] if len(sides[1]) else None)
    finally:  # also an interrupted head answers in the units of the target
        assert module.head is not None
        _rescale(module.head, mean, spread, targets)
    run.facts |= {"target": recipe.target, "max_steps": n_steps, "n_donors": len(sides[0])}


def check_head(head: Any) -> None:
    """Check the setting of a checkpoint with task and outputs of a head.

    Raises
    ------
    TypeError, LookupError, ValueError
        If it does not.
    """
    task, outputs = head["task"], head["outputs"]
    if (
        task not in ("classification", "regression")
        or not isinstance(outputs, list)
        or not outputs
        or not all(isinstance(name, str) for name in outputs)
    ):
        raise ValueError(f"found the head {str(head)[:200]}")


@torch.no_grad()
def head_answers(module: PulsarModule, embedding: np.ndarray, task: Task) -> np.ndarray:
    """Return the answers of the head for donor embeddings ``(b, dim)``: probabilities or values."""
    out = module.apply_head(torch.from_numpy(embedding).to(module.cls_embedding.device))
    if task == "classification":
        out = out.sigmoid() if out.shape[1] == 1 else out.softmax(dim=1)
    return out.cpu().numpy()


def head_loss(
    task: Task, learned: np.ndarray, n_outputs: int
) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss of outputs and answers; classes weigh the same whatever their size."""
    if task == "regression":

        def squared(made: Tensor, answer: Tensor) -> Tensor:
            known = ~answer.isnan()
            total = F.mse_loss(made[known], answer[known], reduction="sum")
            return means_over_processes((total, known.sum()))[0]

        return squared
    times = np.bincount(learned[:, 0].astype(np.int64), minlength=n_outputs)
    by_class = torch.from_numpy(len(learned) / (n_outputs * np.maximum(times, 1))).float()

    def surprise(made: Tensor, answer: Tensor) -> Tensor:
        weight, label = by_class.to(made.device), answer[:, 0].long()
        total = F.cross_entropy(made, label, weight=weight, reduction="sum")
        return means_over_processes((total, weight[label].sum()))[0]

    return surprise


@contextmanager
def _frozen(module: nn.Module, n_frozen: int | None) -> Iterator[None]:
    """Let only the head learn, or it and the encoder but for its first layers."""
    before = {name: p.requires_grad for name, p in module.named_parameters()}
    for name, parameter in module.named_parameters():
        parts = name.split(".")
        learns = parts[0] == "head"
        if n_frozen is not None:
            learns |= parts[0] == "encoder" and int(parts[1]) >= n_frozen
            learns |= n_frozen == 0 and parts[0] in ("in_proj", "cls_embedding")
        parameter.requires_grad_(learns)
    try:
        yield
    finally:
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(before[name])


@torch.no_grad()
def _rescale(head: nn.Sequential, mean: Tensor, spread: Tensor, targets: Targets) -> None:
    """Make a head read embeddings as they are, and answer in the units of the target."""
    first, last = head[0], head[-1]
    assert isinstance(first, nn.Linear)
    assert isinstance(last, nn.Linear)
    first.weight.div_(spread.to(first.weight.device))
    first.bias.sub_(first.weight @ mean.to(first.weight.device))
    units = torch.from_numpy(np.stack([targets.spread, targets.mean])).to(last.weight)
    last.weight.mul_(units[0, :, None])
    last.bias.mul_(units[0]).add_(units[1])
