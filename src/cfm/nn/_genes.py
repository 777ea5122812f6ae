"""Genes and their values: graph, low-rank covariance, groups; values in, and counts out."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def normalised_adjacency(edges: Tensor, weights: Tensor, n_nodes: int) -> Tensor:
    r"""Return :math:`D^{-1/2} A D^{-1/2}` as a sparse CSR matrix.

    :math:`A_{ts}` is the weight of the edge from source :math:`s` to target :math:`t`, and
    :math:`D` the diagonal of its row sums (Kipf & Welling 2017, without self-loops). Weights of
    repeated edges add up; a node without edges has a row of zeros.

    Parameters
    ----------
    edges
        ``(2, n_edges)`` int64: row 0 holds targets, row 1 sources.
    weights
        ``(n_edges,)`` non-negative.
    n_nodes
        Number of nodes.

    Returns
    -------
    ``(n_nodes, n_nodes)`` sparse CSR, in the dtype and on the device of ``weights``.

    Raises
    ------
    ValueError
        If shapes differ, an edge leaves the graph, or a weight is negative or not finite.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import normalised_adjacency
    >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    >>> normalised_adjacency(edges, torch.ones(4), n_nodes=3).to_dense().round(decimals=3)
    tensor([[0.0000, 0.7070, 0.0000],
            [0.7070, 0.0000, 0.7070],
            [0.0000, 0.7070, 0.0000]])
    """
    check_graph(edges, weights, n_nodes)
    target, source = edges
    degree = torch.zeros(n_nodes, dtype=weights.dtype, device=weights.device)
    degree.index_add_(0, target, weights)
    scale = torch.where(degree > 0, degree, torch.ones_like(degree)).rsqrt()
    values = weights * scale[target] * scale[source]
    with warnings.catch_warnings():
        # torch warns once per process: CSR is in beta, and its invariants are not checked
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
        made = torch.sparse_coo_tensor(edges, values, (n_nodes, n_nodes), device=weights.device)
        return made.coalesce().to_sparse_csr()


def check_graph(edges: Tensor, weights: Tensor, n_nodes: int) -> None:
    """Check a graph; parameters and errors as of :func:`normalised_adjacency`."""
    if edges.ndim != 2 or edges.shape[0] != 2 or edges.dtype != torch.int64:
        raise ValueError(
            f"Edges are {tuple(edges.shape)} of {edges.dtype}; expected (2, n_edges) of "
            "torch.int64, row 0 the target and row 1 the source of each edge."
        )
    if weights.shape != edges.shape[1:]:
        raise ValueError(
            f"There are {edges.shape[1]} edges and {tuple(weights.shape)} weights; expected one "
            "weight per edge."
        )
    if edges.numel() and (int(edges.min()) < 0 or int(edges.max()) >= n_nodes):
        raise ValueError(
            f"The graph has edges between nodes {int(edges.min())} and {int(edges.max())}, but "
            f"there are {n_nodes} genes (numbered from 0); it belongs to another gene list."
        )
    if not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueError("Edge weights must be finite and not negative.")


class GraphConvolution(nn.Module):
    r"""Linear map of each node's neighbourhood, :math:`\hat{A} X W^\top + b`.

    Parameters
    ----------
    dim
        Width of the nodes, in and out.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import GraphConvolution, normalised_adjacency
    >>> edges = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
    >>> adjacency = normalised_adjacency(edges, torch.ones(4), n_nodes=3)
    >>> GraphConvolution(dim=8)(torch.randn(2, 3, 8), adjacency).shape
    torch.Size([2, 3, 8])
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, dim, bias=False)
        self.bias = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor, adjacency: Tensor) -> Tensor:
        """Map ``(b, n, dim)`` nodes; ``adjacency`` from :func:`normalised_adjacency`."""
        # the product over the graph first: the linear layer works on single nodes
        return self.linear(neighbours(x, adjacency)) + self.bias


def neighbours(x: Tensor, adjacency: Tensor) -> Tensor:
    """Sum over neighbours, ``(b, n, dim)``; float32 at least, also under autocast."""
    b, n, dim = x.shape
    flat = x.transpose(0, 1).reshape(n, b * dim).to(adjacency.dtype)  # (n, b·dim)
    with torch.autocast(x.device.type, enabled=False):
        summed = adjacency @ flat
    return summed.view(n, b, dim).transpose(0, 1)


