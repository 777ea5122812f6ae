"""Which genes a call rests on, and what follows from reversing them.

Attention rollout, integrated gradients and single-gene reversal take profiles on the vocabulary,
``(n, n_vocabulary)`` log2 fold changes with ``NaN`` = not measured; :class:`CellPulse` documents
what they return. A result depends on its profile alone.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING, Literal, NamedTuple, cast

import numpy as np
import torch
from captum.attr import IntegratedGradients
from torch import Tensor

from cfm._fields import UNINFECTED
from cfm.models.cellpulse._classifier import (
    CLIP,
    Views,
    center,
    centred_statistics,
    mean_response,
    robust_spread,
)
from cfm.models.cellpulse._module import PADDING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import NDArray

    from cfm.data import GeneAlignment, GeneVocabulary
    from cfm.models._base import PretrainedModel
    from cfm.models.cellpulse._classifier import VirusClassifier
    from cfm.models.cellpulse._data import ProfileTokenizer
    from cfm.models.cellpulse._module import CellPulseModule

    Array = NDArray[np.float64]


#: What the effect of a reversed gene becomes: 0, or its negative.
Reversal = Literal["neutral", "flip"]


#: Share of a profile's size at which integrated gradients start for the log-odds of a response.
#: Statistics of a profile without any effect have no finite logarithm; a tenth of an infection is
#: about the size of differences between control samples.
INFECTED_BASELINE = 0.1


@torch.inference_mode()
def target_log_odds(classifier: VirusClassifier, effects: np.ndarray, target: str) -> np.ndarray:
    """Return the log-odds of a virus against all others, or of a response, ``(n,)``."""
    index, device = _class_index(classifier, target), classifier.bias.device
    parts = [np.empty(0)]
    for start in range(0, len(effects), 64):
        block = np.asarray(effects[start : start + 64], dtype=np.float32)
        views = classifier.views(torch.from_numpy(block).to(device))
        parts.append(target_odds(classifier, views, index).double().cpu().numpy())
    return np.concatenate(parts)


@torch.inference_mode()
def summary_attention(
    module: CellPulseModule, tokenizer: ProfileTokenizer, effects: np.ndarray, *, batch_size: int
) -> np.ndarray:
    """Return the attention of the summary to each gene in units of the profile's mean."""
    module.eval()
    out = np.where(np.isnan(effects), np.nan, 0.0).astype(np.float32)
    for start in range(0, len(effects), batch_size):
        tokens = tokenizer.encode(effects[start : start + batch_size])
        tokens = tokens.to(module.gene_factors.device)
        real = tokens.state != PADDING
        row = module.attention_rollout(tokens)[:, 1:] * real  # (b, n)
        mean = row.sum(1, keepdim=True) / real.sum(1, keepdim=True).clamp(min=1)
        shares = (row / mean.clamp(min=1e-12)).float().cpu().numpy()
        for i, keep in enumerate(real.cpu().numpy()):
            out[start + i, tokens.gene[i].cpu().numpy()[keep]] = shares[i, keep]
    return out


