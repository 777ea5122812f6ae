"""Directions and sizes of hidden effects: scores, and the baselines they are read against."""

from __future__ import annotations

from abc import ABC, abstractmethod

import numpy as np
import scipy.sparse as sp
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse.linalg import eigsh
from scipy.stats import rankdata
from sklearn.base import BaseEstimator
from sklearn.utils.validation import check_is_fitted

from cfm.metrics._classes import as_weights, auroc
from cfm.metrics._perturbation_scores import correlation
from cfm.stats._similarity import grade_effects

Floats = NDArray[np.float32]


def direction_scores(
    effects: ArrayLike, direction_score: ArrayLike, hidden: ArrayLike | None = None
) -> dict[str, float]:
    """Score the predicted direction of hidden effects of one profile.

    Parameters
    ----------
    effects
        ``(genes,)`` true log2 fold changes; NaN and 0 have no direction and are left out.
    direction_score
        ``(genes,)`` scores, above 0 = up. A score of exactly 0 is worth half a right answer.
    hidden
        ``(genes,)`` bool, genes to score; all by default.

    Returns
    -------
    dict with ``accuracy``; ``balanced_accuracy``, the mean of the accuracies on up and on down
    genes; ``auroc`` of up against down. The last two are NaN if all effects point one way, all
    three if there is nothing to score.

    Examples
    --------
    >>> from cfm.metrics import direction_scores
    >>> direction_scores([1.5, 0.5, -2.0, -1.0], [0.8, -0.1, -0.7, 0.0])
    {'accuracy': 0.625, 'balanced_accuracy': 0.625, 'auroc': 0.75}
    """
    truth, score = _pairs(effects, direction_score, hidden)
    truth, score = truth[truth != 0], score[truth != 0]
    up = truth > 0
    if not len(truth):
        return dict.fromkeys(("accuracy", "balanced_accuracy", "auroc"), float("nan"))
    right = np.where(score == 0, 0.5, (score > 0) == up)
    two = up.any() and not up.all()
    balanced = (right[up].mean() + right[~up].mean()) / 2 if two else np.nan
    return {
        "accuracy": float(right.mean()),
        "balanced_accuracy": float(balanced),
        "auroc": auroc(up, score) if two else float("nan"),
    }


def size_scores(
    effects: ArrayLike, size: ArrayLike, hidden: ArrayLike | None = None
) -> dict[str, float]:
    r"""Score the predicted size :math:`|x|` of hidden effects of one profile.

    Parameters
    ----------
    effects
        ``(genes,)`` true log2 fold changes; NaN is left out.
    size
        ``(genes,)`` predicted absolute log2 fold changes, 0 or more.
    hidden
        ``(genes,)`` bool, genes to score; all by default.

    Returns
    -------
    dict with ``mae``, the mean absolute error in log2 units, and ``spearman``, the rank
    correlation (NaN if either side is constant).

    Examples
    --------
    >>> from cfm.metrics import size_scores
    >>> found = size_scores([1.5, 0.5, -2.0], [1.0, 0.5, 2.5])
    >>> round(found["mae"], 3), round(found["spearman"], 3)
    (0.333, 1.0)
    """
    truth, predicted = _pairs(effects, size, hidden)
    if not len(truth):
        return {"mae": float("nan"), "spearman": float("nan")}
    truth = np.abs(truth)
    return {
        "mae": float(np.abs(truth - predicted).mean()),
        "spearman": correlation(rankdata(truth), rankdata(predicted)),
    }


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
        check_is_fitted(self, "n_genes_")
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
        sets = signed_sets.copy()  # SciPy's check changes the matrix
        sets.check_format()
        sets = sp.csr_matrix(sets, dtype=np.float32)
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


