"""What the code of a cell says of each gene directly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cfm.nn._zinb import LEAST_MEAN, MOST_MEAN

#: Genes that no training cell expresses start here, in counts per 10,000.
_LEAST_MEAN = 1e-3
#: Of the log mean; what keeps an untrained term finite.
_LARGEST_CHANGE = 12.0


class CodeTerm(nn.Module):
    r"""Bilinear term of genes and codes, by whose exponential expected counts are multiplied.

    .. math:: \mu_{cg} = \mu'_{cg} \exp(b_g + u_g^\top W v_c)

    with :math:`v_c` the quantised vector of a cell and :math:`\mu'` the mean of the decoder.
    A narrow Performer needs thousands of steps to let a gene depend on the code; this term does
    from the first. Not in the published model.

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
        """Begin from the mean of each gene over cells, ``(n_genes,)`` in counts per 10,000."""
        self.base.copy_(mean.clamp(min=_LEAST_MEAN).log())

    def forward(self, mean: Tensor, vector: Tensor) -> Tensor:
        """Change ``(b, n_genes)`` expected counts by what ``(b, dim)`` codes say of them."""
        change = self.base + self.projection(vector) @ self.genes.T
        changed = mean * change.float().clamp(-_LARGEST_CHANGE, _LARGEST_CHANGE).exp()
        return changed.clamp(LEAST_MEAN, MOST_MEAN)
