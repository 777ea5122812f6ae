"""Batches for training: rows in random order, and what Lightning is handed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

if TYPE_CHECKING:
    from collections.abc import Iterator


class RowStream(IterableDataset[Any]):
    """Batches of row numbers in random order; a stream of batches adds ``__iter__``.

    Parameters
    ----------
    rows
        Row numbers to draw from, each once an epoch.
    batch_size
        Rows per batch.
    seed
        Seed; epoch ``i`` of a seed is always the same. Processes that train together draw
        different orders.
    fixed
        Keep order and random numbers from epoch to epoch, for validation.
    weights
        ``(len(rows),)``, how often a row is drawn (with replacement) instead of once an epoch.
    """

    def __init__(
        self,
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        fixed: bool = False,
        weights: np.ndarray | None = None,
    ) -> None:
        self.rows = rows
        self.batch_size = batch_size
        self.seed = seed
        self.fixed = fixed
        self.share = None if weights is None else weights / weights.sum()
        self.epoch = 0

    @property
    def n_batches(self) -> int:
        """Batches of an epoch."""
        return -(-len(self.rows) // self.batch_size)

    def drawn_rows(self) -> Iterator[tuple[np.ndarray, torch.Generator]]:
        """Yield the rows of each batch of an epoch, and where its random numbers come from."""
        rng, generator = epoch_numbers(self.seed, self.epoch)
        if self.fixed:
            order = self.rows
        elif self.share is not None:
            order = rng.choice(self.rows, size=len(self.rows), p=self.share)
        else:
            order = rng.permutation(self.rows)
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size], generator
        self.epoch += not self.fixed


class StreamModule(pl.LightningDataModule):
    """Training and validation batches; both come as whole batches.

    Parameters
    ----------
    training, checks
        Datasets of batches; ``None`` or an empty list for no validation.
    """

    def __init__(self, training: IterableDataset[Any], checks: Any) -> None:
        super().__init__()
        self.training = training
        self.checks = checks

    def train_dataloader(self) -> DataLoader[Any]:
        """Batches to learn from."""
        return DataLoader(self.training, batch_size=None)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Batches to judge by."""
        nothing = self.checks is None or (isinstance(self.checks, list) and not self.checks)
        return [] if nothing else DataLoader(self.checks, batch_size=None)


def epoch_numbers(seed: int, epoch: int) -> tuple[np.random.Generator, torch.Generator]:
    """Return the random numbers of an epoch, others for each process that trains along."""
    rank = 0
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        rank = torch.distributed.get_rank()
    rng = np.random.default_rng([seed, epoch, *([rank] if rank else [])])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))
