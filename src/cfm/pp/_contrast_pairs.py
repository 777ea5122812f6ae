"""Samples as log2 expression, and every pair of them, held in memory or read from files."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse

from cfm.data._matrix import read_rows, row_blocks, to_dense
from cfm.data._pairs import ContrastPairs
from cfm.data._row_cache import RowCache
from cfm.pp._log_cpm import log2_cpm

if TYPE_CHECKING:
    import pandas as pd

    from cfm.pp._design import Contrast


@dataclasses.dataclass(frozen=True)
class Samples:
    """Samples to compare: their matrix, table, genes, and library sizes (``None``: log2 values)."""

    matrix: Any
    obs: pd.DataFrame
    var: pd.DataFrame
    library_size: np.ndarray | None
    prior_count: float

    @property
    def in_memory(self) -> bool:
        """Whether the matrix is."""
        return isinstance(self.matrix, np.ndarray) or sparse.issparse(self.matrix)

    def prior(self, rows: np.ndarray) -> float:
        """Prior as a share of a library, from the samples that are compared and no others."""
        if self.library_size is None:
            return 0.0
        return self.prior_count / float(self.library_size[rows].mean())

    def log2(self, block: Any, rows: np.ndarray, prior: float | np.ndarray) -> np.ndarray:
        """Return log2 expression (float64) of a block that holds the given rows."""
        if self.library_size is None:
            return to_dense(block)
        return log2_cpm(to_dense(block), self.library_size[rows], prior)


def make_pairs(
    samples: Samples,
    found: list[Contrast],
    table: pd.DataFrame,
    uns: dict[str, Any],
    *,
    memory_mib: float,
) -> ContrastPairs:
    """Make each sample known once as log2 values, with the prior of its stratum.

    Samples on disk whose values do not fit into ``memory_mib`` are left there.
    """
    used = np.unique(np.concatenate([contrast.rows for contrast in found]))
    members: dict[int, list[np.ndarray]] = {}
    for contrast in found:
        members.setdefault(contrast.number, []).append(contrast.rows)
    prior = np.zeros(len(samples.obs))
    for rows_of in members.values():
        rows = np.unique(np.concatenate(rows_of))
        prior[rows] = samples.prior(rows)

    position = np.full(len(samples.obs), -1, dtype=np.int64)
    position[used] = np.arange(len(used))
    shape = len(used), len(samples.var)
    max_bytes = int(memory_mib * 2**20)
    values: np.ndarray | RowCache
    if samples.in_memory or 4 * shape[0] * shape[1] <= max_bytes:
        values = np.empty(shape, dtype=np.float32)
        for block_rows, block in row_blocks(samples.matrix):
            rows = np.arange(block_rows.start, block_rows.stop)
            wanted = position[rows] >= 0
            rows = rows[wanted]
            values[position[rows]] = samples.log2(block[wanted], rows, prior[rows])
    else:

        def read(numbers: np.ndarray) -> np.ndarray:
            rows = used[numbers]
            return samples.log2(read_rows(samples.matrix, rows), rows, prior[rows]).astype("f4")

        values = RowCache(read, shape, max_bytes=max_bytes)
    return ContrastPairs(
        values,
        [position[contrast.cases] for contrast in found],
        [position[contrast.controls] for contrast in found],
        contrasts=table,
        var=samples.var.copy(),
        sample_names=samples.obs.index[used].astype(str),
        uns=uns,
    )
