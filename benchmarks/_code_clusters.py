"""Groupings of cells to hold codes against, and what groupings have in common."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import anndata as ad
import numpy as np
import scanpy as sc
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    adjusted_mutual_info_score,
    adjusted_rand_score,
    normalized_mutual_info_score,
)
from sklearn.metrics.cluster import contingency_matrix
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

N_COMPONENTS, N_NEIGHBOURS, N_GENES = 50, 15, 2000
#: Steps of the search for a resolution.
_STEPS = 25


def log_cells(adata: ad.AnnData, *, counts: bool) -> ad.AnnData:
    """Return cells with log1p of counts per 10,000 and principal components of their own."""
    cells = ad.AnnData(adata.X.copy(), obs=adata.obs.copy(), var=adata.var[[]].copy())
    if counts:
        sc.pp.normalize_total(cells, target_sum=1e4)
        sc.pp.log1p(cells)
    if cells.n_vars > 2 * N_GENES:
        sc.pp.highly_variable_genes(cells, n_top_genes=N_GENES)
    sc.pp.pca(cells, n_comps=min(N_COMPONENTS, min(cells.shape) - 1), random_state=0)
    sc.pp.neighbors(cells, n_neighbors=N_NEIGHBOURS, random_state=0)
    return cells


def leiden(cells: ad.AnnData, resolution: float = 1.0, seed: int = 0) -> np.ndarray:
    """Cluster cells with neighbours."""
    sc.tl.leiden(
        cells, resolution, random_state=seed, flavor="igraph", n_iterations=2, directed=False
    )
    return cells.obs.pop("leiden").astype(int).to_numpy()


def leiden_of(cells: ad.AnnData, n_groups: int) -> np.ndarray:
    """Cluster with the resolution that gives so many groups, or as near as the search comes."""
    low, high = 1e-3, 64.0
    best = leiden(cells)
    for _ in range(_STEPS):
        resolution = float(np.sqrt(low * high))
        found = leiden(cells, resolution)
        n = len(set(found))
        if abs(n - n_groups) < abs(len(set(best)) - n_groups):
            best = found
        if n == n_groups:
            break
        low, high = (resolution, high) if n < n_groups else (low, resolution)
    return best


def k_means(space: np.ndarray, n_groups: int, seed: int = 0) -> np.ndarray:
    """Cluster the rows of a matrix."""
    n_groups = min(n_groups, len(space))
    return KMeans(n_groups, n_init=10, random_state=seed).fit_predict(space)


def k_means_from(space: np.ndarray, rows: np.ndarray, n_groups: int, seed: int) -> np.ndarray:
    """Cluster some rows of a matrix, and give all rows the nearest centre."""
    model = KMeans(min(n_groups, len(rows)), n_init=10, random_state=seed).fit(space[rows])
    return model.predict(space)


def difference(
    groups: np.ndarray, others: Sequence[np.ndarray], truth: np.ndarray, *, n_drawn: int = 200
) -> dict[str, float]:
    """Return NMI and ARI of a grouping less the mean of others, with 95 % intervals over cells."""
    known = np.flatnonzero((truth != "") & (groups.astype(str) != "-1"))
    rng = np.random.default_rng(0)
    draws = [known, *(rng.choice(known, len(known)) for _ in range(n_drawn))]
    out: dict[str, float] = {}
    scores = {"NMI": normalized_mutual_info_score, "ARI": adjusted_rand_score}
    for name, score in scores.items():
        ours = np.array([score(truth[d], groups[d]) for d in draws])
        theirs = np.array([np.mean([score(truth[d], g[d]) for g in others]) for d in draws])
        low, high = np.percentile((ours - theirs)[1:], [2.5, 97.5])
        out |= {f"{name} of codes": ours[0], f"{name} of k-means": theirs[0]}
        out |= {f"{name} difference": ours[0] - theirs[0], f"{name} low": low, f"{name} high": high}
    return out


def logistic(train: np.ndarray, labels: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Name the cells of one matrix by those of another."""
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=5000))
    return model.fit(train, labels).predict(test)


def agreement(groups: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return what groups and labels have in common, over the cells that have both."""
    known = (truth != "") & (groups.astype(str) != "-1")
    found, labels = groups[known], truth[known]
    return {
        "groups": len(set(groups[groups.astype(str) != "-1"].tolist())),
        "NMI": normalized_mutual_info_score(labels, found),
        "AMI": adjusted_mutual_info_score(labels, found),
        "ARI": adjusted_rand_score(labels, found),
        "purity": float(contingency_matrix(labels, found).max(axis=0).sum() / len(labels)),
    }


def perplexity(groups: np.ndarray) -> float:
    """Return as how many equally large groups these count."""
    share = np.unique(groups, return_counts=True)[1] / len(groups)
    return float(np.exp(-(share * np.log(share)).sum()))


def stability(runs: Sequence[np.ndarray]) -> dict[str, float]:
    """Return the mean agreement of pairs of groupings of the same cells."""
    pairs = list(combinations(runs, 2))
    return {
        "AMI": float(np.mean([adjusted_mutual_info_score(a, b) for a, b in pairs])),
        "ARI": float(np.mean([adjusted_rand_score(a, b) for a, b in pairs])),
    }
