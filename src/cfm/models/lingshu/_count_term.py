"""The distribution of counts that conditions alone give: the count term of Lingshu-Cell."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from scipy.special import gammaln
from torch import Tensor, nn

from cfm._arguments import check_whole
from cfm.metrics import linear_shift
from cfm.models.lingshu._module import FIRST_PART, NO_PART
from cfm.models.lingshu._quantiser import LARGEST, N_VALUES, bin_widths, representatives

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from cfm.models.lingshu._module import Conditions

    Array = NDArray[np.float64]

#: Log expression is log1p of counts per so many.
LIBRARY = 1e4
#: Expression (share of a cell's counts) and dispersions at which means are tabulated.
_LOG_RATES = np.linspace(np.log(1e-8), np.log(0.5), 160)
_LOG_DISPERSIONS = np.linspace(np.log(0.02), np.log(20.0), 16)
#: Scores that are held at a time.
_BLOCK = 2**22


class NegativeBinomialTerm(nn.Module):
    r"""Negative binomial counts whose mean follows from source, perturbation and depth.

    .. math:: x_{ig} \sim \mathrm{NB}(\text{mean } N_i \rho_{g}, \text{ dispersion } \phi_g),
        \qquad \mathrm{E}\,\log(1 + 10^4 x_{ig} / N_i) = m_{sg} + \sum_{p} e_{spg}

    The right side is the mean of the controls of the cell's source and the effect of each part of
    its perturbation there, in the units in which effects are usually measured; :math:`\rho` is
    solved for. Counts are summed over the bins of the quantiser.

    Parameters
    ----------
    n_genes, n_sources, n_parts
        Of the model; tables have a row more for an unknown source, and two for an unknown
        perturbation and the control.
    combinations
        Combinations that were measured, as sorted numbers of their parts; where there is a row of
        their own, parts are not summed.
    """

    control: Tensor
    effects: Tensor
    log_dispersion: Tensor
    curves: Tensor
    depth: Tensor
    measured: Tensor

    def __init__(
        self,
        n_genes: int,
        n_sources: int,
        n_parts: int,
        combinations: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__()
        self.sizes: dict[str, Any] = {
            "n_genes": n_genes,
            "n_sources": n_sources,
            "n_parts": n_parts,
            "combinations": [
                [
                    check_whole("combinations", p, FIRST_PART, FIRST_PART + n_parts - 1)
                    for p in parts
                ]
                for parts in combinations
            ],
        }
        rows = FIRST_PART + n_parts + len(combinations)
        self.register_buffer("control", torch.zeros(1 + n_sources, n_genes))
        self.register_buffer("effects", torch.zeros(1 + n_sources, rows, n_genes))
        self.register_buffer("log_dispersion", torch.zeros(n_genes))
        shape = (1 + n_sources, len(_LOG_DISPERSIONS), len(_LOG_RATES))
        self.register_buffer("curves", torch.zeros(shape))
        self.register_buffer("depth", torch.ones(1 + n_sources))
        self.register_buffer("measured", torch.zeros(n_parts, dtype=torch.bool))
        self._row = {
            tuple(parts): FIRST_PART + n_parts + i
            for i, parts in enumerate(self.sizes["combinations"])
        }
        self._solved: dict[tuple[int, ...], Tensor] = {}
        self._pieces: tuple[Tensor, ...] | None = None

    def fill(
        self, control: Array, effects: Array, dispersion: Array, depths: Sequence[Array]
    ) -> None:
        """Set the tables.

        Parameters
        ----------
        control, effects
            ``(1 + n_sources, n_genes)`` and ``(1 + n_sources, rows, n_genes)`` mean log
            expression, and changes of it.
        dispersion
            ``(n_genes,)``.
        depths
            Library sizes of each source, of all cells first.
        """
        self.control.copy_(torch.from_numpy(control))
        self.effects.copy_(torch.from_numpy(effects))
        low, high = np.exp(_LOG_DISPERSIONS[[0, -1]])
        self.log_dispersion.copy_(torch.from_numpy(np.log(np.clip(dispersion, low, high))))
        for i, sizes in enumerate(depths):
            self.curves[i] = torch.from_numpy(_mean_log_curves(sizes))
            self.depth[i] = float(np.median(sizes))
        self._solved, self._pieces = {}, None

    def expected_log(
        self, source: int, parts: Sequence[int], features: Tensor | None = None
    ) -> Tensor:
        """Return the mean log expression of a condition, ``(n_genes,)``.

        Parameters
        ----------
        source, parts
            Numbers, as in :class:`Conditions`.
        features
            Of all parts, where there are parts beyond those of the model.
        """
        own = self._row.get(tuple(sorted(parts)))
        known = FIRST_PART + self.sizes["n_parts"]
        rows = [p for p in parts if p < known] if own is None else [own]
        mean = self.control[source] + self.effects[source, rows].sum(0)
        for part in parts:
            if part >= known and features is not None:
                mean = mean + self._described(source, part, features)
        return mean.clamp(min=0.0)

    def log_rates(
        self, source: int, parts: Sequence[int], features: Tensor | None = None
    ) -> Tensor:
        """Return the log share of a cell's counts that each gene has, ``(n_genes,)``."""
        key = (source, *sorted(parts))
        lasting = max(parts) < FIRST_PART + self.sizes["n_parts"]
        if lasting and key in self._solved:
            return self._solved[key].to(self.control)
        mean = self.expected_log(source, parts, features).double().cpu().numpy()
        spread = self.log_dispersion.double().cpu().numpy()
        curve = self.curves[source].double().cpu().numpy()
        found = torch.from_numpy(_invert(mean, spread, curve)).to(self.control)
        if lasting:
            self._solved[key] = found
        return found

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
        rates, which = self._rates(conditions)
        known = self.depth.to(conditions.depth)[conditions.source]
        depth = torch.where(conditions.depth.isnan(), known, conditions.depth).clamp(min=1.0)
        log_mean = rates[which[rows], genes] + depth.log()[rows]
        out = log_mean.new_empty(len(rows), N_VALUES)
        step = max(1, _BLOCK // N_VALUES)
        for start in range(0, len(rows), step):
            part = slice(start, start + step)
            out[part] = self._log_probabilities(log_mean[part], genes[part])
        return out

    def _rates(self, conditions: Conditions) -> tuple[Tensor, Tensor]:
        """Return log rates of the conditions that occur, and which of them each cell has."""
        keys = torch.cat([conditions.source.unsqueeze(1), conditions.parts], dim=1)
        unique, which = torch.unique(keys, dim=0, return_inverse=True)
        described = conditions.features
        rates = [
            self.log_rates(source, [p for p in parts if p != NO_PART], described)
            for source, *parts in unique.tolist()
        ]
        return torch.stack(rates), which

    def _described(self, source: int, part: int, features: Tensor) -> Tensor:
        """Return the effect of a perturbation that is known by its features alone."""
        table = features.double().cpu().numpy()
        rows = np.flatnonzero(self.measured.cpu().numpy())
        if not len(rows):
            return torch.zeros_like(self.control[source])
        known = self.effects[source, FIRST_PART + torch.from_numpy(rows)].double().cpu().numpy()
        found = linear_shift(table[part - FIRST_PART], table[rows], known)
        return torch.from_numpy(found).to(self.control)

    def _log_probabilities(self, log_mean: Tensor, genes: Tensor) -> Tensor:
        size, table, count = self._constants()
        size, log_mean = size[genes].unsqueeze(1), log_mean.unsqueeze(1)
        total = torch.logaddexp(size.log(), log_mean)
        scores = table[genes] + size * (size.log() - total)
        scores += count * (log_mean - total)
        return torch.log_softmax(scores, dim=-1)

    def _constants(self) -> tuple[Tensor, ...]:
        """Return what does not depend on the mean: inverse dispersion, and per value a constant."""
        if self._pieces is None or self._pieces[0].device != self.log_dispersion.device:
            lower, width = representatives(), bin_widths()
            # past the range of the quantiser, one bin takes the rest of the tail
            width = np.where(lower > LARGEST, LARGEST, width)
            count = torch.from_numpy(lower + (width - 1) / 2).to(self.log_dispersion)
            log_width = torch.from_numpy(np.log(width)).to(self.log_dispersion)
            size = (-self.log_dispersion).exp().unsqueeze(1)
            table = torch.lgamma(count + size) - torch.lgamma(size) - torch.lgamma(count + 1.0)
            self._pieces = (size.squeeze(1), table + log_width, count)
        return self._pieces

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._solved, self._pieces = {}, None


def _mean_log_curves(depths: Array) -> Array:
    """Tabulate mean log expression over rates for each dispersion, ``(16, 160)``.

    Averaged over five library sizes that stand for those given.
    """
    count = np.unique(np.r_[0:200, np.rint(np.geomspace(200, 20_000, 160))])
    # where counts are thinned out, one stands for those around it
    edges = np.r_[-0.5, (count[1:] + count[:-1]) / 2, count[-1] + 0.5]
    size = np.exp(-_LOG_DISPERSIONS)[:, None, None]
    fixed = gammaln(count + size) - gammaln(size) - gammaln(count + 1.0) + np.log(np.diff(edges))
    curves = np.zeros((len(_LOG_DISPERSIONS), len(_LOG_RATES)))
    for depth in np.maximum(np.quantile(depths, [0.1, 0.3, 0.5, 0.7, 0.9]), 1.0):
        log_mean = (_LOG_RATES + np.log(depth))[None, :, None]
        total = np.logaddexp(np.log(size), log_mean)
        score = fixed + size * (np.log(size) - total) + count * (log_mean - total)
        mass = np.exp(score - score.max(axis=-1, keepdims=True))
        curves += (mass @ np.log1p(LIBRARY * count / depth)) / mass.sum(axis=-1) / 5
    return curves


def _invert(mean: Array, log_dispersion: Array, curves: Array) -> Array:
    """Find the log rate at which each gene has a mean log expression, ``(n_genes,)``."""
    place = np.interp(log_dispersion, _LOG_DISPERSIONS, np.arange(len(_LOG_DISPERSIONS)))
    low = np.minimum(place.astype(np.int64), len(_LOG_DISPERSIONS) - 2)
    share = place - low
    out = np.zeros(len(mean))
    for step, weight in ((0, 1.0 - share), (1, share)):
        for i in np.unique(low):
            own = low == i
            out[own] += weight[own] * np.interp(mean[own], curves[i + step], _LOG_RATES)
    return out