class LowRankLogistic(nn.Module):
    r"""Predict every gene's direction from the observed ones through low-rank gene covariance.

    With gene factors :math:`F \in \mathbb{R}^{G \times r}` the gene-gene covariance is
    :math:`F F^\top`. A profile is given factor scores :math:`z \sim N(0, I / \lambda)` and its
    genes the directions :math:`P(y_g = 1) = \sigma(2 F_g z)`. The posterior mode of :math:`z`
    given the observed directions is found by Newton steps from the ridge solution

    .. math:: z_0 = (F_O^\top F_O + \lambda I)^{-1} F_O^\top y_O

    (which is kernel ridge regression with the kernel :math:`F F^\top`); each step is one
    ``r × r`` solve per profile. The prediction for any gene is :math:`F_g z`: this is the mode of
    a Gaussian-process classifier (Rasmussen & Williams 2006, section 3.4) with a low-rank kernel.

    Parameters
    ----------
    ridge
        Initial :math:`\lambda`; learned on a log scale.
    n_newton
        Number of Newton steps; 0 leaves the ridge solution.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import LowRankLogistic
    >>> factors = torch.tensor([[[2.0], [2.0], [-2.0]]])  # two genes together, one against them
    >>> direction = torch.tensor([[1.0, 0.0, 0.0]])
    >>> observed = torch.tensor([[True, False, False]])
    >>> LowRankLogistic()(factors, direction, observed).sign()
    tensor([[ 1.,  1., -1.]], grad_fn=<SignBackward0>)
    """

    def __init__(self, ridge: float = 2.0, n_newton: int = 3) -> None:
        super().__init__()
        self.log_ridge = nn.Parameter(torch.tensor(math.log(ridge)))
        self.n_newton = n_newton

    def scores(self, factors: Tensor, direction: Tensor, observed: Tensor) -> Tensor:
        """Return the factor scores of profiles.

        Parameters
        ----------
        factors
            ``(b, n, r)`` factors of each token's gene.
        direction
            ``(b, n)`` −1, 0 or 1; ignored where not observed. 0 is read as "either way".
        observed
            ``(b, n)`` bool.

        Returns
        -------
        ``(b, r)`` factor scores in the dtype of ``factors``.
        """
        # Solved in float32 at least: bfloat16 has no Cholesky and too few digits.
        dtype = torch.promote_types(factors.dtype, torch.float32)
        seen = observed.to(dtype)  # (b, n)
        f = factors.to(dtype) * seen.unsqueeze(-1)  # (b, n, r)
        y = direction.to(dtype) * seen
        ridge = self.log_ridge.exp().to(dtype)
        z = self._solve(f, f, y, ridge)
        for _ in range(self.n_newton):
            score = (f @ z.unsqueeze(-1)).squeeze(-1)  # (b, n)
            p = torch.sigmoid(2.0 * score)
            # The floor keeps a saturated gene from dropping out of the system altogether.
            curvature = (4.0 * p * (1.0 - p)).clamp(min=1e-3) * seen
            gradient = 2.0 * (0.5 * (y + 1.0) - p) * seen
            z = self._solve(f * curvature.unsqueeze(-1), f, curvature * score + gradient, ridge)
        return z.to(factors.dtype)

    def forward(self, factors: Tensor, direction: Tensor, observed: Tensor) -> Tensor:
        """Return the score of every token's direction, ``(b, n)``; log-odds of up are twice it."""
        z = self.scores(factors, direction, observed)
        return (factors @ z.unsqueeze(-1)).squeeze(-1)

    @staticmethod
    def _solve(weighted: Tensor, f: Tensor, y: Tensor, ridge: Tensor) -> Tensor:
        """Solve ``(weightedᵀ f + ridge I) z = fᵀ y`` for each profile, ``(b, r)``."""
        gram = weighted.transpose(1, 2) @ f  # (b, r, r)
        eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
        rhs = f.transpose(1, 2) @ y.unsqueeze(-1)  # (b, r, 1)
        return torch.cholesky_solve(rhs, torch.linalg.cholesky(gram + ridge * eye)).squeeze(-1)


