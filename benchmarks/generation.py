"""Make cells out of nothing, and compare them with cells that no generator saw.

``python -m benchmarks.generation --data DATA [--only hao kang] [--write]``

Half of the cells are trained on, the other half judges. Generated cells are kept in ``--cells``,
so that a second run only scores.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from scipy import sparse
from scvi import settings
from sklearn.ensemble import RandomForestClassifier
from sklearn.model_selection import StratifiedKFold, cross_val_predict, train_test_split

from benchmarks import _generators as generators
from benchmarks._lingshu_recipe import GENERATED
from benchmarks._perturbation_tasks import log_expression
from benchmarks._report import REPOSITORY, Report, add_arguments, data_folder
from cfm.metrics import (
    auroc,
    gene_mean_correlation,
    gene_wasserstein,
    ilisi,
    mean_squared_distance,
    mmd,
)

CELLS = REPOSITORY / "benchmarks" / "models" / "generation"
TRAIN = "training half itself"
GENERATORS: dict[str, generators.Generator] = {
    "training cells, drawn again": generators.resampled,
    "independent genes": generators.independent_genes,
    "scVI, from the prior": generators.scvi_prior,
    "scVI, from training cells": generators.scvi_posterior,
} | {name: generators.lingshu(name) for name in GENERATED}
_N_COMPONENTS = 50
_N_HVG = 2000
#: A gene of the widest panel is detected in at least as many training cells.
_MIN_CELLS = 3


@dataclass(frozen=True)
class Data:
    """Cells in two halves.

    Attributes
    ----------
    title
        Heading.
    train, test
        Counts.
    """

    title: str
    train: ad.AnnData
    test: ad.AnnData


def hao(folder: Path, n_genes: int | None) -> Data:
    """PBMC of Hao 2021; the panel is chosen on the training half."""
    adata = ad.read_h5ad(folder / "single_cell" / "hao_pbmc_1000.h5ad")
    train, test = _halves(adata, adata.obs["lane"].str[:1])
    if n_genes is None:
        panel = np.asarray((train.X > 0).sum(axis=0)).ravel() >= _MIN_CELLS
    else:
        found = sc.pp.highly_variable_genes(
            train, n_top_genes=n_genes, flavor="seurat_v3", inplace=False
        )
        panel = found["highly_variable"].to_numpy()
    title = f"PBMC (Hao), {int(panel.sum()):,} genes"
    return Data(title, train[:, panel].copy(), test[:, panel].copy())


def kang(folder: Path) -> Data:
    """Stimulated and control PBMC of Kang 2018, all cells together."""
    adata = ad.read_h5ad(folder / "single_cell" / "kang_ifnb_muscat.h5ad")
    strata = adata.obs["sample"].astype(str) + adata.obs["cell_type"].astype(str)
    train, test = _halves(adata, strata)
    return Data(f"PBMC with and without interferon (Kang), {adata.n_vars:,} genes", train, test)


DATA: dict[str, Callable[[Path], Data]] = {
    "hao": lambda folder: hao(folder, _N_HVG),
    "hao_all": lambda folder: hao(folder, None),
    "kang": kang,
}


def _halves(adata: ad.AnnData, strata: pd.Series) -> tuple[ad.AnnData, ad.AnnData]:
    places = np.arange(adata.n_obs)
    train, test = train_test_split(places, test_size=0.5, stratify=strata, random_state=0)
    return adata[np.sort(train)].copy(), adata[np.sort(test)].copy()


def cells_of(name: str, key: str, data: Data, folder: Path, seed: int) -> tuple[np.ndarray, float]:
    """Return generated counts and the seconds that they took, kept in the folder."""
    path = _path(folder, key, name, seed)
    if not path.is_file():
        start = time.perf_counter()
        x = GENERATORS[name](data.train, data.test.n_obs, seed)
        seconds = time.perf_counter() - start
        folder.mkdir(parents=True, exist_ok=True)
        packed = sparse.csr_matrix(x)
        np.savez_compressed(
            path,
            data=packed.data,
            indices=packed.indices,
            indptr=packed.indptr,
            shape=packed.shape,
            seconds=seconds,
        )
    kept = np.load(path)
    parts = (kept["data"], kept["indices"], kept["indptr"])
    return sparse.csr_matrix(parts, shape=kept["shape"]).toarray(), float(kept["seconds"])


def _path(folder: Path, key: str, name: str, seed: int) -> Path:
    slug = "".join(c if c.isalnum() else "_" for c in name)
    return folder / f"{key}-{slug}-seed{seed}.npz"


def scores(data: Data) -> Callable[[np.ndarray], dict[str, float]]:
    """Return what judges generated counts: distances to the test half in a space of real cells."""
    test = log_expression(data.test)
    both = np.vstack([log_expression(data.train), test]).astype(np.float64)
    mean = both.mean(axis=0)
    _, _, axes = np.linalg.svd(both - mean, full_matrices=False)
    axes = axes[:_N_COMPONENTS].T
    real = (test - mean) @ axes
    sigma = mean_squared_distance((both - mean) @ axes)
    folds = StratifiedKFold(5, shuffle=True, random_state=0)

    def judge(counts: np.ndarray) -> dict[str, float]:
        log = log_expression(ad.AnnData(counts))
        place = (log - mean) @ axes
        means = gene_mean_correlation(test, log)
        label = np.repeat([0, 1], [len(real), len(place)])
        forest = RandomForestClassifier(200, min_samples_leaf=3, random_state=0)
        cells = np.vstack([real, place])
        called = cross_val_predict(forest, cells, label, cv=folds, method="predict_proba")
        library = np.log1p(data.test.X.sum(axis=1)), np.log1p(counts.sum(axis=1))
        return {
            "MMD": mmd(real, place, sigma=sigma),
            "Pearson": means["pearson"],
            "Spearman": means["spearman"],
            "Wasserstein": float(gene_wasserstein(test, log).mean()),
            "iLISI": ilisi(cells, label),
            "told apart": auroc(label, called[:, 1]),
            "library": float(np.mean(library[1]) - np.mean(library[0])),
            "zeros": float((counts == 0).mean()),
        }

    return judge


def run(key: str, data: Data, names: list[str], folder: Path, seeds: int) -> Iterator[dict]:
    """Generate and score."""
    judge = scores(data)
    yield {"method": TRAIN, "seed": 0, **judge(generators.dense(data.train))}
    for name in names:
        for seed in range(seeds):
            counts, seconds = cells_of(name, key, data, folder, seed)
            row = {"method": name, "seed": seed, **judge(counts), "seconds": seconds}
            print(key, row, flush=True)
            yield row


def report_data(report: Report, key: str, data: Data, result: pd.DataFrame) -> None:
    """Add the table of a data set."""
    columns = [
        "MMD",
        "Pearson",
        "Spearman",
        "Wasserstein",
        "iLISI",
        "told apart",
        "library",
        "zeros",
    ]
    groups = result.groupby("method", sort=False)
    table = groups[columns].mean()
    table.insert(1, "sd of seeds", groups["MMD"].std())
    table.insert(0, "seeds", groups["seed"].nunique())
    real_zeros = float((generators.dense(data.test) == 0).mean())
    report.text(
        f"**{data.title}.** {data.train.n_obs} cells train, {data.test.n_obs} judge, and as many "
        f"are generated; {real_zeros:.3f} of the values of the judging half are zeros."
    )
    digits = {"MMD": 4, "sd of seeds": 4, "Pearson": 4, "Spearman": 4, "Wasserstein": 4}
    report.table(key, table.reset_index(), data.title, digits)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    add_arguments(parser)
    parser.add_argument("--only", nargs="*", choices=list(DATA), help="data sets")
    parser.add_argument("--methods", nargs="*", choices=list(GENERATORS), help="generators")
    parser.add_argument("--cells", type=Path, default=CELLS, help="where generated cells are kept")
    parser.add_argument("--kept", action="store_true", help="generate nothing: only cells kept")
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    settings.verbosity = 30  # no progress bars between the tables
    folder = data_folder(args.data)
    report = Report("generation", "Unconditional generation of cells")
    report.text(
        "Half of the cells are trained on, the other half judges; nothing of the judging half, not "
        "even the choice of genes, is known to a generator. All on log1p of counts per 10,000. "
        f"`MMD`: squared, unbiased, five Gaussian kernels, {_N_COMPONENTS} principal components of "
        "the real cells, so that 0 is a perfect match and values scatter around it; `Pearson`, "
        "`Spearman`: of the mean expression of genes; `Wasserstein`: 1-Wasserstein distance, mean "
        "over genes; `iLISI`: how evenly real and generated cells mix among neighbours on the same "
        "components (0 to 1, best), for the training half that of real cells split in two; "
        "`told apart`: cross-validated AUROC of a random forest between real and "
        "generated cells on the same components (0.5 is best); `library`: difference of mean log "
        "counts per cell; `zeros`: share of zeros. The training half itself is the ceiling, and "
        "drawing its cells again what memory alone reaches. scVI from the prior is the like of "
        "Lingshu-Cell: both start from nothing. From training cells it decodes the place of a real "
        "cell. Library sizes of scVI and of independent genes are drawn from training cells. "
        "Lingshu-Cell is told Leiden clusters of the training cells, drawn as often as there; its "
        "count term alone draws each gene on its own within a cluster. That a forest tells cells "
        "drawn again apart is because it sees the same cell in several of its folds. Generators "
        "that are missing from a table were not run."
    )
    for key in args.only or list(DATA):
        data = DATA[key](folder)
        names = args.methods or list(GENERATORS)
        if args.kept:
            names = [n for n in names if _path(args.cells, key, n, args.seeds - 1).is_file()]
        rows = list(run(key, data, names, args.cells, args.seeds))
        report_data(report, key, data, pd.DataFrame(rows))
    report.finish(args.write)


if __name__ == "__main__":
    main()
