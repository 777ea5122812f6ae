"""Gene factors in closed form: the linear gene-gene term of CellPulse before training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import scipy.sparse as sp
from sklearn.utils.extmath import randomized_svd

if TYPE_CHECKING:
    from collections.abc import Sequence

#: Contrasts that the factors are fitted to, at most.
MAX_FITTED = 4096


@dataclass(frozen=True)
class GeneFactors:
    r"""Factors :math:`F` of the gene-gene covariance :math:`F F^\top`.

    Attributes
    ----------
    values
        ``(n_genes, n_factors)`` float32.
    group
        ``(n_factors,)`` object: the study a factor was made from, ``""`` for none. A training
        profile is predicted without the factors of its own study: otherwise the linear term would
        be fitted to the answer, and the transformer would learn to rely on it.
    """

    values: np.ndarray
    group: np.ndarray

    def without(self, groups: Sequence[str]) -> np.ndarray:
        """Return ``(n, n_factors)`` float32: 0 for the factors of each profile's own study."""
        own = self.group[None, :] == np.asarray(groups, dtype=object)[:, None]
        return (~(own & (self.group[None, :] != ""))).astype(np.float32)


def fitted_rows(
    groups: Sequence[str] | np.ndarray, *, n_most: int = MAX_FITTED, seed: int = 0
) -> np.ndarray:
    """Return the rows that factors are fitted to: all, or ``n_most`` of them chosen by seed.

    Every study gives as many as the others, or all that it has.
    """
    n = len(groups)
    if n <= n_most:
        return np.arange(n)
    order = np.random.default_rng(seed).permutation(n)
    names = pd.Series(np.asarray(groups, dtype=object)[order].astype(str))
    turn = names.groupby(names).cumcount().to_numpy()  # of the rows of each study
    return np.sort(order[np.argsort(turn, kind="stable")[:n_most]])


def graded_direction(effects: np.ndarray, n_top: int = 1000) -> np.ndarray:
    r"""Return :math:`\tanh(x / x_{(k)})`, with :math:`x_{(k)}` the k-th largest ``|x|`` of a row.

    Strong effects count by their direction alone and weak ones by their size, so that profiles of
    any scale can be compared. ``NaN`` becomes 0.

    Parameters
    ----------
    effects
        ``(n, n_genes)``.
    n_top
        k; fewer where a profile has fewer effects.
    """
    x = np.nan_to_num(np.asarray(effects, dtype=np.float32))
    strength = np.abs(x)
    k = min(n_top, x.shape[1])
    threshold = np.partition(strength, x.shape[1] - k, axis=1)[:, x.shape[1] - k]
    # of a profile with fewer than k effects the weakest one is the threshold
    weakest = np.where(strength > 0, strength, np.inf).min(axis=1)
    threshold = np.where(threshold > 0, threshold, weakest)
    return np.tanh(x / np.maximum(threshold, 1e-6)[:, None]).astype(np.float32)


