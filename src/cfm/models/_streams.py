"""Batches for training: in random order, from a seed, and resumable."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset

from cfm.data._row_order import BLOCK_SIZE, shuffled_rows
from cfm.nn._distributed import offset_seed_by_rank, process_number

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence


class SeededStream(IterableDataset[Any]):
    """Epochs of batches that follow from a seed.

    All processes that train together go through the same batches with the same random numbers,
    and each makes its part of them: ``k`` processes with batches of ``n`` see what one process
    sees with batches of ``k * n``.

    Parameters
    ----------
    seed
        Seed; epoch ``i`` of a seed is always the same.
    fixed
        Keep order and random numbers from epoch to epoch, for validation.

    Attributes
    ----------
    epoch
        Finished epochs.
    n_done
        Batches of the current epoch that were yielded.
    """

    def __init__(self, *, seed: int, fixed: bool = False) -> None:
        self.seed = seed
        self.fixed = fixed
        self.epoch = 0
        self.n_done = 0
        self._numbers: tuple[np.random.Generator, torch.Generator] | None = None
        self._restored: dict[str, Any] | None = None

    @property
    @abstractmethod
    def n_batches(self) -> int:
        """Batches of an epoch."""

    def numbers(self) -> tuple[np.random.Generator, torch.Generator]:
        """Return the random numbers of the present epoch, the same in all processes."""
        return epoch_numbers(self.seed, self.epoch)

    def begin(self, rng: np.random.Generator) -> Any:
        """Return the content of the epoch, from its first random numbers."""
        return None

    @abstractmethod
    def make(
        self, content: Any, number: int, rng: np.random.Generator, generator: torch.Generator
    ) -> Any:
        """Return batch ``number`` of what :meth:`begin` returned: the part of this process."""

    def __iter__(self) -> Iterator[Any]:
        rng, generator = self.numbers()
        content = self.begin(rng)
        if self._restored is not None:
            rng.bit_generator.state = self._restored["rng"]
            generator.set_state(self._restored["generator"])
            self._restored = None
        else:
            self.n_done = 0
        self._numbers = rng, generator
        for number in range(self.n_done, self.n_batches):
            batch = self.make(content, number, rng, generator)
            # before the yield: after the last batch the loader does not call again
            self.n_done = number + 1
            if self.n_done == self.n_batches:
                self.epoch += not self.fixed
                self.n_done = 0
                self._numbers = None
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return epoch, batches done, and random states."""
        if self._numbers is None:
            return {"epoch": self.epoch, "n_done": 0}
        rng, generator = self._numbers
        return {
            "epoch": self.epoch,
            "n_done": self.n_done,
            "rng": rng.bit_generator.state,
            "generator": generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume there with the next epoch."""
        self.epoch = state["epoch"]
        self.n_done = state["n_done"]
        self._restored = state if self.n_done else None


class Drawn(NamedTuple):
    """Rows of a batch.

    Attributes
    ----------
    rows
        ``(n,)`` rows of the whole batch, over all processes; random numbers are drawn for them.
    part
        Those of this process, which it reads.
    """

    rows: np.ndarray
    part: slice

    @property
    def own(self) -> np.ndarray:
        """Rows of this process."""
        return self.rows[self.part]


class RowStream(SeededStream):
    """Batches of row numbers in random order; a stream of batches adds :meth:`batch`.

    Parameters
    ----------
    rows
        Row numbers to draw from, each once an epoch.
    batch_size
        Rows per batch and process.
    seed, fixed
        See :class:`SeededStream`.
    weights
        ``(len(rows),)``, how often a row is drawn (with replacement) instead of once an epoch.
    block_size
        Neighbouring rows that are shuffled together; 1 shuffles each row alone.
    n_processes
        Processes that share each batch. Of a last batch with fewer rows than processes each makes
        all if ``fixed``; in training it is left out.
    prefetch
        Called with the rows of an epoch that this process will read, in order.
    """

    def __init__(
        self,
        rows: np.ndarray,
        *,
        batch_size: int,
        seed: int,
        fixed: bool = False,
        weights: np.ndarray | None = None,
        block_size: int = BLOCK_SIZE,
        n_processes: int = 1,
        prefetch: Callable[[np.ndarray], None] | None = None,
    ) -> None:
        super().__init__(seed=seed, fixed=fixed)
        self.rows = rows
        self.batch_size = batch_size
        self.share = None if weights is None else weights / weights.sum()
        self.block_size = block_size
        self.n_processes = n_processes
        self.prefetch = prefetch

    @property
    def n_batches(self) -> int:
        """Batches of an epoch."""
        full, rest = divmod(len(self.rows), self.batch_size * self.n_processes)
        return full + (rest >= (1 if self.fixed else self.n_processes))

    def n_rows(self, number: int) -> int:
        """Return how many rows a batch has, over all processes."""
        size = self.batch_size * self.n_processes
        return min(size, len(self.rows) - number * size)

    def order(self, rng: np.random.Generator) -> np.ndarray:
        """Return the rows of an epoch in order."""
        if self.fixed:
            return self.rows
        if self.share is not None:
            return rng.choice(self.rows, size=len(self.rows), p=self.share)
        return shuffled_rows(self.rows, rng, block_size=self.block_size)

    def begin(self, rng: np.random.Generator) -> np.ndarray:
        """Return the rows of an epoch in order."""
        found = process_number()[1]
        if found != self.n_processes:
            raise RuntimeError(
                f"Batches were laid out for {self.n_processes} processes, but {found} train "
                "together: pass the devices= and num_nodes= that were started, or train in a new "
                "process."
            )
        order = self.order(rng)
        if self.prefetch is not None:
            parts = [self.drawn(order, i).own for i in range(self.n_done, self.n_batches)]
            self.prefetch(np.concatenate(parts) if parts else order[:0])
        return order

    def drawn(self, order: np.ndarray, number: int) -> Drawn:
        """Return the rows of a batch."""
        size = self.batch_size * self.n_processes
        rows = order[number * size : (number + 1) * size]
        return Drawn(rows, own_part(len(rows)) if len(rows) >= self.n_processes else slice(None))

    def make(
        self, content: Any, number: int, rng: np.random.Generator, generator: torch.Generator
    ) -> Any:
        """Return a batch of an epoch."""
        return self.batch(self.drawn(content, number), generator)

    def batch(self, drawn: Drawn, generator: torch.Generator) -> Any:
        """Return the batch of some rows, the part of this process."""
        raise NotImplementedError


class StreamLoader(DataLoader[Any]):
    """Loader of whole batches of a stream, with a length and a state.

    Parameters
    ----------
    stream
        The batches.
    """

    def __init__(self, stream: SeededStream) -> None:
        super().__init__(stream, batch_size=None)
        self.stream = stream

    def __len__(self) -> int:
        return self.stream.n_batches

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the stream."""
        return self.stream.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state of the stream."""
        self.stream.load_state_dict(state)


class StreamModule(pl.LightningDataModule):
    """Training and validation batches for Lightning.

    Parameters
    ----------
    training
        Stream of training batches.
    checks
        Stream or list of validation batches; ``None`` or an empty list for no validation.
    """

    def __init__(self, training: SeededStream, checks: Any) -> None:
        super().__init__()
        self.training = training
        self.checks = checks

    def setup(self, stage: str) -> None:
        """Give processes that train together different random numbers, such as for dropout."""
        if stage == "fit":
            offset_seed_by_rank()

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the loader of training batches."""
        return StreamLoader(self.training)

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """Return the loader of validation batches."""
        if self.checks is None or (isinstance(self.checks, list) and not self.checks):
            return []
        if isinstance(self.checks, SeededStream):
            return StreamLoader(self.checks)
        return DataLoader(_Ready(self.checks), batch_size=None)


class _Ready(IterableDataset[Any]):
    """A list of batches, all of them for each process; Lightning would split a list."""

    def __init__(self, batches: Sequence[Any]) -> None:
        self.batches = batches

    def __iter__(self) -> Iterator[Any]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


def n_rows_of(plan: pl.LightningModule, number: int, own: int) -> int:
    """Return the rows of a batch over all processes, its weight in a curve.

    Parameters
    ----------
    plan
        In training or validation, with a :class:`StreamModule`.
    number
        Number of the batch.
    own
        Rows of the batch in this process.
    """
    module = getattr(plan.trainer, "datamodule", None)
    stream = getattr(module, "training" if plan.trainer.training else "checks", None)
    if process_number()[1] == 1 or not isinstance(stream, RowStream):
        return own
    return stream.n_rows(number)


def own_part(n: int) -> slice:
    """Return the part of ``n`` rows of this process; parts differ by one row at most."""
    number, processes = process_number()
    return slice(n * number // processes, n * (number + 1) // processes)


def epoch_numbers(seed: int, epoch: int) -> tuple[np.random.Generator, torch.Generator]:
    """Return the random numbers of an epoch, the same in all processes."""
    rng = np.random.default_rng([seed, epoch])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))
