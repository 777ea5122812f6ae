"""Types that ``cellvq-mini`` gives to cells of another laboratory, and to what is no blood cell.

``python -m benchmarks.cell_types``: the blood cells of Zheng 2017 (``pbmc68k_reduced``, labels of
its authors), cells of other tissues, and types that the head was fitted without. Beside it logistic
regression and nearest centroids on the expression of the same training cells, at the genes that
both have.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import scanpy as sc
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid

from benchmarks._report import Report, add_arguments, data_folder
from cfm.models import CellVQ
from cfm.stats._discriminant import GeneDiscriminant
from cfm.tl import predict_properties
from training.train_cellvq import marker_types
from training.train_lingshu import symbols

#: Answers that are right for a label of Zheng 2017; its "CD14+ Monocyte" express FCGR3A.
RIGHT = {
    "CD4+/CD25 T Reg": ["CD4 T cells"],
    "CD4+/CD45RA+/CD25- Naive T": ["CD4 T cells"],
    "CD4+/CD45RO+ Memory": ["CD4 T cells"],
    "CD8+ Cytotoxic T": ["CD8 T cells"],
    "CD8+/CD45RA+ Naive Cytotoxic": ["CD8 T cells"],
    "CD14+ Monocyte": ["CD14+ Monocytes", "FCGR3A+ Monocytes"],
    "CD19+ B": ["B cells"],
    "CD56+ NK": ["NK cells"],
    "Dendritic": ["Dendritic cells"],
    "CD34+": [],
}
OURS = "cellvq-mini"
#: Cells of other tissues: name and file.
OTHERS = {
    "hepatoma cells (Zanini 2018, Smart-seq2)": "dengue_sc",
    "glioblastoma slices with their immune cells (Zhao 2021, 300 genes)": (
        "glioblastoma_panobinostat"
    ),
    "THP-1, a monocytic cell line (Papalexi 2021, 299 genes)": "papalexi_eccite",
}
#: Types that a head is fitted without.
LEFT_OUT = (
    ["NK cells"],
    ["Dendritic cells"],
    ["B cells"],
    ["CD14+ Monocytes", "FCGR3A+ Monocytes"],
    ["CD4 T cells", "CD8 T cells"],
)
#: Arguments ``unknown`` that are tried.
SHARES = (0.05, 0.1, 0.25, 0.4)


def training_cells(folder: Path) -> ad.AnnData:
    """Return the cells with types that the head was fitted on, counts on the genes of both."""
    kang = ad.read_h5ad(folder / "single_cell" / "kang_ifnb_muscat.h5ad")
    kang.var_names = symbols(kang.var_names)
    hao = ad.read_h5ad(folder / "single_cell" / "hao_pbmc_1000.h5ad")
    hao.obs["cell_type"] = marker_types(hao)
    both = ad.concat([kang, hao], index_unique="-", label="study")
    return both[(both.obs["cell_type"] != "").to_numpy()].copy()


def log_shares(counts: np.ndarray) -> np.ndarray:
    """Return log1p of counts per 10,000 over the genes that are there."""
    total = counts.sum(axis=1, keepdims=True)
    return np.log1p(1e4 * counts / np.where(total > 0, total, 1.0))


def baselines(train: ad.AnnData, test: np.ndarray, genes: list[str]) -> dict[str, np.ndarray]:
    """Return the types that simple methods give."""
    x, y = log_shares(train[:, genes].X.toarray()), train.obs["cell_type"].to_numpy(dtype=str)
    mean, spread = x.mean(axis=0), x.std(axis=0) + 0.1
    x, new = (x - mean) / spread, (log_shares(test) - mean) / spread
    _, group, size = np.unique(
        np.char.add(train.obs["study"].to_numpy(dtype=str), y),
        return_inverse=True,
        return_counts=True,
    )
    weight = size[group] ** -0.5
    linear = LogisticRegression(C=0.01, max_iter=1000)
    linear.fit(x, y, sample_weight=weight * len(weight) / weight.sum())
    return {
        "logistic regression on expression": linear.predict(new),
        "nearest centroid": NearestCentroid().fit(x, y).predict(new),
    }


def unknown_row(name: str, sure: np.ndarray, least: dict[float, float]) -> dict[str, object]:
    """Return the share of cells below each least confidence."""
    shares = {f"unknown={share:g}": float((sure < at).mean()) for share, at in least.items()}
    return {"cells": name, "n": len(sure)} | shares


def left_out(
    train: ad.AnnData, test: np.ndarray, genes: list[str], label: np.ndarray
) -> pd.DataFrame:
    """Fit the head without some types, and return how many cells of them are unknown."""
    types, study = (train.obs[name].to_numpy(dtype=str) for name in ("cell_type", "study"))
    counts = train.X.toarray().astype(float)
    index = train.var_names.get_indexer(pd.Index(genes))
    rows = []
    for gone in LEFT_OUT:
        kept = ~np.isin(types, gone)
        classes = np.unique(types[kept], return_inverse=True)[1]
        head, sure = GeneDiscriminant.fit(counts[kept], classes, study[kept])
        new = np.exp(head.log_probabilities(test, index)).max(axis=1)
        of = np.isin(label, [name for name, right in RIGHT.items() if set(right) & set(gone)])
        least = {share: float(np.quantile(sure, share)) for share in SHARES}
        rows.append(unknown_row(" and ".join(gone), new[of], least))
    return pd.DataFrame(rows)


def main() -> None:
    """Run and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    add_arguments(parser)
    args = parser.parse_args()
    folder = Path(data_folder(args.data))
    train = training_cells(folder)
    cells = sc.datasets.pbmc68k_reduced().raw.to_adata()
    genes = [gene for gene in train.var_names if gene in set(cells.var_names)]
    model = CellVQ.from_pretrained(OURS, device="cpu")
    predict_properties(cells, model, units="log1p_cp10k", total_counts="n_counts")
    answers = {OURS: cells.obs["predicted_cell_type"].to_numpy(dtype=str)}
    answers |= baselines(train, np.expm1(cells[:, genes].X.toarray()), genes)
    label = cells.obs["bulk_labels"].to_numpy(dtype=str)

    report = Report("cell_types", "Cell types in another laboratory's blood")
    report.text(
        f"{cells.n_obs} cells of Zheng 2017, {cells.n_vars} genes, labels of its authors; the head "
        f"was fitted on {train.n_obs} cells of two other studies, those of Hao 2021 named by "
        "marker genes. Share of the cells that are named right; CD34+ cells have no class, so "
        "right is *unknown*."
    )
    rows = []
    for name, right in RIGHT.items():
        of = label == name
        row = {"label": name, "cells": int(of.sum())}
        for method, answer in answers.items():
            row[method] = float(
                np.isin(answer[of], [*right, *([] if right else ["unknown"])]).mean()
            )
        row["unknown"] = float((answers[OURS][of] == "unknown").mean())
        rows.append(row)
    table = pd.DataFrame(rows)
    means = {c: float(table[c].mean()) for c in table.columns[2:]}
    table.loc[len(table)] = {
        "label": "mean of the types",
        "cells": int(table["cells"].sum()),
    } | means
    report.table("types", table, "Cells that are named right", digits=2)

    has_class = np.isin(label, [name for name, right in RIGHT.items() if right])
    found = model.predict_properties(
        cells, "cell_type", units="log1p_cp10k", total_counts="n_counts"
    )["cell_type"]
    sure, named = found.max(axis=1).to_numpy(), found.idxmax(axis=1).to_numpy()
    correct = np.array([a in RIGHT[of] for a, of in zip(named, label, strict=True)])
    rows = []
    for low, high in ((0.0, 0.5), (0.5, 0.7), (0.7, 0.9), (0.9, 1.0), (0.0, 1.0)):
        chosen = has_class & (sure > low) & (sure <= high)
        rows.append(
            {
                "confidence": f"{low:.1f}–{high:.1f}",
                "cells": int(chosen.sum()),
                "mean confidence": float(sure[chosen].mean()),
                "named right": float(correct[chosen].mean()),
            }
        )
    report.table("confidence", pd.DataFrame(rows), "How often an answer is right", digits=2)

    least = {share: model.least_confidence("cell_type", share) for share in SHARES}
    rows = [unknown_row("the types above", sure[has_class], least)]
    for name, file in OTHERS.items():
        other = ad.read_h5ad(folder / "single_cell" / f"{file}.h5ad")
        found = model.predict_properties(other, "cell_type")["cell_type"]
        rows.append(unknown_row(name, found.max(axis=1).dropna().to_numpy(), least))
    report.table("others", pd.DataFrame(rows), "Share that is unknown, by unknown=", digits=2)

    report.table(
        "left out",
        left_out(train, np.expm1(cells[:, genes].X.toarray()), genes, label),
        "The same of types that the head was not fitted on",
        digits=2,
    )
    report.text(
        "The columns are the share of held-out cells that would be unknown, the argument `unknown` "
        "of `predict_properties`; 0.05 is the default. Bulk samples are refused by their library "
        "size."
    )
    report.finish(args.write)


if __name__ == "__main__":
    main()
