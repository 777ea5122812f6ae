"""What a cell expresses, summed up without attention."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

#: Width that the leading axis has over the cells that the term is started from.
_SPREAD = 3.0


class ExpressionTerm(nn.Module):
    r"""Linear term of expression, added to every token of a cell.

    .. math:: t_c = \sum_g \frac{x_{cg}}{\sum_h x_{ch}} e_g - m

    over what is seen of a cell, :math:`x` the log1p of counts per 10,000. It says the same of a
    cell and of a random part of it. Started from principal components it gives codes something
    to go by from the first step; attention adds what is not linear. Not in the published model.

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
        """Return genes and what share of a cell's expression each is, ``(b, n)``; others are 0."""
        other = gene_ids >= len(self.genes)
        if padding is not None:
            other = other | padding
        share = values.masked_fill(other, 0.0)
        total = share.sum(1, keepdim=True).clamp(min=torch.finfo(share.dtype).tiny)
        return gene_ids.masked_fill(other, 0), share / total

    def forward(self, values: Tensor, gene_ids: Tensor, padding: Tensor | None) -> Tensor:
        """Map ``(b, n)`` tokens to ``(b, dim)``."""
        genes, share = self.shares(values, gene_ids, padding)
        # Summed cell by cell, so that it does not depend on the others of a batch.
        found = F.embedding_bag(genes, self.genes, mode="sum", per_sample_weights=share)
        return found - self.mean

    @torch.no_grad()
    def start(self, cells: list[tuple[Tensor, Tensor, Tensor]]) -> None:
        """Begin from the principal components of the expression of some cells.

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
        # The sign of a component is arbitrary: the gene that matters most counts upwards.
        largest = loadings.abs().argmax(0)
        loadings = loadings * loadings[largest, torch.arange(n, device=found.device)].sign()
        self.genes[:, :n] = loadings.to(self.genes.dtype)
        self.mean[:n] = (mean @ loadings).to(self.mean.dtype)
