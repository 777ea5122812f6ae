"""Which genes carry a call: attention, integrated gradients and in-silico reversal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal, cast

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from cfm._arguments import checks_arguments
from cfm._fields import UNINFECTED
from cfm.models.cellpulse._classifier import (
    Views,
    center,
    centred_statistics,
    mean_response,
    robust_spread,
)
from cfm.models.cellpulse._classify import VirusCaller
from cfm.models.cellpulse._constants import PADDING
from cfm.models.cellpulse._reversal import ReversalWeights, reversed_logits

if TYPE_CHECKING:
    from cfm.models.cellpulse._classifier import VirusClassifier
    from cfm.models.cellpulse._module import Tokens
    from cfm.nn import DirectionBlock

#: Share of a profile's size at which integrated gradients start for the log-odds of a response.
#: Statistics of a profile without any effect have no finite logarithm; a tenth of an infection is
#: about what control samples differ by.
INFECTED_BASELINE = 0.1

Reversal = Literal["neutral", "flip"]


class VirusExplainer(VirusCaller):
    """A CellPulse that says which genes its calls rest on.

    All methods take profiles on the vocabulary, ``(n, n_vocabulary)`` log2 fold changes with
    ``NaN`` = not measured, and return one number per profile and gene; ``NaN`` where a gene is
    not measured. Each profile is judged alone.
    """

    @torch.inference_mode()
    def target_log_odds(self, effects: np.ndarray, target: str) -> np.ndarray:
        """Return the log-odds of a virus against all others, or of a response.

        Parameters
        ----------
        effects
            ``(n, n_vocabulary)``.
        target
            A virus of the classifier, or ``"response"``.

        Returns
        -------
        ``(n,)`` float64, natural logarithm. Of a virus: given an infection,
        ``log p / (1 - p)``.
        """
        classifier = self.require_classifier()
        parts = [np.empty(0)]
        for start in range(0, len(effects), 64):
            block = np.asarray(effects[start : start + 64], dtype=np.float32)
            views = classifier.views(torch.from_numpy(block).to(self.device))
            odds = target_odds(classifier, views, self._target_index(target))
            parts.append(odds.double().cpu().numpy())
        return np.concatenate(parts)

    @checks_arguments()
    @torch.inference_mode()
    def summary_attention(self, effects: np.ndarray, *, batch_size: int = 16) -> np.ndarray:
        r"""Return how much the summary attends to each gene, by attention rollout.

        The heads of a layer are averaged, the residual stream is counted as attention to itself,
        and layers are multiplied (Abnar & Zuidema 2020):
        :math:`R = \prod_l (A_l + I) / 2`, row of the summary.

        Parameters
        ----------
        effects
            ``(n, n_vocabulary)``.
        batch_size
            Profiles at a time; the result does not depend on it.

        Returns
        -------
        ``(n, n_vocabulary)`` float32, in units of the mean over the profile's tokens: 1 is an
        average token, 0 a gene whose effect is too small to be one.
        """
        self.module.eval()
        out = np.where(np.isnan(effects), np.nan, 0.0).astype(np.float32)
        for start in range(0, len(effects), batch_size):
            tokens = self.tokenizer.encode(effects[start : start + batch_size]).to(self.device)
            row = self._rollout(tokens)[:, 1:]  # (b, n)
            real = tokens.state != PADDING
            row = row * real
            mean = row.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
            shares = (row / mean.clamp(min=1e-12)).float().cpu().numpy()
            for i, keep in enumerate(real.cpu().numpy()):
                out[start + i, tokens.gene[i].cpu().numpy()[keep]] = shares[i, keep]
        return out

    @checks_arguments()
    def integrated_gradients(
        self, effects: np.ndarray, target: str, *, n_steps: int = 16, batch_size: int = 8
    ) -> np.ndarray:
        r"""Return each gene's share of the log-odds, by integrated gradients.

        All effects of a profile are switched on together by a gate :math:`\alpha`, from 0 (a
        tenth for ``"response"``) to 1, while the length that it is divided by, its median and its
        spread stay those of the whole profile: a profile scaled as one would look the same to the
        classifier at every :math:`\alpha`. The gene's share is the integral of the gradient by its
        gate (Sundararajan, Taly & Yan 2017, eq. 1; computed by captum).

        Parameters
        ----------
        effects
            ``(n, n_vocabulary)``.
        target
            See :meth:`target_log_odds`.
        n_steps
            Nodes of the Gauss-Legendre quadrature.
        batch_size
            Profiles at a time; the result does not depend on it.

        Returns
        -------
        ``(n, n_vocabulary)`` float32, natural-log odds; positive speaks for the target. For a
        virus the sum over genes is the log-odds less that of the profile with its gates at 0. For
        ``"response"`` it falls short of that by the statistics that count genes, which have no
        gradient.
        """
        classifier = self.require_classifier()
        index = self._target_index(target)
        start_gate = INFECTED_BASELINE if index is None else 0.0
        self.module.eval()
        out = np.empty(effects.shape, dtype=np.float32)
        for start in range(0, len(effects), batch_size):
            block = np.asarray(effects[start : start + batch_size], dtype=np.float32)
            score = GatedOdds(self, classifier, block, index)
            gates = torch.ones(block.shape, device=self.device)
            attribute = IntegratedGradients(score, multiply_by_inputs=True).attribute
            shares = attribute(
                gates,
                baselines=gates * start_gate,
                n_steps=n_steps,
                method="gausslegendre",
                internal_batch_size=max(len(block), 128),
            )
            rows = slice(start, start + len(block))
            out[rows] = cast("Tensor", shares).detach().float().cpu().numpy()
        out[np.isnan(effects)] = np.nan
        return out

    @checks_arguments()
    @torch.inference_mode()
    def reversal(
        self, effects: np.ndarray, target: str, *, mode: Reversal = "neutral"
    ) -> np.ndarray:
        """Return what each gene's effect brings to the log-odds, by taking it away.

        An in-silico experiment: one gene at a time is set to no effect (``"neutral"``) or to the
        opposite effect (``"flip"``), and the classifier asked again.

        Parameters
        ----------
        effects
            ``(n, n_vocabulary)``.
        target
            See :meth:`target_log_odds`.
        mode
            What the effect becomes.

        Returns
        -------
        ``(n, n_vocabulary)`` float32, log-odds before less after: positive genes speak for the
        target.
        """
        classifier = self.require_classifier()
        index = self._target_index(target)
        weights = ReversalWeights.of(classifier, infected=index is None)
        out = np.full(effects.shape, np.nan, dtype=np.float32)
        for i, row in enumerate(np.asarray(effects, dtype=np.float32)):
            values = -row if mode == "flip" else np.zeros_like(row)
            logits = reversed_logits(row, values, weights)
            odds = [
                _odds_of(classifier, table, index) for table in (logits.before[None], logits.after)
            ]
            out[i, ~np.isnan(row)] = odds[0] - odds[1]
        return out

    def _target_index(self, target: str) -> int | None:
        """Return the class of a target, ``None`` for ``"response"``."""
        classes = self.require_classifier().classes
        if target == "response":
            return None
        if target not in classes:
            hint = " To explain why there is no response, read 'response' with the sign turned."
            raise ValueError(
                f"target={target!r} is no virus of this classifier; expected 'response' or one of "
                f"{classes}.{hint if target == UNINFECTED else ''}"
            )
        return classes.index(target)

    def _rollout(self, tokens: Tokens) -> Tensor:
        """Return the summary's row of the attention rollout, ``(b, n + 1)``."""
        x, state, _, _ = self.module._embed(tokens)
        rolled: Tensor | None = None  # (b, n + 1, n + 1)
        blocks = [cast("DirectionBlock", block) for block in self.module.blocks]
        for block in blocks[:-1]:
            mean = block.attention_weights(x, state).mean(dim=1)
            step = 0.5 * (mean + torch.eye(mean.shape[-1], device=mean.device))
            rolled = step if rolled is None else step @ rolled
            x = block(x, state)
        last = blocks[-1].attention
        q, k, _ = last.queries_keys_values(blocks[-1].attention_norm(x), state)
        # Of the last layer only the summary's row is read.
        row = torch.softmax(q[:, :, :1] @ k.transpose(-1, -2) / last.head_dim**0.5, dim=-1)
        row = 0.5 * row.mean(dim=1)  # (b, 1, n + 1)
        row[:, :, 0] += 0.5
        return (row if rolled is None else row @ rolled)[:, 0]


