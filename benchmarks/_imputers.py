"""Baselines of imputation: from the observed genes of a sample to the hidden ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from sklearn.decomposition import PCA
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsRegressor

#: Takes training samples, test samples and the hidden genes; predicts the hidden genes.
Imputer = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]

#: Share of the training samples of a cohort that hyper-parameters are chosen on.
TUNING_SHARE = 0.25
TUNING_HIDDEN = 0.15


def gene_mean() -> Imputer:
    """Predict the mean of each gene."""

    def impute(train: np.ndarray, test: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        return np.tile(train[:, hidden].mean(axis=0), (len(test), 1))

    return impute


def nearest(k: int) -> Imputer:
    """Predict the mean of the ``k`` training samples that are nearest over the observed genes."""

    def impute(train: np.ndarray, test: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        model = KNeighborsRegressor(min(k, len(train)))
        return model.fit(train[:, ~hidden], train[:, hidden]).predict(test[:, ~hidden])

    return impute


def components(n: int, penalty: float) -> Imputer:
    """Predict from principal components of all genes, scored on the observed ones."""

    def impute(train: np.ndarray, test: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        pca = PCA(min(n, len(train) - 1, train.shape[1]), svd_solver="covariance_eigh")
        if train.shape[1] > len(train):
            pca.set_params(svd_solver="full")
        pca.fit(train)
        seen = pca.components_[:, ~hidden]
        gram = seen @ seen.T + penalty * np.eye(len(seen))
        scores = np.linalg.solve(gram, seen @ (test[:, ~hidden] - pca.mean_[~hidden]).T)
        return pca.mean_[hidden] + scores.T @ pca.components_[:, hidden]

    return impute


def ridge(penalty: float) -> Imputer:
    """Regress every hidden gene on all observed ones; the penalty is relative to their variance."""

    def impute(train: np.ndarray, test: np.ndarray, hidden: np.ndarray) -> np.ndarray:
        scale = train[:, ~hidden].var(axis=0).sum()
        model = Ridge(penalty * float(scale))
        return model.fit(train[:, ~hidden], train[:, hidden]).predict(test[:, ~hidden])

    return impute


GRIDS: dict[str, list[Imputer]] = {
    "gene mean": [gene_mean()],
    "kNN": [nearest(k) for k in (3, 5, 10, 20)],
    "PCA": [components(n, p) for n in (10, 40, 160) for p in (0.03, 0.3)],
    "ridge": [ridge(p) for p in (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)],
}


def tuned(
    own: np.ndarray, others: np.ndarray, seed: int
) -> Iterator[tuple[str, Imputer, np.ndarray]]:
    """Choose the settings of each baseline on held-out training samples of the cohort itself.

    Parameters
    ----------
    own
        ``(n, n_genes)`` training samples of the tested tissue or kind of cell.
    others
        ``(m, n_genes)`` all other training samples.
    seed
        Of the held-out samples and the hidden genes.

    Yields
    ------
    Name, baseline and the samples to fit it on: the cohort alone, and for all but the gene mean
    the whole corpus.
    """
    rng = np.random.default_rng(seed)
    out = np.zeros(len(own), dtype=bool)
    out[rng.permutation(len(own))[: max(2, round(TUNING_SHARE * len(own)))]] = True
    hidden = rng.random(own.shape[1]) < TUNING_HIDDEN
    for name, grid in GRIDS.items():
        for whole in (False, True):
            if whole and name == "gene mean":
                continue
            train = np.concatenate([own[~out], others]) if whole else own[~out]
            errors = [
                np.square(make(train, own[out], hidden) - own[out][:, hidden]).mean()
                if len(grid) > 1
                else 0.0
                for make in grid
            ]
            best = grid[int(np.argmin(errors))]
            label = f"{name}, whole corpus" if whole else name
            yield label, best, np.concatenate([own, others]) if whole else own
