"""What the bundled models cost to train and to use, beside the simple method of the same task.

``python -m benchmarks.costs``. All is CPU time of one thread in one process, loading left out.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
import torch
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from threadpoolctl import threadpool_limits

import cfm
from benchmarks._imputers import ridge
from benchmarks._perturbation_tasks import cell_types, log_expression
from benchmarks._report import Report, add_arguments, data_folder
from cfm.models import PerturbationCountModel, load_model
from training import train_bulkformer, train_cellvq, train_pulsar
from training.bulk_corpus import join, read_tables, vocabulary

TRAINING, USE = "training, CPU s", "use, CPU ms per sample"
#: Uses of each, of which the median is taken.
N_USES = 3
N_COMPONENTS = 50
#: Pseudo-donors, and samples whose genes are imputed.
N_DONORS, N_IMPUTED = 40, 69


def seconds(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the CPU seconds of a call, and what it returned."""
    start = time.process_time()
    value = function()
    return time.process_time() - start, value


def row(task: str, method: str, training: float, use: Callable[[], Any], n: int) -> dict[str, Any]:
    """Return a row of the table; ``use`` is called :data:`N_USES` times."""
    used = float(np.median([seconds(use)[0] for _ in range(N_USES)]))
    print(f"{task}, {method}: {training:.1f} s, {1000 * used / n:.2f} ms", flush=True)
    return {"task": task, "method": method, TRAINING: training, USE: 1000 * used / n}


def bulk(folder: Path, _: bool) -> list[dict[str, Any]]:
    """Embedding and imputation of bulk samples; the corpus is read before."""
    tables = read_tables(folder)
    trained, model = seconds(lambda: train_bulkformer.train(list(tables.values())))
    cohorts = [tables[f"lcl_rnaseq_{name}"] for name in ("pickrell", "montgomery")]
    shared = cohorts[0].var_names.intersection(cohorts[1].var_names)
    samples, others = (cohort[:, shared].copy() for cohort in cohorts)
    samples = samples[:N_IMPUTED].copy()
    corpus = join(tables.values(), vocabulary(tables.values(), train_bulkformer.N_GENES))
    values = np.nan_to_num(np.asarray(corpus.X, dtype=np.float32))
    fitted, pca = seconds(lambda: PCA(N_COMPONENTS, random_state=0).fit(values))
    hidden = np.random.default_rng(0).random(samples.n_vars) < 0.15
    mask = np.broadcast_to(hidden, samples.shape)
    own = np.nan_to_num(np.asarray(others.X, dtype=np.float32))
    test = np.nan_to_num(np.asarray(samples.X, dtype=np.float32))
    impute = ridge(1.0)
    n = samples.n_obs
    return [
        row(
            "`tl.embed`",
            "`bulkformer-mini`",
            trained,
            lambda: cfm.tl.embed(samples.copy(), model),
            n,
        ),
        row("`tl.embed`", "PCA of the corpus", fitted, lambda: pca.transform(values[:n]), n),
        row(
            "`tl.impute`",
            "`bulkformer-mini`",
            trained,
            lambda: cfm.tl.impute(samples.copy(), model, mask=mask),
            n,
        ),
        row("`tl.impute`", "ridge, fitted anew", 0.0, lambda: impute(own, test, hidden), n),
    ]


