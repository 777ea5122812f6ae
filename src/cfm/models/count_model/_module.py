"""Negative binomial counts under a perturbation: tables, their mean, and draws of counts."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from scipy.special import gammaln
from scipy.stats import nbinom
from torch import Tensor, nn

from cfm._arguments import check_whole
from cfm.models.count_model._response import Cases, ResponsePredictor

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]


#: Number of a condition that is not known, in every slot.
UNKNOWN = 0
#: Number of the control among the parts of perturbations; the parts themselves follow.
CONTROL = 1
FIRST_PART = 2
#: Fills up rows with fewer parts.
NO_PART = -1
#: Log expression is log1p of counts per so many.
LIBRARY = 1e4
#: Expression (share of a cell's counts) and dispersions at which means are tabulated.
_LOG_RATES = np.linspace(np.log(1e-8), np.log(0.5), 160)
_LOG_DISPERSIONS = np.linspace(np.log(0.02), np.log(20.0), 16)


class Conditions(NamedTuple):
    """Conditions of ``b`` cells; 0 is *unknown* in every slot.

    Attributes
    ----------
    source
        ``(b,)`` int64, cell line, donor or cell type: level + 1.
    parts
        ``(b, k)`` int64, parts of the perturbation: −1 fills up, 1 is the control, part + 2.
    covariates
        ``(b, n_covariates)`` int64, level + 1 of each.
    depth
        ``(b,)`` float32, counts of the cell over the genes of the model; ``NaN`` is unknown.
    features
        ``(n, n_features)`` float32 standardised features by part, or ``None`` for those of the
        model: rows beyond its own are parts that features describe.
    """

    source: Tensor
    parts: Tensor
    covariates: Tensor
    depth: Tensor
    features: Tensor | None = None

    def rows(self, index: Tensor | slice) -> Conditions:
        """Return the conditions of some of the cells."""
        source, parts, covariates, depth = (part[index] for part in self[:4])
        return Conditions(source, parts, covariates, depth, self.features)

    def to(self, device: torch.device) -> Conditions:
        """Return the same on a device."""
        source, parts, covariates, depth = (part.to(device) for part in self[:4])
        features = None if self.features is None else self.features.to(device)
        return Conditions(source, parts, covariates, depth, features)

    def control(self) -> Conditions:
        """Return the null condition: the control of the same source, covariates and depth."""
        parts = self.parts.new_full((len(self.parts), 1), CONTROL)
        return self._replace(parts=parts, features=None)


class NegativeBinomialModule(nn.Module):
    r"""Negative binomial counts whose mean follows from source, perturbation and depth.

    .. math:: x_{ig} \sim \mathrm{NB}(\text{mean } N_i \rho_{g}, \text{ dispersion } \phi_g),
        \qquad \mathrm{E}\,\log(1 + 10^4 x_{ig} / N_i) = m_{sg} + \sum_{p} e_{spg}

    The right side is the mean of the controls of the cell's source and the effect of each part of
    its perturbation there, in the units in which effects are usually measured; :math:`\rho` is
    solved for.

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
        last = FIRST_PART + n_parts - 1
        listed = [
            [check_whole("combinations", p, FIRST_PART, last) for p in c] for c in combinations
        ]
        if any(len(set(parts)) < 2 for parts in listed):
            raise ValueError("A combination has at least two parts.")
        self.sizes: dict[str, Any] = {
            "n_genes": n_genes,
            "n_sources": n_sources,
            "n_parts": n_parts,
            "combinations": listed,
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
        self.register_load_state_dict_post_hook(_forget)

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
        self.forget()

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

    def forget(self) -> None:
        """Clear the cache after a change of the tables."""
        self._solved.clear()

    def log_means(self, conditions: Conditions, rows: Tensor, genes: Tensor) -> Tensor:
        """Return the log of the mean count of some genes of some cells, ``(m,)``.

        Parameters
        ----------
        conditions
            Of ``b`` cells; an unknown depth is the median of the source.
        rows, genes
            ``(m,)`` int64, cells (0 to ``b - 1``) and genes.
        """
        keys = torch.cat([conditions.source.unsqueeze(1), conditions.parts], dim=1)
        unique, which = torch.unique(keys, dim=0, return_inverse=True)
        rates = torch.stack(
            [
                self.log_rates(source, [p for p in parts if p != NO_PART], conditions.features)
                for source, *parts in unique.tolist()
            ]
        )
        usual = self.depth.to(conditions.depth)[conditions.source]
        depth = torch.where(conditions.depth.isnan(), usual, conditions.depth).clamp(min=1.0)
        return rates[which[rows], genes] + depth.log()[rows]

    def mean_counts(self, conditions: Conditions) -> Tensor:
        """Return the mean counts of cells, ``(b, n_genes)`` float64; see :meth:`log_means`."""
        shape = len(conditions.source), self.control.shape[1]
        rows, genes = torch.cartesian_prod(
            *(torch.arange(n, device=self.control.device) for n in shape)
        ).T
        return self.log_means(conditions, rows, genes).double().exp().reshape(shape)

    def _described(self, source: int, part: int, features: Tensor) -> Tensor:
        """Return the effect of a perturbation that is known by its features alone."""
        table = features.double().cpu().numpy()
        rows = np.flatnonzero(self.measured.cpu().numpy())
        if not len(rows):
            return torch.zeros_like(self.control[source])
        known = self.effects[source, FIRST_PART + torch.from_numpy(rows)].double().cpu().numpy()
        control = self.control[source].double().cpu().numpy()
        cases = Cases.of_one_source(table[rows], control, known)
        found = ResponsePredictor([cases]).predict(table[part - FIRST_PART], control, cases)
        return torch.from_numpy(found).to(self.control)


def _forget(module: NegativeBinomialModule, _: object) -> None:
    module.forget()


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


#: Least tail probability above 0.
_LEAST = 1e-290


def generator_of(name: str, seed: int) -> np.random.Generator:
    """Return the random numbers of a cell, which depend on its name and the seed alone."""
    text = name.encode()
    return np.random.default_rng([seed, zlib.crc32(text), zlib.adler32(text)])


def uniform_numbers(names: Sequence[str], n_genes: int, seed: int) -> Array:
    """Return numbers from 0 to 1 for the genes of cells, ``(b, n_genes)``."""
    return np.stack([generator_of(name, seed).random(n_genes) for name in names])


def perturbed_counts(
    counts: NDArray[np.int64],
    uniform: Array,
    after: Array,
    dispersion: Array,
    before: Array | None = None,
) -> NDArray[np.int64]:
    """Return counts of cells under a perturbation, ``(b, n_genes)``.

    Parameters
    ----------
    counts
        ``(b, n_genes)`` of the unperturbed cells; −1 where a gene is not measured.
    uniform
        ``(b, n_genes)`` from 0 to 1.
    after
        ``(b, n_genes)`` mean counts under the perturbation.
    dispersion
        ``(n_genes,)``.
    before
        Mean counts of the cells as they are: each count keeps its quantile. Without it, and where
        a gene is not measured, counts are drawn.
    """
    measured = counts >= 0
    tails = uniform, 1.0 - uniform
    if before is not None:
        lower, upper = tails_of_counts(np.maximum(counts, 0), before, dispersion, uniform)
        tails = np.where(measured, lower, tails[0]), np.where(measured, upper, tails[1])
    # no count is larger than a library, however improbable the cell is as a control
    depth = np.maximum(np.where(measured, counts, 0).sum(axis=1), np.ceil(after.sum(axis=1)))
    return np.minimum(counts_at(tails, after, dispersion), depth.astype(np.int64)[:, None])


def tails_of_counts(
    counts: NDArray[np.int64], mean: Array, dispersion: Array, uniform: Array
) -> tuple[Array, Array]:
    r"""Return the tail probabilities at which counts that exist would have been drawn.

    Between :math:`P(X < x)` and :math:`P(X \le x)` the place is random. Both tails are returned,
    as the upper one is lost to rounding where the lower one is nearly 1.

    Parameters
    ----------
    counts
        ``(b, n_genes)`` of at least 0.
    mean, dispersion
        ``(b, n_genes)`` and ``(n_genes,)`` of the distributions.
    uniform
        ``(b, n_genes)`` from 0 to 1.
    """
    size, share, zero = _parameters(mean, dispersion)
    lower = uniform * np.exp(zero)
    upper = 1.0 - lower
    some = counts > 0  # most counts of single cells are 0, and these functions take long
    x, draw, law = counts[some], uniform[some], (size[some], share[some])
    for tail, function in ((lower, nbinom.cdf), (upper, nbinom.sf)):
        below = function(x - 1, *law)
        tail[some] = below + draw * (function(x, *law) - below)
    return lower, upper


def counts_at(tails: tuple[Array, Array], mean: Array, dispersion: Array) -> NDArray[np.int64]:
    """Return the counts at tail probabilities: quantiles, ``(b, n_genes)``.

    Parameters
    ----------
    tails
        Lower and upper ones, as :func:`tails_of_counts` returns them.
    mean, dispersion
        ``(b, n_genes)`` and ``(n_genes,)`` of the distributions.
    """
    lower, upper = tails
    size, share, zero = _parameters(mean, dispersion)
    out = np.zeros(mean.shape, dtype=np.int64)
    some = upper < -np.expm1(zero)
    low, high = some & (lower < 0.5), some & (lower >= 0.5)
    out[low] = nbinom.ppf(lower[low], size[low], share[low])
    out[high] = nbinom.isf(np.maximum(upper[high], _LEAST), size[high], share[high])
    return out


def _parameters(mean: Array, dispersion: Array) -> tuple[Array, Array, Array]:
    """Return the size and success probability of SciPy's law, and the log-probability of 0."""
    size = np.broadcast_to(1.0 / dispersion, mean.shape)
    share = size / (size + mean)
    return size, share, size * np.log(share)
