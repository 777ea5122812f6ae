"""Genes that respond to infections the way known host factors do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING
from zlib import crc32

import numpy as np

from cfm.data import map_identifiers

if TYPE_CHECKING:
    import pandas as pd

#: Genes are judged by a rule that was fitted without the fold that they are in.
N_FOLDS = 5
#: Fewer known genes than these say nothing about a direction in gene space.
MIN_KNOWN = 5


def gene_folds(genes: Sequence[str]) -> np.ndarray:
    """Return the fold of each gene, by its name alone: ``(n,)`` int64."""
    return np.array([crc32(g.encode()) % N_FOLDS for g in genes], dtype=np.int64)


def unit_rows(factors: np.ndarray) -> np.ndarray:
    """Scale each gene's factors to unit length: what counts is with what it moves, not how much."""
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


def known_genes(
    known: Sequence[str] | Mapping[str, Sequence[str]] | None, group: str, genes: pd.Index
) -> np.ndarray:
    """Find the known host factors of a group among the model's genes: ``(n_vocabulary,)`` bool.

    Raises
    ------
    KeyError
        If ``known`` is by group, and there is none for this one.
    TypeError
        If ``known`` is a single text.
    ValueError
        If there are none, or too few of them are genes of the model.
    """
    if known is None:
        raise ValueError(
            "method='guided' needs known=: host factors that are known already, such as the hits "
            "of a screen, as a list or as a dict by group."
        )
    if isinstance(known, Mapping):
        if group not in known:
            raise KeyError(f"known has no host factors for group {group!r}; it has {list(known)}.")
        known = known[group]
    if isinstance(known, str):
        raise TypeError(f"known={known!r} is one text; expected a list of gene names.")
    names = list(dict.fromkeys(str(g) for g in known))
    found = genes.isin(names)
    rest = [g for g in names if g not in genes]
    if rest:
        found |= genes.isin(map_identifiers(rest).symbol)
    if found.sum() < MIN_KNOWN:
        raise ValueError(
            f"Found {found.sum()} of {len(names)} known host factors among the model's "
            f"{len(genes)} genes; at least {MIN_KNOWN} are needed. Give human gene symbols or "
            "Ensembl ids."
        )
    return np.asarray(found)