class GeneMean(DirectionBaseline):
    r"""The gene's usual direction: the weighted mean over training profiles that measure it.

    .. math:: s_g = \frac{\sum_p w_p z_{pg}}{\sum_p w_p [g \in p]}

    with graded directions :math:`z` (:math:`\tanh` of the effect over the profile's
    ``n_top``-th largest). Nothing of the profile that is predicted enters.

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
        mean = weight @ np.nan_to_num(grade_effects(x, self.n_top))
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
        self.profiles_ = np.nan_to_num(grade_effects(x, self.n_top))
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


class _GeneCovariance(DirectionBaseline):
    """Ridge regression with the kernel of weighted, normalised rows; see CorrelationKernel."""

    _uses_sets = True
    ridge: float
    constant: float
    set_weight: float
    effect_weight: float
    rank: int | None
    n_top: int

    def _fit(self, x: Floats, weight: NDArray[np.float64], sets: sp.csr_matrix | None) -> None:
        if self.ridge <= 0 or self.constant < 0:
            raise ValueError(
                f"ridge={self.ridge}, constant={self.constant}; expected ridge > 0, constant >= 0."
            )
        blocks = []
        if sets is not None and self.set_weight > 0:
            blocks.append(_unit_rows(sets) * np.float32(np.sqrt(self.set_weight / sets.shape[0])))
        if len(x) and self.effect_weight > 0:
            rows = _unit_rows(sp.csr_matrix(np.nan_to_num(grade_effects(x, self.n_top))))
            blocks.append(sp.diags(np.sqrt(self.effect_weight * weight).astype(np.float32)) @ rows)
        if not blocks:
            raise ValueError("Got neither training profiles nor signed sets with a weight above 0.")
        rows = sp.csr_matrix(sp.vstack(blocks), dtype=np.float32)
        # Scale-free ridge: the variance of the genes that move, weighted by how much they do, is 1.
        diagonal = np.asarray(rows.multiply(rows).sum(axis=0)).ravel()  # (genes,)
        if diagonal.sum() <= 0:
            raise ValueError("All training effects and signed sets are empty.")
        rows = rows * np.float32(1.0 / np.sqrt((diagonal**2).sum() / diagonal.sum()))
        if self.rank is None or self.rank >= min(rows.shape):
            self.rows_ = sp.csc_matrix(rows)
        else:
            self.rows_ = _leading_rows(rows, self.rank)

    def _columns(self, genes: NDArray[np.intp]) -> Floats:
        part = self.rows_[:, genes]
        part = part.toarray() if sp.issparse(part) else np.asarray(part)
        if self.constant > 0:
            level = np.full((1, len(genes)), np.sqrt(self.constant), dtype=np.float32)
            part = np.vstack([part, level])
        return np.asarray(part, dtype=np.float32)

    def _direction(self, seen: NDArray[np.intp], x: Floats, target: NDArray[np.intp]) -> NDArray:
        if not len(seen):
            return np.zeros(len(target), dtype=np.float32)
        a = self._columns(seen)  # (r, observed): the kernel is a.T @ a
        y = np.sign(x)
        # The same answer either way; the smaller system is solved.
        if len(seen) <= len(a):
            z = a @ _ridge_solve(a.T @ a, self.ridge, y)
        else:
            z = _ridge_solve(a @ a.T, self.ridge, a @ y)
        return np.asarray(z @ self._columns(target))


class CorrelationKernel(_GeneCovariance):
    r"""Gene-correlation kernel: Gaussian-process regression of signs on signs.

    With rows :math:`z_p` of unit length and weights :math:`w_p`, the covariance of two genes is

    .. math:: K_{gh} = \frac{1}{c_0} \sum_p w_p z_{pg} z_{ph} + c

    and hidden genes :math:`H` are predicted from the signs :math:`y_O` of the observed ones by

    .. math:: s_H = K_{HO} (K_{OO} + \lambda I)^{-1} y_O .

    Rows are the signed sets (-1, 0, 1; equal weights with sum ``set_weight``) and the training
    profiles (graded directions :math:`\tanh(x / q)`, :math:`q` the ``n_top``-th largest effect;
    weights with sum ``effect_weight``). The constant kernel :math:`c` carries the profile's own
    majority. :math:`c_0` scales the variance of genes that move to 1, so :math:`\lambda` and
    :math:`c` do not depend on the number of genes. :math:`K` is never formed for all genes: with
    :math:`A` the matrix of rows only :math:`A_O` and :math:`A_H` are used.

    Parameters
    ----------
    ridge
        :math:`\lambda`, noise variance of a sign.
    constant
        :math:`c`, variance of the common direction of a profile.
    set_weight
        Total weight of the signed sets.
    effect_weight
        Total weight of the training profiles.
    rank
        Keep this many leading factors of the rows; all by default.
    n_top
        Rank of the effect that sets the scale of a profile.

    Notes
    -----
    ``rows_`` holds the scaled rows, ``(rows or rank, genes)``; without ``rank`` a sparse matrix.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.metrics import CorrelationKernel
    >>> profiles = [[2.0, 1.0, -1.0], [-1.0, -2.0, 1.0], [3.0, 2.0, -1.0]]
    >>> kernel = CorrelationKernel().fit(profiles)
    >>> direction, _ = kernel.predict([[np.nan, -1.0, 2.0]], hidden=[[True, False, False]])
    >>> np.sign(direction)
    array([[-1., nan, nan]], dtype=float32)
    """

    def __init__(
        self,
        ridge: float = 1.0,
        constant: float = 0.1,
        set_weight: float = 1.0,
        effect_weight: float = 1.0,
        rank: int | None = None,
        n_top: int = 1000,
    ) -> None:
        self.ridge = ridge
        self.constant = constant
        self.set_weight = set_weight
        self.effect_weight = effect_weight
        self.rank = rank
        self.n_top = n_top


class SignedSetSVD(_GeneCovariance):
    r"""Least squares on the leading singular vectors of the signed sets.

    As :class:`CorrelationKernel` with truncated rows and *equal* factors: the right singular
    vectors :math:`V` of the unit-length rows replace the scaled ones, so that the prediction is
    the ridge fit :math:`V_H (V_O^\top V_O + \lambda I)^{-1} V_O^\top y_O`.

    Parameters
    ----------
    rank
        Number of singular vectors.
    ridge
        Ridge, in units of the mean squared length of a gene's factors.
    constant
        Variance of a common direction added as one more factor; 0 = none.
    effect_weight
        Total weight of the training profiles beside the sets' 1; 0 = sets only.
    n_top
        Rank of the effect that sets the scale of a profile.

    Examples
    --------
    >>> import numpy as np
    >>> import scipy.sparse as sp
    >>> from cfm.metrics import SignedSetSVD
    >>> sets = sp.csr_matrix([[1, 1, -1, 0], [0, 1, -1, 1]])
    >>> nothing = np.empty((0, 4))
    >>> model = SignedSetSVD(rank=2).fit(nothing, signed_sets=sets)
    >>> direction, _ = model.predict(
    ...     [[np.nan, 2.0, -1.0, 1.0]], hidden=[[True, False, False, False]]
    ... )
    >>> np.sign(direction)
    array([[ 1., nan, nan, nan]], dtype=float32)
    """

    set_weight = 1.0

    def __init__(
        self,
        rank: int = 200,
        ridge: float = 1.0,
        constant: float = 0.1,
        effect_weight: float = 0.0,
        n_top: int = 1000,
    ) -> None:
        self.rank = rank
        self.ridge = ridge
        self.constant = constant
        self.effect_weight = effect_weight
        self.n_top = n_top

    def _fit(self, x: Floats, weight: NDArray[np.float64], sets: sp.csr_matrix | None) -> None:
        super()._fit(x, weight, sets)
        dense = self.rows_.toarray() if sp.issparse(self.rows_) else self.rows_
        length = np.sqrt((dense.astype(np.float64) ** 2).sum(axis=1, keepdims=True))
        flat = dense / np.maximum(length, 1e-12)
        variance = (flat**2).sum(axis=0)
        self.rows_ = (flat / np.sqrt((variance**2).sum() / variance.sum())).astype(np.float32)


class EffectPCA(_GeneCovariance):
    """Principal components of the training profiles alone, as probabilistic PCA with ridge.

    :class:`CorrelationKernel` without signed sets and with ``rank`` components; missing genes
    count as 0.

    Parameters
    ----------
    rank
        Number of components; at most the number of training profiles.
    ridge
        Noise variance of a sign.
    constant
        Variance of a common direction; 0 = none.
    n_top
        Rank of the effect that sets the scale of a profile.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.metrics import EffectPCA
    >>> profiles = [[2.0, 1.0, -1.0], [-1.0, -2.0, 1.0], [3.0, 2.0, -1.0]]
    >>> model = EffectPCA(rank=1).fit(profiles)
    >>> direction, _ = model.predict([[np.nan, 1.0, -2.0]], hidden=[[True, False, False]])
    >>> np.sign(direction)
    array([[ 1., nan, nan]], dtype=float32)
    """

    _uses_sets = False
    set_weight = 0.0
    effect_weight = 1.0

    def __init__(
        self, rank: int | None = 20, ridge: float = 1.0, constant: float = 0.1, n_top: int = 1000
    ) -> None:
        self.rank = rank
        self.ridge = ridge
        self.constant = constant
        self.n_top = n_top


def _unit_rows(rows: sp.csr_matrix) -> sp.csr_matrix:
    length = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
    return sp.csr_matrix(sp.diags((1.0 / np.maximum(length, 1e-12)).astype(np.float32)) @ rows)


def _leading_rows(rows: sp.csr_matrix, rank: int) -> Floats:
    """Return ``(rank, genes)`` scaled right singular vectors through the small Gram matrix."""
    gram = (rows @ rows.T).toarray().astype(np.float64)  # (rows, rows)
    start = np.full(len(gram), 1.0 / np.sqrt(len(gram)))  # the same factors in every run
    _, vectors = eigsh(gram, k=rank, which="LA", v0=start)
    vectors = vectors[:, ::-1]
    # A sign is free in a factor; fix it so that files and figures do not flip.
    flip = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(rank)])
    return np.asarray((rows.T @ (vectors * flip)).T, dtype=np.float32)


def _ridge_solve(gram: NDArray, ridge: float, y: NDArray) -> NDArray:
    system = np.asarray(gram, dtype=np.float64)
    system[np.diag_indices_from(system)] += ridge
    return np.asarray(cho_solve(cho_factor(system, overwrite_a=True), y), dtype=np.float32)


def _pairs(a: ArrayLike, b: ArrayLike, keep: ArrayLike | None) -> tuple[NDArray, NDArray]:
    left = np.asarray(a, dtype=np.float64).ravel()
    right = np.asarray(b, dtype=np.float64).ravel()
    if left.shape != right.shape:
        raise ValueError(f"Got {left.size} true and {right.size} predicted effects.")
    use = np.isfinite(left)
    if keep is not None:
        mask = np.asarray(keep, dtype=bool).ravel()
        if mask.shape != left.shape:
            raise ValueError(f"hidden has {mask.size} entries, expected {left.size}.")
        use &= mask
    if not np.isfinite(right[use]).all():
        raise ValueError("Predictions hold NaN or infinite values where an effect was hidden.")
    return left[use], right[use]
