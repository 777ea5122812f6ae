"""Simple baselines for hidden directions: the gene's mean, the majority, the nearest profiles."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from cfm.metrics._direction_base import DirectionBaseline, Floats, graded_directions


class GeneMean(DirectionBaseline):
    r"""The gene's usual direction: the weighted mean over training profiles that measure it.

    .. math:: s_g = \frac{\sum_p w_p z_{pg}}{\sum_p w_p [g \in p]}

    with graded directions :math:`z` (:math:`\tanh` of the effect over the profile's
    ``n_top``-th largest). It looks at nothing of the profile that it predicts.

    Parameters
    ----------
    n_top
        Rank of the effect that sets the scale of a profile.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.metrics import GeneMean
    >>> usual = GeneMean().fit([[2.0, -1.0, 0.5], [1.0, -2.0, -0.5]])
    >>> direction, size = usual.predict([[np.nan, np.nan, 1.0]], hidden=[[True, True, False]])
    >>> np.sign(direction)
    array([[ 1., -1., nan]], dtype=float32)
    """

    def __init__(self, n_top: int = 1000) -> None:
        self.n_top = n_top

    def _fit(self, x: Floats, weight: NDArray[np.float64], sets: sp.csr_matrix | None) -> None:
        total = weight @ np.isfinite(x)
        mean = weight @ graded_directions(x, self.n_top)
        self.mean_ = (mean / np.maximum(total, 1e-12)).astype(np.float32)

    def _direction(self, seen: NDArray[np.intp], x: Floats, target: NDArray[np.intp]) -> NDArray:
        return self.mean_[target]


class MajoritySign(DirectionBaseline):
    """The profile's own majority: every hidden gene moves as most observed ones do.

    Strong on infections, where most large effects point one way. The score is the mean sign of
    the observed effects, the same for all hidden genes, so its AUROC is 0.5 by construction.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.metrics import MajoritySign
    >>> majority = MajoritySign().fit([[2.0, -1.0, 0.5]])
    >>> majority.predict([[np.nan, 1.0, 0.5]], hidden=[[True, False, False]])[0]
    array([[ 1., nan, nan]], dtype=float32)
    """

    def _fit(self, x: Floats, weight: NDArray[np.float64], sets: sp.csr_matrix | None) -> None:
        return

    def _direction(self, seen: NDArray[np.intp], x: Floats, target: NDArray[np.intp]) -> NDArray:
        return np.full(len(target), np.sign(x).mean() if len(x) else 0.0, dtype=np.float32)


class NearestProfiles(DirectionBaseline):
    r"""k nearest training profiles by cosine similarity of signs on the observed genes.

    The score of a hidden gene is the mean of the neighbours' graded directions, weighted by
    similarity (not below 0) times training weight, plus ``majority`` times the mean sign of the
    observed effects.

    Parameters
    ----------
    n_neighbors
        Number of neighbours.
    majority
        Weight of the profile's own majority sign.
    n_top
        Rank of the effect that sets the scale of a profile.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.metrics import NearestProfiles
    >>> known = NearestProfiles(n_neighbors=1).fit([[2.0, -1.0, 1.0], [-2.0, 1.0, 1.0]])
    >>> direction, _ = known.predict([[np.nan, 3.0, 1.0]], hidden=[[True, False, False]])
    >>> np.sign(direction)
    array([[-1., nan, nan]], dtype=float32)
    """

    def __init__(self, n_neighbors: int = 10, majority: float = 0.1, n_top: int = 1000) -> None:
        self.n_neighbors = n_neighbors
        self.majority = majority
        self.n_top = n_top

    def _fit(self, x: Floats, weight: NDArray[np.float64], sets: sp.csr_matrix | None) -> None:
        self.profiles_ = graded_directions(x, self.n_top)
        self.weights_ = weight

    def _direction(self, seen: NDArray[np.intp], x: Floats, target: NDArray[np.intp]) -> NDArray:
        sign = np.sign(x)
        part = self.profiles_[:, seen]
        norm = np.sqrt((part**2).sum(axis=1)) * np.sqrt(max(len(seen), 1))
        similarity = (part @ sign) / np.maximum(norm, 1e-12)
        nearest = np.argsort(-similarity, kind="stable")[: self.n_neighbors]
        w = np.maximum(similarity[nearest], 0.0) * self.weights_[nearest]
        score = w @ self.profiles_[nearest][:, target] / max(w.sum(), 1e-12)
        return np.asarray(score + self.majority * (sign.mean() if len(sign) else 0.0))
