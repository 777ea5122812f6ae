"""DESeq2's test of cases against controls, all genes at a time.

PyDESeq2 fits gene after gene in Python, minutes for the 60,000 genes of an annotation. Its public
``inference`` argument takes other arithmetic: :class:`AllGenes` has the same formulas over arrays
of genes. Everything between them (size factors, trend, outliers, filtering) stays PyDESeq2's.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
from pydeseq2.dds import DeseqDataSet
from pydeseq2.default_inference import DefaultInference
from pydeseq2.ds import DeseqStats
from scipy.special import digamma, gammaln, ndtr

logger = logging.getLogger(__name__)

#: Values in an array of one step, which stays in the cache of the processor.
_AT_ONCE = 200_000
#: Slope over the logarithm of the dispersion that PyDESeq2's optimiser calls flat.
_FLAT = 1e-5
#: Step of that logarithm, and how often the interval of the minimum is halved, to 1e-8.
_STEP = 0.5
_HALVINGS = 25


def deseq2(
    counts: np.ndarray,
    is_case: np.ndarray,
    genes: pd.Index,
    *,
    shrink: bool = False,
    n_cpus: int = 1,
) -> pd.DataFrame:
    """Test every gene for a difference between cases and controls.

    Parameters
    ----------
    counts
        ``(n, n_genes)`` counts; fractional ones are rounded.
    is_case
        ``(n,)`` bool.
    genes
        Names of the columns.
    shrink
        Whether to shrink fold changes by PyDESeq2's apeglm prior, gene after gene.
    n_cpus
        Processes that shrink.

    Returns
    -------
    DataFrame (genes × ``lfc``, ``stat``, ``pval``, ``padj``): Wald test. A gene without any count
    has ``lfc`` 0 and is not tested (NaN); outliers and low counts have no ``padj``, as in DESeq2.

    Notes
    -----
    Love, Huber and Anders (2014), Genome Biology 15:550, as implemented by PyDESeq2 (Muzellec
    2023). What PyDESeq2 warns of goes to the log.
    """
    names = [f"s{i}" for i in range(len(counts))]
    table = pd.DataFrame(np.rint(counts).astype(np.int64), index=names, columns=genes)
    # neutral names: those of levels may break the design formula
    condition = pd.Categorical(np.where(is_case, "case", "ctrl"), categories=["ctrl", "case"])
    # the median of ratios needs a gene with counts in every sample
    size_factors = "ratio" if (table.to_numpy() > 0).all(axis=0).any() else "poscounts"
    arithmetic = AllGenes(n_cpus=n_cpus)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        dds = DeseqDataSet(
            counts=table,
            metadata=pd.DataFrame({"condition": condition}, index=names),
            design="~condition",
            size_factors_fit_type=size_factors,
            quiet=True,
            inference=arithmetic,
        )
        dds.deseq2()
        stats = DeseqStats(
            dds, contrast=["condition", "case", "ctrl"], quiet=True, inference=arithmetic
        )
        stats.summary()
        if shrink:
            stats.lfc_shrink(coeff="condition[T.case]")
    for warning in caught:
        logger.info("PyDESeq2: %s", warning.message)
    result = stats.results_df.rename(columns={"log2FoldChange": "lfc", "pvalue": "pval"})[
        ["lfc", "stat", "pval", "padj"]
    ]
    result["lfc"] = result["lfc"].fillna(0.0)
    return result


class AllGenes(DefaultInference):  # type: ignore[misc]
    """PyDESeq2's fits over arrays of genes; arguments and results as there."""

    def lin_reg_mu(
        self,
        counts: np.ndarray,
        size_factors: np.ndarray,
        design_matrix: np.ndarray,
        min_mu: float,
    ) -> np.ndarray:
        """Return the means of least squares, ``(n, n_genes)``."""
        x = np.asarray(design_matrix, dtype=float)
        hat = x @ np.linalg.pinv(x)
        scaled = np.asarray(size_factors, dtype=float)[:, None]
        return np.maximum(scaled * (hat @ (counts / scaled)), min_mu)

    def alpha_mle(
        self,
        counts: np.ndarray,
        design_matrix: np.ndarray,
        mu: np.ndarray,
        alpha_hat: np.ndarray,
        min_disp: float,
        max_disp: float,
        prior_disp_var: float | None = None,
        cr_reg: bool = True,
        prior_reg: bool = False,
        optimizer: str = "L-BFGS-B",
    ) -> tuple[np.ndarray, np.ndarray]:
        r"""Return the dispersion of each gene and that it was found.

        The minimum over :math:`\log \alpha` of the negative log-likelihood,
        :math:`\tfrac12 \log \lvert X^T W X \rvert` (Cox and Reid) and
        :math:`(\log \alpha - \log \hat\alpha)^2 / 2 \sigma^2` that lies downhill of
        :math:`\hat\alpha`. As in PyDESeq2 (and DESeq2), a gene stays where the function is flat,
        so one whose moments give no dispersion keeps the least.
        """
        x = np.asarray(design_matrix, dtype=float)
        alpha = np.empty(counts.shape[1])
        for genes in _parts(counts.shape):
            y, m, start = counts[:, genes], mu[:, genes], np.log(alpha_hat[genes])

            def slope(
                at: np.ndarray,
                which: np.ndarray,
                y: np.ndarray = y,
                m: np.ndarray = m,
                start: np.ndarray = start,
            ) -> np.ndarray:
                mean, size = m[:, which], np.exp(-at)
                total = -size * _by_size(y[:, which], mean, size)
                if cr_reg:
                    weights = mean / (1 + mean / size)
                    inverse = np.linalg.inv(_information(x, weights))
                    change = _information(x, -(weights**2)) / size[:, None, None]
                    total += 0.5 * np.einsum("gij,gji->g", inverse, change)
                if prior_reg and prior_disp_var is not None:
                    total += (at - start[which]) / prior_disp_var
                return total

            alpha[genes] = np.exp(_downhill(slope, start, np.log(min_disp), np.log(max_disp)))
        return alpha, np.ones(len(alpha), dtype=bool)

    def irls(
        self,
        counts: np.ndarray,
        size_factors: np.ndarray,
        design_matrix: np.ndarray,
        disp: np.ndarray,
        min_mu: float,
        beta_tol: float,
        min_beta: float = -30,
        max_beta: float = 30,
        optimizer: str = "L-BFGS-B",
        maxiter: int = 250,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return coefficients, means, diagonals of the hat matrix and which genes converged.

        Genes whose coefficients diverge go to PyDESeq2's own fit.
        """
        x, size = np.asarray(design_matrix, dtype=float), np.asarray(size_factors)[:, None]
        ridge = 1e-6 * np.eye(x.shape[1])
        # PyDESeq2 starts with least squares of the logarithms
        beta = np.linalg.pinv(x) @ np.log(counts / size + 0.1)
        deviance = np.full(counts.shape[1], 1000.0)
        open_, diverged = np.arange(counts.shape[1]), []
        for step in range(maxiter):
            y, b, a = counts[:, open_], beta[:, open_], disp[open_]
            mu = np.maximum(size * np.exp(x @ b), min_mu)
            weights = mu / (1 + mu * a)
            working = np.log(mu / size) + (y - mu) / mu
            right = (x.T @ (weights * working)).T[..., None]
            b = np.linalg.solve(_information(x, weights) + ridge, right)[..., 0].T
            lost = (np.abs(b) > max_beta).any(axis=0) | (step + 1 == maxiter)
            diverged.append(open_[lost])
            open_, b, y, a = open_[~lost], b[:, ~lost], y[:, ~lost], a[~lost]
            beta[:, open_] = b
            mu = np.maximum(size * np.exp(x @ b), min_mu)
            new = -2 * (_negative_log_likelihood(y, mu, a) + gammaln(y + 1).sum(axis=0))
            change = np.abs(new - deviance[open_]) / (np.abs(new) + 0.1)
            deviance[open_] = new
            open_ = open_[change > beta_tol]
            if not len(open_):
                break
        mu = size * np.exp(x @ beta)
        bounded = np.maximum(mu, min_mu)
        weights = bounded / (1 + bounded * disp)
        inverse = np.linalg.inv(_information(x, weights) + ridge)
        hat = weights * np.einsum("ij,gjk,ik->ig", x, inverse, x)
        converged = np.ones(counts.shape[1], dtype=bool)
        beta = beta.T.copy()
        rest = np.concatenate(diverged)
        if len(rest):
            found = super().irls(
                counts=counts[:, rest],
                size_factors=size_factors,
                design_matrix=design_matrix,
                disp=disp[rest],
                min_mu=min_mu,
                beta_tol=beta_tol,
                min_beta=min_beta,
                max_beta=max_beta,
                optimizer=optimizer,
                maxiter=maxiter,
            )
            beta[rest], mu[:, rest], hat[:, rest], converged[rest] = found
        return beta, mu, hat, converged

    def wald_test(
        self,
        design_matrix: np.ndarray,
        disp: np.ndarray,
        lfc: np.ndarray,
        mu: np.ndarray,
        ridge_factor: np.ndarray,
        contrast: np.ndarray,
        lfc_null: np.ndarray,
        alt_hypothesis: Any = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return p-values of two sides, statistics and standard errors."""
        if alt_hypothesis is not None:
            raise NotImplementedError(f"alt_hypothesis={alt_hypothesis!r}; only None is here.")
        information = _information(np.asarray(design_matrix, dtype=float), mu / (1 + mu * disp))
        combined = np.asarray(contrast, dtype=float)
        along = np.linalg.inv(information + np.asarray(ridge_factor)) @ combined
        error = np.sqrt(np.einsum("gi,gij,gj->g", along, information, along))
        statistic = (np.asarray(lfc) - lfc_null) @ combined / error
        return 2 * ndtr(-np.abs(statistic)), statistic, error


def _information(x: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return :math:`X^T W X` of each gene, ``(n_genes, n_coefficients, n_coefficients)``."""
    return np.einsum("ij,ig,ik->gjk", x, weights, x, optimize=True)


def _negative_log_likelihood(y: np.ndarray, mu: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """Return it for a negative binomial, summed over samples, without what only counts decide."""
    size = 1 / alpha
    rest = gammaln(y + size) - (y + size) * np.log(size + mu) + y * np.log(mu)
    return len(y) * (gammaln(size) - size * np.log(size)) - rest.sum(axis=0)


def _by_size(y: np.ndarray, mu: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return the derivative of the negative log-likelihood by the size, 1 / dispersion."""
    both = size + mu
    parts = digamma(size) - digamma(y + size) - np.log(size / both) - 1 + (y + size) / both
    return parts.sum(axis=0)


def _parts(shape: tuple[int, int]) -> list[slice]:
    """Return slices of genes."""
    n, n_genes = shape
    step = max(1, _AT_ONCE // max(1, n))
    return [slice(start, start + step) for start in range(0, n_genes, step)]


def _downhill(
    slope: Callable[[np.ndarray, np.ndarray], np.ndarray],
    start: np.ndarray,
    low: float,
    high: float,
) -> np.ndarray:
    """Return the first place downhill where a slope per gene is flat, or the bound.

    Steps of one length find where the slope turns, and the interval is then halved.
    """
    place = start.clip(low, high)
    found = slope(place, np.arange(len(place)))
    going = -np.sign(found)
    open_ = np.flatnonzero(np.abs(found) > _FLAT)
    turned = np.zeros(len(place), dtype=bool)
    while len(open_):
        bound = np.where(going[open_] > 0, high, low)
        open_ = open_[place[open_] != bound]
        new = (place[open_] + _STEP * going[open_]).clip(low, high)
        found = slope(new, open_)
        over = (found * going[open_] > 0) & (np.abs(found) > _FLAT)
        turned[open_[over]] = True
        place[open_[~over]] = new[~over]
        open_ = open_[~over & (np.abs(found) > _FLAT)]
    open_ = np.flatnonzero(turned)
    near, far = place[open_], (place[open_] + _STEP * going[open_]).clip(low, high)
    for _ in range(_HALVINGS):
        middle = 0.5 * (near + far)
        over = slope(middle, open_) * going[open_] > 0
        near, far = np.where(over, near, middle), np.where(over, middle, far)
    place[open_] = 0.5 * (near + far)
    return place
