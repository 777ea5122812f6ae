"""Wide-and-deep virus classifier, tensor side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Largest absolute centred effect.
CLIP = 6.0
#: Scalars that describe a profile as a whole, see :func:`profile_statistics`.
N_STATISTICS = 8
#: Those of them that change sign with the profile.
SIGNED_STATISTICS = (2, 5, 6, 7)
#: Genes of the interferon statistics.
INTERFERON_GENES = ("IFI27", "IFI44L", "ISG15", "MX1", "IFIT1", "RSAD2")


class Views(NamedTuple):
    """What the classifier reads of a batch of profiles.

    ``all`` and ``common`` ``(b, n_genes)``: centred, clipped effects of unit length over all genes
    and over those that most training profiles measure; ``deep`` ``(b, dim)``: the embedding, of
    unit length; ``statistics`` ``(b, 8)``.
    """

    all: Tensor
    common: Tensor
    deep: Tensor
    statistics: Tensor


class Scores(NamedTuple):
    """Calibrated output of a batch.

    ``virus`` ``(b, classes)`` log-probabilities given an infection, ``infected`` ``(b,)`` log-odds
    of infection, ``novelty`` ``(b,)`` in 0…1, higher = less like any training virus.
    """

    virus: Tensor
    infected: Tensor
    novelty: Tensor


def unit(x: Tensor) -> Tensor:
    """Scale rows to unit length; rows of zeros stay zeros."""
    return x / x.norm(dim=-1, keepdim=True).clamp(min=1e-12)


def center(effects: Tensor) -> Tensor:
    """Subtract each row's median over measured genes, clip, and set missing genes to 0."""
    centred = effects - effects.nanmedian(dim=-1, keepdim=True).values
    return centred.clamp(-CLIP, CLIP).nan_to_num(0.0)


def profile_statistics(effects: Tensor, interferon: Tensor) -> Tensor:
    """Return size and shape of profiles.

    Parameters
    ----------
    effects
        ``(b, n_genes)`` log2 fold changes, NaN = not measured.
    interferon
        ``(n_genes,)`` 1 at interferon-stimulated genes, else 0.

    Returns
    -------
    ``(b, 8)``: log of the root mean square; log share of effects above 1; asinh of the mean
    interferon effect; log share beyond three robust standard deviations; log ratio of the mean of
    the largest hundredth to the robust standard deviation; interferon effect in units of the root
    mean square; mean sign of the largest fiftieth; asinh of the skewness. All over measured genes.
    """
    seen = ~torch.isnan(effects)
    x = center(effects)  # (b, g)
    return centred_statistics(x, seen, mean_response(effects, interferon), robust_spread(x, seen))


def mean_response(effects: Tensor, interferon: Tensor) -> Tensor:
    """Return the mean effect of the measured interferon genes, ``(b,)``; 0 if there is none."""
    n = (~torch.isnan(effects) * interferon).sum(-1).clamp(min=1)
    return (effects.nan_to_num(0.0) * interferon).sum(-1) / n


def robust_spread(x: Tensor, seen: Tensor) -> Tensor:
    """Return 1.4826 times the median absolute centred effect of the measured genes, ``(b,)``."""
    blank = torch.full_like(x, float("nan"))
    median = torch.where(seen, x.abs(), blank).nanmedian(dim=-1).values.nan_to_num(0.0)
    return (1.4826 * median).clamp(min=1e-3)


def centred_statistics(x: Tensor, seen: Tensor, response: Tensor, robust: Tensor) -> Tensor:
    """Return :func:`profile_statistics` from centred effects ``(b, g)`` and two of their parts."""
    size = x.abs()
    n = seen.sum(-1).clamp(min=1)
    rms = (x.square().sum(-1) / n).sqrt().clamp(min=1e-3)
    large = ((size > 1.0) & seen).sum(-1) / n
    far = ((size > 3.0 * robust.unsqueeze(-1)) & seen).sum(-1) / n
    # Counted by row, so that a profile measured in few genes is judged by its own largest ones.
    order = size.sort(dim=-1, descending=True)
    rank = torch.arange(x.shape[-1], device=x.device)
    top = order.values * (rank < (n / 100).ceil().unsqueeze(-1))
    top = top.sum(-1) / (n / 100).ceil()
    signs = x.gather(-1, order.indices).sign() * (rank < (n / 50).ceil().unsqueeze(-1))
    tilt = signs.sum(-1) / (n / 50).ceil()
    skewness = (x / rms.unsqueeze(-1)).pow(3).sum(-1) / n
    return torch.stack(
        [
            rms.log(),
            (large + 1e-3).log(),
            response.asinh(),
            (far + 1e-3).log(),
            (top / robust + 1e-3).log(),
            response / rms,
            tilt,
            skewness.asinh(),
        ],
        dim=-1,
    )


