"""Classifiers of log2 fold-change profiles to read a virus call against.

All take ``(n, genes)`` effects with NaN for genes that were not measured, follow scikit-learn's
interface and give probabilities, so that they can be scored beside a model of :mod:`cfm.models`.
"""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.linear_model import LogisticRegression
from sklearn.utils.validation import check_is_fitted

from cfm._arguments import checks_arguments
from cfm.metrics._classes import as_labels, as_weights

INTERFERON_GENES = ("IFI27", "IFI44L", "ISG15", "MX1", "IFIT1", "RSAD2")


@checks_arguments()
def center_effects(effects: ArrayLike, clip: float = 6.0) -> NDArray[np.float32]:
    """Subtract each profile's median over measured genes, clip, and set missing genes to 0.

    The median removes a shift of the whole profile (library size, host shut-off); 0 is then "as
    the median gene".

    Parameters
    ----------
    effects
        ``(n, genes)`` log2 fold changes, NaN = not measured.
    clip
        Largest absolute value that is kept.

    Returns
    -------
    ``(n, genes)`` float32 without NaN. A profile that measures nothing is all 0.

    Raises
    ------
    ValueError
        If the shape is not two-dimensional or a value is infinite.

    Examples
    --------
    >>> import numpy as np
    >>> from cfm.metrics import center_effects
    >>> center_effects([[1.0, 2.0, 9.0, np.nan]])
    array([[-1.,  0.,  6.,  0.]], dtype=float32)
    """
    x = np.array(effects, dtype=np.float32)
    if x.ndim != 2:
        raise ValueError(f"effects has shape {x.shape}, expected (profiles, genes).")
    if np.isinf(x).any():
        raise ValueError("effects holds infinite values; use NaN for genes that are not measured.")
    measured = ~np.isnan(x)
    for row, seen in zip(x, measured, strict=True):
        if seen.any():
            row -= np.median(row[seen])
    return np.where(measured, np.clip(x, -clip, clip), np.float32(0.0))


