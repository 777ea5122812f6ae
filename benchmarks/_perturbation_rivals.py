"""What predicts perturbed cells: baselines of cfm, latent arithmetic, Lingshu-Cell, counts."""

from __future__ import annotations

import subprocess
import tempfile
import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import torch
from torch import nn

import cfm
from benchmarks import _lingshu_recipe
from benchmarks._perturbation_tasks import Task, log_expression
from benchmarks._scvi_cells import SCVI_STEPS, scvi_counts, train_scvi
from cfm.metrics import linear_shift, mean_shift

#: Makes perturbed cells: one AnnData of log expression for a task and a seed, as of :func:`made`.
#: Whatever a method knows comes from ``task.train`` and ``task.features``.
Method = Callable[[Task, int], ad.AnnData]

#: Draws from scVI that a predicted mean is taken over.
N_DRAWN = 8
#: Of scGen, as its authors set them; but no more steps than scVI gets.
SCGEN_EPOCHS, SCGEN_PATIENCE, SCGEN_BATCH = 100, 25, 32


def made(
    task: Task,
    sources: ad.AnnData,
    cells: dict[str, np.ndarray],
    *,
    log: bool,
    effects: dict[str, np.ndarray] | None = None,
) -> ad.AnnData:
    """Put cells into an AnnData of log expression, with what they are judged by in ``obs``.

    Parameters
    ----------
    task, sources
        Whose controls the cells were made from; rows are in their order.
    cells
        Perturbation to ``(n, genes)``.
    log
        Whether they are log1p of counts per 10,000 already, and not counts.
    effects
        Changes of mean log expression that the method predicts, ``(genes,)`` by perturbation,
        where they are known without the noise of drawn counts.
    """
    parts = []
    for perturbation, x in cells.items():
        obs = sources.obs.assign(**{task.key: perturbation, "simulated_from": sources.obs_names})
        obs.index = [f"{name}-{perturbation}" for name in sources.obs_names]
        part = ad.AnnData(np.asarray(x, dtype=np.float32), obs=obs, var=task.train.var[[]])
        if not log:
            part.X = log_expression(part)
        parts.append(part)
    whole = ad.concat(parts, merge="same")
    if effects is not None:
        whole.uns["effects"] = effects
    return whole


def baseline(name: str) -> Method:
    """Return a baseline of :func:`cfm.tl.simulate_perturbation`, on log expression."""

    def make(task: Task, seed: int) -> ad.AnnData:
        options = {} if task.features is None or name == "control" else {"features": task.features}
        sources = task.sources(seed)
        # those that are not asked to start from still tell of effects
        known = task.real[task.train.obs_names]
        cells = {}
        for perturbation in task.asked:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "No observation had", UserWarning)
                found = cfm.tl.simulate_perturbation(
                    known,
                    perturbation,
                    model=name,
                    key=task.key,
                    control=task.control,
                    groupby=task.groupby,
                    groups=None if task.group is None else [task.group],
                    **options,
                )
            rows = pd.Index(found.obs["simulated_from"]).get_indexer(sources.obs_names)
            cells[perturbation] = found.X[rows]
        return made(task, sources, cells, log=True)

    return make


def latent_shift(task: Task, latent: np.ndarray, perturbation: str) -> np.ndarray:
    """Return how a perturbation moves the mean of latent space, from cells that may be seen.

    In groups (not that which is asked for) the mean over groups of perturbed minus control; without
    groups the difference itself; for a perturbation that was never seen, ridge regression of the
    differences of the others on their features (as the baseline ``"linear"`` does for expression).
    """
    obs = task.train.obs

    def difference(name: str, rows: np.ndarray) -> np.ndarray | None:
        moved = rows & (obs[task.key] == name).to_numpy()
        still = rows & (obs[task.key] == task.control).to_numpy()
        if not (moved.any() and still.any()):
            return None
        return latent[moved].mean(axis=0) - latent[still].mean(axis=0)

    everywhere = np.ones(len(obs), dtype=bool)
    if task.features is not None:
        seen = [n for n in task.features.index if (obs[task.key] == n).any()]
        effects = [difference(n, everywhere) for n in seen]
        query, known = task.features.loc[perturbation], task.features.loc[seen]
        return linear_shift(query.to_numpy(), known.to_numpy(), np.stack(effects))
    if task.groupby is None:
        found = [difference(perturbation, everywhere)]
    else:
        groups = [g for g in obs[task.groupby].unique() if g != task.group]
        found = [difference(perturbation, (obs[task.groupby] == g).to_numpy()) for g in groups]
    return mean_shift([d for d in found if d is not None])


def scvi_arithmetic(**options: object) -> Method:
    """Return scVI with the mean shift of a perturbation added in its latent space.

    Counts are drawn from the posterior predictive at the shifted place of each control, with the
    library size of that control.
    """

    def make(task: Task, seed: int) -> ad.AnnData:
        model = train_scvi(task.train, seed, **options)
        latent = model.get_latent_representation()
        sources = task.sources(seed)
        place = latent[task.train.obs_names.get_indexer(sources.obs_names)]
        library = np.asarray(sources.X.sum(axis=1)).ravel()
        before = log_expression(sources).mean(axis=0)
        cells, effects = {}, {}
        for p in task.asked:
            at = place + latent_shift(task, latent, p)
            draws = [scvi_counts(model, at, library, seed=100 * seed + i) for i in range(N_DRAWN)]
            means = [log_expression(ad.AnnData(x)).mean(axis=0) for x in draws]
            cells[p], effects[p] = draws[0], np.mean(means, axis=0) - before
        return made(task, sources, cells, log=False, effects=effects)

    return make