class VirusClassifier(nn.Module):
    r"""Linear in the effects of all genes (wide) plus linear in the embedding (deep).

    Logits of virus :math:`c` for a profile with unit-length effects :math:`u` (all genes),
    :math:`v` (genes that most training profiles measure) and embedding :math:`h`:

    .. math:: s_c = (w_c^\top u + w_c'^\top v + d_c^\top h + b_c) / T

    A second, binary linear term over :math:`u` and eight statistics of the profile says whether it
    is an infection at all. Novelty is the mean of two ranks among held-out profiles of known
    viruses: how little the first virus leads the second, and how far the profile is from the mean
    profile of the first.

    Parameters
    ----------
    n_genes, dim
        Size of the vocabulary and of the embedding.
    classes
        Viruses, sorted.
    n_reference
        Number of held-out profiles that novelty is ranked among.
    n_set_reference
        Number of held-out profiles that conformal sets are calibrated on.
    """

    common: Tensor
    temperature: Tensor
    infected_scale: Tensor
    infected_shift: Tensor
    novelty_reference: Tensor
    novelty_threshold: Tensor
    set_scores: Tensor
    set_weights: Tensor
    set_infected: Tensor
    interferon: Tensor
    centroids: Tensor

    def __init__(
        self,
        n_genes: int,
        dim: int,
        *,
        classes: Sequence[str],
        n_reference: int = 1,
        n_set_reference: int = 1,
    ) -> None:
        super().__init__()
        self.classes = [str(c) for c in classes]
        n = len(self.classes)
        self.wide_all = nn.Parameter(torch.zeros(n, n_genes))
        self.wide_common = nn.Parameter(torch.zeros(n, n_genes))
        self.deep = nn.Parameter(torch.zeros(n, dim))
        self.bias = nn.Parameter(torch.zeros(n))
        self.infected_all = nn.Parameter(torch.zeros(n_genes))
        self.infected_statistics = nn.Parameter(torch.zeros(N_STATISTICS))
        self.infected_bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("common", torch.ones(n_genes))
        self.register_buffer("temperature", torch.ones(()))
        # log-odds of infection are scaled and shifted to be calibrated
        self.register_buffer("infected_scale", torch.ones(()))
        self.register_buffer("infected_shift", torch.zeros(()))
        self.register_buffer("interferon", torch.zeros(n_genes))
        self.register_buffer("centroids", torch.zeros(n, n_genes))
        # columns sorted on their own: margin and distance
        self.register_buffer("novelty_reference", torch.zeros(n_reference, 2))
        self.register_buffer("novelty_threshold", torch.ones(()))
        self.register_buffer("set_scores", torch.ones(n_set_reference))
        self.register_buffer("set_weights", torch.ones(n_set_reference))
        self.register_buffer("set_infected", torch.ones(n_set_reference))

    def settings(self) -> dict[str, Any]:
        """Return what the constructor needs, for the checkpoint."""
        return {
            "classes": self.classes,
            "n_reference": len(self.novelty_reference),
            "n_set_reference": len(self.set_scores),
        }

    def views(self, effects: Tensor, summary: Tensor) -> Views:
        """Prepare ``(b, n_genes)`` effects (NaN = not measured) and ``(b, dim)`` embeddings."""
        common = torch.where(self.common > 0, effects, torch.full_like(effects, float("nan")))
        statistics = profile_statistics(effects, self.interferon)
        return Views(unit(center(effects)), unit(center(common)), unit(summary), statistics)

    def raw_logits(self, views: Views) -> Tensor:
        """Return uncalibrated logits of the viruses, ``(b, classes)``."""
        return (
            views.all @ self.wide_all.T
            + views.common @ self.wide_common.T
            + views.deep @ self.deep.T
            + self.bias
        )

    def raw_infected(self, views: Views) -> Tensor:
        """Return uncalibrated log-odds of infection, ``(b,)``."""
        return (
            views.all @ self.infected_all
            + views.statistics @ self.infected_statistics
            + self.infected_bias
        )

    def forward(self, effects: Tensor, summary: Tensor) -> Scores:
        """Return calibrated scores of profiles; see :class:`Scores`."""
        views = self.views(effects, summary)
        logits = self.raw_logits(views) / self.temperature
        odds = self.infected_scale * self.raw_infected(views) + self.infected_shift
        unusual = novelty_components(logits, views.all, self.centroids)
        novelty = novelty_rank(unusual, self.novelty_reference)
        return Scores(torch.log_softmax(logits, dim=-1), odds, novelty)

    def set_threshold(self, alpha: float) -> float:
        """Return how much probability may come before an answer of a set at ``alpha``."""
        # Infections and controls apart, and the larger of the two: controls are recognised so
        # much more easily that together they would hide how often an infection is missed.
        reach = 0.0
        for group in (self.set_infected > 0, self.set_infected <= 0):
            if not bool(group.any()):
                continue
            scores, order = self.set_scores[group].sort()
            weights = self.set_weights[group][order]
            share = weights.cumsum(0) / weights.sum()
            place = int(torch.searchsorted(share, 1.0 - alpha))
            reach = max(reach, float(scores[place]) if place < len(scores) else 1.0)
        return reach


def novelty_components(logits: Tensor, profiles: Tensor, centroids: Tensor) -> Tensor:
    """Return how little any virus stands out and how far its mean profile is, ``(b, 2)``.

    Parameters
    ----------
    logits
        ``(b, classes)``; ``-inf`` for classes that are not known.
    profiles, centroids
        ``(b, n_genes)`` and ``(classes, n_genes)``, rows of unit length.
    """
    p = torch.softmax(logits, dim=-1)
    first, second = p.topk(2, dim=-1).values.unbind(-1)
    nearest = centroids[logits.argmax(dim=-1)]  # (b, n_genes)
    return torch.stack([second - first, 1.0 - (profiles * nearest).sum(-1)], dim=-1)


def novelty_rank(components: Tensor, reference: Tensor) -> Tensor:
    """Return the mean share of reference profiles that are less unusual, ``(b,)`` in 0…1.

    ``reference`` ``(m, 2)`` has each column sorted.
    """
    shares = [
        torch.searchsorted(reference[:, j].contiguous(), components[:, j].contiguous())
        for j in range(2)
    ]
    return torch.stack(shares).to(components.dtype).mean(0) / len(reference)
