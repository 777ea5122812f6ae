"""Scores of what methods say of conditions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._fields import SCORE_COLUMNS
from cfm.metrics import (
    delta_cosine,
    delta_pearson,
    delta_r2,
    direction_accuracy,
    discrimination_score,
    e_distance,
    mean_squared_distance,
    mmd,
)

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.metrics._perturbation_scores import Distance
    from cfm.tl._evaluation_conditions import Condition
    from cfm.tl._evaluation_methods import Answer
    from cfm.tl._perturbation_cells import Array

#: What is always scored, and what may be asked for; True where higher is better.
ALWAYS = {
    "delta_pearson": True,
    "e_distance": False,
    "mmd": False,
    "direction_accuracy": True,
    "discrimination_score": True,
}
HIGHER_IS_BETTER = ALWAYS | {
    "delta_pearson_top": True,
    "delta_cosine": True,
    "delta_r2": True,
    "discrimination_score_cosine": True,
}
_DISTANCES: dict[str, Distance] = {
    "discrimination_score": "l1",
    "discrimination_score_cosine": "cosine",
}


@dataclass(frozen=True)
class Scorer:
    """What is scored, and how.

    Attributes
    ----------
    metrics
        Names.
    n_top
        Genes of the largest effects, for the metrics that look at these.
    """

    metrics: Sequence[str]
    n_top: int

    @property
    def nothing(self) -> dict[str, float]:
        """What there is to score by itself, with NaN for each."""
        alone = [m for m in self.metrics if not m.startswith("discrimination")]
        return dict.fromkeys(alone, float("nan"))

    def score(self, observed: Answer, answer: Answer, sigma: float) -> dict[str, float]:
        """Score an answer by itself.

        Parameters
        ----------
        observed
            What was observed.
        answer
            What a method says.
        sigma
            Squared distance that MMD takes its kernels' widths from.
        """
        found = {}
        effects = observed.effect, answer.effect
        for metric in self.metrics:
            if metric == "delta_pearson":
                found[metric] = delta_pearson(*effects)
            elif metric == "delta_pearson_top":
                found[metric] = delta_pearson(*effects, n_top=self.n_top)
            elif metric == "delta_cosine":
                found[metric] = delta_cosine(*effects)
            elif metric == "delta_r2":
                found[metric] = delta_r2(*effects)
            elif metric == "direction_accuracy":
                found[metric] = direction_accuracy(*effects, n_top=self.n_top)
            elif metric == "e_distance":
                found[metric] = e_distance(observed.points, answer.points)
            elif metric == "mmd":
                found[metric] = mmd(observed.points, answer.points, sigma=sigma)
        return found

    def discriminate(
        self, observed: Array, predicted: Array, excluded: Sequence[np.ndarray]
    ) -> dict[str, Array]:
        """Score ``(perturbations, genes)`` effects of a group against each other."""
        return {
            name: discrimination_score(observed, predicted, distance=distance, excluded=excluded)
            for name, distance in _DISTANCES.items()
            if name in self.metrics
        }


def kernel_width(observed: Answer, reference: Array) -> float:
    """Return the mean squared distance between observed points, perturbed and not.

    It does not depend on a method, so that methods are measured alike.
    """
    width = mean_squared_distance(np.vstack([observed.points, reference]))
    return width if width > 0 else 1.0


@dataclass
class ScoreTable:
    """Rows of the table, in the order in which they were found."""

    rows: list[tuple[str, str, str, str, float, bool, int, int]] = field(default_factory=list)

    def add(
        self,
        condition: Condition,
        method: str,
        scores: dict[str, float],
        numbers: tuple[int, int],
        higher_is_better: dict[str, bool] | None = None,
    ) -> None:
        """Add the scores of a method in a condition, and how many observations they are from."""
        better = HIGHER_IS_BETTER if higher_is_better is None else higher_is_better
        for metric, value in scores.items():
            self.rows.append(
                (condition.group, condition.label, metric, method, value, better[metric], *numbers)
            )

    def table(self, metrics: Sequence[str], methods: Sequence[str]) -> pd.DataFrame:
        """Return the table, sorted by group, perturbation, metric and method."""
        table = pd.DataFrame(self.rows, columns=list(SCORE_COLUMNS))
        rank = {"metric": _rank(metrics), "method": _rank(methods)}
        order = ["group", "perturbation", "metric", "method"]
        table = table.sort_values(
            order, key=lambda c: c.map(rank[c.name]) if c.name in rank else c, kind="stable"
        )
        counts = {"n_real": np.int64, "n_simulated": np.int64}
        kinds: dict[str, type] = {"value": np.float64, "higher_is_better": bool, **counts}
        return table.reset_index(drop=True).astype(kinds)


def _rank(names: Sequence[str]) -> dict[str, int]:
    return {name: i for i, name in enumerate(names)}
