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
N_STATISTICS = 3


class Views(NamedTuple):
    """What the classifier reads of a batch of profiles.

    ``all`` and ``common`` ``(b, n_genes)``: centred, clipped effects of unit length over all genes
    and over those that most training profiles measure; ``deep`` ``(b, dim)``: the embedding, of
    unit length; ``statistics`` ``(b, 3)``.
    """

    all: Tensor
    common: Tensor
    deep: Tensor
    statistics: Tensor


class Scores(NamedTuple):
    """Calibrated output of a batch.

    ``virus`` ``(b, classes)`` log-probabilities given an infection, ``infected`` ``(b,)`` log-odds
    of infection, ``novelty`` ``(b,)``, higher = less like any training virus.
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


def profile_statistics(effects: Tensor) -> Tensor:
    """Return size and shape of profiles, ``(b, n_genes)`` with NaN to ``(b, 3)``.

    Log of the root mean square, log of the ratio of the largest percentile to the root mean
    square, and skewness of the signs among the largest two per cent, all over measured genes.
    """
    measured = ~torch.isnan(effects)
    x = center(effects)
    n = measured.sum(-1).clamp(min=1)
    rms = (x.square().sum(-1) / n).sqrt()
    k = max(1, effects.shape[-1] // 50)
    top, where = x.abs().topk(k, dim=-1)
    tilt = x.gather(-1, where).sign().mean(-1)
    size = torch.log(rms + 1e-3)
    return torch.stack([size, torch.log(top.mean(-1) + 1e-3) - size, tilt], dim=-1)


class VirusClassifier(nn.Module):
    r"""Linear in the effects of all genes (wide) plus linear in the embedding (deep).

    Logits of virus :math:`c` for a profile with unit-length effects :math:`u` (all genes),
    :math:`v` (genes that most training profiles measure) and embedding :math:`h`:

    .. math:: s_c = (w_c^\top u + w_c'^\top v + d_c^\top h + b_c) / T

    A second, binary linear term over the same inputs and three statistics of the profile says
    whether it is an infection at all.

    Parameters
    ----------
    n_genes, dim
        Size of the vocabulary and of the embedding.
    classes
        Viruses, sorted.
    n_reference
        Number of stored out-of-fold novelty scores.
    alpha
        Miscoverage of the conformal set.
    """

    common: Tensor
    temperature: Tensor
    infected_scale: Tensor
    infected_shift: Tensor
    novelty_reference: Tensor
    novelty_threshold: Tensor
    set_threshold: Tensor

    def __init__(
        self,
        n_genes: int,
        dim: int,
        *,
        classes: Sequence[str],
        n_reference: int = 1,
        alpha: float = 0.1,
    ) -> None:
        super().__init__()
        self.classes = [str(c) for c in classes]
        self.alpha = alpha
        n = len(self.classes)
        self.wide_all = nn.Parameter(torch.zeros(n, n_genes))
        self.wide_common = nn.Parameter(torch.zeros(n, n_genes))
        self.deep = nn.Parameter(torch.zeros(n, dim))
        self.bias = nn.Parameter(torch.zeros(n))
        self.infected_all = nn.Parameter(torch.zeros(n_genes))
        self.infected_deep = nn.Parameter(torch.zeros(dim))
        self.infected_statistics = nn.Parameter(torch.zeros(N_STATISTICS))
        self.infected_bias = nn.Parameter(torch.zeros(()))
        self.register_buffer("common", torch.ones(n_genes))
        self.register_buffer("temperature", torch.ones(()))
        # log-odds of infection are scaled and shifted to be calibrated
        self.register_buffer("infected_scale", torch.ones(()))
        self.register_buffer("infected_shift", torch.zeros(()))
        self.register_buffer("novelty_reference", torch.zeros(n_reference))
        self.register_buffer("novelty_threshold", torch.ones(()))
        self.register_buffer("set_threshold", torch.ones(()))

    def settings(self) -> dict[str, Any]:
        """Return what the constructor needs, for the checkpoint."""
        return {
            "classes": self.classes,
            "n_reference": len(self.novelty_reference),
            "alpha": self.alpha,
        }

    def views(self, effects: Tensor, summary: Tensor) -> Views:
        """Prepare ``(b, n_genes)`` effects (NaN = not measured) and ``(b, dim)`` embeddings."""
        common = torch.where(self.common > 0, effects, torch.full_like(effects, float("nan")))
        return Views(
            unit(center(effects)), unit(center(common)), unit(summary), profile_statistics(effects)
        )

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
            + views.deep @ self.infected_deep
            + views.statistics @ self.infected_statistics
            + self.infected_bias
        )

    def forward(self, effects: Tensor, summary: Tensor) -> Scores:
        """Return calibrated scores of profiles; see :class:`Scores`."""
        views = self.views(effects, summary)
        logits = self.raw_logits(views)
        return Scores(
            torch.log_softmax(logits / self.temperature, dim=-1),
            self.infected_scale * self.raw_infected(views) + self.infected_shift,
            novelty_score(logits),
        )


def novelty_score(logits: Tensor) -> Tensor:
    """Return how little any virus stands out, ``(b, classes)`` logits to ``(b,)``."""
    return -logits.max(dim=-1).values
