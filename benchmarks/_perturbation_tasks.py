"""Tasks of ``benchmarks.perturbation``: what is trained on, what is asked for, what judges it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse
from sklearn.model_selection import train_test_split

#: Parts that the targets of the screen are held out in.
N_FOLDS = 5
#: Cells per perturbation of the screen that are trained on or judged with, and that are made.
MOST_CELLS, N_MADE = 300, 400
#: Random halves of the controls of a cell type or a patient.
N_DRAWS = 2
_N_NETWORK = 16
_STOP = 0.3
_STEPS = 30


@dataclass(frozen=True)
class Task:
    """One split.

    Attributes
    ----------
    name
        What is held out.
    adata
        Counts; ``obs["split"]`` is ``"train"`` for what a method may see and ``"test"`` for the
        perturbed cells that are asked for.
    asked
        Perturbations to make.
    key, control
        Column of ``obs`` with the perturbation, and its level for controls.
    groupby, group
        Column of ``obs`` with groups and the one that is asked for, if there are groups.
    features
        Perturbations by features, where perturbations are asked for that were never seen.
    n_cells
        Cells to make of each perturbation; one from each control if ``None``.
    seed
        Added to the seeds of methods.
    """

    name: str
    adata: ad.AnnData
    asked: tuple[str, ...]
    key: str
    control: str
    groupby: str | None = None
    group: str | None = None
    features: pd.DataFrame | None = None
    n_cells: int | None = None
    seed: int = 0

    @cached_property
    def train(self) -> ad.AnnData:
        """Counts of the cells that a method may see."""
        return self.adata[(self.adata.obs["split"] == "train").to_numpy()].copy()

    @cached_property
    def real(self) -> ad.AnnData:
        """All cells, log1p of counts per 10,000."""
        real = self.adata.copy()
        real.X = log_expression(self.adata)
        return real

    def sources(self, seed: int = 0) -> ad.AnnData:
        """Return the controls that cells are made from, ``n_cells`` of them."""
        rows = (self.train.obs[self.key] == self.control).to_numpy()
        if self.groupby is not None:
            rows = rows & (self.train.obs[self.groupby] == self.group).to_numpy()
        places = np.flatnonzero(rows)
        if self.n_cells is not None and self.n_cells < len(places):
            rng = np.random.default_rng(seed)
            places = np.sort(rng.choice(places, self.n_cells, replace=False))
        return self.train[places].copy()


def log_expression(adata: ad.AnnData) -> np.ndarray:
    """Return log1p of counts per 10,000 as a dense float32 array."""
    x = adata.X.toarray() if sparse.issparse(adata.X) else np.asarray(adata.X)
    total = x.sum(axis=1, keepdims=True)
    return np.log1p(x * (1e4 / np.where(total > 0, total, 1))).astype(np.float32)


def cell_types(folder: Path) -> Iterator[Task]:
    """Hold out the stimulated cells of each cell type in turn, and half of its controls."""
    adata = ad.read_h5ad(folder / "single_cell" / "kang_ifnb_muscat.h5ad")
    yield from _one_held_out(adata, "cell_type", "stim")


def patients(folder: Path) -> Iterator[Task]:
    """Hold out the treated slices of each patient in turn, and half of the cells of its control."""
    adata = ad.read_h5ad(folder / "single_cell" / "glioblastoma_panobinostat.h5ad")
    yield from _one_held_out(adata, "patient_id", "panobinostat")


def _one_held_out(adata: ad.AnnData, groupby: str, perturbation: str) -> Iterator[Task]:
    """Hold out perturbed cells of each group, and random halves of the group's controls.

    Effects are measured against the controls that no method knows: chance in the mean of controls
    cannot be part of a prediction. :data:`N_DRAWS` halves of each, with a seed of their own.
    """
    groups, condition = (adata.obs[key].astype(str) for key in (groupby, "condition"))
    for name in sorted(groups.unique()):
        controls = np.flatnonzero((groups == name) & (condition == "ctrl"))
        for draw in range(N_DRAWS):
            hidden = ((groups == name) & (condition == perturbation)).to_numpy()
            hidden[np.random.default_rng(draw).permutation(controls)[: len(controls) // 2]] = True
            yield Task(
                f"{name} {draw + 1}",
                _with_split(adata, hidden),
                (perturbation,),
                "condition",
                "ctrl",
                groupby,
                name,
                seed=draw,
            )


def read_screen(folder: Path) -> ad.AnnData:
    """Read the ECCITE screen: at most :data:`MOST_CELLS` of each target, four times the controls.

    20,729 cells are many for two cores and the effects of most targets small: the largest targets
    are thinned, at random, so that all methods can be trained. What is left out is not used.
    """
    adata = ad.read_h5ad(folder / "single_cell" / "papalexi_eccite.h5ad")
    rng = np.random.default_rng(0)
    kept = []
    for name, rows in adata.obs.groupby("perturbation", observed=True).indices.items():
        most = 4 * MOST_CELLS if name == "control" else MOST_CELLS
        kept.append(rng.permutation(rows)[:most])
    return adata[np.sort(np.concatenate(kept))].copy()


def targets(folder: Path) -> Iterator[Task]:
    """Hold out the targets of the screen in folds; unseen ones are known by their features.

    Targets are dealt to folds in the order of their names, so that relatives (IFNGR1 and IFNGR2,
    STAT1 and STAT2) are not held out together. Half of the controls are held out too: effects are
    measured against controls that no method knows. Were they the same, chance in their mean would
    be part of every observed and every predicted effect, and correlate them.
    """
    adata = read_screen(folder)
    names = sorted(set(adata.obs["perturbation"].astype(str)) - {"control"})
    features = network_features(folder, names)
    reference = _second_half(adata) & (adata.obs["perturbation"] == "control").to_numpy()
    for fold in range(N_FOLDS):
        asked = tuple(names[fold::N_FOLDS])
        hidden = adata.obs["perturbation"].isin(asked).to_numpy() | reference
        split, name = _with_split(adata, hidden), f"fold {fold + 1}"
        yield Task(name, split, asked, "perturbation", "control", features=features, n_cells=N_MADE)


def halves(folder: Path) -> Iterator[Task]:
    """Train on half of the cells of each target and of the controls, judge with the other half.

    Baselines never read perturbed cells of the group that they predict. The second group is the
    cells that judge, and copies of the training controls to start from.
    """
    adata = read_screen(folder)
    names = tuple(sorted(set(adata.obs["perturbation"].astype(str)) - {"control"}))
    second = _second_half(adata)
    adata.obs["half"] = np.where(second, "second", "first")
    split = _with_split(adata, second)
    first = split.obs["half"] == "first"
    copies = split[(first & (split.obs["perturbation"] == "control")).to_numpy()].copy()
    copies.obs["half"] = "second"
    copies.obs_names = copies.obs_names + "-copy"
    both = ad.concat([split, copies], merge="same")
    what = ("perturbation", "control", "half", "second")
    yield Task("second half", both, names, *what, n_cells=N_MADE)


def _second_half(adata: ad.AnnData) -> np.ndarray:
    """Draw half of the cells of each perturbation and of the controls."""
    labels = adata.obs["perturbation"]
    _, second = train_test_split(
        np.arange(adata.n_obs), test_size=0.5, stratify=labels, random_state=0
    )
    return np.isin(np.arange(adata.n_obs), second)


def _with_split(adata: ad.AnnData, hidden: np.ndarray) -> ad.AnnData:
    split = adata.copy()
    split.obs["split"] = np.where(hidden, "test", "train")
    return split


def network_features(folder: Path, names: list[str]) -> pd.DataFrame:
    """Place genes in the Reactome functional-interaction network.

    Parameters
    ----------
    folder
        Folder of real data.
    names
        Genes that are perturbed.

    Returns
    -------
    DataFrame, genes by :data:`_N_NETWORK`: where random walks end that start at the gene and stop
    with probability :data:`_STOP` at each step, over the curated part of the network; the square
    roots of these probabilities (whose inner product is the overlap of two walks), centred and
    reduced by principal components of the genes asked about. A gene that the network lacks is at
    the centre, 0. Nothing of it is known from expression after a perturbation.
    """
    table = pd.read_csv(folder / "networks" / "reactome_fi.csv.gz")
    table = table[table["annotation"] != "predicted"]
    genes = pd.Index(sorted(set(table["gene1"]) | set(table["gene2"])))
    a, b = genes.get_indexer(table["gene1"]), genes.get_indexer(table["gene2"])
    matrix = sparse.coo_matrix((np.ones(len(a)), (a, b)), shape=(len(genes),) * 2).tocsr()
    matrix = ((matrix + matrix.T) > 0).astype(np.float64)
    step = sparse.diags_array(1 / np.asarray(matrix.sum(axis=1)).ravel()) @ matrix
    known = [n for n in names if n in genes]
    start = np.zeros((len(known), len(genes)))
    start[np.arange(len(known)), genes.get_indexer(known)] = 1.0
    walk = start.copy()
    for _ in range(_STEPS):
        walk = _STOP * start + (1 - _STOP) * (walk @ step)
    root = np.sqrt(walk)
    left, size, _ = np.linalg.svd(root - root.mean(axis=0), full_matrices=False)
    found = pd.DataFrame((left * size)[:, :_N_NETWORK], index=known)
    return found.reindex(names).fillna(0.0)
