"""What a compound does to each gene of a sample, from the gene's embedding and the compound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from cfm._arguments import check_flag, check_number, check_whole

if TYPE_CHECKING:
    from collections.abc import Sequence


class CompoundHead(nn.Module):
    r"""Change of expression by a compound, around the mean of the compounds it was taught.

    .. math:: \hat y_{cg} = m_g + \lambda \, \frac{1}{\sqrt{r}} \, (u(h_g) + w_g)^\top v(f_c)

    with :math:`m_g` the mean change of gene :math:`g`, :math:`h_g` its embedding in the baseline
    sample, :math:`f_c` the compound's features, :math:`u` and :math:`v` networks with one hidden
    layer, :math:`w_g` factors of the gene (at first the principal directions of the signatures),
    :math:`r` their number and :math:`\lambda` a shrinkage fitted to compounds held out of training.
    :math:`v` starts as 0: an untrained head answers with the mean.

    Parameters
    ----------
    n_genes
        Genes that the signatures measure.
    dim
        Width of gene embeddings, ``dim + 3`` of the module.
    compounds
        Names of the compounds with features, or with an embedding.
    feature_names
        Names of the features; empty where every compound has a learned embedding instead.
    rank, hidden
        Number of factors and width of the networks.
    dropout
        Of the compound's network.
    signed
        Whether the signatures were directions, not sizes.
    n_embedding
        Width of the learned embedding.
    """

    genes: Tensor
    mean: Tensor
    features: Tensor
    shrinkage: Tensor

    def __init__(
        self,
        n_genes: int,
        dim: int,
        compounds: Sequence[str],
        feature_names: Sequence[str],
        *,
        rank: int = 32,
        hidden: int = 64,
        dropout: float = 0.3,
        signed: bool = True,
        n_embedding: int = 16,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "n_genes": n_genes,
            "dim": dim,
            "compounds": list(compounds),
            "feature_names": list(feature_names),
            "rank": check_whole("rank", rank),
            "hidden": check_whole("hidden", hidden),
            "dropout": check_number("dropout", dropout, 0, 1),
            "signed": check_flag("signed", signed),
            "n_embedding": check_whole("n_embedding", n_embedding),
        }
        self.rank = rank
        width = len(feature_names) or n_embedding
        table = torch.zeros(len(compounds), width)
        if feature_names:
            self.embedding = None
            self.register_buffer("features", table)
        else:
            self.embedding = nn.Embedding(len(compounds), width)
        self.of_gene = nn.Sequential(
            nn.LayerNorm(dim), nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, rank)
        )
        self.of_compound = nn.Sequential(
            nn.Linear(width, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, rank)
        )
        for parameter in cast("nn.Linear", self.of_compound[-1]).parameters():
            nn.init.zeros_(parameter)
        self.gene_factors = nn.Parameter(torch.zeros(n_genes, rank))
        self.register_buffer("genes", torch.arange(n_genes))
        self.register_buffer("mean", torch.zeros(n_genes))
        self.register_buffer("shrinkage", torch.ones(()))

    @property
    def compounds(self) -> list[str]:
        """Names of the compounds that it has features of, or an embedding."""
        return list(self.settings["compounds"])

    @torch.no_grad()
    def start_from(self, mean: Tensor, deviations: Tensor) -> None:
        """Set the mean, and the genes' factors to the principal directions of the signatures.

        Parameters
        ----------
        mean
            ``(n_genes,)`` mean change over the compounds.
        deviations
            ``(signatures, n_genes)`` what is left of each, 0 where it is not known.
        """
        self.mean.copy_(mean)
        rank = min(self.rank, *deviations.shape)
        # Exact and the same on every run, unlike a randomised one; in the signatures, not genes.
        value, vector = torch.linalg.eigh((deviations @ deviations.T).double())
        kept = value[-rank:].clamp(min=1e-12).sqrt()
        direction = (deviations.T.double() @ vector[:, -rank:]) / kept
        self.gene_factors.zero_()
        self.gene_factors[:, :rank] = (direction * len(mean) ** 0.5).float()

    def describe(self, compound: Tensor) -> Tensor:
        """Return the features, or embeddings, of compounds by their number."""
        return self.features[compound] if self.embedding is None else self.embedding(compound)

    def deviation(self, embedded: Tensor, described: Tensor) -> Tensor:
        """Return how much more than the mean genes change, before shrinkage.

        Parameters
        ----------
        embedded
            ``(b, n_genes, dim)`` or ``(n_genes, dim)`` embeddings of the head's genes.
        described
            ``(b, n_features)``.

        Returns
        -------
        ``(b, n_genes)``.
        """
        genes = self.of_gene(embedded) + self.gene_factors  # (b, g, r) or (g, r)
        compound = self.of_compound(described) / self.rank**0.5  # (b, r)
        return (genes @ compound.unsqueeze(-1)).squeeze(-1)

    def forward(self, embedded: Tensor, described: Tensor) -> Tensor:
        """Return the change of each gene, ``(b, n_genes)``; arguments as above."""
        return self.mean + self.shrinkage * self.deviation(embedded, described)


def head_of(module: nn.Module) -> CompoundHead | None:
    """Return the compound head of a network, if it has one."""
    head = getattr(module, "compounds", None)
    return head if isinstance(head, CompoundHead) else None
