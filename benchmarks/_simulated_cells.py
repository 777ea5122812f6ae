"""Files of simulated cells of any number, written block by block."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.io import sparse_dataset, write_elem
from scipy import sparse

#: Cells made at a time.
_BLOCK = 10_000
_N_TYPES = 8


def write_cells(
    path: Path, n_cells: int, genes: list[str], *, expressed: float = 100.0, seed: int = 0
) -> Path:
    """Write counts of simulated cells, a ``.h5ad`` or ``.zarr`` file by its name.

    Types of cells differ by log-normal factors of a fifth of the genes, cells by a log-normal
    depth, genes by a log-normal mean; counts are Poisson. The first cells of a seed are the same
    whatever their number.

    Parameters
    ----------
    path
        File, replaced if it is there.
    n_cells
        Cells.
    genes
        Names of the genes.
    expressed
        Counts of a cell, about.
    seed
        Seed.
    """
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    root: Any
    root = zarr.open_group(str(path), mode="w") if path.suffix == ".zarr" else h5py.File(path, "w")
    root.attrs["encoding-type"], root.attrs["encoding-version"] = "anndata", "0.1.0"
    rng = np.random.default_rng(seed)
    mean = rng.lognormal(0.0, 1.5, len(genes))
    mean *= expressed / mean.sum()
    moved = rng.random((_N_TYPES, len(genes))) < 0.2
    means = mean * np.where(moved, rng.lognormal(0.0, 1.0, moved.shape), 1.0)
    types = []
    for block, start in enumerate(range(0, n_cells, _BLOCK)):
        numbers = np.random.default_rng([seed, block])
        which = numbers.integers(_N_TYPES, size=_BLOCK)
        depth = numbers.lognormal(0.0, 0.3, _BLOCK)
        counts = numbers.poisson(means[which] * depth[:, None]).astype(np.float32)
        n = min(_BLOCK, n_cells - start)
        part = sparse.csr_matrix(counts[:n])
        part.indptr = part.indptr.astype(np.int64)
        types.append(which[:n])
        if block:
            sparse_dataset(root["X"]).append(part)
        else:
            write_elem(root, "X", part)
    names = pd.Index(np.arange(n_cells).astype(str))
    kind = pd.Categorical.from_codes(np.concatenate(types), [f"type {i}" for i in range(_N_TYPES)])
    write_elem(root, "obs", pd.DataFrame({"cell_type": kind}, index=names))
    write_elem(root, "var", pd.DataFrame(index=pd.Index(genes)))
    for name in ("uns", "obsm", "varm", "obsp", "varp", "layers"):
        write_elem(root, name, {})
    if isinstance(root, h5py.File):
        root.close()
    return path