class GaussianVAE(nn.Module):
    """The autoencoder of scGen's paper: two hidden layers of 800, 100 latent dimensions.

    Squared error on log expression, a Kullback-Leibler term of weight 5e-5, dropout of 0.2; written
    anew, as the published package (2.1.0) does not import beside scvi-tools 1.4.
    """

    def __init__(self, n_genes: int, n_hidden: int = 800, n_latent: int = 100) -> None:
        super().__init__()

        def layers(*sizes: int) -> list[nn.Module]:
            return [
                part
                for a, b in pairwise(sizes)
                for part in (
                    nn.Linear(a, b),
                    nn.BatchNorm1d(b, momentum=0.01, eps=0.001),
                    nn.LeakyReLU(),
                    nn.Dropout(0.2),
                )
            ]

        self.encoder = nn.Sequential(*layers(n_genes, n_hidden, n_hidden))
        self.mean = nn.Linear(n_hidden, n_latent)
        self.log_variance = nn.Linear(n_hidden, n_latent)
        self.decoder = nn.Sequential(
            *layers(n_latent, n_hidden, n_hidden), nn.Linear(n_hidden, n_genes)
        )

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        """Return half the squared error and half the weighted divergence, summed over genes."""
        hidden = self.encoder(x)
        mean, variance = self.mean(hidden), self.log_variance(hidden).exp() + 1e-4
        z = mean + variance.sqrt() * torch.randn_like(mean)
        divergence = 0.5 * (mean.square() + variance - variance.log() - 1).sum(dim=1)
        error = (self.decoder(z) - x).square().sum(dim=1)
        return (0.5 * error + 0.5 * 5e-5 * divergence).mean()


def train_gaussian_vae(x: np.ndarray, seed: int) -> GaussianVAE:
    """Train :class:`GaussianVAE`; stops when a tenth of the cells is not fitted better."""
    torch.manual_seed(seed)
    data = torch.as_tensor(x)
    order = torch.randperm(len(data))
    held, kept = data[order[: len(data) // 10]], data[order[len(data) // 10 :]]
    model = GaussianVAE(data.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, eps=0.01, weight_decay=1e-6)
    best, since = np.inf, 0
    epochs = min(SCGEN_EPOCHS, round(SCVI_STEPS * SCGEN_BATCH / len(kept)))
    for _ in range(max(1, epochs)):
        model.train()
        for rows in torch.randperm(len(kept)).split(SCGEN_BATCH):
            if len(rows) < 2:
                continue
            optimizer.zero_grad()
            model.loss(kept[rows]).backward()
            optimizer.step()
        model.eval()
        with torch.no_grad():
            error = float(model.loss(held))
        best, since = (error, 0) if error < best else (best, since + 1)
        if since >= SCGEN_PATIENCE:
            break
    return model.eval()


def scgen_style(task: Task, seed: int) -> ad.AnnData:
    """Latent arithmetic with :class:`GaussianVAE`, as scGen does it: decoded means, no noise."""
    x = log_expression(task.train)
    model = train_gaussian_vae(x, seed)
    sources = task.sources(seed)
    with torch.no_grad():
        latent = model.mean(model.encoder(torch.as_tensor(x))).numpy()
        place = latent[task.train.obs_names.get_indexer(sources.obs_names)]
        cells = {
            p: model.decoder(
                torch.as_tensor(place + latent_shift(task, latent, p), dtype=torch.float32)
            ).numpy()
            for p in task.asked
        }
    # the Gaussian decoder goes a little below 0, which no log expression does
    return made(task, sources, {p: np.maximum(v, 0) for p, v in cells.items()}, log=True)


def published_scgen(python: str) -> Method:
    """Return scGen 2.1.0, run by the interpreter of an environment that has it."""

    def make(task: Task, seed: int) -> ad.AnnData:
        sources = task.sources(seed)
        perturbed = task.train.obs[task.key] == task.asked[0]
        with tempfile.TemporaryDirectory() as folder:
            given, back = Path(folder) / "task.npz", Path(folder) / "cells.npz"
            np.savez(
                given,
                x=log_expression(task.train),
                group=task.train.obs[task.groupby].to_numpy(dtype=str),
                condition=np.where(perturbed, "perturbed", "control"),
                sources=task.train.obs_names.get_indexer(sources.obs_names),
            )
            script = Path(__file__).with_name("_scgen_run.py")
            subprocess.run([python, script, given, back, str(seed)], check=True)
            x = np.load(back)["x"]
        return made(task, sources, {task.asked[0]: np.maximum(x, 0)}, log=True)

    return make


def lingshu(name: str) -> Method:
    """Return Lingshu-Cell, by one of the recipes of ``benchmarks/_lingshu_recipe.py``."""

    def make(task: Task, seed: int) -> ad.AnnData:
        cells = _lingshu_recipe.perturbed(_lingshu_recipe.PERTURBED[name], task, seed)
        return made(task, task.sources(seed), cells, log=True)

    return make


def count_model(task: Task, seed: int) -> ad.AnnData:
    """Train the count model, and make cells that keep their quantiles."""
    cells, effects = _lingshu_recipe.counted(task, seed)
    return made(task, task.sources(seed), cells, log=True, effects=effects)


COUNT_MODEL = "Count model"
VARIANTS = (COUNT_MODEL, *_lingshu_recipe.PERTURBED)
BASELINES = ("control", "mean_shift", "nearest", "linear")
_SCVI = {"gene_likelihood": "nb", "n_layers": 2, "n_latent": 30}
METHODS: dict[str, Method] = (
    {name: baseline(name) for name in BASELINES}
    | {
        "scVI arithmetic": scvi_arithmetic(**_SCVI),
        "scGen-style": scgen_style,
    }
    | {name: lingshu(name) for name in _lingshu_recipe.PERTURBED}
    | {COUNT_MODEL: count_model}
)
