"""Cells are kept apart on the sphere of the codes, from the start of training to its end."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.nn._distributed import numbers_of_all, summed

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from cfm.models.cellvq._module import CellVQModule
    from cfm.models.cellvq._reading import Tokens

#: Axes along which cells spread less than this share of the widest say nothing.
_LEAST_SPREAD = 1e-4
#: Batches smaller than this are centred by what was seen before.
_LEAST_CELLS = 8
#: How fast the running mean and variance follow, and what is added to variances.
_MOMENTUM, _EPS = 0.05, 1e-8


class CentredProjection(nn.Module):
    """The projection to the codes, centred and scaled over the cells of a training batch.

    The batch is that of all processes that train together. Stands in for ``quantiser.proj`` while
    a model is trained. Outputs keep the mean and the spread
    that are asked for, however the encoder drifts; :meth:`fold` writes running mean and variance
    into the plain projection.

    Parameters
    ----------
    projection
        The plain one.
    mean, variance
        ``(code_dim,)`` of its outputs over cells, now.
    keep
        Keep this mean and variance; otherwise outputs are brought to 0 and 1.
    """

    running_mean: Tensor
    running_variance: Tensor
    shift: Tensor
    scale: Tensor

    def __init__(self, projection: nn.Linear, mean: Tensor, variance: Tensor, keep: bool) -> None:
        super().__init__()
        self.projection = projection
        self.register_buffer("running_mean", mean)
        self.register_buffer("running_variance", variance)
        self.register_buffer("shift", mean.clone() if keep else torch.zeros_like(mean))
        scale = (variance + _EPS).sqrt() if keep else torch.ones_like(mean)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:
        """Of the plain projection."""
        return self.projection.weight

    @property
    def bias(self) -> Tensor:
        """Of the plain projection."""
        return self.projection.bias

    def forward(self, x: Tensor) -> Tensor:
        """Project ``(b, dim)`` to ``(b, code_dim)``."""
        found: Tensor = self.projection(x).to(self.running_mean.dtype)
        n = sum(numbers_of_all(len(found))) if self.training else 0
        if n > len(found) and n >= _LEAST_CELLS:
            return self._centred_by_all(found, n)
        return F.batch_norm(
            found,
            self.running_mean,
            self.running_variance,
            self.scale,
            self.shift,
            training=n >= _LEAST_CELLS,
            momentum=_MOMENTUM,
            eps=_EPS,
        )

    def _centred_by_all(self, found: Tensor, n: int) -> Tensor:
        """Centre and scale over the ``n`` cells of all processes that share the batch."""
        mean = summed(found.sum(0)) / n
        variance = summed((found - mean).square().sum(0)) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean, _MOMENTUM)
            self.running_variance.lerp_(variance * (n / (n - 1)), _MOMENTUM)
        return (found - mean) * (variance + _EPS).rsqrt() * self.scale + self.shift

    @torch.no_grad()
    def centre_on(self, pooled: Tensor) -> None:
        """Take mean and variance from these cells, ``(n, dim)``, if there are enough to say.

        Training sees a part of each cell; whole cells lie elsewhere, and together.
        """
        found = self.projection(pooled).to(self.running_mean.dtype)
        variance = found.var(0, unbiased=False)
        if bool((variance > _EPS).all()):
            self.running_mean.copy_(found.mean(0))
            self.running_variance.copy_(variance)

    @contextmanager
    def centred_on(self, pooled: Tensor) -> Iterator[None]:
        """Take mean and variance from these cells for a while."""
        before = self.running_mean.clone(), self.running_variance.clone()
        self.centre_on(pooled)
        try:
            yield
        finally:
            self.running_mean.copy_(before[0])
            self.running_variance.copy_(before[1])

    @torch.no_grad()
    def fold(self) -> nn.Linear:
        """Return the plain projection that gives what this one does in evaluation mode."""
        factor = self.scale / (self.running_variance + _EPS).sqrt()
        bias = (self.projection.bias - self.running_mean) * factor + self.shift
        self.projection.weight.mul_(factor.unsqueeze(1))
        self.projection.bias.copy_(bias)
        return self.projection


@contextmanager
def cells_kept_apart(
    module: CellVQModule, cells: Sequence[Tokens], *, fresh: bool
) -> Iterator[None]:
    """Train with a centred projection to the codes; afterwards it is a plain one again.

    Parameters
    ----------
    module
        The network.
    cells
        Whole sentences of some cells.
    fresh
        The network was never trained: begin with :func:`spread_cells`. Otherwise cells go on where
        they are.
    """
    quantiser = module.quantiser
    plain = quantiser.proj
    pooled = pooled_cells(module, cells)
    if fresh:
        spread_cells(plain, pooled)
    with torch.no_grad():
        found = plain(pooled)
        mean, variance = found.mean(0), found.var(0, unbiased=False)
    known = bool((variance > _EPS).all())  # else there are too few cells to say
    centred = CentredProjection(plain, mean, variance, keep=not fresh) if known else None
    try:
        if centred is not None:
            quantiser.add_module("proj", centred)
        yield
    finally:
        if centred is not None:
            centred.centre_on(pooled_cells(module, cells))
            quantiser.proj = centred.fold()


@torch.no_grad()
def spread_cells(projection: nn.Linear, pooled: Tensor) -> None:
    """Set the projection to the codes so that it takes cells apart.

    The pooled outputs of an untrained encoder share nearly all of their length, so that all cells
    would start at one point of the sphere, have one code, and no gradient to leave it. The
    projection is set to the principal axes of these outputs, less their mean, each scaled to
    unit variance; rows beyond the axes that there are stay as they are.

    Parameters
    ----------
    projection
        Is written.
    pooled
        ``(n, dim)``, what is quantised of cells.
    """
    exact = pooled.double()
    mean = exact.mean(0)
    _, spread, axes = torch.linalg.svd(exact - mean, full_matrices=False)
    spread = spread / max(1, len(exact) - 1) ** 0.5
    n = int((spread > _LEAST_SPREAD * spread[0].clamp(min=1e-12)).sum())
    n = min(n, len(projection.weight))
    if n < 2:  # cells do not differ, or there is one
        return
    weight = projection.weight.double()
    weight[:n] = axes[:n] / spread[:n, None]
    projection.weight.copy_(weight)
    projection.bias.copy_(-(weight @ mean))


@torch.no_grad()
def pooled_cells(module: CellVQModule, cells: Iterable[Tokens]) -> Tensor:
    """Return what is quantised of cells, ``(n, dim)``, in evaluation mode."""
    training = module.training
    module.eval()
    device = module.position_embedding.weight.device
    found = []
    for tokens in cells:
        values, genes, padding = tokens.to(device)
        found.append(module.pool(module.encode(values, genes, padding), padding)[1])
    module.train(training)
    return torch.cat(found)
