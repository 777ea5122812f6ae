"""A linear gene-gene term beside the network: local factor analysis, in closed form."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from cfm.models.bulkformer._constants import MISSING

#: Smallest variance of a gene that the factors do not explain, in squared log TPM.
NOISE_FLOOR = 0.03


class LocalFactors(nn.Module):
    r"""Predict every gene of a sample from the observed ones by a Gaussian of similar samples.

    Each group of training samples :math:`t` (a study, a tissue) has a centre :math:`c_t`. A sample
    :math:`x` belongs to group :math:`t` with

    .. math:: g_t \propto \exp(-\tfrac{1}{2 \tau} \operatorname{mean}_{O}
        (x - c_t)^2 / v)

    over its observed genes :math:`O`, and is taken as a draw from
    :math:`N(\mu, L S L^\top + D)` with :math:`\mu = \sum_t g_t c_t`, loadings :math:`L` common to
    all, and the score covariance :math:`S` of the training samples, weighted by :math:`g` of
    their group plus :math:`\lambda`, plus :math:`\kappa` times that of the centres around
    :math:`\mu`. The prediction is the conditional mean given :math:`x_O`: ridge regression on all
    observed genes, in which similar samples count most.

    Parameters
    ----------
    n_genes, n_factors, n_groups, n_rows
        Sizes: genes, loadings, groups, training samples whose scores are kept.
    """

    loadings: Tensor
    loading_scale: Tensor
    centres: Tensor
    centre_scores: Tensor
    variances: Tensor
    measured: Tensor
    usual: Tensor
    scores: Tensor
    score_scale: Tensor
    group: Tensor
    settings: Tensor
    weight: Tensor

    def __init__(self, n_genes: int, n_factors: int, n_groups: int, n_rows: int) -> None:
        super().__init__()
        self.sizes = {"n_factors": n_factors, "n_groups": n_groups, "n_rows": n_rows}
        # In bytes, with a scale per gene: many factors matter more than their digits.
        self.register_buffer("loadings", torch.zeros(n_genes, n_factors, dtype=torch.int8))
        self.register_buffer("loading_scale", torch.ones(n_genes))
        self.register_buffer("centres", torch.zeros(n_groups, n_genes))
        self.register_buffer("centre_scores", torch.zeros(n_groups, n_factors))
        # Variance within a group that the loadings leave.
        self.register_buffer("variances", torch.ones(n_groups, n_genes))
        self.register_buffer("measured", torch.ones(n_groups, n_genes, dtype=torch.bool))
        # Mean squared distance of a group's samples from its centre.
        self.register_buffer("usual", torch.ones(n_groups))
        self.register_buffer("scores", torch.zeros(n_rows, n_factors, dtype=torch.int8))
        self.register_buffer("score_scale", torch.ones(n_factors))
        self.register_buffer("group", torch.zeros(n_rows, dtype=torch.int16))
        #: λ, κ and τ.
        self.register_buffer("settings", torch.tensor([0.1, 0.05, 0.1]))
        #: Share of this term in the prediction; the rest is the network's.
        self.register_buffer("weight", torch.tensor(1.0))

    def blend(self, network: Tensor, expression: Tensor) -> Tensor:
        """Join the network's prediction, ``(n, n_genes)``, with that of this term."""
        share = self.network_share(expression).unsqueeze(1)
        return F.relu(torch.lerp(self.predict(expression), network, share))

    def network_share(self, expression: Tensor, without: Tensor | None = None) -> Tensor:
        """Return the share of the network in each sample's prediction, ``(n,)``.

        ``1 - weight`` for samples like none of the groups, falling with the fourth power of
        :math:`f`: regression on samples that are alike leaves the network nothing to add. With
        a weight of 0 the network is all of it.
        """
        share = torch.ones(len(expression), device=expression.device)
        if self.weight == 0.0:  # the network alone
            return share
        for i, x in enumerate(expression):
            share[i] = (1.0 - self.weight) * self.membership(x.float(), without)[1] ** 4
        return share

    def predict(self, expression: Tensor, without: Tensor | None = None) -> Tensor:
        """Predict all genes.

        Parameters
        ----------
        expression
            ``(n, n_genes)`` log TPM; −10 = missing.
        without
            ``(n_groups,)`` bool, groups to do without (to predict samples of their study).

        Returns
        -------
        ``(n, n_genes)`` float32.
        """
        loadings = self.loadings.float() * self.loading_scale.unsqueeze(1)
        made = [self._one(x.float(), loadings, without) for x in expression]
        return torch.stack(made) if made else expression.new_empty(expression.shape)

    def membership(self, x: Tensor, without: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return how far a sample belongs to each group, and how unlike all of them it is.

        The latter, :math:`f`, is 0 for a sample no farther from its centre than usual in that
        group and approaches 1 for one like none of them.

        Parameters
        ----------
        x
            ``(n_genes,)`` log TPM; −10 = missing.
        without
            ``(n_groups,)`` bool, groups to do without.

        Returns
        -------
        ``(n_groups,)`` shares that sum to 1, and :math:`f`, between 0 and 1.
        """
        distance = self.distance(x)
        if without is not None:
            distance = torch.where(without, torch.inf, distance)
        belongs = torch.softmax(-0.5 * distance / self.settings[2], 0)
        share = self.usual / distance.clamp(min=1e-6)
        return belongs, 1.0 - (belongs @ share).clamp(max=1.0)

    def distance(self, x: Tensor) -> Tensor:
        """Return the mean squared distance from each centre, ``(n_groups,)``, in noise variances.

        Infinite where a group measures none of the sample's genes.
        """
        seen = (x != MISSING) & self.measured  # (t, g)
        distance = (x - self.centres).square() / (self.variances.mean(0) + NOISE_FLOOR)
        mean = torch.where(seen, distance, 0.0).sum(1) / seen.sum(1).clamp(min=1)
        return torch.where(seen.any(1), mean, torch.inf) if bool(seen.any()) else mean

    def _one(self, x: Tensor, loadings: Tensor, without: Tensor | None) -> Tensor:
        belongs, _ = self.membership(x, without)
        wide, shift, _ = self.settings
        group = self.group.long()
        n = torch.bincount(group, minlength=len(belongs)).clamp(min=1)
        common = n.float().sqrt()
        if without is not None:
            common = torch.where(without, 0.0, common)
        common = common / common.sum()
        share = belongs + wide * common
        mean = belongs @ self.centres
        rows = self.scores * self.score_scale * (share / n)[group].sqrt().unsqueeze(1)
        covariance = rows.T @ rows  # (r, r)
        apart = self.centre_scores - belongs @ self.centre_scores
        if without is not None:
            apart = apart[~without]
        covariance = covariance + shift / len(apart) * (apart.T @ apart)
        noise = share @ self.variances + NOISE_FLOOR  # (g,)
        # Roots of the covariance as columns: the system stays well conditioned where it has none.
        values, vectors = torch.linalg.eigh(covariance.double())
        root = (vectors * values.clamp(min=0.0).sqrt()).float()
        seen = torch.nonzero(x != MISSING).squeeze(1)
        observed = loadings[seen] @ root
        weighted = observed / noise[seen].unsqueeze(1)
        gram = weighted.T @ observed + torch.eye(len(root), device=x.device)
        scores = torch.linalg.solve(gram, weighted.T @ (x - mean)[seen])
        return mean + loadings @ (root @ scores)