def fit_gene_factors(
    effects: np.ndarray,
    groups: Sequence[str] | np.ndarray,
    *,
    signed_sets: sp.spmatrix | None = None,
    n_set_factors: int = 96,
    max_contrast_factors: int = 256,
    constant: float = 0.3,
    seed: int = 0,
) -> GeneFactors:
    r"""Fit the gene factors of profiles and signed gene sets.

    The covariance is a weighted sum of outer products of unit-length rows: signed sets (summed
    weight 1), contrasts (:func:`graded_direction`; every study weighs the same, summed weight 1)
    and a constant, which carries the majority direction of a profile. Sets are compressed by a
    truncated SVD; each contrast stays a factor of its own, unless a study has so many that
    ``max_contrast_factors`` is passed, then the studies are compressed one by one. Factors are
    scaled so that the variance of the genes that move is about 1.

    Parameters
    ----------
    effects
        ``(n, n_genes)`` log2 fold changes, ``NaN`` = not measured.
    groups
        ``(n,)`` study of each profile.
    signed_sets
        ``(m, n_genes)`` of −1, 0, 1.
    n_set_factors
        Number of factors that the sets are compressed to.
    max_contrast_factors
        Largest number of factors of the contrasts.
    constant
        Variance of the constant factor.
    seed
        Seed of the randomised SVD.
    """
    n, n_genes = effects.shape
    names = np.asarray(groups, dtype=object).astype(str).astype(object)
    blocks: list[np.ndarray] = []
    owner: list[np.ndarray] = []
    if signed_sets is not None and signed_sets.shape[0]:
        rows = sp.csr_matrix(signed_sets, dtype=np.float32)
        length = np.sqrt(np.asarray(rows.multiply(rows).sum(axis=1)).ravel())
        rows = sp.diags(1.0 / np.maximum(length, 1e-9) / np.sqrt(rows.shape[0])) @ rows
        rank = min(n_set_factors, min(rows.shape) - 1)
        if rank > 0:
            _, s, v = randomized_svd(rows, rank, n_iter=4, random_state=seed)
            blocks.append((s[:, None] * v).T)
            owner.append(np.full(rank, "", dtype=object))
    if n:
        studies, study = np.unique(names.astype(str), return_inverse=True)
        weight = 1.0 / np.bincount(study)[study]
        weight /= weight.sum()
        direction = graded_direction(effects)
        direction /= np.maximum(np.linalg.norm(direction, axis=1, keepdims=True), 1e-9)
        direction *= np.sqrt(weight)[:, None].astype(np.float32)
        limit = max(1, max_contrast_factors // len(studies)) if n > max_contrast_factors else n
        for i, name in enumerate(studies):
            own = direction[study == i]
            if len(own) > limit:
                _, s, v = np.linalg.svd(own, full_matrices=False)
                own = s[:limit, None] * v[:limit]
            blocks.append(own.T)
            owner.append(np.full(len(own), name, dtype=object))
    if not blocks:
        raise ValueError("Gene factors need at least one profile or signed gene set; found none.")
    factors = np.hstack(blocks)
    variance = np.square(factors).sum(axis=1)
    # mean over genes, weighted by how much they move
    factors /= np.sqrt(np.square(variance).sum() / max(variance.sum(), 1e-30))
    factors = np.hstack([factors, np.full((n_genes, 1), np.sqrt(constant))])
    owner.append(np.array([""], dtype=object))
    return GeneFactors(factors.astype(np.float32), np.concatenate(owner))


def usual_sizes(effects: np.ndarray, groups: Sequence[str] | np.ndarray) -> np.ndarray:
    """Return each gene's mean log1p(|effect|) relative to its profile, every study weighing alike.

    Parameters
    ----------
    effects
        ``(n, n_genes)`` log2 fold changes; ``NaN`` and 0 are left out.
    groups
        ``(n,)`` study of each profile.

    Returns
    -------
    ``(n_genes,)`` float32, shrunken by two pseudo-profiles of the usual size.
    """
    measured = np.isfinite(effects) & (effects != 0)
    size = np.log1p(np.abs(np.where(measured, effects, 0.0)))
    level = size.sum(axis=1, keepdims=True) / measured.sum(axis=1, keepdims=True).clip(min=1)
    _, study, count = np.unique(
        np.asarray(groups, dtype=object).astype(str), return_inverse=True, return_counts=True
    )
    weight = (1.0 / count[study])[:, None] * measured  # (n, n_genes)
    total = weight.sum(axis=0)
    return ((weight * (size - level)).sum(axis=0) / (total + 2.0)).astype(np.float32)


def leading_rotation(values: np.ndarray, rank: int) -> np.ndarray:
    r"""Return the orthonormal :math:`R` of the best approximation :math:`F \approx (F R) R^\top`.

    Parameters
    ----------
    values
        ``(n_genes, n_factors)`` factors :math:`F`.
    rank
        Number of factors to keep.

    Returns
    -------
    ``(n_factors, rank)`` float32. A linear map :math:`W` of :math:`F` is :math:`W R` of
    :math:`F R`.
    """
    # by the small Gram matrix, (n_factors, n_factors), instead of an SVD over all genes
    _, vectors = np.linalg.eigh(values.T.astype(np.float64) @ values)
    return np.asarray(vectors[:, ::-1][:, :rank].astype(np.float32))