class GatedOdds:
    """Log-odds of a target as a function of gates that switch the effects of profiles on.

    Parameters
    ----------
    model, classifier
        What is explained.
    effects
        ``(b, n_vocabulary)`` float32, NaN = not measured.
    index
        Class, or ``None`` for the log-odds of a response.
    """

    def __init__(
        self,
        model: VirusExplainer,
        classifier: VirusClassifier,
        effects: np.ndarray,
        index: int | None,
    ) -> None:
        self.classifier, self.index = classifier, index
        self.effects = torch.from_numpy(effects).to(model.device)
        with torch.no_grad():
            self.views = classifier.views(self.effects)
        self.centred = center(self.effects)
        self.spread = robust_spread(self.centred, ~torch.isnan(self.effects))

    def __call__(self, gates: Tensor) -> Tensor:
        """Map ``(steps · b, n_vocabulary)`` gates to log-odds; captum stacks steps over rows."""
        n = len(gates) // len(self.effects)

        def stacked(x: Tensor) -> Tensor:
            return x.repeat(n, *[1] * (x.ndim - 1))

        statistics = stacked(self.views.statistics)
        if self.index is None:
            # Median and spread stay: their gradient would fall on the one gene in the middle.
            effects = stacked(self.effects)
            statistics = centred_statistics(
                stacked(self.centred) * gates,
                ~torch.isnan(effects),
                mean_response(effects * gates, self.classifier.interferon),
                stacked(self.spread),
            )
        views = Views(
            stacked(self.views.all) * gates, stacked(self.views.common) * gates, statistics
        )
        return target_odds(self.classifier, views, self.index)


def target_odds(classifier: VirusClassifier, views: Views, index: int | None) -> Tensor:
    """Return calibrated log-odds of a class against the others, or of a response, ``(b,)``."""
    if index is None:
        raw = classifier.raw_infected(views)
        return classifier.infected_scale * raw + classifier.infected_shift
    logits = classifier.raw_logits(views) / classifier.temperature
    others = torch.cat([logits[:, :index], logits[:, index + 1 :]], dim=1)
    return logits[:, index] - torch.logsumexp(others, dim=1)


def _odds_of(classifier: VirusClassifier, table: np.ndarray, index: int | None) -> np.ndarray:
    """Return the same from ``(m, outputs)`` raw logits of all viruses, or of infection alone."""
    if index is None:
        scale, shift = float(classifier.infected_scale), float(classifier.infected_shift)
        return scale * table[:, 0] + shift
    logits = table / float(classifier.temperature)
    others = np.delete(logits, index, axis=1)
    top = others.max(axis=1)
    return logits[:, index] - top - np.log(np.exp(others - top[:, None]).sum(axis=1))
