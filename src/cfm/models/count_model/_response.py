"""What a perturbation does to mean expression where it was not measured: learned from cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from sklearn.ensemble import HistGradientBoostingRegressor

from cfm.metrics import linear_shift, mean_shift, nearest_shift

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Ridge penalties to choose among, and cases that a correction is learned from at least.
ALPHAS = (0.1, 0.3, 1.0, 3.0, 10.0)
_LEAST_CASES = 4
#: Rows (genes of cases) that the trees read at most.
_MOST_ROWS = 400_000


@dataclass(frozen=True)
class Cases:
    """Known effects: of one perturbation in several sources, or of several in one source.

    Attributes
    ----------
    profiles
        ``(k, d)`` what describes each case: the control mean of its source, or features of its
        perturbation.
    controls
        ``(k, genes)`` mean log expression of the controls of its source.
    effects
        ``(k, genes)`` perturbed mean minus control mean.
    """

    profiles: Array
    controls: Array
    effects: Array

    def __len__(self) -> int:
        return len(self.effects)

    def without(self, i: int) -> Cases:
        """Return all cases but one."""
        keep = np.arange(len(self)) != i
        return Cases(self.profiles[keep], self.controls[keep], self.effects[keep])


class ResponsePredictor:
    """Ridge regression over cases, and a correction that all genes share.

    The ridge of :func:`cfm.metrics.linear_shift` predicts each gene of a new case by itself. How
    far such predictions go wrong is alike for genes in the same situation: one that is silent in
    the new source cannot fall, one that is turned on everywhere is turned on here too. Gradient
    boosted trees learn this error from known cases that are left out in turn, with a row per gene
    and case.

    Parameters
    ----------
    groups
        Sets of cases that predict each other; the ridge penalty and the correction are chosen
        over all of them.
    seed
        Of the rows that trees read, where there are too many.
    """

    def __init__(self, groups: Sequence[Cases], *, seed: int = 0) -> None:
        self.alpha = _best_alpha([g for g in groups if len(g) >= 3])
        self.trees: HistGradientBoostingRegressor | None = None
        usable = [g for g in groups if len(g) >= _LEAST_CASES]
        if usable:
            self._fit_trees(usable, seed)

    def predict(self, profile: Array, control: Array, cases: Cases) -> Array:
        """Return the effect in a new case, ``(genes,)``.

        Parameters
        ----------
        profile, control
            ``(d,)`` and ``(genes,)`` of the new case.
        cases
            Known ones, at least one.
        """
        effect = self._ridge(profile, cases)
        if self.trees is not None and len(cases) >= _LEAST_CASES - 1:
            effect = effect + self.trees.predict(_situation(effect, profile, control, cases))
        # mean log expression is not negative
        return np.maximum(effect, -control)

    def _ridge(self, profile: Array, cases: Cases) -> Array:
        return linear_shift(profile, cases.profiles, cases.effects, alpha=self.alpha)

    def _fit_trees(self, groups: Sequence[Cases], seed: int) -> None:
        rows: list[Array] = []
        errors: list[Array] = []
        for group in groups:
            for i in range(len(group)):
                others, query = group.without(i), (group.profiles[i], group.controls[i])
                ridge = self._ridge(query[0], others)
                rows.append(_situation(ridge, *query, others))
                errors.append(group.effects[i] - ridge)
        x, y = np.vstack(rows), np.concatenate(errors)
        keep = np.arange(len(y))
        if len(y) > _MOST_ROWS:
            keep = np.random.default_rng(seed).permutation(len(y))[:_MOST_ROWS]
        self.trees = _trees(seed).fit(x[keep], y[keep])


def _trees(seed: int) -> HistGradientBoostingRegressor:
    return HistGradientBoostingRegressor(
        max_iter=60,
        learning_rate=0.05,
        max_leaf_nodes=8,
        min_samples_leaf=100,
        early_stopping=False,
        random_state=seed,
    )


def _situation(ridge: Array, profile: Array, control: Array, cases: Cases) -> Array:
    """Describe each gene of a new case, ``(genes, features)``."""
    level = cases.controls
    share = (level * cases.effects).sum(axis=0) / ((level**2).sum(axis=0) + 0.3)
    return np.stack(
        [
            ridge,
            mean_shift(cases.effects),
            nearest_shift(profile, cases.profiles, cases.effects),
            cases.effects.min(axis=0),
            cases.effects.max(axis=0),
            share * control,  # if the effect were in proportion to the level
            control,
            nearest_shift(profile, cases.profiles, level),
            level.mean(axis=0),
        ],
        axis=1,
    )


def _best_alpha(groups: Sequence[Cases]) -> float:
    """Choose the ridge penalty by the cases that it predicts from the others."""
    if not groups:
        return 1.0
    errors = [
        sum(
            float(((g.effects[i] - linear_shift(g.profiles[i], *_known(g, i), alpha=a)) ** 2).sum())
            for g in groups
            for i in range(len(g))
        )
        for a in ALPHAS
    ]
    return ALPHAS[int(np.argmin(errors))]


def _known(group: Cases, i: int) -> tuple[Array, Array]:
    others = group.without(i)
    return others.profiles, others.effects