class GroupCompression(nn.Module):
    r"""Compress a sequence of genes by a fixed factor (Lingshu-Cell, eq. 8 and 9).

    Genes are put into one random order :math:`\pi`, drawn once and kept as a buffer, and cut into
    groups of :math:`S`; the last is padded. A group's embeddings are concatenated and mapped by
    :math:`W_\text{down}: S D \to D`; after the trunk :math:`W_\text{up}: D \to S D` gives each
    gene its own vector again. Both are shared by all groups.

    Both are applied without ever forming the ``(b, n_genes, dim)`` embeddings. There are few
    different values, so what each of them adds from each place of a group is tabulated once and
    summed (:meth:`pack`); and a linear head is multiplied into :math:`W_\text{up}`
    (:meth:`heads`). The functions are the same, up to rounding.

    Parameters
    ----------
    n_genes
        Number of genes.
    dim
        Width of the embeddings and of the tokens.
    group_size
        Genes per group, :math:`S`.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import GroupCompression
    >>> groups = GroupCompression(n_genes=10, dim=8, group_size=4)
    >>> groups.n_groups
    3
    """

    permutation: Tensor
    position: Tensor

    def __init__(self, n_genes: int, dim: int, group_size: int) -> None:
        super().__init__()
        self.n_genes = n_genes
        self.group_size = group_size
        self.n_groups = -(-n_genes // group_size)
        self.down = nn.Linear(group_size * dim, dim, bias=False)
        self.up = nn.Linear(dim, group_size * dim, bias=False)
        # Gene at each position; its inverse follows from it.
        self.register_buffer("permutation", torch.randperm(n_genes))
        self.register_buffer("position", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_load_state_dict_post_hook(_forget_position)

    def positions(self) -> Tensor:
        """Return the position of each gene in the order of the groups, ``(n_genes,)`` int64."""
        if self.position.shape != self.permutation.shape or (
            self.position.device != self.permutation.device
        ):
            with torch.inference_mode(False):  # training may use it next
                self.position = torch.argsort(self.permutation)
        return self.position

    def table(self, embedding: Tensor) -> Tensor:
        """Return what each value adds from each place, ``(group_size * v, dim)``.

        Parameters
        ----------
        embedding
            ``(v, dim)``, embedding of each value.
        """
        dim = self.up.in_features
        down = self.down.weight.view(-1, self.group_size, dim)  # (dim, s, dim)
        made = torch.matmul(embedding, down.permute(1, 2, 0))  # (s, v, dim)
        return made.reshape(-1, made.shape[-1])

    def pack(self, tokens: Tensor, table: Tensor, padding: int) -> Tensor:
        """Turn values into one token per group.

        Parameters
        ----------
        tokens
            ``(b, n_genes)`` int64, value of each gene.
        table
            What :meth:`table` returned.
        padding
            Value that fills up the last group.

        Returns
        -------
        ``(b, n_groups, dim)`` float32.
        """
        size = self.group_size
        ordered = tokens[:, self.permutation]
        lacking = self.n_groups * size - self.n_genes
        ordered = F.pad(ordered, (0, lacking), value=padding).view(-1, size)
        offset = torch.arange(size, device=tokens.device) * (len(table) // size)
        packed = F.embedding_bag(ordered + offset, table.float(), mode="sum")
        return packed.view(len(tokens), self.n_groups, -1)

    def unpack(self, x: Tensor) -> Tensor:
        """Turn tokens ``(b, n_groups, dim)`` into a vector per gene, ``(b, n_genes, dim)``."""
        made = self.up(x).view(len(x), self.n_groups * self.group_size, -1)
        return made[:, self.positions()]

    def heads(self, head: Tensor) -> Tensor:
        """Multiply a linear head ``(v, dim)`` into the way back.

        Returns
        -------
        ``(group_size, v, dim)``: for each place, from a group's token to the head's output.
        """
        return torch.matmul(head, self.up.weight.view(self.group_size, -1, self.up.in_features))


def _forget_position(groups: nn.Module, loaded: object) -> None:
    """Drop the positions, which follow from the permutation; they are computed when needed."""
    groups.position = torch.empty(0, dtype=torch.int64)


class RotaryExpressionEmbedding(nn.Module):
    r"""Embed a number through sines and cosines at fixed, geometrically spaced frequencies.

    The embedding of :math:`x` is :math:`[\sin(x\,\omega), \cos(x\,\omega)]` with
    :math:`\omega_j = 100^{-2j/d}` for :math:`j = 0 \dots d/2 - 1`. A missing value is embedded
    as zeros.

    Parameters
    ----------
    dim
        Width of the embedding, even.
    base
        The 100 above.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import RotaryExpressionEmbedding
    >>> missing = torch.tensor([False, True])
    >>> RotaryExpressionEmbedding(dim=8)(torch.tensor([3.2, 0.0]), missing).shape
    torch.Size([2, 8])
    """

    def __init__(self, dim: int, base: float = 100.0) -> None:
        super().__init__()
        if dim % 2:
            raise ValueError(f"dim={dim} must be even: half of it are sines, half cosines.")
        exponent = 2.0 * torch.arange(dim // 2, dtype=torch.float32) / dim
        # A parameter that is never trained, as published weights store it.
        self.frequencies = nn.Parameter(base**-exponent, requires_grad=False)

    def forward(self, value: Tensor, missing: Tensor) -> Tensor:
        """Map ``(...,)`` values and a bool mask of the missing ones to ``(..., dim)``."""
        angle = value.unsqueeze(-1) * self.frequencies
        embedded = torch.cat([angle.sin(), angle.cos()], dim=-1)
        return embedded.masked_fill(missing.unsqueeze(-1), 0.0)


class MagnitudeEmbedding(nn.Module):
    """Embed a magnitude through Fourier features and a linear map; one vector for *unknown*.

    Parameters
    ----------
    dim
        Width of the embedding.
    n_frequencies
        Number of sine and of cosine features.
    max_value
        Magnitude at which the lowest frequency has gone through half a turn.

    Examples
    --------
    >>> import torch
    >>> from cfm.nn import MagnitudeEmbedding
    >>> known = torch.tensor([True, False])
    >>> MagnitudeEmbedding(dim=8)(torch.tensor([1.5, 0.0]), known).shape
    torch.Size([2, 8])
    """

    frequencies: Tensor

    def __init__(self, dim: int, n_frequencies: int = 8, max_value: float = 4.0) -> None:
        super().__init__()
        # On the CPU in any case: they are not stored with the weights.
        powers = torch.arange(n_frequencies, dtype=torch.float32, device="cpu")
        frequencies = math.pi / max_value * 2.0**powers
        self.register_buffer("frequencies", frequencies / 2.0, persistent=False)
        self.linear = nn.Linear(2 * n_frequencies + 1, dim)
        self.unknown = nn.Parameter(torch.zeros(dim))

    def forward(self, magnitude: Tensor, known: Tensor) -> Tensor:
        """Map ``(...,)`` magnitudes and a bool mask of the known ones to ``(..., dim)``."""
        value = torch.where(known, magnitude, torch.zeros_like(magnitude)).unsqueeze(-1)
        angle = value * self.frequencies
        features = torch.cat([value, angle.sin(), angle.cos()], dim=-1)
        embedded = self.linear(features.to(self.linear.weight.dtype))
        return torch.where(known.unsqueeze(-1), embedded, self.unknown.to(embedded.dtype))


#: Slope of the activation for negative numbers.
_SLOPE = 0.1


class BinnedValueEmbedding(nn.Module):
    r"""A number becomes a mixture of bin embeddings whose shares are learned.

    .. math:: h = \mathrm{LeakyReLU}_{0.1}(w v + b), \quad
              p = \mathrm{softmax}(\alpha h + W h + c), \quad e = p^\top E

    with a row of :math:`E` per bin. Nothing is cut into intervals beforehand, and the embedding
    changes smoothly with the value.

    Parameters
    ----------
    dim
        Width of the embedding.
    n_bins
        Number of bins.
    alpha
        Weight of the hidden numbers beside their mixture.

    References
    ----------
    Hao et al. 2024, Large-scale foundation model on single-cell transcriptomics (scFoundation),
    auto-discretisation; the numbers of its released code.
    """

    def __init__(self, dim: int, n_bins: int = 100, alpha: float = 1.0) -> None:
        super().__init__()
        if n_bins < 1:
            raise ValueError(f"n_bins must be at least 1; found {n_bins!r}.")
        self.alpha = alpha
        self.to_bins = nn.Linear(1, n_bins)
        self.mix = nn.Linear(n_bins, n_bins)
        self.bins = nn.Parameter(torch.empty(n_bins, dim))
        if not self.bins.is_meta:
            nn.init.normal_(self.bins)

    def shares(self, values: Tensor) -> Tensor:
        """Return the shares of the bins, ``(...)`` to ``(..., n_bins)``, which sum to 1."""
        hidden = F.leaky_relu(self.to_bins(values.unsqueeze(-1)), _SLOPE)
        return torch.softmax(self.alpha * hidden + self.mix(hidden), dim=-1)

    def forward(self, values: Tensor) -> Tensor:
        """Embed values, ``(...)`` to ``(..., dim)``."""
        return self.shares(values) @ self.bins


#: Counts up to this are zeros.
_ZERO = 1e-8
_EPS = 1e-8
#: Bounds of the mean, as published.
LEAST_MEAN, MOST_MEAN = 1e-5, 1e6


def zinb_nll(
    counts: Tensor, mean: Tensor, dispersion: Tensor, dropout: Tensor, *, ridge: float = 0.0
) -> Tensor:
    r"""Return the negative log-likelihood of counts, element by element.

    .. math::
        -\log P(0) &= -\log\left(\pi + (1 - \pi) (\theta / (\theta + \mu))^\theta\right) \\
        -\log P(x) &= -\log(1 - \pi) - \log\Gamma(x + \theta) + \log\Gamma(\theta)
            + \log\Gamma(x + 1) - \theta \log\frac{\theta}{\theta + \mu}
            - x \log\frac{\mu}{\theta + \mu}

    Parameters
    ----------
    counts
        *x*, zero or more; up to 1e-8 is zero.
    mean
        :math:`\mu` of the negative binomial part, above 0.
    dispersion
        :math:`\theta`, above 0; the variance is :math:`\mu + \mu^2 / \theta`.
    dropout
        :math:`\pi`, the probability of a zero beside that part, 0 to 1.
    ridge
        Weight of :math:`\pi^2`, which is added.

    Returns
    -------
    Of the broadcast shape of the inputs, in nats.
    """
    dropout = dropout.clamp(_EPS, 1.0 - 1e-7)
    log_share = -torch.log1p(mean / dispersion)  # log θ / (θ + μ)
    log_zero = dispersion * log_share
    stays = torch.log1p(-dropout)
    zero = -torch.logaddexp(dropout.log(), stays + log_zero)
    more = (
        torch.lgamma(dispersion)
        + torch.lgamma(counts + 1.0)
        - torch.lgamma(counts + dispersion)
        - log_zero
        - counts * (mean.log() - dispersion.log() + log_share)
        - stays
    )
    loss = torch.where(counts <= _ZERO, zero, more)
    return loss + ridge * dropout.square() if ridge else loss


class ZINBHeads(nn.Module):
    """Linear heads that turn tokens into the three numbers of the distribution.

    Parameters
    ----------
    dim
        Width of the tokens.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.mean = nn.Linear(dim, 1)
        self.dispersion = nn.Linear(dim, 1)
        self.dropout = nn.Linear(dim, 1)

    @torch.no_grad()
    def start_at_one(self) -> None:
        """Let every mean be 1, whatever the token; the rest of a model can then start it off."""
        self.mean.weight.zero_()
        self.mean.bias.zero_()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Map ``(..., dim)`` to mean, dispersion and dropout, each ``(...)`` float32.

        The mean is within 1e-5 and 1e6, the dispersion within 1e-4 and 1e4, as published.
        """
        mean, dispersion, dropout = (
            head(x).squeeze(-1).float() for head in (self.mean, self.dispersion, self.dropout)
        )
        return (
            mean.exp().clamp(LEAST_MEAN, MOST_MEAN),
            F.softplus(dispersion).clamp(1e-4, 1e4),
            torch.sigmoid(dropout),
        )
