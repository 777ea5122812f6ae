"""What the donor benchmark reads off the cells of a donor, and how it ranks pairs of donors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.spatial.distance import cdist
from scipy.stats import norm
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

#: Components of the donor means; as many as a third of the donors could carry.
N_COMPONENTS = 5


@dataclass
class Draw:
    """As many cells of each donor.

    Attributes
    ----------
    rows
        ``(n_donors, n_cells)`` rows of the cells.
    means
        ``(n_donors, width)`` mean of the cells.
    moments
        ``(n_donors, 2 width)`` mean and log variance, as of ``Pulsar`` with ``pooling="moments"``.
    shares
        ``(n_donors, n_types)`` log share of each cell type, with half a cell added.
    energy
        ``(n_donors, n_donors)`` energy distance.
    mmd
        ``(n_donors, n_donors)`` squared maximum mean discrepancy, Gaussian kernel.
    """

    rows: np.ndarray
    means: np.ndarray
    moments: np.ndarray
    shares: np.ndarray
    energy: np.ndarray
    mmd: np.ndarray


def draw_cells(
    cells: np.ndarray, types: np.ndarray, of_donor: list[np.ndarray], n: int, seed: int
) -> Draw:
    """Draw ``n`` cells of each donor without replacement, and compare the donors.

    Parameters
    ----------
    cells
        ``(n_cells, width)``.
    types
        ``(n_cells,)`` number of the cell type.
    of_donor
        Rows of each donor.
    n, seed
        Cells of a donor, and seed of the draw.
    """
    rng = np.random.default_rng(seed)
    rows = np.stack([rng.choice(own, size=min(n, len(own)), replace=False) for own in of_donor])
    x = cells[rows]
    counts = np.stack([np.bincount(types[own], minlength=types.max() + 1) for own in rows]) + 0.5
    some = rng.choice(cells, size=500, replace=False)
    scale = np.median(cdist(some, some)) ** 2  # the usual bandwidth: the median distance
    m = len(of_donor)
    distance, kernel = np.zeros((m, m)), np.zeros((m, m))
    for i in range(m):
        for j in range(i + 1):
            apart = cdist(x[i], x[j])
            distance[i, j] = distance[j, i] = apart.mean()
            kernel[i, j] = kernel[j, i] = np.exp(-(apart**2) / scale).mean()
    own, alike = np.diag(distance), np.diag(kernel)
    means, variance = x.mean(axis=1), x.var(axis=1)
    size = x.shape[1]
    return Draw(
        rows,
        means,
        np.hstack([means, np.log((1.0 + size * variance) / (1.0 + size))]),
        np.log(counts / counts.sum(axis=1, keepdims=True)),
        2 * distance - own[:, None] - own[None],
        alike[:, None] + alike[None] - 2 * kernel,
    )


def logistic(x: np.ndarray, ill: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Score all donors by a logistic regression on the training donors' standardised features."""
    scaler = StandardScaler().fit(x[train])
    head = LogisticRegression(C=1.0, class_weight="balanced", max_iter=5000)
    z = scaler.transform(x)
    return head.fit(z[train], ill[train]).decision_function(z)


def components(x: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Return principal components of all donors, fitted on the training donors."""
    return PCA(N_COMPONENTS, svd_solver="full").fit(x[train]).transform(x)


def kernel_machine(kernel: np.ndarray, ill: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Score all donors by a support vector machine on a kernel between donors."""
    head = SVC(kernel="precomputed", C=1.0, class_weight="balanced")
    head.fit(kernel[np.ix_(train, train)], ill[train])
    return head.decision_function(kernel[:, train])


def distance_kernel(distance: np.ndarray, train: np.ndarray) -> np.ndarray:
    """Turn distances into similarities; their scale is the median of the training donors'."""
    inside = distance[np.ix_(train, train)]
    return np.exp(-distance / np.median(inside[np.triu_indices(len(inside), 1)]))


def folds(ill: np.ndarray, n_rotations: int) -> list[np.ndarray]:
    """Hold out one healthy donor and a part of the ill ones, so that each pair is met once.

    Each rotation puts the healthy donors together with other ill ones; with as many rotations as
    healthy donors every pair of a healthy and an ill donor is held out together exactly once.
    """
    healthy, sick = np.flatnonzero(~ill), np.flatnonzero(ill)
    parts = [sick[i :: len(healthy)] for i in range(len(healthy))]
    return [
        np.concatenate([[h], parts[(i + r) % len(healthy)]])
        for r in range(n_rotations)
        for i, h in enumerate(healthy)
    ]


def wins(score: np.ndarray, ill: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Return ``(n, 3)`` rows: a healthy donor, an ill one, and 1 where the ill one is ahead."""
    found = [
        (h, s, float(score[s] > score[h]) + 0.5 * float(score[s] == score[h]))
        for h in test[~ill[test]]
        for s in test[ill[test]]
    ]
    return np.array(found, dtype=np.float64)


def auroc_interval(
    auroc: float, n_healthy: int, n_ill: int, n_strata: int = 1, confidence: float = 0.95
) -> tuple[float, float]:
    """Interval of an AUROC that does not shrink to nothing at 1.

    Newcombe, Statistics in Medicine 25:559 (2006), method 5: the values whose own standard error
    allows for what was found.

    Parameters
    ----------
    auroc
        What was found; the mean over strata.
    n_healthy, n_ill
        Donors of a stratum, within which all pairs were met.
    n_strata
        Strata that share no donors.
    confidence
        Confidence level.
    """
    z = float(norm.ppf(0.5 + confidence / 2))
    rest = (n_healthy + n_ill) / 2 - 1

    def excess(theta: float) -> float:
        inner = 1 + rest * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        variance = theta * (1 - theta) * inner / (n_healthy * n_ill * n_strata)
        return (auroc - theta) ** 2 - z**2 * variance

    # At 0 and 1 the standard error is 0: look just inside.
    low = float(brentq(excess, 0.0, auroc - 1e-6)) if auroc > 1e-3 else 0.0
    high = float(brentq(excess, auroc + 1e-6, 1.0)) if auroc < 1 - 1e-3 else 1.0
    return low, high


def paired_interval(
    a: np.ndarray, b: np.ndarray, *, n_boot: int = 5000, seed: int = 0
) -> tuple[float, float, float]:
    """Difference of two AUROCs on the same pairs, drawing healthy and ill donors with replacement.

    Parameters
    ----------
    a, b
        ``(n_healthy, n_ill)`` wins, ``NaN`` where a pair was not met.
    n_boot, seed
        Number and seed of the draws.
    """
    rng = np.random.default_rng(seed)
    met = np.isfinite(a - b)
    difference = np.where(met, a - b, 0.0)
    n, m = difference.shape
    times = rng.multinomial(n, np.full(n, 1 / n), n_boot)  # (draws, healthy)
    others = rng.multinomial(m, np.full(m, 1 / m), n_boot)
    n_met = np.einsum("bi,ij,bj->b", times, met.astype(float), others)
    total = np.einsum("bi,ij,bj->b", times, difference, others)
    low, high = np.percentile((total / np.maximum(n_met, 1))[n_met > 0], [2.5, 97.5])
    return float(difference.sum() / met.sum()), float(low), float(high)
