"""What a matrix holds: counts or logarithms, single cells or bulk samples."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from cfm.data._matrix import LOG_CEILING, read_rows, row_blocks

#: Rows that the kind of a matrix is judged by.
_N_ROWS = 32
#: Counts that no single cell has in the median, and those that one has only with deep sequencing.
_MOST_COUNTS, _MANY_COUNTS = 1e6, 1e5
#: Share of the genes that bulk samples express and single cells do not; for so many genes.
_MOST_GENES, _LEAST_GENES = 0.5, 2000


def looks_like_counts(matrix: Any) -> bool:
    """Whether all values are whole, none is negative and some are beyond any logarithm (30).

    Parameters
    ----------
    matrix
        What :func:`cfm.data._matrix.get_matrix` returned.
    """
    maximum = 0.0
    for _, block in row_blocks(matrix):
        values = block.data if sparse.issparse(block) else block.ravel()
        values = values[np.isfinite(values)]
        if not values.size:
            continue
        if values.min() < 0 or (values.dtype.kind == "f" and (values != np.rint(values)).any()):
            return False
        maximum = max(maximum, float(values.max()))
    return maximum > LOG_CEILING


def check_single_cells(matrix: Any, where: str) -> None:
    """Refuse counts of bulk samples, judged by 32 rows spread over the matrix.

    Of about 40 public data sets, those of bulk samples have medians of 1 to 70 million counts, and
    those of single cells at most 300,000 (Smart-seq2), on a third of the measured genes. A
    pseudobulk of few cells has as many counts as a cell, and is not told from one.

    Parameters
    ----------
    matrix
        What :func:`cfm.data._matrix.get_matrix` returned, counts.
    where
        Its name in messages.

    Raises
    ------
    ValueError
        If the median library has more than 1,000,000 counts; or more than 100,000 and half of the
        genes are expressed.
    """
    n_rows, n_genes = matrix.shape
    if not n_rows:
        return
    rows = np.unique(np.linspace(0, n_rows - 1, min(n_rows, _N_ROWS)).astype(np.int64))
    block = read_rows(matrix, rows)
    total = float(np.median(np.asarray(block.sum(axis=1), dtype=np.float64)))
    share = float(np.median(np.asarray((block > 0).sum(axis=1)))) / max(n_genes, 1)
    many = total > _MANY_COUNTS and share > _MOST_GENES and n_genes >= _LEAST_GENES
    if total > _MOST_COUNTS or many:
        raise ValueError(
            f"{where} holds {total:,.0f} counts a row in the median, and {share:.0%} of the genes "
            "are expressed: these are bulk samples, and the model reads single cells. Pass bulk "
            "samples to cfm.models.BulkFormer or CellPulse; of cells that were sequenced this "
            "deeply draw fewer counts first (sc.pp.downsample_counts)."
        )
