"""The count term: a count model as log-probabilities of the values of Lingshu-Cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from cfm.models.count_model._module import Conditions, NegativeBinomialModule
from cfm.models.lingshu._quantiser import LARGEST, N_VALUES, bin_widths, representatives

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Name of the term in a checkpoint.
KIND = "NegativeBinomialTerm"
#: Scores that are held at a time.
_BLOCK = 2**22


class CountTerm(NegativeBinomialModule):
    """A count model whose counts are summed over the bins of the quantiser.

    Parameters
    ----------
    n_genes, n_sources, n_parts, combinations
        As for :class:`cfm.models.count_model._module.NegativeBinomialModule`.
    """

    def __init__(
        self,
        n_genes: int,
        n_sources: int,
        n_parts: int,
        combinations: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(n_genes, n_sources, n_parts, combinations)
        self._of_values: tuple[Tensor, ...] | None = None

    @classmethod
    def of(cls, module: NegativeBinomialModule) -> Self:
        """Return the term with the tables of a count model."""
        term = cls(**module.sizes)
        term.load_state_dict(module.state_dict())
        return term

    def forget(self) -> None:
        """Drop what was computed from the tables, which have changed."""
        super().forget()
        self._of_values = None

    def forward(self, conditions: Conditions, rows: Tensor, genes: Tensor) -> Tensor:
        """Return log-probabilities of the 281 values of some genes of some cells.

        Parameters
        ----------
        conditions
            Of ``b`` cells.
        rows
            ``(m,)`` int64, cells (0 to ``b - 1``).
        genes
            ``(m,)`` int64, genes of the vocabulary.

        Returns
        -------
        ``(m, 281)`` float32, for ``rows[i]`` and ``genes[i]``. They are added to the logits.
        """
        log_mean = self.log_means(conditions, rows, genes)
        out = log_mean.new_empty(len(rows), N_VALUES)
        step = max(1, _BLOCK // N_VALUES)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            out[part] = self._log_probabilities(log_mean[part], genes[part])
        return out

    def _log_probabilities(self, log_mean: Tensor, genes: Tensor) -> Tensor:
        size, table, count = self._of_dispersion()
        size, log_mean = size[genes].unsqueeze(1), log_mean.unsqueeze(1)
        total = torch.logaddexp(size.log(), log_mean)
        scores = table[genes] + size * (size.log() - total)
        scores += count * (log_mean - total)
        return torch.log_softmax(scores, dim=-1)

    def _of_dispersion(self) -> tuple[Tensor, ...]:
        """Return what does not depend on the mean: size ``(g,)``, table ``(g, 281)``, counts."""
        if self._of_values is None or self._of_values[0].device != self.log_dispersion.device:
            lower, width = representatives(), bin_widths()
            # past the range of the quantiser, one bin takes the rest of the tail
            width = np.where(lower > LARGEST, LARGEST, width)
            count = torch.from_numpy(lower + (width - 1) / 2).to(self.log_dispersion)
            log_width = torch.from_numpy(np.log(width)).to(self.log_dispersion)
            size = (-self.log_dispersion).exp().unsqueeze(1)
            table = torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1.0)
            self._of_values = (size.squeeze(1), table + log_width, count)
        return self._of_values
