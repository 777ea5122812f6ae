"""Paired differences between two methods, with intervals over cells."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import anndata as ad
import numpy as np
from scipy.spatial.distance import cdist

from benchmarks._perturbation_tasks import Task
from cfm.metrics import delta_pearson
from cfm.tl._perturbation._evaluate import N_COMPONENTS
from cfm.tl._perturbation._expression import Components, LogCells

METRICS = ("delta_pearson", "e_distance")


class Bootstrap:
    """Scores of methods on resampled cells, the same ones for all methods.

    Observed perturbed cells and controls are drawn again. What a method made is what it says and
    stays as it is: noise added to it would pull down the effects of methods whose cells differ,
    and leave those that shift all cells alike. The definitions are those of
    :func:`cfm.tl.evaluate_perturbation`; a cell that is drawn twice makes no pair with itself.

    Parameters
    ----------
    task
        Whose test cells judge.
    cells
        Log expression by method; several seeds of a method are a list, and their scores averaged.
    n_boot, seed
        Of the bootstrap.
    """

    def __init__(
        self, task: Task, cells: Mapping[str, Sequence[ad.AnnData]], n_boot: int, seed: int = 0
    ) -> None:
        self._task, self._cells, self._n, self._seed = task, cells, n_boot, seed
        self._x = np.asarray(task.real.X, dtype=np.float64)
        real = LogCells(task.real)
        every = np.arange(len(self._x))
        self._components = Components(real, every, N_COMPONENTS, seed=0)

    def scores(self, perturbation: str) -> dict[str, dict[str, np.ndarray]]:
        """Return ``(n_boot + 1,)`` scores by metric and method; the first on all cells."""
        task, obs = self._task, self._task.real.obs
        own = np.ones(len(obs), dtype=bool)
        if task.groupby is not None:
            own = (obs[task.groupby] == task.group).to_numpy()
        test = own & (obs["split"] == "test").to_numpy()
        perturbed = self._x[test & (obs[task.key] == perturbation).to_numpy()]
        known = own & (obs[task.key] == task.control).to_numpy()
        # held-out controls are what effects are measured against, if there are any
        controls = np.flatnonzero(known & test if (known & test).any() else known)
        rng = np.random.default_rng(self._seed)
        w_real = self._weights(len(perturbed), rng)
        w_control = self._weights(len(controls), rng)
        effect = w_real @ perturbed - w_control @ self._x[controls]
        place = self._components.of(perturbed)
        within = _within(cdist(place, place), w_real)
        found: dict[str, dict[str, np.ndarray]] = {m: {} for m in METRICS}
        for name, runs in self._cells.items():
            per_run = []
            for run in runs:
                made = run[(run.obs[task.key] == perturbation).to_numpy()]
                x = np.asarray(made.X, dtype=np.float64)
                rows = obs.index.get_indexer(made.obs["simulated_from"].astype(str))
                stated = run.uns.get("effects", {}).get(perturbation)
                guess = (x - self._x[rows]).mean(axis=0) if stated is None else stated
                point = self._components.of(x)
                across = 2 * w_real @ cdist(place, point).mean(axis=1)
                own = cdist(point, point).sum() / (len(x) * (len(x) - 1))
                correlation = [delta_pearson(one, guess) for one in effect]
                per_run.append((correlation, across - within - own))
            for i, metric in enumerate(METRICS):
                found[metric][name] = np.mean([run[i] for run in per_run], axis=0)
        return found

    def _weights(self, n: int, rng: np.random.Generator) -> np.ndarray:
        """Return ``(n_boot + 1, n)`` shares of observations; the first are equal."""
        drawn = rng.multinomial(n, np.full(n, 1 / n), size=self._n) / n
        return np.vstack([np.full(n, 1 / n), drawn])


def _within(distance: np.ndarray, w: np.ndarray) -> np.ndarray:
    return ((w @ distance) * w).sum(axis=1) / (1 - np.square(w).sum(axis=1))