def integrated_gradients(
    classifier: VirusClassifier,
    effects: np.ndarray,
    target: str,
    *,
    n_steps: int,
    batch_size: int,
) -> np.ndarray:
    """Return each gene's share of the log-odds of a target."""
    index, device = _class_index(classifier, target), classifier.bias.device
    start_gate = INFECTED_BASELINE if index is None else 0.0
    out = np.empty(effects.shape, dtype=np.float32)
    for start in range(0, len(effects), batch_size):
        block = np.asarray(effects[start : start + batch_size], dtype=np.float32)
        score = GatedOdds(classifier, torch.from_numpy(block).to(device), index)
        gates = torch.ones(block.shape, device=device)
        shares = IntegratedGradients(score, multiply_by_inputs=True).attribute(
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


def gene_reversal(
    classifier: VirusClassifier, effects: np.ndarray, target: str, *, mode: Reversal
) -> np.ndarray:
    """Return the log-odds of a target before less after the reversal of each gene alone."""
    index = _class_index(classifier, target)
    weights = ReversalWeights.of(classifier, infected=index is None)
    out = np.full(effects.shape, np.nan, dtype=np.float32)
    for i, row in enumerate(np.asarray(effects, dtype=np.float32)):
        values = -row if mode == "flip" else np.zeros_like(row)
        before, after = reversed_logits(row, values, weights)
        change = _odds_of(classifier, before[None], index) - _odds_of(classifier, after, index)
        out[i, ~np.isnan(row)] = change
    return out


def _class_index(classifier: VirusClassifier, target: str) -> int | None:
    """Return the class of a target, ``None`` for ``"response"``."""
    if target == "response":
        return None
    if target not in classifier.classes:
        hint = " To explain why there is no response, read 'response' with the sign turned."
        raise ValueError(
            f"target={target!r} is no virus of this classifier; expected 'response' or one of "
            f"{classifier.classes}.{hint if target == UNINFECTED else ''}"
        )
    return classifier.classes.index(target)


class GatedOdds:
    """Log-odds of a target as a function of gates that switch the effects of profiles on.

    Parameters
    ----------
    classifier
        The classifier.
    effects
        ``(b, n_vocabulary)`` float32, NaN = not measured.
    index
        Class, or ``None`` for the log-odds of a response.
    """

    def __init__(self, classifier: VirusClassifier, effects: Tensor, index: int | None) -> None:
        self.classifier, self.effects, self.index = classifier, effects, index
        with torch.no_grad():
            self.views = classifier.views(effects)
        self.centred = center(effects)
        self.spread = robust_spread(self.centred, ~torch.isnan(effects))

    def __call__(self, gates: Tensor) -> Tensor:
        """Map ``(steps · b, n_vocabulary)`` gates to log-odds; captum stacks steps over rows."""
        n = len(gates) // len(self.effects)

        def stacked(x: Tensor) -> Tensor:
            return x.repeat(n, *[1] * (x.ndim - 1))

        statistics = stacked(self.views.statistics)
        if self.index is None:
            # median and spread are constant: their gradient would be that of a single gene
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
    """Return :func:`target_odds` of ``(m, outputs)`` raw logits of viruses, or of infection."""
    if index is None:
        scale, shift = float(classifier.infected_scale), float(classifier.infected_shift)
        return scale * table[:, 0] + shift
    logits = table / float(classifier.temperature)
    others = np.delete(logits, index, axis=1)
    top = others.max(axis=1)
    return logits[:, index] - top - np.log(np.exp(others - top[:, None]).sum(axis=1))


class ReversalWeights(NamedTuple):
    """Weights of a classifier as arrays; ``g`` genes, columns are outputs."""

    every: Array  # (g, outputs)
    common: Array | None  # (g, outputs)
    is_common: NDArray[np.bool_]
    statistics: Array | None  # (8,)
    bias: Array  # (outputs,)
    interferon: NDArray[np.bool_]

    @classmethod
    def of(cls, classifier: VirusClassifier, *, infected: bool) -> ReversalWeights:
        """Take the weights of the viruses' logits, or of the log-odds of infection."""
        state = {k: v.detach().double().cpu().numpy() for k, v in classifier.state_dict().items()}
        return cls(
            state["infected_all"][:, None] if infected else state["wide_all"].T.copy(),
            None if infected else state["wide_common"].T.copy(),
            state["common"] > 0,
            state["infected_statistics"] if infected else None,
            np.atleast_1d(state["infected_bias"] if infected else state["bias"]),
            state["interferon"] > 0,
        )


def reversed_logits(
    effects: NDArray[np.floating], values: NDArray[np.floating], weights: ReversalWeights
) -> tuple[Array, Array]:
    """Replace each gene's effect by another value, one gene at a time, and return the exact logits.

    A gene moves the profile's median, its length and its statistics only a little, but each gene by
    another amount, and to run the classifier once per gene takes ``genes²`` steps a profile. Here
    each of its terms is updated for all genes at once from sorted values and sums.

    Parameters
    ----------
    effects
        ``(g,)`` log2 fold changes on the vocabulary, NaN = not measured.
    values
        ``(g,)`` what each effect becomes; read where ``effects`` is not NaN.
    weights
        Of the classifier.

    Returns
    -------
    Uncalibrated logits of all viruses, or of the infection alone: ``(outputs,)`` before, and
    ``(m, outputs)`` after the change of each measured gene in turn, in vocabulary order.
    """
    seen = np.flatnonzero(~np.isnan(effects))
    x, y = effects[seen].astype(np.float64), values[seen].astype(np.float64)
    before, after = weights.bias.copy(), np.tile(weights.bias, (len(seen), 1))
    if not len(seen):
        return before, after
    everything = np.ones(len(seen), dtype=bool)
    for rows, table in (
        (everything, weights.every),
        (weights.is_common[seen], weights.common),
    ):
        if table is not None and rows.any():
            old, new = _unit_products(x[rows], y[rows], table[seen[rows]])
            before += old
            after += old
            after[rows] += new - old
    if weights.statistics is not None:
        old, new = _statistics(x, y, weights.interferon[seen])
        before += old @ weights.statistics
        after += (new @ weights.statistics)[:, None]
    return before, after


def shifted_order(values: Array, replaced: Array, k: int) -> Array:
    """Return the ``k``-th smallest value after each value in turn is replaced by another.

    Parameters
    ----------
    values, replaced
        ``(n,)``; in turn ``i`` the list is ``values`` with ``values[i]`` become ``replaced[i]``.
    k
        From 0.
    """
    n = len(values)
    order = np.argsort(values, kind="stable")
    ranked = values[order]
    rank = np.empty(n, dtype=np.int64)
    rank[order] = np.arange(n)
    padded = np.concatenate([[-np.inf], ranked, [np.inf, np.inf]])
    # the values at k - 1 and k without its own entry; the new value lies between them
    low = padded[np.where(rank <= k - 1, k + 1, k)]
    high = padded[np.where(rank <= k, k + 2, k + 1)]
    return np.clip(replaced, low, high)


def _by_median(x: Array, y: Array) -> tuple[float, list[tuple[float, NDArray[np.int64]]]]:
    """Return the median, and the genes by the median that their change leads to."""
    k = (len(x) - 1) // 2  # torch.nanmedian takes the lower of two middle values
    medians = shifted_order(x, y, k)
    levels, group = np.unique(medians, return_inverse=True)
    members = [(float(level), np.flatnonzero(group == i)) for i, level in enumerate(levels)]
    return float(np.partition(x, k)[k]), members


def _centred(x: Array, median: float) -> Array:
    return np.clip(x - median, -CLIP, CLIP)


def _unit_products(x: Array, y: Array, table: Array) -> tuple[Array, Array]:
    """Return products of the unit-length centred profile with each column, before and after."""
    median, members = _by_median(x, y)
    old = _centred(x, median)
    before = old @ table / max(float(np.linalg.norm(old)), 1e-12)
    after = np.empty((len(x), table.shape[1]))
    for level, genes in members:
        c, new = _centred(x, level), _centred(y[genes], level)
        square = np.maximum(c @ c - c[genes] ** 2 + new**2, 0.0)
        product = c @ table + (new - c[genes])[:, None] * table[genes]
        after[genes] = product / np.maximum(np.sqrt(square), 1e-12)[:, None]
    return before, after


def _statistics(x: Array, y: Array, interferon: NDArray[np.bool_]) -> tuple[Array, Array]:
    """Return ``profile_statistics`` before, and after each change: ``(8,)`` and ``(n, 8)``."""
    median, members = _by_median(x, y)
    response = x[interferon].sum() / max(1, interferon.sum())
    change = np.where(interferon, y - x, 0.0) / max(1, interferon.sum())
    same = np.array([0])
    before = _statistics_at(x, x[same], same, median, np.array([response]))[0]
    after = np.empty((len(x), len(before)))
    for level, genes in members:
        after[genes] = _statistics_at(x, y[genes], genes, level, response + change[genes])
    return before, after


def _statistics_at(
    x: Array, y: Array, genes: NDArray[np.int64], median: float, response: Array
) -> Array:
    """Return the statistics after each of ``genes`` becomes ``y``, all centred by ``median``."""
    n = len(x)
    c, new = _centred(x, median), _centred(y, median)
    size, new_size = np.abs(c), np.abs(new)
    old, old_size = c[genes], size[genes]
    rms = np.sqrt(np.maximum(c @ c - old**2 + new**2, 0.0) / n).clip(min=1e-3)
    cubes = (c**3).sum() - old**3 + new**3
    large = (size > 1.0).sum() - (old_size > 1.0) + (new_size > 1.0)
    replaced = size.copy()
    replaced[genes] = new_size
    robust = (1.4826 * shifted_order(size, replaced, (n - 1) // 2)[genes]).clip(min=1e-3)
    falling = np.argsort(-size, kind="stable")
    ranked = np.append(size[falling], 0.0)
    reach = 3.0 * robust
    far = n - np.searchsorted(np.sort(size), reach, side="right")
    far = far - (old_size > reach) + (new_size > reach)
    rank = np.empty(n, dtype=np.int64)
    rank[falling] = np.arange(n)
    signs = np.append(np.sign(c[falling]), 0.0)
    top = -(-n // 100)
    tops = _sum_of_largest(ranked, ranked, rank[genes], new_size, new_size, top)
    fiftieth = -(-n // 50)
    tilt = _sum_of_largest(ranked, signs, rank[genes], new_size, np.sign(new), fiftieth)
    return np.stack(
        [
            np.log(rms),
            np.log(large / n + 1e-3),
            np.arcsinh(response),
            np.log(far / n + 1e-3),
            np.log(tops / top / robust + 1e-3),
            response / rms,
            tilt / fiftieth,
            np.arcsinh(cubes / rms**3 / n),
        ],
        axis=1,
    )


def _sum_of_largest(
    ranked: Array,
    summed: Array,
    rank: NDArray[np.int64],
    new_size: Array,
    new_summed: Array,
    k: int,
) -> Array:
    """Sum ``summed`` over the ``k`` largest sizes after the entry at ``rank`` gets a new size.

    ``ranked`` falls and ends with a 0 past its end; ``summed`` goes with it.
    """
    total = summed[:k].sum()
    inside = rank < k
    # the next one takes the place of an entry that was inside, unless that is still larger
    stays = new_size >= ranked[k]
    after_inside = total - summed[rank] + np.where(stays, new_summed, summed[k])
    enters = new_size > ranked[k - 1]
    after_outside = total + np.where(enters, new_summed - summed[k - 1], 0.0)
    return np.where(inside, after_inside, after_outside)


def reverse_genes(
    predict: Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]],
    effects: np.ndarray,
    genes: np.ndarray,
    folds: np.ndarray,
    mode: Reversal,
) -> np.ndarray:
    """Reverse genes together, and predict the others anew; see :meth:`CellPulse.simulate`.

    Parameters
    ----------
    predict
        :meth:`CellPulse.predict_hidden`.
    effects
        ``(1, n_vocabulary)`` a profile.
    genes
        Positions of the genes to reverse.
    folds
        ``(n_vocabulary,)`` part in which a gene is hidden, −1 = not predicted.
    mode
        What the effects of the genes become.
    """
    changed = effects.copy()
    changed[0, genes] *= 0.0 if mode == "neutral" else -1.0
    # nothing to reverse changes nothing
    if np.array_equal(changed, effects, equal_nan=True):
        return changed
    shift = np.zeros_like(effects)
    for fold in range(folds.max() + 1):
        hidden = (folds == fold) & ~np.isnan(effects)
        before, after = (
            np.tanh(odds / 2.0) * size
            for odds, size in (predict(x, hidden) for x in (effects, changed))
        )
        shift += np.where(hidden, after - before, 0.0)
    return np.asarray(changed + shift)


def gene_positions(
    vocabulary: GeneVocabulary, alignment: GeneAlignment, genes: Sequence[str]
) -> np.ndarray:
    """Return the positions of genes in the vocabulary, by any name that it can map.

    Raises
    ------
    KeyError
        If the vocabulary does not have a gene, or the data of ``alignment`` do not measure it.
    """
    try:
        found = [int(vocabulary.align([gene]).positions[0]) for gene in genes]
    except ValueError as error:
        raise KeyError(
            f"The model does not have all of {list(genes)}; it reverses genes, such as "
            f"{', '.join(vocabulary.genes[:3])} (model.vocabulary.genes)."
        ) from error
    absent = [g for g, p in zip(genes, found, strict=True) if p not in alignment.positions]
    if absent:
        raise KeyError(f"adata does not measure {absent}; only measured genes can be reversed.")
    return np.unique(found)


@torch.inference_mode()
def signature_scores(
    model: PretrainedModel, effects: Iterable[np.ndarray], *, batch_size: int = 64
) -> np.ndarray:
    """Return the factor scores of signatures in the model's gene-gene term.

    The scores of :class:`cfm.nn.LowRankLogistic`, from the directions of the strongest genes alone.
    With all signs turned the scores are negated, so that a cosine only changes its sign.

    Parameters
    ----------
    model
        A CellPulse.
    effects
        ``(n_vocabulary,)`` rows, one at a time: log2 fold changes or −1 and 1; ``NaN`` or 0
        for genes that are not part of it.
    batch_size
        Profiles at a time; the result does not depend on it.

    Returns
    -------
    ``(n, n_factors)`` float32 of unit length; 0 for a profile without a gene of the model.
    """
    model.module.eval()
    out = [np.empty((0, model.module.gene_factors.shape[1]), np.float32)]
    rows = iter(effects)
    while batch := list(islice(rows, batch_size)):
        tokens = model.tokenizer.encode(np.stack(batch)).to(model.device)
        z = model.module.linear_scores(tokens)[2].float().cpu().numpy()
        length = np.linalg.norm(z, axis=1, keepdims=True)
        out.append(np.where(length > 1e-9, z / np.maximum(length, 1e-9), 0.0))
    return np.concatenate(out)
