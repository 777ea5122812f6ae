"""Effects in cases that were not measured, from cases that were."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import nnls

from cfm.metrics import linear_shift, nearest_shift

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Array = NDArray[np.float64]

#: Log expression that is added to a level before an effect is divided by it.
_OFFSET = 0.2
#: Cases of a group that are left out in turn at most.
_MOST_CASES = 20
#: Predictors of :func:`_guesses`.
_N_GUESSES = 3


@dataclass(frozen=True)
class Cases:
    """Known effects: of one perturbation in several sources, or of several in one source.

    Attributes
    ----------
    profiles
        ``(k, d)`` description of each case: the control mean of its source, or features of its
        perturbation.
    controls
        ``(k, genes)`` mean log expression of the controls of its source.
    effects
        ``(k, genes)`` perturbed mean minus control mean.
    """

    profiles: Array
    controls: Array
    effects: Array

    @classmethod
    def of_one_source(cls, features: Array, control: Array, effects: Array) -> Cases:
        """Return the effects of several perturbations, described by features, in one source."""
        return cls(features, np.broadcast_to(control, effects.shape), effects)

    def __len__(self) -> int:
        return len(self.effects)

    def without(self, i: int) -> Cases:
        """Return all cases but one."""
        keep = np.arange(len(self)) != i
        return Cases(self.profiles[keep], self.controls[keep], self.effects[keep])


class ResponsePredictor:
    """Average of simple predictors, weighted by how well they predict known cases left out.

    The predictors are the effect of the nearest case, ridge regression, and the usual effect in
    proportion to the level of a gene. The first two carry over a rise as it is, a fall as a share
    of the level: a gene that is silent in the new source cannot fall there. The weights are not
    negative and sum to 1, and are equal where no known case can be left out.

    Parameters
    ----------
    groups
        Sets of cases that predict each other; all have the same weights.
    """

    def __init__(self, groups: Sequence[Cases]) -> None:
        error, spread = np.zeros((_N_GUESSES, _N_GUESSES)), 0.0
        for group in groups:
            n = len(group)
            for i in np.unique(np.linspace(0, n - 1, min(n, _MOST_CASES)).astype(int)):
                if n < 3:
                    continue
                guesses = _guesses(group.profiles[i], group.controls[i], group.without(i))
                wrong = guesses - group.effects[i]
                error += wrong @ wrong.T
                spread += float(((guesses - guesses.mean(axis=0)) ** 2).sum()) / _N_GUESSES
        self.weights = np.full(_N_GUESSES, 1 / _N_GUESSES)
        if spread > 0:
            # with few cases the errors are uncertain: weights are drawn to equal ones
            root = np.linalg.cholesky(error + spread * np.eye(_N_GUESSES)) / np.sqrt(spread)
            found, _ = nnls(
                np.vstack([root.T, np.ones(_N_GUESSES)]), np.r_[np.zeros(_N_GUESSES), 1.0]
            )
            self.weights = found / found.sum()

    def predict(self, profile: Array, control: Array, cases: Cases) -> Array:
        """Return the effect in a new case, ``(genes,)``.

        Parameters
        ----------
        profile, control
            ``(d,)`` and ``(genes,)`` of the new case.
        cases
            Known ones, at least one.
        """
        return self.weights @ _guesses(profile, control, cases)


def _guesses(profile: Array, control: Array, cases: Cases) -> Array:
    """Return the effects that the predictors expect in a new case, ``(3, genes)``."""
    level, effects = cases.controls, cases.effects
    relative = np.where(effects < 0, effects / (level + _OFFSET), effects)
    found = np.stack(
        [
            nearest_shift(profile, cases.profiles, relative),
            linear_shift(profile, cases.profiles, relative),
        ]
    )
    found = np.where(found < 0, found * (control + _OFFSET), found)
    share = (level * effects).sum(axis=0) / ((level**2).sum(axis=0) + _OFFSET)
    # mean log expression is not negative
    return np.maximum(np.vstack([found, share * control]), -control)
