"""Whether a matrix holds counts, where logarithms are wanted."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

from cfm.data._matrix import LOG_CEILING, row_blocks


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
