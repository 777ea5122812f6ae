"""Batches of donors for training: draws of cells, what of them is seen, and padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cfm.models._streams import SeededStream
from cfm.models.pulsar._objectives import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.models.pulsar._donors import Donors


class DonorStream(SeededStream):
    """Batches of donors in random order, each donor once an epoch.

    Parameters
    ----------
    donors
        Their cells.
    chosen
        ``(n,)`` numbers of the donors to go through.
    batch_size
        Donors per batch.
    n_cells
        Cells of a draw.
    seed
        Seed; epoch ``i`` of a seed is always the same.
    fixed
        Keep order and draws from epoch to epoch, for validation.
    """

    def __init__(
        self,
        donors: Donors,
        chosen: np.ndarray,
        *,
        batch_size: int,
        n_cells: int,
        seed: int,
        fixed: bool = False,
    ) -> None:
        super().__init__(seed=seed, fixed=fixed)
        self.donors = donors
        self.chosen = chosen
        self.batch_size = batch_size
        self.n_cells = n_cells

    @property
    def n_batches(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.chosen) // self.batch_size)

    def __len__(self) -> int:
        return self.n_batches

    def numbers(self) -> tuple[np.random.Generator, torch.Generator]:
        """Return the random numbers of the present epoch."""
        return np.random.default_rng([self.seed, self.epoch]), torch.Generator()

    def begin(self, rng: np.random.Generator) -> np.ndarray:
        """Return the donors of an epoch in order."""
        return self.chosen if self.fixed else rng.permutation(self.chosen)

    def make(
        self, content: Any, number: int, rng: np.random.Generator, generator: torch.Generator
    ) -> Any:
        """Return a batch of an epoch."""
        start = number * self.batch_size
        return self.batch(content[start : start + self.batch_size], rng)

    def batch(self, chosen: np.ndarray, rng: np.random.Generator) -> Any:
        """Make a batch: ``(cells, padding, numbers of the donors)``, one draw of each."""
        draws = []
        for i in chosen:
            rows = self.donors.rows[i]
            draws.append(rng.choice(rows, size=min(self.n_cells, len(rows)), replace=False))
        return *self._padded(draws), torch.from_numpy(chosen.astype(np.int64))

    def _padded(self, draws: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return cells ``(b, n, width)`` and padding ``(b, n)`` of draws of any sizes."""
        longest = max(1, *(len(draw) for draw in draws))
        cells = np.zeros((len(draws), longest, self.donors.cells.shape[1]), dtype=np.float32)
        padding = np.ones((len(draws), longest), dtype=bool)
        for i, draw in enumerate(draws):
            cells[i, : len(draw)] = self.donors.cells[draw]
            padding[i, : len(draw)] = False
        return torch.from_numpy(cells), torch.from_numpy(padding)


class PretrainingStream(DonorStream):
    """Two draws of each donor, of which the encoder sees some cells.

    Parameters
    ----------
    *args, **kwargs
        As for :class:`DonorStream`.
    labels
        ``(n_donors,)`` int64, −1 without a label.
    keep_share
        Share of a draw's cells that the encoder sees, at least one.
    mask_share
        Share of the elements of the other cells that is hidden.
    """

    def __init__(
        self, *args: Any, labels: np.ndarray, keep_share: float, mask_share: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.labels = labels
        self.keep_share = keep_share
        self.mask_share = mask_share

    def batch(self, chosen: np.ndarray, rng: np.random.Generator) -> Batch:
        """Make a batch of two draws, which share no cells if the donor has more than one."""
        visible: list[list[np.ndarray]] = [[], []]
        hidden: list[list[np.ndarray]] = [[], []]
        for i in chosen:
            rows = rng.permutation(self.donors.rows[i])
            half = max(1, len(rows) // 2)
            for k, part in enumerate((rows[:half], rows[half:] if len(rows) > 1 else rows)):
                draw = part[: self.n_cells]
                n_seen = max(1, round(self.keep_share * len(draw)))
                visible[k].append(draw[:n_seen])
                hidden[k].append(draw[n_seen:])
        seen, seen_padding = self._padded(visible[0] + visible[1])
        unseen, unseen_padding = self._padded(hidden[0] + hidden[1])
        masked = rng.random(unseen.shape, dtype=np.float32) < self.mask_share
        donor = np.tile(chosen, 2).astype(np.int64)
        return Batch(
            seen,
            seen_padding,
            unseen,
            unseen_padding,
            torch.from_numpy(masked),
            torch.from_numpy(donor),
            torch.from_numpy(self.labels[donor]),
        )
