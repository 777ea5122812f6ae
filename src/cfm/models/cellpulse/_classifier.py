"""Classifier of responses and viruses, tensor side."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from cfm._fields import VIRAL

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

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
    and over those that most training profiles measure; ``statistics`` ``(b, 8)``.
    """

    all: Tensor
    common: Tensor
    statistics: Tensor


class Scores(NamedTuple):
    """Output of a batch.

    ``virus`` ``(b, classes)`` log-probabilities of the viruses given an infection; ``response``
    ``(b, 1 + kinds)`` log-probabilities of no response and of each kind of response.
    """

    virus: Tensor
    response: Tensor


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


def _checked_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Check a record of support, which may come from a file."""
    kinds = {"level": str, "answer": str, "n_contrasts": int, "n_studies": int, "share": float}
    found = {name: type(value) for name, value in dict(record).items()}
    if found != kinds or not 0 <= record["share"] <= 1:
        raise ValueError(
            f"a record of support is {record!r}; expected {', '.join(kinds)}, and a share in 0…1."
        )
    return dict(record)


class VirusClassifier(nn.Module):
    r"""Linear in the effects of all genes.

    Logits of virus :math:`c` for a profile with unit-length effects :math:`u` (all genes),
    :math:`v` (genes that most training profiles measure):

    .. math:: s_c = (w_c^\top u + w_c'^\top v + b_c) / T

    A binary linear term over :math:`u` and eight statistics of the profile gives the probability
    of a response :math:`p`, against what controls differ by among themselves. A third one, linear
    in :math:`u`, divides it among the kinds of response: :math:`p\,\mathrm{softmax}(R u + a)`.

    Parameters
    ----------
    n_genes
        Size of the vocabulary.
    classes
        Viruses, sorted.
    responses
        Kinds of response.
    support
        Records of :func:`cfm.models.cellpulse._fit_classifier.support_records`.
    """

    common: Tensor
    temperature: Tensor
    infected_scale: Tensor
    infected_shift: Tensor
    interferon: Tensor

    def __init__(
        self,
        n_genes: int,
        *,
        classes: Sequence[str],
        responses: Sequence[str] = (VIRAL,),
        support: Sequence[Mapping[str, Any]] = (),
    ) -> None:
        super().__init__()
        self.classes = [str(c) for c in classes]
        self.responses = [str(r) for r in responses]
        self.support = [_checked_record(record) for record in support]
        n = len(self.classes)
        self.wide_all = nn.Parameter(torch.zeros(n, n_genes))
        self.wide_common = nn.Parameter(torch.zeros(n, n_genes))
        self.bias = nn.Parameter(torch.zeros(n))
        self.infected_all = nn.Parameter(torch.zeros(n_genes))
        self.infected_statistics = nn.Parameter(torch.zeros(N_STATISTICS))
        self.infected_bias = nn.Parameter(torch.zeros(()))
        self.kind = nn.Parameter(torch.zeros(len(self.responses), n_genes))
        self.kind_bias = nn.Parameter(torch.zeros(len(self.responses)))
        self.register_buffer("common", torch.ones(n_genes))
        self.register_buffer("temperature", torch.ones(()))
        # log-odds of a response are scaled and shifted: Platt scaling on studies left out
        self.register_buffer("infected_scale", torch.ones(()))
        self.register_buffer("infected_shift", torch.zeros(()))
        self.register_buffer("interferon", torch.zeros(n_genes))

    def settings(self) -> dict[str, Any]:
        """Return what the constructor needs, for the checkpoint."""
        return {
            "classes": self.classes,
            "responses": self.responses,
            "support": self.support,
        }

    def views(self, effects: Tensor) -> Views:
        """Prepare ``(b, n_genes)`` effects (NaN = not measured)."""
        common = torch.where(self.common > 0, effects, torch.full_like(effects, float("nan")))
        statistics = profile_statistics(effects, self.interferon)
        return Views(unit(center(effects)), unit(center(common)), statistics)

    def raw_logits(self, views: Views) -> Tensor:
        """Return logits of the viruses before scaling, ``(b, classes)``."""
        return views.all @ self.wide_all.T + views.common @ self.wide_common.T + self.bias

    def raw_infected(self, views: Views) -> Tensor:
        """Return log-odds of a response before scaling, ``(b,)``."""
        return (
            views.all @ self.infected_all
            + views.statistics @ self.infected_statistics
            + self.infected_bias
        )

    def forward(self, effects: Tensor) -> Scores:
        """Return the scores of profiles; see :class:`Scores`."""
        views = self.views(effects)
        logits = self.raw_logits(views) / self.temperature
        odds = (self.infected_scale * self.raw_infected(views) + self.infected_shift)[:, None]
        kinds = torch.log_softmax(views.all @ self.kind.T + self.kind_bias, dim=-1)
        response = torch.cat([logsigmoid(-odds), logsigmoid(odds) + kinds], dim=-1)
        return Scores(torch.log_softmax(logits, dim=-1), response)
