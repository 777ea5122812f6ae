"""Check that the values of a sparse matrix lie within it, before it is sliced or densified.

SciPy slices and densifies without that check, and an index outside the matrix ends the process. Its
own ``check_format`` changes the matrix, which is the user's.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy import sparse

_AXES = {"csr": ("row", "column"), "csc": ("column", "row")}


def check_sparse(matrix: Any, where: str) -> Any:
    """Return a matrix in memory, of which all values lie within it if it is sparse.

    Parameters
    ----------
    matrix
        What is not sparse is returned as it is; a format other than CSR and CSC becomes COO.
    where
        How to name the matrix in an error.

    Raises
    ------
    ValueError
        If the pointer (``indptr``) or an index is out of range.
    """
    if not sparse.issparse(matrix):
        return matrix
    problem: object = None
    if matrix.format in _AXES:
        n_pieces, n_across = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
        n_values = min(len(matrix.indices), len(matrix.data))
        problem = pointer_problem(matrix.indptr, n_pieces, n_values, matrix.format)
        if problem is None:
            indices = matrix.indices[: matrix.indptr[-1]]
            problem = index_problem(indices, matrix.indptr, n_across, matrix.format)
    else:
        matrix = matrix.tocoo()
        try:  # a new COO matrix is checked
            matrix = type(matrix)((matrix.data, (matrix.row, matrix.col)), shape=matrix.shape)
        except ValueError as error:
            problem = error
    if problem is not None:
        raise ValueError(
            f"{where} is damaged: {problem}. Read it from its file again; if that has the same "
            "error, copy or download the file again."
        )
    return matrix


def pointer_problem(
    indptr: np.ndarray, n_pieces: int, n_values: int, kind: str = "csr"
) -> str | None:
    """Return what is wrong with the pointer of a CSR or CSC matrix, if anything is.

    Parameters
    ----------
    indptr
        The pointer.
    n_pieces
        Rows of a CSR matrix, columns of a CSC matrix.
    n_values
        Values that are stored.
    kind
        ``"csr"`` or ``"csc"``.
    """
    if indptr.shape != (n_pieces + 1,) or indptr.dtype.kind not in "iu":
        return (
            f"indptr has shape {indptr.shape} and {indptr.dtype} values; expected {n_pieces + 1} "
            "integers"
        )
    falls = np.flatnonzero(indptr[1:] < indptr[:-1])
    if len(falls):
        here, axis = int(falls[0]), _AXES[kind][0]
        return (
            f"indptr falls from {indptr[here]} to {indptr[here + 1]} at {axis} {here}; expected "
            "values that never fall"
        )
    if indptr[0] != 0 or indptr[-1] > n_values:
        return f"indptr goes from {indptr[0]} to {indptr[-1]}; expected 0 to {n_values}"
    return None


def index_problem(
    indices: np.ndarray,
    indptr: np.ndarray,
    n_across: int,
    kind: str = "csr",
    pieces: np.ndarray | None = None,
) -> str | None:
    """Return which index of a CSR or CSC matrix is out of range, if one is.

    Parameters
    ----------
    indices
        Columns of the values of a CSR matrix, rows of those of a CSC matrix.
    indptr
        The pointer, in range.
    n_across
        Columns of a CSR matrix, rows of a CSC matrix.
    kind
        ``"csr"`` or ``"csc"``.
    pieces
        Numbers of the rows (columns) if they are some of a larger matrix.
    """
    if indices.dtype.kind not in "iu":
        return f"indices are {indices.dtype} values; integers are expected"
    # as unsigned numbers those below 0 are the largest, so that one pass finds all
    unsigned = indices.view(indices.dtype.str.replace("i", "u"))
    if not unsigned.size or unsigned.max() < n_across:
        return None
    here = int(np.argmax(unsigned >= n_across))
    piece = int(np.searchsorted(indptr, here, "right")) - 1
    piece = piece if pieces is None else int(pieces[piece])
    axis, across = _AXES[kind]
    return f"{axis} {piece} holds a value in {across} {indices[here]}; expected 0 to {n_across - 1}"
