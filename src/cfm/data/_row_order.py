"""In what order training goes through rows, so that files can be read in stretches."""

from __future__ import annotations

import numpy as np

#: Rows that lie together in storage and are read together.
BLOCK_SIZE = 64
#: Rows that are read, and shuffled, at a time.
BUFFER_ROWS = 8192


def shuffled_rows(
    rows: np.ndarray,
    rng: np.random.Generator,
    *,
    block_size: int = BLOCK_SIZE,
    buffer_rows: int = BUFFER_ROWS,
) -> np.ndarray:
    """Return rows in random order, near to random where there are more than fit a buffer.

    The rows are cut into blocks of neighbours; the blocks are put in random order and cut into
    buffers, and the rows of a buffer are shuffled. Up to ``buffer_rows`` rows, or with blocks of
    one row, this is a plain permutation. The order depends on rows and random numbers alone, not
    on how the data are stored, so that training from a file and from memory is the same.

    Parameters
    ----------
    rows
        ``(n,)`` row numbers, ascending.
    rng
        Random numbers.
    block_size
        Rows of a block.
    buffer_rows
        Rows of a buffer.

    Returns
    -------
    ``(n,)``, the same rows.
    """
    if block_size == 1 or len(rows) <= buffer_rows:
        return rng.permutation(rows)
    starts = rng.permutation(-(-len(rows) // block_size)) * block_size
    order = (starts[:, None] + np.arange(block_size)).ravel()
    order = rows[order[order < len(rows)]]
    for start in range(0, len(order), buffer_rows):
        rng.shuffle(order[start : start + buffer_rows])
    return order
