"""How the trained network is applied to donors: draws, batches of like size, precision."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch

from cfm._arguments import checks_arguments
from cfm.models._precision import Precision
from cfm.models.pulsar._core import PulsarCore

if TYPE_CHECKING:
    from cfm.models.pulsar._donors import Donors

#: Tokens at a time: what fits into the caches of a processor, and into the memory of a GPU.
_ON_CPU, _ON_GPU = 4096, 131_072


class Applicable(PulsarCore):
    """A PULSAR that embeds draws of cells."""

    _least_agreement = 0.99  # of differences between donors

    @checks_arguments()
    def embed_draws(
        self, donors: Donors, draws: list[np.ndarray], batch_size: int, precision: Precision
    ) -> np.ndarray:
        """Embed draws of cells.

        Parameters
        ----------
        donors
            What was read.
        draws
            Rows of each draw.
        batch_size
            Draws at a time; those of like size go together.
        precision
            As for :meth:`Pulsar.get_donor_embeddings`.

        Returns
        -------
        ``(n_draws, dim)`` float32.
        """
        self.module.eval()
        prepared = self.module.prepared(self.inference_dtype(precision))
        most = _ON_CPU if self.device.type == "cpu" else _ON_GPU
        out = np.empty((len(draws), self.size.dim), dtype=np.float32)
        batch: list[int] = []
        n_tokens = 0
        for i in [*np.argsort([len(rows) for rows in draws], kind="stable").tolist(), None]:
            size = 0 if i is None else len(draws[i]) + 1
            if batch and (i is None or len(batch) == batch_size or n_tokens + size > most):
                sets = [torch.from_numpy(donors.cells[draws[j]]) for j in batch]
                out[batch] = prepared(sets).cpu().numpy()
                batch, n_tokens = [], 0
            if i is not None:
                batch.append(i)
                n_tokens += size
        return out
