"""How ``benchmarks.cell_codes`` trains CellVQ, and on which cells: the one place to change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from scipy import sparse

import cfm
from cfm.models import CellVQ
from cfm.models.cellvq._data import CellReader
from training.train_lingshu import symbols

_QUIET = {"accelerator": "cpu", "enable_progress_bar": False}
LABEL = "cell_type"


@dataclass(frozen=True)
class Cells:
    """A dataset and how it is read.

    Attributes
    ----------
    name
        For the tables.
    adata
        Cells by genes; ``obs["cell_type"]`` where types are known.
    units, total_counts
        As :func:`cfm.tl.cell_codes` takes them.
    """

    name: str
    adata: ad.AnnData
    units: Literal["counts", "log1p_cp10k"] = "counts"
    total_counts: str | None = None

    @property
    def truth(self) -> np.ndarray:
        """Cell types as text, ``""`` where there is none."""
        if LABEL not in self.adata.obs:
            return np.full(self.adata.n_obs, "", dtype=object)
        return self.adata.obs[LABEL].astype(str).to_numpy(dtype=object)

    def part(self, mask: np.ndarray, name: str) -> Cells:
        """Return some of the cells under another name."""
        return replace(self, adata=self.adata[mask].copy(), name=name)


@dataclass(frozen=True)
class Recipe:
    """How a model is trained.

    Attributes
    ----------
    name
        For the tables and the folder of models.
    labels
        Whether cell types are learned from too.
    sizes, training
        Arguments of the model and of ``train``.
    """

    name: str
    labels: bool
    sizes: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)

    def fit(self, adata: ad.AnnData, seed: int) -> CellVQ:
        """Train a new model on cells with counts."""
        cells = adata.copy()
        CellVQ.setup_anndata(cells, labels_keys=[LABEL] if self.labels else [])
        model = CellVQ(cells, seed=seed, **self.sizes)
        model.train(seed=seed, **self.training, **_QUIET)
        return model


TRAINING: dict[str, Any] = {"max_steps": 300}
#: Codes that are clusters are made before the first step.
PLAIN = Recipe("without labels", labels=False, training={"max_steps": 1})
LABELLED = Recipe("with labels", labels=True, training={"max_steps": 1, "code_label_weight": 1.0})
#: The quantiser as published, at the sizes that ``mini`` had before its codes were clusters.
QUANTISER = Recipe(
    "quantiser",
    labels=False,
    sizes={"expression_codes": False, "n_bits": 8},
    training=TRAINING,
)
RESAMPLED, SHARE = 5, 0.8


def resampled(cells: Cells, vocabulary: list[str] | None = None) -> list[CellVQ]:
    """Return models whose codes were made from 80 % of the cells, five times anew."""
    recipe = PLAIN if vocabulary is None else replace(PLAIN, sizes={"vocabulary": vocabulary})
    models = []
    for seed in range(RESAMPLED):
        rows = part_of(cells.adata.n_obs, seed)
        models.append(recipe.fit(cells.adata[rows], seed))
    return models


def codes_alone(model: CellVQ, cells: Cells) -> np.ndarray:
    """Return codes that are read from expression, as text, without running the network."""
    units = {"units": cells.units, "total_counts": cells.total_counts}
    reader = CellReader(cells.adata, model.vocabulary, **units)
    codes = model.module.code_reader(reader.measured)
    found = model.module.quantize(reader.positions(codes, np.arange(reader.n_cells))).code
    return found.numpy().astype(str).astype(object)


def part_of(n: int, seed: int) -> np.ndarray:
    """Return 80 % of ``n`` rows, drawn by a seed, ascending."""
    return np.sort(np.random.default_rng(seed).permutation(n)[: round(SHARE * n)])


def fold_model(recipe: Recipe, cells: Cells, seed: int, folder: Path) -> CellVQ:
    """Return a model trained on these cells: from the folder, or trained now and put there."""
    path = folder / f"cellvq-{cells.name}-{recipe.name}-{seed}".replace(" ", "_")
    if not path.is_dir():
        start = time.perf_counter()
        recipe.fit(cells.adata, seed).save(path)
        print(f"{path.name}: {time.perf_counter() - start:.0f} s", flush=True)
    return CellVQ.from_pretrained(path, device="cpu")


def interferon(data: Path) -> Cells:
    """Kang 2018: blood cells of two donors with and without interferon-beta."""
    adata = ad.read_h5ad(data / "single_cell" / "kang_ifnb_muscat.h5ad")
    adata.var_names = symbols(adata.var_names)
    return Cells("Kang 2018", adata)


def sorted_blood(*, counts: bool = False) -> Cells:
    """Zheng 2017, as scanpy brings it: 700 cells, log1p of counts per 10,000 of all genes.

    Parameters
    ----------
    counts
        Take the logarithm back: whole counts of the 765 genes, exact but for rounding.
    """
    stored = sc.datasets.pbmc68k_reduced()
    adata = stored.raw.to_adata()
    adata.obs = pd.DataFrame(
        {
            LABEL: stored.obs["bulk_labels"].astype(str),
            "n_counts": stored.obs["n_counts"].astype(np.float64),
        }
    )
    adata = ad.AnnData(sparse.csr_matrix(adata.X), obs=adata.obs, var=adata.var[[]])
    if not counts:
        return Cells("Zheng 2017", adata, "log1p_cp10k", "n_counts")
    total = sparse.diags(adata.obs["n_counts"].to_numpy() / 1e4)
    raw = sparse.csr_matrix(total @ np.expm1(adata.X.astype(np.float64)))
    raw.data = np.rint(raw.data)
    adata.X = raw.astype(np.float32)
    return Cells("Zheng 2017, as counts", adata)


def cite_blood(data: Path) -> Cells:
    """Hao 2021: blood cells without labels, all genes."""
    return Cells("Hao 2021", ad.read_h5ad(data / "single_cell" / "hao_pbmc_1000.h5ad"))


@contextmanager
def quiet() -> Iterator[None]:
    """Keep scvi-tools from writing bars."""
    import scvi

    before, scvi.settings.verbosity = scvi.settings.verbosity, 30
    try:
        yield
    finally:
        scvi.settings.verbosity = before


def read_codes(model: CellVQ, cells: Cells, **arguments: Any) -> ad.AnnData:
    """Return a copy of cells with codes, by the tool that users call."""
    adata = cells.adata.copy()
    cfm.tl.cell_codes(
        adata,
        model,
        units=cells.units,
        total_counts=cells.total_counts,
        min_cells=len(adata) + 1,  # no markers
        groupby=[LABEL] if LABEL in adata.obs else None,
        **arguments,
    )
    return adata
