"""Scores of genes over profiles: their summary, their nulls, and likeness to known genes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal
from zlib import crc32

import numpy as np
from scipy.stats import rankdata

#: Genes are judged by a rule that was fitted without the fold that they are in.
_N_FOLDS = 5


def mean_known(values: np.ndarray) -> np.ndarray:
    """Return the mean of ``(…, n, k)`` over the ``n`` that are not ``NaN``; 0 where all are."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0.0).sum(axis=-2, dtype=np.float64)
    return total / np.maximum(known.sum(axis=-2), 1)


def importance(scores: np.ndarray) -> np.ndarray:
    r"""Return how important genes are: absolute mean scores, with several methods a consensus last.

    .. math:: c_g = -\frac{1}{M} \sum_m \log_{10} \frac{r_{mg}}{G}

    with the rank :math:`r_{mg}` of gene :math:`g` of :math:`G` under method :math:`m`, ties sharing
    their mean rank: a gene needs to stand high in several methods, not first in one.

    Parameters
    ----------
    scores
        ``(methods, profiles, genes)``, ``NaN`` = not measured.

    Returns
    -------
    ``(methods, genes)`` float64, with a row more for the consensus of several methods.
    """
    size = np.abs(mean_known(scores))
    if len(size) == 1:
        return size
    joined = -np.log10(rankdata(-size, axis=1) / size.shape[1]).mean(axis=0)
    return np.vstack([size, joined])


def permute_effects(
    effects: np.ndarray, kind: Literal["effects", "directions"], seeds: Sequence[Sequence[int]]
) -> np.ndarray:
    """Permute each profile over the genes that it measures.

    Parameters
    ----------
    effects
        ``(profiles, genes)``, ``NaN`` = not measured.
    kind
        ``"effects"`` moves direction and size together, ``"directions"`` moves the signs of the
        effects that are not 0 and leaves their sizes where they are.
    seeds
        Seed of each profile, which alone decides what it becomes.
    """
    out = effects.copy()
    for own, row, seed in zip(out, effects, seeds, strict=True):
        rng = np.random.default_rng(seed)
        if kind == "effects":
            seen = np.flatnonzero(~np.isnan(row))
            own[seen] = row[rng.permutation(seen)]
        else:
            moves = np.flatnonzero(~np.isnan(row) & (row != 0))
            own[moves] = np.abs(row[moves]) * np.sign(row[rng.permutation(moves)])
    return out


def gene_folds(genes: Sequence[str]) -> np.ndarray:
    """Return the fold of each gene, by its name alone: ``(n,)`` int64."""
    return np.array([crc32(g.encode()) % _N_FOLDS for g in genes], dtype=np.int64)


def unit_rows(factors: np.ndarray) -> np.ndarray:
    """Scale each gene's factors to unit length: with what it moves counts, not how much."""
    length = np.linalg.norm(factors, axis=1, keepdims=True)
    return factors / np.maximum(length, 1e-12)


def guided_scores(
    vectors: np.ndarray, known: np.ndarray, fold: np.ndarray, *, ridge: float = 1.0
) -> np.ndarray:
    r"""Score genes along the direction that leads from all genes to the known ones.

    Linear discriminant analysis with a shrunken covariance:
    :math:`w = (\Sigma + \lambda \bar\sigma^2 I)^{-1} (\mu_\text{known} - \mu)`, with
    :math:`\bar\sigma^2` the mean variance of a dimension. A gene is scored by the :math:`w` that
    was fitted without its fold, so that a known gene is not recognised as itself.

    Parameters
    ----------
    vectors
        ``(genes, r)`` vectors of the genes.
    known
        ``(genes, b)`` bool, ``b`` lists of known genes at once.
    fold
        ``(genes,)`` int.
    ridge
        :math:`\lambda`.

    Returns
    -------
    ``(genes, b)`` float64, in standard deviations of the fold's scores.
    """
    out = np.zeros(known.shape)
    for k in np.unique(fold):
        train = fold != k
        x = vectors[train].astype(np.float64)
        mean = x.mean(axis=0)
        x -= mean
        covariance = x.T @ x / len(x)
        size = max(float(np.trace(covariance)) / len(covariance), 1e-12)
        labels = known[train].astype(np.float64)
        gap = x.T @ labels / np.maximum(labels.sum(axis=0), 1.0)  # (r, b)
        w = np.linalg.solve(covariance + ridge * size * np.eye(len(covariance)), gap)
        score = (vectors[~train] - mean) @ w
        spread = np.sqrt(np.einsum("rb,rs,sb->b", w, covariance, w))
        out[~train] = score / np.maximum(spread, 1e-12)
    return out
