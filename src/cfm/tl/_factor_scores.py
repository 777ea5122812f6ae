"""Scores of genes per profile, their summary over a group, and the nulls they are read against."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.stats import rankdata
from scvi import settings
from scvi.utils import track

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cfm.models import CellPulse

Method = Literal["attention", "integrated_gradients", "reversal", "consensus", "guided"]
Null = Literal["labels", "directions", "effects"]

#: Methods that look at a profile on their own; the consensus joins them.
SINGLE: tuple[Method, ...] = ("attention", "integrated_gradients", "reversal")
#: Fewer ways than these to choose the profiles of a group say little about it.
MIN_ARRANGEMENTS = 100
_BLOCK = 8


@dataclass
class GeneScorer:
    """Scores every gene of profiles with a model.

    Attributes
    ----------
    model
        A CellPulse with a classifier.
    mode
        What reversal makes of an effect.
    tick
        Called after each block of profiles, with the number of profiles.
    """

    model: CellPulse
    mode: Literal["neutral", "flip"] = "neutral"
    tick: Callable[[int], None] = field(default=lambda n: None)

    def __call__(self, effects: np.ndarray, target: str, methods: Sequence[Method]) -> np.ndarray:
        """Return ``(methods, n, n_vocabulary)`` float32, NaN where not measured."""
        out = np.empty((len(methods), *effects.shape), dtype=np.float32)
        for start in range(0, len(effects), _BLOCK):
            rows = slice(start, start + _BLOCK)
            for i, method in enumerate(methods):
                out[i, rows] = self._score(effects[rows], target, method)
            self.tick(len(effects[rows]))
        return out

    def _score(self, effects: np.ndarray, target: str, method: Method) -> np.ndarray:
        if method == "attention":
            return self.model.summary_attention(effects)
        if method == "integrated_gradients":
            return self.model.integrated_gradients(effects, target)
        return self.model.reversal(effects, target, mode=self.mode)


def mean_over_profiles(scores: np.ndarray) -> np.ndarray:
    """Average ``(…, n, genes)`` over the profiles that measure a gene; 0 where none does."""
    seen = ~np.isnan(scores)
    total = np.where(seen, scores, 0.0).sum(axis=-2, dtype=np.float64)
    return total / np.maximum(seen.sum(axis=-2), 1)


def importance(means: np.ndarray) -> np.ndarray:
    """Turn ``(methods, genes)`` mean scores into importances; with several, a consensus last.

    The importance of a gene is the absolute mean. The consensus is the mean over methods of
    ``-log10(rank / genes)``: a gene needs to stand high in several, not first in one.
    """
    size = np.abs(means)
    if len(size) == 1:
        return size
    rank = rankdata(-size, axis=1)  # ties share their mean rank
    joined = -np.log10(rank / size.shape[1]).mean(axis=0)
    return np.vstack([size, joined])


def choose_null(n_profiles: int, n_all: int) -> Null:
    """Take labels if they can be permuted in enough ways, else effects."""
    ways = math.comb(n_all, n_profiles) if n_profiles < n_all else 1
    return "labels" if ways >= MIN_ARRANGEMENTS else "effects"


def permuted_labels(
    scores: np.ndarray, n_profiles: int, n_permutations: int, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield importances of random groups of the same size.

    Parameters
    ----------
    scores
        ``(methods, n, genes)`` for the group's target, of all profiles.
    n_profiles
        Size of the group.
    """
    for _ in range(n_permutations):
        rows = rng.choice(scores.shape[1], size=n_profiles, replace=False)
        yield importance(mean_over_profiles(scores[:, rows]))


def permuted_profiles(
    effects: np.ndarray, streams: Sequence[int], null: Null, permutation: int, seed: int
) -> np.ndarray:
    """Permute each profile over the genes that it measures.

    ``"effects"`` moves direction and size together, ``"directions"`` moves the signs of the
    effects that are not 0 and leaves their sizes where they are. What a profile becomes depends
    on its own number in ``streams``, the seed and the number of the permutation only.
    """
    out = effects.copy()
    for i, stream in enumerate(streams):
        rng = np.random.default_rng([seed, permutation, stream])
        row = effects[i]
        if null == "effects":
            seen = np.flatnonzero(~np.isnan(row))
            out[i, seen] = row[rng.permutation(seen)]
        else:
            moves = np.flatnonzero(~np.isnan(row) & (row != 0))
            out[i, moves] = np.abs(row[moves]) * np.sign(row[rng.permutation(moves)])
    return out


class ProgressTicks:
    """A progress bar that is moved by hand, in the style of scvi-tools and as silent as it."""

    def __init__(self, total: int, description: str) -> None:
        self._steps = iter(
            track(range(total), description=description, disable=settings.verbosity > 20)
        )

    def __call__(self, n: int) -> None:
        """Move on by ``n`` steps."""
        for _ in range(n):
            next(self._steps, None)

    def close(self) -> None:
        """Run to the end, so that the bar is taken off the screen."""
        for _ in self._steps:
            pass
