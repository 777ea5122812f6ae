"""Batches told apart in cells: embeddings of CellVQ, principal components and Harmony.

``python -m benchmarks.cell_integration --scib-python PYTHON``: Harmony and the scores run in an
environment of their own with ``scib-metrics`` and ``harmonypy`` (``_integration_run.py``).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc

import cfm
from benchmarks._code_recipe import LABEL, interferon, quiet, sorted_blood
from benchmarks._report import Report, add_arguments, data_folder

MODEL = "cellvq-mini"
#: Cell types of Zheng 2017 by the names of Kang 2018; other types are left out.
TYPES = {
    "CD14+ Monocyte": "CD14+ Monocytes",
    "CD19+ B": "B cells",
    "CD56+ NK": "NK cells",
    "CD4+/CD25 T Reg": "CD4 T cells",
    "CD4+/CD45RO+ Memory": "CD4 T cells",
    "CD4+/CD45RA+/CD25- Naive T": "CD4 T cells",
    "CD8+ Cytotoxic T": "CD8 T cells",
    "CD8+/CD45RA+ Naive Cytotoxic": "CD8 T cells",
}


def remove_batch(x: np.ndarray, batch: np.ndarray, group: np.ndarray) -> np.ndarray:
    """Return embeddings with equal means of all batches within each group of cells."""
    table = pd.DataFrame(x)
    own = table.groupby([group, batch]).transform("mean")
    return (table - own + table.groupby(group).transform("mean")).to_numpy()


def datasets(folder: Path) -> Iterator[tuple[str, ad.AnnData, str]]:
    """Yield name, cells with counts, and the column with the batch."""
    kang = interferon(folder).adata
    kang.var_names_make_unique()
    yield "stimulation (Kang 2018)", kang, "condition"
    yield "donors (Kang 2018)", kang, "donor"
    control = kang[(kang.obs["condition"] == "ctrl").to_numpy()]
    parts = {"Kang 2018": control, "Zheng 2017": sorted_blood(counts=True).adata}
    both = ad.concat(parts, label="laboratory", join="inner")
    both.obs[LABEL] = both.obs[LABEL].astype(str).replace(TYPES)
    shared = set(TYPES.values()) & set(control.obs[LABEL])
    yield "laboratories", both[both.obs[LABEL].isin(shared).to_numpy()].copy(), "laboratory"


def represent(adata: ad.AnnData, key: str) -> dict[str, np.ndarray]:
    """Return the representations of cells, ``batch`` and ``label`` beside them."""
    plain = adata.copy()
    sc.pp.normalize_total(plain, target_sum=1e4)
    sc.pp.log1p(plain)
    sc.pp.scale(plain, max_value=10)
    sc.pp.pca(plain, n_comps=30)
    coded = adata.copy()
    cfm.tl.cell_codes(coded, MODEL, min_cells=coded.n_obs + 1)  # no markers
    read = coded.obs["cell_code"].notna().to_numpy()
    cfm.tl.embed(coded, MODEL)
    x, batch = coded.obsm["X_cellvq"][read], coded.obs.loc[read, key].to_numpy(dtype=str)
    codes = coded.obs.loc[read, "cell_code"].to_numpy(dtype=str)
    return {
        "PCA": plain.obsm["X_pca"][read],
        "CellVQ": x,
        "CellVQ, mean of the batch removed": remove_batch(x, batch, np.zeros(len(x))),
        "CellVQ, removed within codes": remove_batch(x, batch, codes),
        "PCA, removed within codes": remove_batch(plain.obsm["X_pca"][read], batch, codes),
        "batch": batch,
        "label": coded.obs.loc[read, LABEL].to_numpy(dtype=str),
    }


def main() -> None:
    """Score and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    parser.add_argument("--scib-python", default=sys.executable, help="with scib-metrics")
    args = parser.parse_args()
    script, tables = Path(__file__).with_name("_integration_run.py"), []
    for name, adata, key in datasets(data_folder(args.data)):
        with quiet(), tempfile.TemporaryDirectory() as scratch:
            given, out = Path(scratch) / "in.npz", Path(scratch) / "out.json"
            np.savez(given, **represent(adata, key))
            subprocess.run([args.scib_python, script, given, out], check=True)
            found = pd.DataFrame(json.loads(out.read_text())).T.rename_axis("method")
        tables.append(found.reset_index().assign(batches=name, cells=adata.n_obs))
        print(f"{name} is done", flush=True)
    report = Report("cell_integration", "Batches told apart in cells")
    report.text(
        "Scores of scib-metrics, from 0 to 1, larger is better: graph iLISI (batches mix among 90 "
        "neighbours), graph cLISI (types do not), and silhouettes of types and, within types, of "
        f"batches. {MODEL} has seen Kang 2018 in training, which favours it. "
        "*Removed within codes*: the mean of each batch is made that of all cells of the code. "
        "Harmony runs on 30 principal components, of expression or of the embedding. Stimulation "
        "is taken for a batch to have a strong one; it is biology, and should otherwise stay."
    )
    every = pd.concat(tables)
    first = ["batches", "cells", "method"]
    every = every[first + [c for c in every if c not in first]]
    report.table("scores", every, "Scores by data set")
    report.finish(args.write)


if __name__ == "__main__":
    main()
