"""Reads donors out of an AnnData of cells: which cells are whose, and draws of them."""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from cfm._sparse_indices import check_sparse
from cfm.data._matrix import (
    by_rows,
    check_indices,
    check_not_empty,
    check_unique_names,
    in_memory_frame,
    read_rows,
    row_blocks,
    to_dense,
)
from cfm.data._modality import require_anndata
from cfm.data._warn import warn_user
from cfm.models._base import check_column

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from anndata import AnnData

    from cfm.models.pulsar._projection import CellProjection

#: Donors with fewer cells are embedded, with a warning.
FEW_CELLS = 10
#: Matrices in files that were gone through, by ``id``: a model asks for its own several times.
_CHECKED: dict[int, weakref.ref[Any]] = {}


@dataclass(frozen=True)
class Donors:
    """The cells of donors.

    Attributes
    ----------
    names
        ``(n_donors,)`` names, sorted.
    rows
        For each donor the rows of its cells, in the order of the cells' names, so that neither
        the order of the rows nor other donors change what is drawn.
    cells
        ``(n_cells, width)`` float32, the representation of all cells; rows of it are read when they
        are asked for if it lies in a file.
    """

    names: pd.Index
    rows: list[np.ndarray]
    cells: np.ndarray | StoredCells

    @property
    def n_cells(self) -> np.ndarray:
        """Cells of each donor, ``(n_donors,)`` int64."""
        return np.array([len(rows) for rows in self.rows], dtype=np.int64)

    def draws(
        self, n_cells: int | None, n_draws: int, seed: int
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Yield ``(donor, rows of a draw)``; donors with no more than ``n_cells`` once, whole."""
        for donor, rows in enumerate(self.rows):
            if n_cells is None or len(rows) <= n_cells:
                yield donor, rows
                continue
            for draw in range(n_draws):
                rng = np.random.default_rng([seed, draw, stable_number(self.names[donor])])
                yield donor, rng.choice(rows, size=n_cells, replace=False)


class StoredCells:
    """A representation of cells in a file or computed by dask, of which rows are read when needed.

    Parameters
    ----------
    matrix
        Cells by dimensions, as ``obsm`` has it.
    """

    dtype = np.dtype(np.float32)
    ndim = 2

    def __init__(self, matrix: Any) -> None:
        self._matrix = by_rows(check_indices(matrix, "the representation of cells"))
        self.shape: tuple[int, int] = self._matrix.shape

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: Any) -> np.ndarray:
        """Return rows by number, slice, array of numbers or mask."""
        if isinstance(rows, slice | int | np.integer):
            rows = np.arange(len(self))[rows]
        rows = np.asarray(rows)
        if rows.ndim == 0:
            return self[rows[None]][0]
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        return to_dense(read_rows(self._matrix, rows), np.float32)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype=dtype)

    def blocks(self) -> Iterator[np.ndarray]:
        """Go through all cells, a block at a time."""
        for _, block in row_blocks(self._matrix):
            yield to_dense(block, np.float32)

    def mean(self, axis: int = 0) -> np.ndarray:
        """Return the mean cell, ``(width,)`` float32, to the last digit as numpy gives it."""
        return self._sum(axis) / np.float32(len(self))

    def std(self, axis: int = 0) -> np.ndarray:
        """Return the standard deviation of each column, as :meth:`mean`."""
        mean = self.mean(axis)
        return np.sqrt(self._sum(axis, lambda block: (block - mean) ** 2) / np.float32(len(self)))

    def _sum(
        self, axis: int, change: Callable[[np.ndarray], np.ndarray] = lambda block: block
    ) -> np.ndarray:
        """Add up rows one after the other, as numpy does along the first axis."""
        if axis != 0:
            raise ValueError(f"axis={axis}; cells in a file are only summed over, along axis 0.")
        total = np.zeros(self.shape[1], dtype=np.float32)
        for block in self.blocks():
            total = np.add.reduce(np.concatenate([total[None], change(block)]), axis=0)
        return total


def stable_number(text: str) -> int:
    """Return a number that stands for a text, the same on every machine."""
    digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def read_donors(
    adata: AnnData,
    donor_key: str,
    use_rep: str | None,
    width: int | None = None,
    *,
    projection: CellProjection | None = None,
    layer: str | None = None,
) -> Donors:
    """Read the representation of cells, and whose they are.

    Parameters
    ----------
    adata
        Cells.
    donor_key
        Column of ``obs`` with the donor.
    use_rep
        Name in ``obsm``; ``None`` for counts, which are projected. Without a projection cells
        have no columns.
    width
        Columns that the representation must have, if known.
    projection, layer
        What projects counts, and the layer with them instead of ``X``.

    Raises
    ------
    TypeError, KeyError, ValueError
        If ``adata`` is no AnnData, has no such column or representation, donor ids or values are
        missing, names of cells are not unique, the width is wrong, or counts are none.

    Warns
    -----
    UserWarning
        If donors have few cells.
    """
    require_anndata(adata)
    check_column(adata, donor_key)
    check_unique_names(adata.obs_names, axis="obs")
    cells = represent(adata, use_rep, width, projection=projection, layer=layer)
    ids = in_memory_frame(adata.obs)[donor_key].astype(str).to_numpy(dtype=object)
    if (ids == "").any():
        raise ValueError(
            f"adata.obs[{donor_key!r}] is empty in {int((ids == '').sum())} of {len(ids)} rows; "
            "fill it in, or drop those rows."
        )
    order = np.argsort(adata.obs_names.to_numpy(dtype=str), kind="stable")
    names, which = np.unique(ids[order].astype(str), return_inverse=True)
    by_donor = np.argsort(which, kind="stable")
    sizes = np.bincount(which, minlength=len(names))
    rows = np.split(order[by_donor], np.cumsum(sizes)[:-1])
    few = int((sizes < FEW_CELLS).sum())
    if few:
        warn_user(
            f"{few} of {len(names)} donors have fewer than {FEW_CELLS} cells (the fewest "
            f"{int(sizes.min())}); what is said of them is mostly about which cells were caught."
        )
    return Donors(pd.Index(names.astype(object), name=donor_key), rows, cells)


def represent(
    adata: AnnData,
    use_rep: str | None,
    width: int | None = None,
    *,
    projection: CellProjection | None = None,
    layer: str | None = None,
) -> np.ndarray | StoredCells:
    """Return what represents cells, ``(n, width)``; arguments as of `read_donors`."""
    if use_rep is not None:
        return read_cells(adata, use_rep, width)
    if projection is not None:
        return projection.transform(adata, layer)
    check_not_empty(adata)
    return np.empty((adata.n_obs, 0), dtype=np.float32)


def read_cells(adata: AnnData, use_rep: str, width: int | None) -> np.ndarray | StoredCells:
    """Return a representation of cells as ``(n, width)`` float32; errors as of `read_donors`.

    What lies in a file, or is computed by dask, stays there, but is gone through once to check it.
    """
    check_not_empty(adata)
    if use_rep not in adata.obsm:
        hint = (
            " Make it from counts with cfm.tl.embed(adata, model) and a cfm.models.UCE, name the "
            "representation that the model was trained on, or pass model='pulsar-mini', which "
            "reads counts."
            if use_rep == "X_uce"
            else ""
        )
        raise KeyError(f"adata.obsm has no {use_rep!r}; it has {sorted(adata.obsm)}.{hint}")
    found: Any = check_sparse(adata.obsm[use_rep], f"adata.obsm[{use_rep!r}]")
    cells: np.ndarray | StoredCells
    if _is_stored(found):
        cells = StoredCells(found)
        blocks: Iterable[np.ndarray] = cells.blocks()
    else:
        if hasattr(found, "toarray"):
            found = found.toarray()
        cells = np.asarray(found, dtype=np.float32)
        blocks = [cells]
    if width is not None and cells.shape[1] != width:
        raise ValueError(
            f"adata.obsm[{use_rep!r}] has {cells.shape[1]} columns; the model reads {width}: pass "
            "the representation that it was trained on as use_rep=."
        )
    stored = isinstance(cells, StoredCells)
    if stored and id(found) in _CHECKED and _CHECKED[id(found)]() is found:
        return cells
    bad = sum(int((~np.isfinite(block).all(axis=1)).sum()) for block in blocks)
    if bad:
        raise ValueError(
            f"adata.obsm[{use_rep!r}] is NaN or infinite in {bad} of {len(cells)} cells; drop "
            "those cells, or embed them again."
        )
    if stored:
        _CHECKED[id(found)] = weakref.ref(found)
    return cells


def _is_stored(matrix: Any) -> bool:
    """Whether a matrix is not in memory: in a file, or to be computed by dask."""
    if isinstance(matrix, np.ndarray | pd.DataFrame) or sparse.issparse(matrix):
        return False
    return hasattr(matrix, "compute") or not hasattr(matrix, "toarray")
