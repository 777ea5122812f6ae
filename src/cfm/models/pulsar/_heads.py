"""Heads on the donor embedding: classes or values, with some layers frozen."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import torch
from scvi import REGISTRY_KEYS
from torch import Tensor, nn
from torch.nn import functional as F

from cfm._arguments import BELOW_1, check_whole, checks_arguments
from cfm.models._training import TrainingRun, held_out_studies
from cfm.models.pulsar._core import constant_within
from cfm.models.pulsar._donors import Donors
from cfm.models.pulsar._plan import StepPlan, TensorStream
from cfm.models.pulsar._pretrain import Trainable
from cfm.models.pulsar._stream import DonorStream
from cfm.nn._distributed import means_over_processes

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from cfm.models._streams import SeededStream

Task = Literal["classification", "regression"]


class HeadLearner(Trainable):
    """A PULSAR that learns to answer for donors."""

    @checks_arguments(validation_share=BELOW_1)
    def train_head(
        self,
        target: str,
        task: Task = "classification",
        *,
        frozen_layers: int | Literal["all"] = "all",
        max_epochs: int = 50,
        n_cells: int = 1024,
        n_draws: int = 4,
        validation_share: float = 0.1,
        batch_size: int = 16,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        accelerator: str = "auto",
        devices: int | str = 1,
        num_nodes: int = 1,
        strategy: str = "auto",
        precision: str = "auto",
        checkpoint_dir: str | Path | None = None,
        checkpoint_every: int = 500,
        enable_progress_bar: bool | None = None,
        seed: int = 0,
        **trainer_kwargs: Any,
    ) -> None:
        """Learn to answer for donors of the registered data; :meth:`predict` then does.

        To know how well it answers use :func:`cfm.tl.probe` on embedded donors, which judges
        donors that were not learned from, beside simpler heads.

        Parameters
        ----------
        target
            Column of ``obs``, constant within a donor; donors without a value are left out.
        task
            ``"classification"`` (cross-entropy, classes weigh the same) or ``"regression"`` (mean
            squared error).
        frozen_layers
            ``"all"`` learns the head alone. A number also learns the encoder but for so many of
            its first layers; with at least one, the input network is frozen, too.
        max_epochs
            Passes over the donors.
        n_cells
            Cells of a draw; donors with fewer are taken whole.
        n_draws
            Draws of each donor that a head alone learns from; with unfrozen layers cells are
            drawn anew every epoch.
        validation_share
            Share of the studies, without ``study_key`` of the donors, that is held out.
        batch_size, lr, weight_decay, accelerator, devices, num_nodes, strategy, precision
            As for :meth:`train`.
        checkpoint_dir
            Folder in which the state of the training is kept, so that the same call goes on where
            it was after a kill, to the same weights; see the guide on training.
        checkpoint_every
            Optimiser steps between two states.
        enable_progress_bar
            By default as ``scvi.settings.verbosity`` says.
        seed
            Seed of the whole run.
        **trainer_kwargs
            For :class:`scvi.train.Trainer`.

        Raises
        ------
        KeyError
            If there is no such column.
        ValueError
            If the model has no data, the target varies within a donor or does not fit the task, a
            class has one donor only, or a number is out of its range.
        KeyboardInterrupt
            If training is interrupted. The model then keeps what it has learned.
        """
        run = TrainingRun(locals())
        n_frozen = self._n_frozen(frozen_layers)
        donors = self._own_donors()
        values, outputs, scale = _targets(constant_within(self.adata, donors, target), task, target)
        chosen = np.flatnonzero(~np.isnan(values))
        studies = self._of_donors(REGISTRY_KEYS.BATCH_KEY, donors)
        groups = studies if (studies != "").any() else donors.names.to_numpy(dtype=object)
        held_out = np.isin(groups, held_out_studies(groups[chosen], validation_share, seed))
        sides = [chosen[~held_out[chosen]], chosen[held_out[chosen]]]
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.module.set_head(len(outputs))
        self.head = {"task": task, "outputs": outputs}
        inputs = torch.zeros(self.size.dim), torch.ones(self.size.dim)
        if n_frozen is None:
            streams, inputs = self._embedded(
                donors, values, sides, n_cells, n_draws, batch_size, seed, run.n_processes
            )
            embed: Callable[[Any], Tensor] = _first
        else:
            streams = _drawn(donors, sides, n_cells, batch_size, seed, run.n_processes)
            embed = self._encoded
        answers = torch.from_numpy(values.astype(np.float32))
        loss = _loss(task, values[sides[0]], len(outputs))

        def losses(batch: Any) -> dict[str, Tensor]:
            made = self.module.apply_head(embed(batch)).float()
            return {"loss": loss(made, answers[batch[-1].cpu()].to(made.device))}

        n_steps = run.count_steps(streams[0].n_batches, default_epochs=max_epochs)
        plan = StepPlan(self.module, losses, lr=lr, weight_decay=weight_decay, n_steps=n_steps)
        try:
            with _frozen(self.module, n_frozen):
                run.fit(plan, streams[0], streams[1] if len(sides[1]) else None)
        finally:  # also what an interrupted head has learned is in standard units
            self._rescale(inputs, *scale)
        self._trained(studies[chosen], training_seed=seed, target=target, n_donors=len(sides[0]))
        run.raise_if_interrupted()

    def _n_frozen(self, frozen_layers: int | str) -> int | None:
        """Return how many layers are frozen, ``None`` for everything but the head."""
        n_layers = self.size.encoder_layers
        if frozen_layers == "all":
            return None
        return check_whole("frozen_layers", frozen_layers, 0, n_layers)

    def _embedded(
        self,
        donors: Donors,
        values: np.ndarray,
        sides: list[np.ndarray],
        n_cells: int,
        n_draws: int,
        batch_size: int,
        seed: int,
        n_processes: int,
    ) -> tuple[Sequence[SeededStream], tuple[Tensor, Tensor]]:
        """Return batches of standardised donor embeddings and donors, and their means and spreads.

        What donors have in common is most of an embedding, and would hide how they differ.
        """
        draws = [d for d in donors.draws(n_cells, n_draws, seed) if not np.isnan(values[d[0]])]
        whose = np.array([donor for donor, _ in draws], dtype=np.int64)
        embedded = self.embed_draws(donors, [rows for _, rows in draws], 16, "auto")
        learned = embedded[np.isin(whose, sides[0])]
        mean, spread = learned.mean(axis=0), learned.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        embedded = (embedded - mean) / spread
        streams = []
        for k, side in enumerate(sides):
            rows = np.isin(whose, side)
            data = torch.from_numpy(embedded[rows]), torch.from_numpy(whose[rows])
            streams.append(
                TensorStream(
                    *data,
                    batch_size=batch_size,
                    seed=seed,
                    fixed=bool(k),
                    n_processes=n_processes,
                )
            )
        return streams, (torch.from_numpy(mean), torch.from_numpy(spread))

    def _encoded(self, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """Embed a batch of cells, with gradients."""
        return self.module.encode(batch[0], batch[1])[:, 0]

    @torch.no_grad()
    def _rescale(self, inputs: tuple[Tensor, Tensor], mean: float, spread: float) -> None:
        """Make the head read embeddings as they are, and answer in the units of the target."""
        assert self.module.head is not None
        first, last = self.module.head[0], self.module.head[-1]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        middle, width = (t.to(first.weight.device) for t in inputs)
        first.weight.div_(width)
        first.bias.sub_(first.weight @ middle)
        last.weight.mul_(spread)
        last.bias.mul_(spread).add_(mean)


def _first(batch: Any) -> Tensor:
    found: Tensor = batch[0]
    return found


def _drawn(
    donors: Donors,
    sides: list[np.ndarray],
    n_cells: int,
    batch_size: int,
    seed: int,
    n_processes: int,
) -> Sequence[SeededStream]:
    """Return batches of cells, padding and numbers of the donors."""
    return [
        DonorStream(
            donors,
            side,
            batch_size=batch_size,
            n_cells=n_cells,
            seed=seed + k,
            fixed=bool(k),
            n_processes=n_processes,
        )
        for k, side in enumerate(sides)
    ]


def _targets(
    column: np.ndarray, task: Task, name: str
) -> tuple[np.ndarray, list[str], tuple[float, float]]:
    """Return what to learn for each donor (``NaN`` = nothing), names of outputs, and units."""
    missing = pd.isna(column)
    values = np.full(len(column), np.nan)
    if task == "regression":
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
        scale = float(found.mean()), float(found.std())
        values[~missing] = (found - scale[0]) / scale[1]
        return values, [name], scale
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
    values[~missing] = numbers
    return values, [str(c) for c in classes], (0.0, 1.0)


def _loss(task: Task, learned: np.ndarray, n_outputs: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the loss; classes weigh the same however many donors they have."""
    if task == "regression":

        def squared(made: Tensor, answer: Tensor) -> Tensor:
            total = F.mse_loss(made.squeeze(-1), answer, reduction="sum")
            return means_over_processes((total, len(answer)))[0]

        return squared
    times = np.bincount(learned.astype(np.int64), minlength=n_outputs)
    by_class = torch.from_numpy(len(learned) / (n_outputs * np.maximum(times, 1))).float()

    def surprise(made: Tensor, answer: Tensor) -> Tensor:
        weight, label = by_class.to(made.device), answer.long()
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