class _VirusBaseline(ClassifierMixin, BaseEstimator, ABC):
    """Checks and bookkeeping; subclasses implement ``_fit`` and ``_proba`` on centred effects."""

    classes_: NDArray[np.generic]
    n_features_in_: int

    def fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None
    ) -> _VirusBaseline:
        """Learn from labelled profiles.

        Parameters
        ----------
        X
            ``(n, genes)`` log2 fold changes, NaN = not measured.
        y
            ``(n,)`` labels.
        sample_weight
            ``(n,)`` weights, used relative to their mean. Uniform by default; see
            :func:`cfm.metrics.unit_weights` with ``balance_labels=True``.

        Returns
        -------
        The fitted classifier.
        """
        x = np.asarray(X, dtype=np.float32)
        label = as_labels(y, "y", len(x))
        weight = as_weights(sample_weight, len(x)) * len(x)
        self.classes_ = np.unique(label)
        centred = center_effects(x)
        self.n_features_in_ = x.shape[1]
        if len(self.classes_) > 1:
            self._fit(x, centred, label, weight)
        return self

    def predict_proba(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return ``(n, classes)`` probabilities, columns in the order of ``classes_``."""
        check_is_fitted(self, "classes_")
        x = np.asarray(X, dtype=np.float32)
        centred = center_effects(x)
        if x.shape[1] != self.n_features_in_:
            raise ValueError(f"X has {x.shape[1]} genes, expected {self.n_features_in_}.")
        if len(self.classes_) == 1:  # nothing was learnt and nothing else can be answered
            return np.ones((len(x), 1))
        return self._proba(x, centred)

    def predict(self, X: ArrayLike) -> NDArray[np.generic]:
        """Return ``(n,)`` the most probable labels."""
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    @abstractmethod
    def _fit(self, raw: NDArray, x: NDArray, y: NDArray, weight: NDArray) -> None: ...

    @abstractmethod
    def _proba(self, raw: NDArray, x: NDArray) -> NDArray[np.float64]: ...


class VirusLogisticRegression(_VirusBaseline):
    r"""Multinomial logistic regression on the *shape* of centred, clipped effects.

    Minimises :math:`-C \sum_i w_i \log p_{i y_i} + \frac12 \lVert W \rVert^2` over the rows of
    :func:`center_effects`, each divided by its Euclidean length: contrasts of different strength
    (hours, doses, shrinkage) then weigh the same, without which accuracy across studies halves.
    With fewer profiles than genes the solution lies in the row space of :math:`X = U S V^\top`
    (representer theorem), so it is found on :math:`U S`, at most ``n`` columns, without loss.
    Training weights of 1 / (studies of the virus × contrasts of the unit) help rare viruses.

    Parameters
    ----------
    C
        Inverse strength of the L2 penalty.
    clip
        Largest absolute centred effect.
    min_measured
        Use genes that at least this share of the training profiles measures. The others
        distinguish studies rather than viruses.

    Attributes
    ----------
    coef_
        ``(classes, genes)`` float32 weights on unit-length rows, 0 for genes that are not used.
    intercept_
        ``(classes,)`` intercepts.

    Examples
    --------
    >>> from cfm.metrics import VirusLogisticRegression
    >>> effects = [[2.0, 0.0, -1.0], [4.0, 0.0, -2.0], [-1.0, 0.0, 2.0], [-2.0, 0.0, 3.0]]
    >>> model = VirusLogisticRegression().fit(effects, ["IAV", "IAV", "RSV", "RSV"])
    >>> model.predict([[1.0, 0.0, -0.5]]).tolist()
    ['IAV']
    """

    def __init__(self, C: float = 100.0, clip: float = 6.0, min_measured: float = 0.5) -> None:
        self.C = C
        self.clip = clip
        self.min_measured = min_measured

    def _rows(self, X: ArrayLike) -> NDArray[np.float64]:
        x = center_effects(np.asarray(X)[:, self.genes_], self.clip).astype(np.float64)
        return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)

    def _fit(self, raw: NDArray, x: NDArray, y: NDArray, weight: NDArray) -> None:
        share = np.isfinite(raw).mean(axis=0)
        self.genes_ = np.flatnonzero(share >= min(self.min_measured, share.max()))
        x = self._rows(raw)
        values, vectors = np.linalg.eigh(x @ x.T)
        keep = values > 1e-10 * max(values[-1], 1e-300)
        scale = np.sqrt(values[keep])
        basis = x.T @ (vectors[:, keep] / scale)  # (genes, rank), orthonormal
        model = LogisticRegression(C=self.C, max_iter=5000, tol=1e-6)
        model.fit(vectors[:, keep] * scale, y, sample_weight=weight)
        coef, intercept = model.coef_, model.intercept_
        if len(self.classes_) == 2:  # the softmax of (-s/2, s/2) is the sigmoid of s
            coef = np.vstack([-coef[0], coef[0]]) / 2
            intercept = np.array([-intercept[0], intercept[0]]) / 2
        self.coef_ = np.zeros((len(self.classes_), raw.shape[1]), dtype=np.float32)
        self.coef_[:, self.genes_] = coef @ basis.T
        self.intercept_ = intercept

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return ``(n, classes)`` logits."""
        return self._rows(X) @ self.coef_[:, self.genes_].T.astype(np.float64) + self.intercept_

    def _proba(self, raw: NDArray, x: NDArray) -> NDArray[np.float64]:
        return np.asarray(softmax(self.decision_function(raw), axis=1))


class VirusNeighbors(_VirusBaseline):
    r"""k nearest profiles by cosine similarity over the genes that both measure.

    :math:`p_c \propto \epsilon + \sum_{i \in N_k, y_i = c} w_i \max(0, \cos(x, x_i))`.

    Parameters
    ----------
    n_neighbors
        Number of neighbours.
    smoothing
        :math:`\epsilon`, as a share of the neighbours' total weight.

    Examples
    --------
    >>> from cfm.metrics import VirusNeighbors
    >>> effects = [[2.0, 0.0, -1.0], [4.0, 0.0, -2.0], [-1.0, 0.0, 2.0], [-2.0, 0.0, 3.0]]
    >>> model = VirusNeighbors(n_neighbors=2).fit(effects, ["IAV", "IAV", "RSV", "RSV"])
    >>> model.predict_proba([[1.0, 0.0, -0.5]]).round(3)
    array([[0.995, 0.005]])
    """

    def __init__(self, n_neighbors: int = 5, smoothing: float = 0.01) -> None:
        self.n_neighbors = n_neighbors
        self.smoothing = smoothing

    def _fit(self, raw: NDArray, x: NDArray, y: NDArray, weight: NDArray) -> None:
        self.profiles_ = x
        self.measured_ = ~np.isnan(raw)
        self.labels_ = np.searchsorted(self.classes_, y)
        self.weights_ = weight

    def _proba(self, raw: NDArray, x: NDArray) -> NDArray[np.float64]:
        measured = (~np.isnan(raw)).astype(np.float32)
        own = np.sqrt((x**2) @ self.measured_.T.astype(np.float32))
        other = np.sqrt(measured @ (self.profiles_**2).T)
        cosine = (x @ self.profiles_.T) / np.maximum(own * other, 1e-12)  # (n, train)
        proba = np.empty((len(x), len(self.classes_)))
        for row, out in zip(cosine, proba, strict=True):
            nearest = np.argsort(-row, kind="stable")[: self.n_neighbors]
            vote = self.weights_[nearest] * np.maximum(row[nearest], 0.0)
            out[:] = np.bincount(self.labels_[nearest], weights=vote, minlength=len(out))
            out += self.smoothing * max(out.sum(), 1e-12) / len(out)
        return proba / proba.sum(axis=1, keepdims=True)


class InterferonRule(_VirusBaseline):
    r"""Infected if the interferon genes rise; the class is the most frequent one.

    The score is the mean log2 fold change of ``genes`` (measured ones), not centred. The
    probability of being infected is a logistic regression on that one number; it is shared among
    the viruses by their weighted training frequency.

    Parameters
    ----------
    var_names
        Names of the columns of ``X``.
    uninfected
        Label of profiles that are not infections. Without it among the labels the probabilities
        are the training frequencies.
    genes
        Genes whose mean is the score.

    Examples
    --------
    >>> from cfm.metrics import InterferonRule
    >>> rule = InterferonRule(["ISG15", "MX1", "ACTB"])
    >>> effects = [[4.0, 3.0, 0.0], [3.0, 3.0, 0.1], [0.1, 0.0, 0.0], [0.0, -0.2, 0.1]]
    >>> rule = rule.fit(effects, ["IAV", "RSV", "uninfected", "uninfected"])
    >>> rule.predict([[0.0, 0.1, 0.0]]).tolist()
    ['uninfected']
    >>> rule.predict_proba([[4.0, 4.0, 0.0]]).round(1)
    array([[0.5, 0.5, 0. ]])
    """

    def __init__(
        self,
        var_names: Sequence[str],
        uninfected: str = "uninfected",
        genes: Sequence[str] = INTERFERON_GENES,
    ) -> None:
        self.var_names = var_names
        self.uninfected = uninfected
        self.genes = genes

    def decision_function(self, X: ArrayLike) -> NDArray[np.float64]:
        """Return ``(n,)`` mean log2 fold changes of the interferon genes, 0 if none is measured."""
        x = np.asarray(X, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != len(self.var_names):
            raise ValueError(f"X has shape {x.shape}, expected (n, {len(self.var_names)}).")
        columns = np.flatnonzero(np.isin(np.asarray(self.var_names, dtype=str), self.genes))
        if not len(columns):
            raise ValueError(f"None of the genes {', '.join(self.genes)} is in var_names.")
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
            return np.nan_to_num(np.nanmean(x[:, columns], axis=1))

    def _fit(self, raw: NDArray, x: NDArray, y: NDArray, weight: NDArray) -> None:
        frequency = np.bincount(np.searchsorted(self.classes_, y), weights=weight)
        self.frequency_ = frequency / frequency.sum()
        infected = y != self.uninfected
        self.model_ = None
        if infected.any() and not infected.all():
            self.model_ = LogisticRegression(C=100.0)
            self.model_.fit(self.decision_function(raw)[:, None], infected, sample_weight=weight)

    def _proba(self, raw: NDArray, x: NDArray) -> NDArray[np.float64]:
        score = self.decision_function(raw)
        if self.model_ is None:
            return np.tile(self.frequency_, (len(score), 1))
        infected = self.model_.predict_proba(score[:, None])[:, 1]
        healthy = self.classes_ == self.uninfected
        share = np.where(healthy, 0.0, self.frequency_)
        proba = infected[:, None] * (share / share.sum())
        proba[:, healthy] = (1.0 - infected)[:, None]
        return proba
