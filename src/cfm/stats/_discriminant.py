"""Linear discriminant analysis of counts, for whichever of its genes new data measure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from sklearn.utils.extmath import randomized_svd

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Factors of the covariance, and the part of each gene's variance that is added to its own noise.
#: Chosen by naming the cells of one laboratory (Kang 2018, Hao 2021) from those of the other.
N_FACTORS, NOISE = 60, 0.1
#: Shares of the genes by which held-out cells are scored.
_SHARES = (1.0, 0.5, 0.25)
_FOLDS = 5
#: Added to the standard deviation of a gene, so that genes which are hardly expressed weigh little.
_LEAST_SPREAD = 0.1
TARGET_SUM = 1e4
#: Arrays of a discriminant, by which it is saved.
ARRAYS = ("abundance", "centre", "spread", "means", "factors", "noise", "slope")


@dataclass(frozen=True, eq=False)
class GeneDiscriminant:
    r"""Linear discriminant analysis with a factor model of the covariance within classes.

    Normalised expression of a cell of class :math:`k` is taken to be
    :math:`x \sim N(\mu_k,\; F F^T + \mathrm{diag}(\psi))`. What is measured of it has the same
    distribution on fewer genes :math:`S`, so the discriminant for any genes is exact and needs no
    values in place of those that are missing:

    .. math:: \delta_k(x_S) = \mu_{k,S}^T \Sigma_S^{-1} x_S
              - \tfrac{1}{2} \mu_{k,S}^T \Sigma_S^{-1} \mu_{k,S}

    All classes are equally likely beforehand. As genes are not normal and the studies that come
    differ from those that were learned from, probabilities are a softmax of
    :math:`\beta\,\delta_k / \Delta_S`, with :math:`\Delta_S` the root mean square Mahalanobis
    distance between two classes and :math:`\beta` fitted on studies left out (temperature
    scaling). See Hastie, Tibshirani and Friedman, *The Elements of Statistical Learning*, 4.3.

    Attributes
    ----------
    abundance
        ``(n_genes,)``, mean share of each gene in the counts of a cell.
    centre, spread
        ``(n_genes,)``, mean and spread of ``log1p`` of counts per 10,000.
    means
        ``(n_classes, n_genes)``, scaled expression of each class.
    factors
        ``(n_genes, n_factors)``.
    noise
        ``(n_genes,)``.
    slope
        :math:`\beta`.
    """

    abundance: np.ndarray
    centre: np.ndarray
    spread: np.ndarray
    means: np.ndarray
    factors: np.ndarray
    noise: np.ndarray
    slope: float

    @classmethod
    def fit(
        cls,
        counts: np.ndarray,
        classes: np.ndarray,
        studies: np.ndarray | None = None,
        *,
        n_factors: int = N_FACTORS,
        seed: int = 0,
    ) -> tuple[Self, np.ndarray]:
        """Fit to cells with known classes.

        Parameters
        ----------
        counts
            ``(n_cells, n_genes)``, counts, or any multiple of them in each cell.
        classes
            ``(n_cells,)`` int, 0 … K − 1, each at least once.
        studies
            ``(n_cells,)``, study of each cell. Studies differ by a shift, the same for all
            classes; each class of each study weighs by the root of its cells.
        n_factors
            Factors of the covariance.
        seed
            Seed of the folds, where there is only one study, and of the genes left out.

        Returns
        -------
        The discriminant, and how sure it is of cells held out: ``(n_held_out,)`` float, the
        largest probability of each by all, a half and a quarter of the genes. A study is held out
        at a time; where no two studies share classes, a fifth of the cells. Empty for classes that
        cannot be held out.
        """
        studies = np.zeros(len(classes), dtype=int) if studies is None else np.asarray(studies)
        rng = np.random.default_rng(seed)
        n_genes = counts.shape[1]
        subsets = [np.sort(rng.permutation(n_genes)[: max(1, int(s * n_genes))]) for s in _SHARES]
        scores: list[np.ndarray] = []
        truth: list[np.ndarray] = []
        for inside in _folds(classes, studies, rng):
            kept, own = np.unique(classes[~inside], return_inverse=True)
            part = cls.estimate(counts[~inside], own, studies[~inside], n_factors)
            scored = inside & np.isin(classes, kept)
            for genes in subsets if len(kept) > 1 and scored.any() else ():
                delta = np.full((int(scored.sum()), int(classes.max()) + 1), -np.inf)
                delta[:, kept] = part._scores(counts[np.ix_(scored, genes)], genes)
                scores.append(delta)
                truth.append(classes[scored])
        whole = cls.estimate(counts, classes, studies, n_factors)
        if not scores:
            return whole, np.zeros(0)
        delta, right = np.concatenate(scores), np.concatenate(truth)
        slope = _slope(delta, right)
        sure = np.exp(log_softmax(slope * delta, axis=1).max(axis=1))
        return replace(whole, slope=slope), sure

    @classmethod
    def estimate(
        cls, counts: np.ndarray, classes: np.ndarray, studies: np.ndarray, n_factors: int
    ) -> Self:
        """Fit means and covariance, parameters as of :meth:`fit`; the slope is 1."""
        total = counts.sum(axis=1, keepdims=True)
        abundance = (counts / np.where(total > 0, total, 1.0)).mean(axis=0)
        values = log_normalised(counts, abundance, np.arange(counts.shape[1]))
        centre, spread = values.mean(axis=0), values.std(axis=0) + _LEAST_SPREAD
        values = (values - centre) / spread
        _, study = np.unique(studies, return_inverse=True)
        n_classes, n_studies = int(classes.max()) + 1, int(study.max()) + 1
        _, group, size = np.unique(
            study * n_classes + classes, return_inverse=True, return_counts=True
        )
        weight = size[group] ** -0.5
        weight /= weight.sum()
        # least squares: a mean for each class, a shift for each study but the first
        design = np.concatenate(
            [np.eye(n_classes)[classes], np.eye(n_studies)[study][:, 1:]], axis=1
        )
        inner = design.T @ (weight[:, None] * design) + 1e-9 * np.eye(design.shape[1])
        fit = np.linalg.solve(inner, design.T @ (weight[:, None] * values))
        means = fit[:n_classes] + fit[n_classes:].sum(axis=0) / n_studies
        residual = (values - design @ fit) * np.sqrt(weight)[:, None]
        n_factors = min(n_factors, min(residual.shape) - 1)
        _, root, loadings = randomized_svd(residual, max(n_factors, 1), random_state=0)
        factors = loadings.T * root
        own = (residual**2).sum(axis=0) - (factors**2).sum(axis=1)
        return cls(abundance, centre, spread, means, factors, np.maximum(own, 0.0) + NOISE, 1.0)

    def log_probabilities(self, counts: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return the log-probability of each class.

        Parameters
        ----------
        counts
            ``(n_cells, n)``, counts of the genes that are measured, or any multiple of them in
            each cell.
        genes
            ``(n,)`` int, which genes these are.

        Returns
        -------
        ``(n_cells, n_classes)`` float64.
        """
        return log_softmax(self.slope * self._scores(counts, genes), axis=1)

    def _scores(self, counts: np.ndarray, genes: np.ndarray) -> np.ndarray:
        """Return discriminants in units of the distance between classes, ``(n, n_classes)``."""
        weights, offset, _ = self._weights(genes)
        values = log_normalised(counts, self.abundance, genes)
        return ((values - self.centre[genes]) / self.spread[genes]) @ weights.T - offset

    def subset(self, classes: np.ndarray) -> Self:
        """Return the discriminant of some of the classes."""
        return replace(self, means=self.means[classes])

    def scaled(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the classes by some genes, where the mean square distance of two is 1.

        Returns
        -------
        weights
            ``(n_classes, n)`` of scaled expression.
        products
            ``(n_classes, n_classes)``, inner products of the class means.
        """
        weights, _, distance = self._weights(genes)
        weights = weights / distance
        return weights, weights @ self.means[:, genes].astype(float).T

    def _weights(self, genes: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
        """Return weights ``(n_classes, n)`` of scaled expression, what is taken off, distance."""
        means, factors = self.means[:, genes].astype(float), self.factors[genes].astype(float)
        # Woodbury: inverse of F Fᵀ + diag(ψ), applied to the means
        scaled = means / self.noise[genes]
        core = np.eye(factors.shape[1]) + factors.T @ (factors / self.noise[genes][:, None])
        weights = scaled - (scaled @ factors) @ np.linalg.solve(core, factors.T / self.noise[genes])
        product = weights @ means.T
        own = np.diag(product)
        square = own[:, None] + own - product - product.T
        n_pairs = max(len(own) * (len(own) - 1), 1)
        distance = np.sqrt(max(square.sum() / n_pairs, 1e-12))
        return weights / distance, own / (2 * distance), float(distance)


def _folds(
    classes: np.ndarray, studies: np.ndarray, rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """Yield which cells are held out: a study at a time, or a fifth of the cells."""
    names = np.unique(studies)
    shared = [np.intersect1d(classes[studies == name], classes[studies != name]) for name in names]
    by_study = [name for name, both in zip(names, shared, strict=True) if len(both) > 1]
    if by_study:
        yield from (studies == name for name in by_study)
    elif len(classes) > _FOLDS:
        fold = rng.permutation(len(classes)) % _FOLDS
        yield from (fold == number for number in range(_FOLDS))


def _slope(scores: np.ndarray, truth: np.ndarray) -> float:
    """Return the factor of the scores by which the right classes are most probable."""

    def loss(log_slope: float) -> float:
        log = log_softmax(np.exp(log_slope) * scores, axis=1)
        return -float(np.take_along_axis(log, truth[:, None], axis=1).mean())

    return float(np.exp(minimize_scalar(loss, bounds=(-6.0, 4.0), method="bounded").x))


def log_normalised(counts: np.ndarray, abundance: np.ndarray, genes: np.ndarray) -> np.ndarray:
    """Return ``log1p`` of counts per 10,000, of which these genes have their usual part."""
    part = TARGET_SUM * abundance[genes].sum() / max(abundance.sum(), 1e-12)
    total = counts.sum(axis=1, keepdims=True)
    return np.log1p(counts * (part / np.where(total > 0, total, 1.0)))
