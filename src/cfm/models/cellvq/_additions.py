"""Our additions to the published network: two linear terms, and a projection for training."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.nn._distributed import all_gather_int, summed
from cfm.nn._values import LEAST_MEAN, MOST_MEAN

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Initial mean of genes that no training cell expresses, in counts per 10,000.
_LEAST_EXPRESSION = 1e-3
#: Largest change of the log mean, which keeps an untrained term finite.
_LARGEST_CHANGE = 12.0
#: Width of the first component over the cells that the expression term starts from.
_SPREAD = 3.0
#: Axes along which cells spread less than this share of the widest are left out.
_LEAST_SPREAD = 1e-4
#: Smaller batches are centred by the running mean.
_LEAST_CELLS = 8
#: Momentum of the running mean and variance, and what is added to variances.
_MOMENTUM, EPS = 0.05, 1e-8


class CodeTerm(nn.Module):
    r"""Bilinear term of genes and codes; its exponential is a factor of the expected counts.

    .. math:: \mu_{cg} = \mu'_{cg} \exp(b_g + u_g^\top W v_c)

    with :math:`v_c` the quantised vector of a cell and :math:`\mu'` the mean of the decoder.
    A narrow Performer needs thousands of steps to make a gene depend on the code; with this term
    it does from the first step.

    Parameters
    ----------
    n_genes
        Genes.
    dim
        Width of the quantised vector.
    rank
        Width of the factors :math:`u_g`.
    """

    def __init__(self, n_genes: int, dim: int, rank: int) -> None:
        super().__init__()
        self.base = nn.Parameter(torch.zeros(n_genes))
        self.genes = nn.Parameter(torch.empty(n_genes, rank))
        self.projection = nn.Linear(dim, rank, bias=False)
        if not self.genes.is_meta:
            nn.init.normal_(self.genes, std=0.1)

    @torch.no_grad()
    def start(self, mean: Tensor) -> None:
        """Initialise with the mean of each gene over cells, ``(n_genes,)`` in counts per 10,000."""
        self.base.copy_(mean.clamp(min=_LEAST_EXPRESSION).log())

    def forward(self, mean: Tensor, vector: Tensor) -> Tensor:
        """Multiply ``(b, n_genes)`` expected counts by the term of ``(b, dim)`` codes."""
        change = self.base + self.projection(vector) @ self.genes.T
        changed = mean * change.float().clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE).exp()
        return changed.clamp(LEAST_MEAN, MOST_MEAN)


class ExpressionTerm(nn.Module):
    r"""Linear term of expression, added to every token of a cell.

    .. math:: t_c = \sum_g \frac{x_{cg}}{\sum_h x_{ch}} e_g - m

    over the genes of a cell that are seen, :math:`x` the log1p of counts per 10,000. Its
    expectation is the same for a cell and for a random part of it. Initialised with principal
    components it separates cells from the first step; attention adds what is not linear.

    Parameters
    ----------
    n_genes
        Genes.
    dim
        Width of the tokens.
    """

    def __init__(self, n_genes: int, dim: int) -> None:
        super().__init__()
        self.genes = nn.Parameter(torch.zeros(n_genes, dim))
        self.mean = nn.Parameter(torch.zeros(dim))

    def shares(
        self, values: Tensor, gene_ids: Tensor, padding: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return genes and their shares of a cell's expression, ``(b, n)``; 0 for other tokens."""
        other = gene_ids >= len(self.genes)
        if padding is not None:
            other = other | padding
        share = values.masked_fill(other, 0.0)
        total = share.sum(1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        return gene_ids.masked_fill(other, 0), share / total

    def forward(self, values: Tensor, gene_ids: Tensor, padding: Tensor | None) -> Tensor:
        """Map ``(b, n)`` tokens to ``(b, dim)``."""
        genes, share = self.shares(values, gene_ids, padding)
        # summed cell by cell, so that it does not depend on the other cells of a batch
        found = F.embedding_bag(genes, self.genes, mode="sum", per_sample_weights=share)
        return found - self.mean

    @torch.no_grad()
    def start(self, cells: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Initialise with the principal components of the expression of some cells.

        Parameters
        ----------
        cells
            Values, genes and padding of whole cells, a few at a time.
        """
        rows = []
        for values, gene_ids, padding in cells:
            genes, share = self.shares(values, gene_ids, padding)
            dense = share.new_zeros(len(share), len(self.genes), dtype=torch.float64)
            rows.append(dense.scatter_add_(1, genes, share.double()))
        found = torch.cat(rows)
        mean = found.mean(0)
        _, spread, axes = torch.linalg.svd(found - mean, full_matrices=False)
        n = min(self.genes.shape[1], int((spread > 1e-6 * spread[0]).sum()))
        if n < 1:  # cells do not differ, or there is one
            return
        # Between principal components as they are and whitened ones.
        width = (spread[:n] * spread[0]).sqrt() / len(found) ** 0.5
        loadings = axes[:n].T / width * _SPREAD
        # The sign of a component is arbitrary: the gene with the largest loading gets a plus.
        largest = loadings.abs().argmax(0)
        loadings = loadings * loadings[largest, torch.arange(n, device=found.device)].sign()
        self.genes[:, :n] = loadings.to(self.genes.dtype)
        self.mean[:n] = (mean @ loadings).to(self.mean.dtype)


class CentredProjection(nn.Module):
    """The projection to the codes, centred and scaled over the cells of a training batch.

    It replaces ``quantiser.proj`` during training, so that cells stay spread over the codes when
    the encoder drifts. The batch is that of all processes that train together. :meth:`fold`
    writes running mean and variance into the plain projection.

    Parameters
    ----------
    projection
        The plain one.
    mean, variance
        ``(code_dim,)`` of its outputs over cells, now.
    keep
        Outputs keep this mean and variance; otherwise they have mean 0 and variance 1.
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
        scale = (variance + EPS).sqrt() if keep else torch.ones_like(mean)
        self.register_buffer("scale", scale)

    @property
    def weight(self) -> Tensor:
        """Of the plain projection."""
        return self.projection.weight

    def forward(self, x: Tensor) -> Tensor:
        """Project ``(b, dim)`` to ``(b, code_dim)``."""
        found: Tensor = self.projection(x).to(self.running_mean.dtype)
        n = sum(all_gather_int(len(found))) if self.training else 0
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
            eps=EPS,
        )

    def _centred_by_all(self, found: Tensor, n: int) -> Tensor:
        """Centre and scale over the ``n`` cells of all processes that share the batch."""
        mean = summed(found.sum(0)) / n
        variance = summed((found - mean).square().sum(0)) / n
        with torch.no_grad():
            self.running_mean.lerp_(mean, _MOMENTUM)
            self.running_variance.lerp_(variance * (n / (n - 1)), _MOMENTUM)
        return (found - mean) * (variance + EPS).rsqrt() * self.scale + self.shift

    @torch.no_grad()
    def centre_on(self, pooled: Tensor) -> None:
        """Set running mean and variance from some cells, ``(n, dim)``, if there are enough.

        Training is on a part of each cell; whole cells have another mean and variance.
        """
        found = self.projection(pooled).to(self.running_mean.dtype)
        variance = found.var(0, unbiased=False)
        if bool((variance > EPS).all()):
            self.running_mean.copy_(found.mean(0))
            self.running_variance.copy_(variance)

    @contextmanager
    def centred_on(self, pooled: Tensor) -> Iterator[None]:
        """Use mean and variance of these cells within the context."""
        before = self.running_mean.clone(), self.running_variance.clone()
        self.centre_on(pooled)
        try:
            yield
        finally:
            self.running_mean.copy_(before[0])
            self.running_variance.copy_(before[1])

    @torch.no_grad()
    def fold(self) -> nn.Linear:
        """Return the plain projection with the outputs of this one in evaluation mode."""
        factor = self.scale / (self.running_variance + EPS).sqrt()
        bias = (self.projection.bias - self.running_mean) * factor + self.shift
        self.projection.weight.mul_(factor.unsqueeze(1))
        self.projection.bias.copy_(bias)
        return self.projection


@torch.no_grad()
def spread_cells(projection: nn.Linear, pooled: Tensor) -> None:
    """Initialise the projection to the codes so that cells are spread over them.

    The pooled outputs of an untrained encoder are nearly parallel, so all cells would start at
    one point of the sphere, with one code and no gradient to leave it. The projection is set to
    the principal axes of these outputs, less their mean, each scaled to unit variance; rows
    beyond the number of axes stay.

    Parameters
    ----------
    projection
        To initialise, in place.
    pooled
        ``(n, dim)``, maxima over the tokens of cells, which are quantised.
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
