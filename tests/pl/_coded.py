"""Cells with the fields that ``cfm.tl.cell_codes`` stores, made up."""

from __future__ import annotations

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

TYPES = ["CD14+ Monocytes", "CD4 T cells", "B cells", "NK cells", "Dendritic cells"]


def with_cell_codes(
    n_codes: int = 5, n_cells: int = 400, types: list[str] = TYPES, seed: int = 0
) -> AnnData:
    """Cells of ``n_codes`` codes, unequally frequent, each mostly of one type."""
    rng = np.random.default_rng(seed)
    weight = 1 / np.arange(1, n_codes + 1)
    of_cell = np.r_[
        np.arange(n_codes), rng.choice(n_codes, n_cells - n_codes, p=weight / weight.sum())
    ]
    kind = of_cell % len(types)
    mixed = rng.random(n_cells) < 0.2
    kind[mixed] = rng.integers(0, len(types), size=mixed.sum())
    numbers = np.sort(rng.choice(4096, n_codes, replace=False))
    names = numbers.astype(str).astype(object)
    obs = pd.DataFrame(
        {
            "cell_type": pd.Categorical(np.array(types)[kind]),
            "donor": pd.Categorical(rng.choice(["d1", "d2"], size=n_cells)),
            "cell_code": pd.Categorical.from_codes(of_cell, categories=names),
            "cell_code_similarity": rng.uniform(0.8, 1, n_cells).astype(np.float32),
            "cell_code_margin": rng.uniform(0, 0.2, n_cells).astype(np.float32),
        },
        index=[f"cell{i}" for i in range(n_cells)],
    )
    n_genes = 10 + 4 * len(types)
    mean = np.full((n_cells, n_genes), 0.5)
    for i, k in enumerate(of_cell % len(types)):
        mean[i, 4 * k : 4 * k + 4] = 8
    genes = pd.DataFrame(index=[f"GENE{i}" for i in range(n_genes)])
    adata = AnnData(sparse.csr_matrix(rng.poisson(mean).astype(np.float32)), obs=obs, var=genes)
    centre = rng.normal(size=(len(types), 16))
    vectors = centre[np.arange(n_codes) % len(types)] + 0.3 * rng.normal(size=(n_codes, 16))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    cosine = vectors @ vectors.T
    np.fill_diagonal(cosine, -2)
    nearest = cosine.argmax(axis=1)
    large = [i for i in range(n_codes) if (of_cell == i).sum() >= 5]
    adata.uns["cell_code"] = {
        "params": {"groupby": ["cell_type"], "units": "counts"},
        "vectors": pd.DataFrame(
            vectors.astype(np.float32), index=names, columns=[str(i) for i in range(16)]
        ),
        "neighbours": pd.DataFrame(
            {
                "code": names,
                "neighbour": names[nearest],
                "cosine_rank": np.ones(n_codes, dtype=np.int64),
            },
            index=names,
        )[: n_codes if n_codes > 1 else 0],
        "markers": pd.DataFrame(
            [
                {"code": names[i], "rank": r + 1, "gene": f"GENE{4 * (i % len(types)) + r}"}
                for i in large
                for r in range(4)
            ],
            columns=["code", "rank", "gene"],
        ).rename(str),
    }
    return adata
