"""Codes that are read from expression: clusters of the training cells, ours."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy import sparse
from scipy.cluster.hierarchy import fcluster, leaves_list, linkage
from sklearn.cluster import KMeans
from sklearn.utils.extmath import randomized_svd
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.models.cellvq._property_heads import ExpressionHead
from cfm.nn._soft_codes import Quantised, binary_numbers
from cfm.stats._discriminant import TARGET_SUM, GeneDiscriminant, log_normalised

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