def codes(folder: Path, whole: bool) -> list[dict[str, Any]]:
    """Codes of cells, beside clusters of components with as many groups.

    Without ``whole`` the bundled model is used and its training, by far the longest, left out.
    """
    kang = ad.read_h5ad(folder / "single_cell" / "kang_ifnb_muscat.h5ad")
    hao = ad.read_h5ad(folder / "single_cell" / "hao_pbmc_1000.h5ad")
    logged = sc.AnnData(log_expression(hao))
    trained, model = np.nan, load_model("cellvq-mini")
    if whole:
        trained, model = seconds(lambda: train_cellvq.train(kang.copy(), hao.copy()))
    n_codes = len(model.get_codebook().vectors)

    def fit() -> tuple[PCA, KMeans]:
        pca = PCA(N_COMPONENTS, random_state=0).fit(logged.X)
        return pca, KMeans(n_codes, n_init=4, random_state=0).fit(pca.transform(logged.X))

    fitted, (pca, groups) = seconds(fit)
    fresh = ad.AnnData(hao.X, var=hao.var[[]])
    return [
        row(
            "`tl.cell_codes`",
            "`cellvq-mini`",
            trained,
            lambda: cfm.tl.cell_codes(fresh.copy(), model),
            hao.n_obs,
        ),
        row(
            "`tl.cell_codes`",
            "k-means of PCA",
            fitted,
            lambda: groups.predict(pca.transform(logged.X)),
            hao.n_obs,
        ),
    ]


def donors(folder: Path, _: bool) -> list[dict[str, Any]]:
    """Embeddings of pseudo-donors, beside components of their pseudobulk."""
    cells = train_pulsar.read_cells(folder)
    trained, model = seconds(lambda: train_pulsar.train(cells))
    rows = np.random.default_rng(0).choice(cells.n_obs, (N_DONORS, train_pulsar.N_CELLS))
    some = train_pulsar.donors_of(cells, rows)

    def pseudobulk() -> np.ndarray:
        means = sc.get.aggregate(some, by=train_pulsar.DONOR, func="sum").layers["sum"]
        return PCA(10, random_state=0).fit_transform(np.log1p(np.asarray(means)))

    def embed() -> None:
        cfm.tl.embed_donors(some, model=model, donor_key=train_pulsar.DONOR)

    return [
        row("`tl.embed_donors`", "`pulsar-mini`", trained, embed, N_DONORS),
        row("`tl.embed_donors`", "PCA of pseudobulk, fitted anew", 0.0, pseudobulk, N_DONORS),
    ]


def perturbation(folder: Path, _: bool) -> list[dict[str, Any]]:
    """Interferon in a cell type that was held out: the count model, beside the linear baseline."""
    task = next(iter(cell_types(folder)))
    train = task.train.copy()
    PerturbationCountModel.setup_anndata(
        train, source_key=task.groupby, perturbation_key=task.key, control=task.control
    )
    model = PerturbationCountModel(train)
    trained, _ = seconds(model.train)
    sources = task.sources(0)
    logged = task.real[task.adata.obs["split"].to_numpy() == "train"].copy()

    def linear() -> None:
        cfm.tl.simulate_perturbation(
            logged,
            task.asked[0],
            model="linear",
            key=task.key,
            control=task.control,
            groupby=task.groupby,
        )

    def simulate() -> None:
        model.simulate(sources, list(task.asked), groupby=task.groupby)

    n = int((logged.obs[task.key] == task.control).sum())
    where = "`tl.simulate_perturbation`"
    return [
        row(where, "count model", trained, simulate, sources.n_obs),
        row(where, "linear, fitted anew", 0.0, linear, n),
    ]


PARTS = {"bulk": bulk, "codes": codes, "donors": donors, "perturbation": perturbation}


def main() -> None:
    """Measure and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--whole", action="store_true", help="also train cellvq-mini")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    args = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    folder = data_folder(args.data)
    with threadpool_limits(1):
        rows = [found for name in args.only for found in PARTS[name](folder, args.whole)]
    report = Report("costs", "Costs of training and use")
    report.text(
        "CPU time of one thread; reading of files is left out, and the first row of a model has "
        "its whole training. Simple methods that are fitted to the samples themselves have no "
        "training. The bundled models need none from users: the column is what making them anew "
        "costs. The training of cellvq-mini (over ten minutes) is measured with --whole alone. Use "
        f"is the median of {N_USES} calls."
    )
    report.table("costs", pd.DataFrame(rows), "Costs", 1)
    report.finish(args.write)


if __name__ == "__main__":
    main()
