"""Batches of donors for training: draws of cells, what of them is seen, and padding."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor

from cfm.models._streams import Drawn, RowStream
from cfm.models.pulsar._objectives import Batch

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.models.pulsar._donors import Donors


class DonorStream(RowStream):
    """Batches of donors in random order, each donor once an epoch.

    Parameters
    ----------
    donors
        Their cells.
    chosen
        ``(n,)`` numbers of the donors to go through.
    batch_size
        Donors per batch and process.
    n_cells
        Cells of a draw.
    seed, fixed, n_processes
        See :class:`cfm.models._streams.RowStream`.
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
        n_processes: int = 1,
    ) -> None:
        super().__init__(
            chosen,
            batch_size=batch_size,
            seed=seed,
            fixed=fixed,
            block_size=1,
            n_processes=n_processes,
        )
        self.donors = donors
        self.n_cells = n_cells

    def __len__(self) -> int:
        return self.n_batches

    def numbers(self) -> tuple[np.random.Generator, torch.Generator]:
        """Return the random numbers of the present epoch."""
        return np.random.default_rng([self.seed, self.epoch]), torch.Generator()

    def make(
        self, content: Any, number: int, rng: np.random.Generator, generator: torch.Generator
    ) -> Any:
        """Return a batch of an epoch."""
        return self.draw(self.drawn(content, number), rng)

    def draw(self, drawn: Drawn, rng: np.random.Generator) -> Any:
        """Make a batch: ``(cells, padding, numbers of the donors)``, one draw of each."""
        draws = []
        for i in drawn.rows:
            rows = self.donors.rows[i]
            draws.append(rng.choice(rows, size=min(self.n_cells, len(rows)), replace=False))
        own = torch.from_numpy(drawn.own.astype(np.int64))
        return *self._padded(draws[drawn.part]), own

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

    def draw(self, drawn: Drawn, rng: np.random.Generator) -> Batch:
        """Make a batch of two draws, which share no cells if the donor has more than one."""
        visible: list[list[np.ndarray]] = [[], []]
        hidden: list[list[np.ndarray]] = [[], []]
        for i in drawn.rows:
            rows = rng.permutation(self.donors.rows[i])
            half = max(1, len(rows) // 2)
            for k, part in enumerate((rows[:half], rows[half:] if len(rows) > 1 else rows)):
                draw = part[: self.n_cells]
                n_seen = max(1, round(self.keep_share * len(draw)))
                visible[k].append(draw[:n_seen])
                hidden[k].append(draw[n_seen:])
        own = drawn.part
        longest = max(1, *(len(draw) for draws in hidden for draw in draws))
        seen, seen_padding = self._padded(visible[0][own] + visible[1][own])
        unseen, unseen_padding = self._padded(hidden[0][own] + hidden[1][own])
        first, last, _ = own.indices(len(drawn.rows))
        places = np.arange(2 * len(drawn.rows)).reshape(2, -1)[:, first:last].ravel()
        shape = (2 * len(drawn.rows), longest, unseen.shape[2])
        masked = some_of(rng, shape, places)[:, : unseen.shape[1]] < self.mask_share
        donor = np.tile(drawn.own, 2).astype(np.int64)
        return Batch(
            seen,
            seen_padding,
            unseen,
            unseen_padding,
            torch.from_numpy(masked),
            torch.from_numpy(donor),
            torch.from_numpy(self.labels[donor]),
        )


def some_of(rng: np.random.Generator, shape: tuple[int, ...], places: np.ndarray) -> np.ndarray:
    """Return some rows of ``rng.random(shape, dtype=np.float32)``; the others are skipped.

    Parameters
    ----------
    rng
        Random numbers; they go on as if all had been drawn.
    shape
        Of all of them.
    places
        ``(k,)`` rows, ascending.
    """
    size = int(np.prod(shape[1:]))
    out = np.empty((len(places), *shape[1:]), dtype=np.float32)
    at = 0
    for i, place in enumerate(places.tolist()):
        _skip(rng, (place - at) * size)
        rng.random(out=out[i], dtype=np.float32)
        at = place + 1
    _skip(rng, (shape[0] - at) * size)
    return out


def _skip(rng: np.random.Generator, n: int) -> None:
    """Go on as if ``n`` float32 had been drawn."""
    generator = rng.bit_generator
    if n and generator.state["has_uint32"]:  # the half of a number is left over
        rng.random(dtype=np.float32)
        n -= 1
    if n > 1:
        cast("np.random.PCG64", generator).advance(n // 2)
    if n % 2:
        rng.random(dtype=np.float32)
