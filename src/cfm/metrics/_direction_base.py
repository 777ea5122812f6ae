"""What the masked-direction baselines share: checks, graded directions and the size model."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from sklearn.base import BaseEstimator

from cfm._sparse_indices import check_sparse
from cfm.metrics._checks import as_weights

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]


def graded_directions(effects: ArrayLike, n_top: int = 1000) -> Floats:
    r"""Turn log2 fold changes into directions between -1 and 1 that keep small effects small.

    .. math:: z_g = \tanh(x_g / q), \quad q = |x|_{(n_{top})}

    with :math:`q` the ``n_top``-th largest absolute effect of the profile (of half its measured
    genes if it has fewer than ``2 n_top``), so that profiles in different units agree. NaN
    becomes 0, no evidence. On the virus contrasts this carries more than the bare sign of the
    top genes: every measured gene adds evidence, by how far it moved.

    Parameters
    ----------
    effects
        ``(n, genes)`` log2 fold changes, NaN = not measured.
    n_top
        Rank of the effect that is graded :math:`\tanh(1) \approx 0.76`.

    Returns
    -------
    ``(n, genes)`` float32.
    """
    x = as_effects(effects, "effects")
    z = np.zeros(x.shape, dtype=np.float32)
    for row, out in zip(x, z, strict=True):
        measured = np.flatnonzero(np.isfinite(row) & (row != 0))
        if not len(measured):
            continue
        size = np.abs(row[measured])
        k = max(1, min(n_top, len(size) // 2))
        q = np.partition(size, len(size) - k)[len(size) - k]
        out[measured] = np.tanh(row[measured] / q)
    return z


def as_effects(effects: ArrayLike, name: str) -> Floats:
    """Return ``(n, genes)`` float32 effects in which only NaN may be missing."""
    x = np.asarray(effects, dtype=np.float32)
    if x.ndim != 2:
        raise ValueError(f"{name} has shape {x.shape}, expected (profiles, genes).")
    if np.isinf(x).any():
        raise ValueError(f"{name} holds infinite values; use NaN for genes that are not measured.")
    return x


class DirectionBaseline(BaseEstimator, ABC):
    """Predict direction and size of hidden effects; subclasses fill in the direction.

    Sizes come from the same model in all baselines, so that they differ in the direction only:
    within a profile the observed log sizes are regressed on the genes' usual log sizes (their
    mean over training profiles relative to each profile's level), and the line, with a slope
    between 0 and 1, is read off at the hidden genes.
    """

    n_genes_: int
    log_size_: Floats

    def fit(
        self,
        train_effects: ArrayLike,
        train_weights: ArrayLike | None = None,
        signed_sets: sp.csr_matrix | None = None,
    ) -> DirectionBaseline:
        """Learn from training profiles and signed gene sets.

        Parameters
        ----------
        train_effects
            ``(n, genes)`` log2 fold changes, NaN = not measured. ``n`` may be 0 where signed
            sets are given to a baseline that uses them.
        train_weights
            ``(n,)`` weights, for instance 1 / (contrasts of the study); uniform by default.
        signed_sets
            ``(sets, genes)`` sparse matrix of -1, 0, 1; ignored by baselines that do not use
            sets.

        Returns
        -------
        The fitted baseline.

        Raises
        ------
        ValueError
            If shapes disagree, values are infinite or there is nothing to learn from.
        """
        x = as_effects(train_effects, "train_effects")
        weight = as_weights(train_weights, len(x)) if len(x) else np.zeros(0)
        sets = self._check_sets(signed_sets, x.shape[1])
        if not len(x) and (sets is None or not self._uses_sets):
            raise ValueError("Got no training profiles; give at least one.")
        self.n_genes_ = x.shape[1]
        self.log_size_ = _gene_log_size(x, weight)
        self._fit(x, weight, sets)
        return self

    def predict(self, observed: ArrayLike, hidden: ArrayLike) -> tuple[Floats, Floats]:
        """Predict the hidden effects of profiles.

        Parameters
        ----------
        observed
            ``(n, genes)`` log2 fold changes with NaN where hidden or not measured.
        hidden
            ``(n, genes)`` bool, genes to predict.

        Returns
        -------
        ``(n, genes)`` direction scores, above 0 = up, and ``(n, genes)`` predicted absolute log2
        fold changes. Both float32, NaN where not hidden. Each row depends on that row alone.

        Raises
        ------
        ValueError
            If shapes disagree with the training data or a hidden gene has an observed value.
        """
        if not hasattr(self, "n_genes_"):
            raise ValueError(f"{type(self).__name__} is not fitted; call fit first.")
        x = as_effects(observed, "observed")
        mask = np.asarray(hidden, dtype=bool)
        if x.shape[1] != self.n_genes_ or mask.shape != x.shape:
            raise ValueError(
                f"observed {x.shape} and hidden {mask.shape} must both have {self.n_genes_} genes."
            )
        if np.isfinite(x[mask]).any():
            raise ValueError("A hidden gene has an observed value; set hidden effects to NaN.")
        direction = np.full(x.shape, np.nan, dtype=np.float32)
        size = np.full(x.shape, np.nan, dtype=np.float32)
        for i in range(len(x)):
            target = np.flatnonzero(mask[i])
            seen = np.flatnonzero(np.isfinite(x[i]) & (x[i] != 0))
            if not len(target):
                continue
            direction[i, target] = self._direction(seen, x[i, seen], target)
            size[i, target] = self._size(seen, x[i, seen], target)
        return direction, size

    _uses_sets = False

    def _check_sets(self, signed_sets: sp.csr_matrix | None, n_genes: int) -> sp.csr_matrix | None:
        if signed_sets is None or not signed_sets.shape[0]:
            return None
        if signed_sets.shape[1] != n_genes:
            raise ValueError(
                f"signed_sets has {signed_sets.shape[1]} genes, train_effects has {n_genes}."
            )
        sets = sp.csr_matrix(check_sparse(signed_sets, "signed_sets"), dtype=np.float32)
        if not np.isin(sets.data, (-1.0, 0.0, 1.0)).all():
            raise ValueError("signed_sets may hold -1, 0 and 1 only.")
        return sets

    @abstractmethod
    def _fit(self, x: Floats, weight: NDArray[np.float64], sets: sp.csr_matrix | None) -> None: ...

    @abstractmethod
    def _direction(
        self, seen: NDArray[np.intp], x: Floats, target: NDArray[np.intp]
    ) -> NDArray: ...

    def _size(self, seen: NDArray[np.intp], x: Floats, target: NDArray[np.intp]) -> NDArray:
        usual = self.log_size_
        if not len(seen):
            return np.exp2(usual[target])
        own = np.log2(np.abs(x))
        spread = usual[seen] - usual[seen].mean()
        # One pseudo-observation per unit of variance keeps the slope of a short profile near 0.
        slope = float(np.clip(spread @ own / (spread @ spread + 1.0), 0.0, 1.0))
        deviation = usual[target] - np.median(usual[seen])
        return np.exp2(np.clip(np.median(own) + slope * deviation, -10.0, 10.0))


def _gene_log_size(x: Floats, weight: NDArray[np.float64]) -> Floats:
    """Shrunken weighted mean of each gene's log2 |effect| relative to its profile's mean."""
    measured = np.isfinite(x) & (x != 0)
    log_size = np.log2(np.abs(np.where(measured, x, 1.0))).clip(-10.0, 10.0)
    level = log_size.sum(axis=1, keepdims=True, where=measured)
    level /= np.maximum(measured.sum(axis=1, keepdims=True), 1)
    w = weight[:, None] * measured  # (n, genes)
    total = w.sum(axis=0)
    mean = (w * (log_size - level)).sum(axis=0) / np.maximum(total, 1e-12)
    effective = total * len(x)  # number of profiles that measure the gene, by weight
    return np.asarray(mean * effective / (effective + 2.0), dtype=np.float32)
