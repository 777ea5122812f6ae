"""Results as a table: ``obs``, then the columns of each matrix of ``obsm``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from pathlib import Path

    from anndata import AnnData

_ROWS = 8192


def write_table(results: AnnData, path: Path) -> None:
    """Write ``.csv`` or ``.tsv``, some rows at a time.

    Columns of matrices are named ``X_cellpulse_0``, ``X_cellpulse_1``, …, those of tables
    ``predicted_virus_proba_IAV``, ….
    """
    separator = "\t" if path.suffix == ".tsv" else ","
    with path.open("w", encoding="utf-8", newline="") as file:
        for start in range(0, max(1, results.n_obs), _ROWS):
            rows = slice(start, min(start + _ROWS, results.n_obs))
            parts = [results.obs.iloc[rows]]
            for key, matrix in results.obsm.items():
                parts.append(_columns(key, matrix, rows).set_axis(parts[0].index, axis=0))
            block = pd.concat(parts, axis=1)
            name = results.obs.index.name or "name"
            block.to_csv(file, sep=separator, index_label=name, header=start == 0)


def _columns(key: str, matrix: object, rows: slice) -> pd.DataFrame:
    if isinstance(matrix, pd.DataFrame):
        return matrix.iloc[rows].add_prefix(f"{key}_")
    block = np.asarray(matrix[rows])  # type: ignore[index]
    return pd.DataFrame(block, columns=[f"{key}_{i}" for i in range(block.shape[1])])
