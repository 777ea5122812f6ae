"""Counts as tokens, and a count model as log-probabilities of these tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, Self, get_args

import numpy as np
import torch
from torch import Tensor

from cfm._arguments import check_choice
from cfm.models.count_model._module import Conditions, NegativeBinomialModule

if TYPE_CHECKING:
    from collections.abc import Sequence


Dequantise = Literal["lower", "midpoint", "uniform"]

#: Counts below this have a token each.
_EXACT = 100
#: The largest count with a token of its own.
LARGEST = 9_999
#: Token of larger counts.
OVERFLOW = 280
#: Number of value tokens.
N_VALUES = 281


def _edges() -> tuple[np.ndarray, np.ndarray]:
    lower, width = [np.arange(_EXACT)], [np.ones(_EXACT, dtype=np.int64)]
    step = _EXACT // 10
    while step * 100 <= LARGEST + 1:
        lower.append(step * np.arange(10, 100))
        width.append(np.full(90, step))
        step *= 10
    lower.append(np.array([LARGEST + 1]))
    width.append(np.array([1]))
    return np.concatenate(lower), np.concatenate(width)


_LOWER, _WIDTH = _edges()
_TOKEN = np.zeros(LARGEST + 2, dtype=np.int16)
_TOKEN[_LOWER[1:]] = 1
_TOKEN = np.cumsum(_TOKEN, dtype=np.int16)


def quantise(counts: np.ndarray) -> np.ndarray:
    r"""Turn counts into tokens (Lingshu-Cell, eq. 3 to 6).

    A count :math:`x < 100` is its own token. From 100 to 9,999 it is
    :math:`100 + 90 (k - 2) + r` with :math:`k = \lfloor \log_{10} x \rfloor` and
    :math:`r = \lfloor (x - 10^k) / 10^{k - 1} \rfloor`, so that two digits are kept. Larger
    counts share token 280.

    Parameters
    ----------
    counts
        Whole numbers of at least 0, any shape and dtype.

    Returns
    -------
    int16 of the same shape.

    Examples
    --------
    >>> quantise(np.array([0, 99, 100, 109, 110, 999, 1000, 9999, 10000])).tolist()
    [0, 99, 100, 100, 101, 189, 190, 279, 280]
    """
    return _TOKEN[np.minimum(counts, LARGEST + 1).astype(np.int64)]


def dequantise(
    tokens: np.ndarray, method: Dequantise = "lower", *, uniform: np.ndarray | None = None
) -> np.ndarray:
    """Turn tokens into counts; exact below 100.

    Parameters
    ----------
    tokens
        0 to 280, any shape.
    method
        ``"lower"`` edge of the bin, its ``"midpoint"`` (rounded down), or ``"uniform"`` in it.
        Token 280 is 10,000 in any case.
    uniform
        Numbers from 0 to below 1 of the same shape, for ``"uniform"``.

    Returns
    -------
    int32 of the same shape.

    Raises
    ------
    ValueError
        If the method is unknown, or ``uniform`` is missing.

    Examples
    --------
    >>> dequantise(np.array([7, 101, 190]), "midpoint").tolist()
    [7, 114, 1049]
    """
    check_choice("dequantise", method, get_args(Dequantise))
    counts = _LOWER[tokens]
    if method == "midpoint":
        counts = counts + (_WIDTH[tokens] - 1) // 2
    elif method == "uniform":
        if uniform is None:
            raise ValueError("method='uniform' needs uniform=, a random number per token.")
        counts = counts + (uniform * _WIDTH[tokens]).astype(np.int64)
    return counts.astype(np.int32)


def representatives() -> np.ndarray:
    """Return the lower edge of each token's bin, ``(281,)`` int64."""
    return _LOWER.copy()


def bin_widths() -> np.ndarray:
    """Return how many counts share each token, ``(281,)`` int64; 1 for the last, which is open."""
    return _WIDTH.copy()


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
