"""Single cells to one count profile per sample and condition, through decoupler."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from cfm.data._matrix import row_blocks

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm.pp._design import Skipped


def pseudobulk(
    matrix: Any,
    obs: pd.DataFrame,
    keys: Sequence[str],
    *,
    min_cells: int,
    skipped: Skipped,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Sum the counts of the cells that agree in all ``keys``.

    The cells are read in blocks, so the matrix may be on disk or dask-backed; each block is summed
    by :func:`decoupler.pp.pseudobulk` and the sums are added.

    Parameters
    ----------
    matrix
        ``(n_cells, n_genes)`` counts of any storage.
    obs
        Their table.
    keys
        Its columns that define a pseudobulk sample; cells with a missing value are left out.
    min_cells
        Smaller samples are left out and recorded.
    skipped
        Where they are recorded.

    Returns
    -------
    ``(n_samples, n_genes)`` float64 sums, and a table of ``keys`` and ``n_cells`` whose index
    names the samples.

    Raises
    ------
    ValueError
        If no sample has enough cells.
    """
    import anndata as ad
    import decoupler as dc

    groups = obs.groupby(list(keys), observed=True, sort=True, dropna=True)
    number = groups.ngroup().fillna(-1).to_numpy(dtype=np.int64)
    n_missing = int((number < 0).sum())
    if n_missing:
        skipped.add("", "", f"{n_missing} cells have a missing value in one of {list(keys)}")
        skipped.note(n_missing, "cell(s) with a missing value in one of", list(keys))
    n_cells = np.bincount(number[number >= 0])
    _, first = np.unique(number, return_index=True)
    table = obs.iloc[first[-len(n_cells) :] if len(n_cells) else []][list(keys)].copy()
    table["n_cells"] = n_cells
    table.index = pd.Index(["|".join(map(str, row)) for row in table[list(keys)].to_numpy()])

    enough = n_cells >= min_cells
    if not enough.any():
        raise ValueError(
            f"no combination of {list(keys)} has min_cells={min_cells} cells (largest: "
            f"{n_cells.max(initial=0)}); lower min_cells or choose coarser columns."
        )
    small = table.index[~enough]
    for name, found in zip(small, n_cells[~enough], strict=True):
        skipped.add("", "", f"pseudobulk {name!r} has {found} cells, fewer than {min_cells}")
    if len(small):
        skipped.note(len(small), f"pseudobulk(s) of fewer than {min_cells} cells", list(small))

    codes = np.array([f"{i:09d}" for i in range(len(n_cells))])
    sums = np.zeros((len(n_cells), matrix.shape[1]))
    for rows, block in row_blocks(matrix):
        wanted = np.flatnonzero((number[rows] >= 0) & enough[number[rows]])
        if not len(wanted):
            continue
        part = block[wanted].astype(np.float64)
        cells = ad.AnnData(
            X=part if sparse.issparse(part) else np.asarray(part),
            obs=pd.DataFrame({"sample": codes[number[rows][wanted]]}, index=wanted.astype(str)),
        )
        # negative and non-count values were refused before, and expected counts are fine here
        summed = dc.pp.pseudobulk(
            cells, sample_col="sample", groups_col=None, mode="sum", empty=False, skip_checks=True
        )
        sums[summed.obs_names.astype(int)] += summed.X
    return sums[enough], table[enough]
