"""Our additions to the published network: codes read from expression, and two linear terms."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from sklearn.cluster import KMeans
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.models.cellvq._property_heads import ExpressionHead
from cfm.nn._distributed import all_gather_int, summed
from cfm.nn._genes import LEAST_MEAN, MOST_MEAN
from cfm.nn._soft_codes import Quantised, binary_numbers
from cfm.stats._discriminant import TARGET_SUM, GeneDiscriminant, log_normalised

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


#: Principal components that are clustered, and factors of the covariance within clusters.
#: Chosen with the number of codes on one donor of Kang 2018, from the cells of the other.
N_COMPONENTS = N_FACTORS = 30
#: Coordinates of a code beside those of its cluster.
N_LIFTED = 2
#: Radius of the clusters before they are lifted to the sphere.
_RADIUS = 0.5


class ExpressionCodes(nn.Module):
    r"""Quantiser whose codes are clusters of the training cells, a linear function of expression.

    The principal components of some training cells are clustered, by Ward's method and then
    k-means from its centres, so nothing depends on a seed. Linear discriminant analysis, with a
    factor model of the covariance within clusters, then finds the cluster of any cell from
    whichever genes are measured (:class:`cfm.stats._discriminant.GeneDiscriminant`).

    With :math:`m_k` the centre of a cluster and :math:`y` the place of a cell in the space of the
    discriminants, codes and cells are put on the sphere so that the nearest code is the most
    probable cluster:

    .. math:: v_k \propto (s m_k,\; 1 - s^2 \lVert m_k \rVert^2 / 2,\; r_k), \qquad
              u \propto (s y,\; 1,\; 0)

    where :math:`r_k` gives all codes the same length. The numbers of codes follow the tree of the
    clusters, so neighbours in number are often similar.

    Parameters
    ----------
    n_genes
        Genes.
    dim
        Width of the tokens, into which codes are projected.
    n_bits
        There are ``2 ** n_bits`` codes.
    code_dim
        Width of the codes, at least 3. With fewer than the number of codes + 1 the widest
        ``code_dim - 2`` discriminants are used.

    Attributes
    ----------
    share
        ``(n_codes,)``, share of the cells that were clustered; 0 for codes that no cell has.
    places
        ``(n_codes, code_dim - 2)``, centres of the clusters.
    """

    bits: Tensor
    share: Tensor
    places: Tensor

    def __init__(self, n_genes: int, dim: int, *, n_bits: int, code_dim: int) -> None:
        super().__init__()
        self.register_buffer("bits", binary_numbers(n_bits), persistent=False)
        n_codes = len(self.bits)
        self.discriminant = ExpressionHead(n_codes, n_genes, N_FACTORS)
        self.register_buffer("share", torch.zeros(n_codes))
        self.register_buffer("places", torch.zeros(n_codes, code_dim - N_LIFTED))
        self.proj_inv = nn.Linear(code_dim, dim)

    @property
    def n_codes(self) -> int:
        """Number of codes."""
        return len(self.bits)

    def codebook(self) -> Tensor:
        """Return all codes, ``(n_codes, code_dim)`` of unit length; those not in use lie far."""
        centres = _RADIUS * self.places.float()
        square = centres.square().sum(1)
        lifted = torch.cat([centres, 1.0 - 0.5 * square[:, None]], dim=1)
        # the squared length is 1 + square² / 4: the last coordinate makes it the same for all
        longest = (1.0 + 0.25 * square.square()).max()
        rest = (0.25 * (square.square().max() - square.square())).clamp(min=0.0).sqrt()
        codes = torch.cat([lifted, rest[:, None]], dim=1) / longest.sqrt()
        unused = torch.zeros_like(codes)
        unused[:, -N_LIFTED] = -1.0
        return torch.where(self.share[:, None] > 0, codes, unused)

    def forward(self, x: Tensor) -> Quantised:
        """Give each cell its nearest code.

        Parameters
        ----------
        x
            ``(b, code_dim)``, what :meth:`CodeReader.positions` returned.
        """
        codes = self.codebook()
        latent = F.normalize(x.to(codes.dtype), dim=-1)
        similarity = latent @ codes.T
        code = similarity.argmax(dim=-1)
        vector = self.proj_inv(codes[code])
        return Quantised(code, vector, latent, similarity, None, codes)

    @torch.no_grad()
    def start(
        self,
        counts: np.ndarray,
        genes: np.ndarray,
        labels: np.ndarray | None = None,
        label_weight: float = 0.0,
    ) -> None:
        """Make the codes from some cells.

        Parameters
        ----------
        counts
            ``(n_cells, n)``, counts of some genes.
        genes
            ``(n,)`` int, which genes these are.
        labels
            ``(n_cells, n_properties)`` int classes, −1 = unknown. Cells of different classes are
            further apart.
        label_weight
            By how much: 1 gives the classes of a property the same spread as expression.
        """
        group = cluster_cells(counts, self.n_codes, labels, label_weight)
        n_used = int(group.max()) + 1
        if n_used < 2:
            return
        # all cells of a cluster may be one cell
        zeros = np.zeros(len(group), dtype=int)
        found = GeneDiscriminant.estimate(counts, group, zeros, N_FACTORS)
        _, gram = found.scaled(np.arange(len(genes)))
        centred = gram - gram.mean(axis=0) - gram.mean(axis=1)[:, None] + gram.mean()
        spread, axes = np.linalg.eigh(centred)
        n = min(self.places.shape[1], n_used - 1)
        spread, axes = spread[::-1][:n].clip(0.0), axes[:, ::-1][:, :n]
        # the sign of an axis is arbitrary: the code furthest along it gets a plus
        axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(n)])
        places = axes * np.sqrt(spread)
        order = leaves_list(linkage(places, "ward")) if n_used > 2 else np.arange(n_used)
        size = np.bincount(group, minlength=n_used) / len(group)
        self.share.zero_()[:n_used] = torch.from_numpy(size[order]).to(self.share)
        self.places.zero_()[:n_used, :n] = torch.from_numpy(places[order]).to(self.places)
        self.discriminant.fill(found, genes, order)

    def reader(self, measured: np.ndarray) -> CodeReader:
        """Return the linear function of expression for the measured genes, ``(n_genes,)`` bool."""
        found = self.discriminant.found()
        used = np.flatnonzero(self.share.cpu().numpy() > 0)
        genes = np.flatnonzero(measured & (found.abundance > 0))
        code_dim = self.places.shape[1] + N_LIFTED
        if not len(used) or not len(genes):
            return CodeReader(genes, np.zeros((len(genes), code_dim)), _at_origin(code_dim), 0.0)
        weights, products = found.subset(used).scaled(genes)
        places = self.places.cpu().numpy().astype(float)[used]
        # the place whose discriminants, m y - |m|² / 2, are nearest to those of the cell
        design = np.column_stack([places, np.ones(len(used))])
        solve = np.linalg.pinv(design)[:-1]
        offset = solve @ (0.5 * np.square(places).sum(axis=1) - 0.5 * np.diag(products))
        per_gene = (solve @ weights / found.spread[genes]).T
        constant = _at_origin(code_dim)
        constant[:-N_LIFTED] = _RADIUS * (offset - found.centre[genes] @ per_gene)
        full = np.zeros((len(genes), code_dim))
        full[:, :-N_LIFTED] = _RADIUS * per_gene
        part = TARGET_SUM * found.abundance[genes].sum() / found.abundance.sum()
        return CodeReader(genes, full, constant, float(part))


class CodeReader(NamedTuple):
    """Linear function from expression to the space of the codes.

    Attributes
    ----------
    genes
        ``(n,)`` int, which genes are read.
    weights
        ``(n, code_dim)``.
    constant
        ``(code_dim,)``.
    total
        Counts that these genes are scaled to in each cell.
    """

    genes: np.ndarray
    weights: np.ndarray
    constant: np.ndarray
    total: float

    def positions(self, values: sparse.csr_matrix) -> Tensor:
        """Return where cells lie among the codes, ``(b, code_dim)`` float32.

        Parameters
        ----------
        values
            ``(b, n_genes)``, ``log1p`` of counts per 10,000, or of a multiple of them.
        """
        part = sparse.csr_matrix(values[:, self.genes], dtype=np.float64)
        counts = np.expm1(part.data)
        row = np.repeat(np.arange(part.shape[0]), np.diff(part.indptr))
        total = np.bincount(row, counts, minlength=part.shape[0])
        part.data = np.log1p(counts * (self.total / np.where(total > 0, total, 1.0))[row])
        return torch.from_numpy((part @ self.weights + self.constant).astype(np.float32))


def cluster_cells(
    counts: np.ndarray, n_groups: int, labels: np.ndarray | None = None, label_weight: float = 0.0
) -> np.ndarray:
    """Cluster cells: principal components, Ward's method, then k-means from its centres.

    The parameters are those of :meth:`ExpressionCodes.start`.

    Returns
    -------
    ``(n_cells,)`` int, 0 … at most ``n_groups - 1``, each at least once.
    """
    total = counts.sum(axis=1, keepdims=True)
    abundance = (counts / np.where(total > 0, total, 1.0)).mean(axis=0)
    values = log_normalised(counts, abundance, np.arange(counts.shape[1]))
    values -= values.mean(axis=0)
    values /= values.std(axis=0) + 0.1
    n = min(N_COMPONENTS, min(values.shape) - 1)
    if n < 1 or not values.any():  # one cell, or cells that do not differ
        return np.zeros(len(counts), dtype=int)
    left, spread, _ = randomized_svd(values, n, random_state=0)
    space = left * spread
    if labels is not None and label_weight > 0:
        scale = label_weight * np.sqrt(np.square(space).sum(axis=1).mean())
        space = np.concatenate([space, *(scale * _indicators(part) for part in labels.T)], axis=1)
    group = fcluster(linkage(space, "ward"), n_groups, criterion="maxclust")
    _, group = np.unique(group, return_inverse=True)
    centres = np.stack([space[group == k].mean(axis=0) for k in range(int(group.max()) + 1)])
    refined = KMeans(len(centres), init=centres, n_init=1).fit_predict(space)
    found: np.ndarray = np.unique(refined, return_inverse=True)[1]
    return found


def _indicators(classes: np.ndarray) -> np.ndarray:
    """Return centred indicators of classes, ``(n, n_classes)``; 0 for unknown ones."""
    known = classes >= 0
    out = np.zeros((len(classes), int(classes.max(initial=-1)) + 1))
    out[np.flatnonzero(known), classes[known]] = 1.0
    out[known] -= out[known].mean(axis=0) if known.any() else 0.0
    return out


def _at_origin(code_dim: int) -> np.ndarray:
    """Return the middle of the space of the codes, ``(code_dim,)``."""
    out = np.zeros(code_dim)
    out[-N_LIFTED] = 1.0
    return out
