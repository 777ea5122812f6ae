"""Donors of an AnnData of cells: which cells are whose, draws of them, and training batches."""

from __future__ import annotations

import hashlib
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np
import pandas as pd
import torch
from scipy import sparse
from torch import Tensor

from cfm._adata import check_sparse, require_anndata, warn_user
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
from cfm.models._base import check_column
from cfm.models._streams import Drawn, RowStream

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from anndata import AnnData

    from cfm.models.pulsar._projection import CellProjection

#: Donors with fewer cells are embedded, with a warning.
FEW_CELLS = 10
#: Matrices in files that were checked, by ``id``: a model reads its own several times.
_CHECKED: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
#: Columns of ``obs`` that may name a tissue.
_TISSUE_COLUMNS = ("tissue", "tissue_general", "tissue_type", "organ")


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
        ``(n_cells, width)`` float32, the representation of all cells; rows in a file are read when
        needed.
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

    def parts(self, donor: int, n_cells: int, seed: int) -> list[np.ndarray]:
        """Split the rows of a donor at random into parts of like size, at most ``n_cells``."""
        rows = self.rows[donor]
        if len(rows) <= n_cells:
            return [rows]
        rng = np.random.default_rng([seed, stable_number(self.names[donor])])
        return list(np.array_split(rng.permutation(rows), -(-len(rows) // n_cells)))


class StoredCells:
    """A representation of cells in a file or of dask, whose rows are read when needed.

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
            f"{int(sizes.min())}); their results depend mostly on which cells were caught."
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
    if stored and _CHECKED.get(id(found)) is found:
        return cells
    bad = sum(int((~np.isfinite(block).all(axis=1)).sum()) for block in blocks)
    if bad:
        raise ValueError(
            f"adata.obsm[{use_rep!r}] is NaN or infinite in {bad} of {len(cells)} cells; drop "
            "those cells, or embed them again."
        )
    if stored:
        _CHECKED[id(found)] = found
    return cells


def _is_stored(matrix: Any) -> bool:
    """Return whether a matrix is in a file or computed by dask."""
    if isinstance(matrix, np.ndarray | pd.DataFrame) or sparse.issparse(matrix):
        return False
    return hasattr(matrix, "compute") or not hasattr(matrix, "toarray")


def constant_within(adata: AnnData, donors: Donors, key: str) -> np.ndarray:
    """Return the value that a column of ``obs`` has for each donor, ``(n_donors,)``.

    Raises
    ------
    KeyError, ValueError
        If there is no such column, or it varies within a donor.
    """
    if key not in adata.obs:
        raise KeyError(f"adata.obs has no column {key!r}; it has {adata.obs.columns.tolist()}.")
    values = adata.obs[key].to_numpy(dtype=object)
    varying = [
        str(name)
        for name, rows in zip(donors.names, donors.rows, strict=True)
        if len(set(map(str, values[rows]))) > 1
    ]
    if varying:
        raise ValueError(
            f"adata.obs[{key!r}] has several values within {len(varying)} donors (such as "
            f"{varying[0]!r}); one per donor is expected: take donor and condition together as the "
            "donor, if they are separate samples."
        )
    return np.array([values[rows[0]] for rows in donors.rows], dtype=object)


def warn_out_of_scope(adata: AnnData, scope: Sequence[str] | None) -> None:
    """Warn if ``obs`` names a tissue that the model was not made for."""
    if not scope:
        return
    for column in _TISSUE_COLUMNS:
        if column not in adata.obs:
            continue
        tissues = sorted(set(adata.obs[column].dropna().astype(str)))
        others = [t for t in tissues if not any(word in t.lower() for word in scope)]
        if column == "tissue_type":  # CELLxGENE: "tissue", "organoid", "cell culture"
            others = [t for t in others if t.lower() not in ("tissue", "")]
        if others:
            warn_user(
                f"The model was trained on {' and '.join(scope)} only, but adata.obs[{column!r}] "
                f"names {others[:3]}; embeddings of donors by other tissues have not been tested."
            )
            return


def mean_over_draws(embedded: np.ndarray, whose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean of each donor's draws, ``(n_donors, dim)``, and their spread.

    ``embedded`` is ``(n_draws, dim)``, and ``whose`` the number of each draw's donor. The spread of
    a donor is the root of the mean squared distance of single draws from their mean (with one
    degree of freedom less), ``NaN`` with one draw.
    """
    times = np.bincount(whose)
    mean = np.zeros((len(times), embedded.shape[1]))
    np.add.at(mean, whose, embedded)
    mean /= times[:, None]
    square = np.bincount(whose, ((embedded - mean[whose]) ** 2).sum(axis=1))
    with np.errstate(invalid="ignore"):
        return mean, np.sqrt(square / (times - 1))


class Batch(NamedTuple):
    """Two draws of each of ``b`` donors, one after the other: ``2 b`` rows.

    Attributes
    ----------
    visible, visible_padding
        ``(2b, k, input_dim)`` cells that the encoder sees, and ``(2b, k)`` bool.
    hidden, hidden_padding
        ``(2b, m, input_dim)`` cells to reconstruct, and ``(2b, m)`` bool.
    masked
        ``(2b, m, input_dim)`` bool, elements of them that are hidden.
    donor
        ``(2b,)`` int64, whose draw it is.
    label
        ``(2b,)`` int64, what donors are aligned by; −1 without a label.
    """

    visible: Tensor
    visible_padding: Tensor
    hidden: Tensor
    hidden_padding: Tensor
    masked: Tensor
    donor: Tensor
    label: Tensor


class DonorStream(RowStream):
    """Batches of donors in random order, each donor once an epoch.

    Parameters
    ----------
    donors
        Their cells.
    chosen
        ``(n,)`` numbers of the donors to go through.
    batch_size
        Donors per batch and process.
    n_cells
        Cells of a draw.
    seed, fixed, n_processes
        See :class:`cfm.models._streams.RowStream`.
    """

    def __init__(
        self,
        donors: Donors,
        chosen: np.ndarray,
        *,
        batch_size: int,
        n_cells: int,
        seed: int,
        fixed: bool = False,
        n_processes: int = 1,
    ) -> None:
        super().__init__(
            chosen,
            batch_size=batch_size,
            seed=seed,
            fixed=fixed,
            block_size=1,
            n_processes=n_processes,
        )
        self.donors = donors
        self.n_cells = n_cells

    def numbers(self) -> tuple[np.random.Generator, torch.Generator]:
        """Return the random numbers of the present epoch."""
        return np.random.default_rng([self.seed, self.epoch]), torch.Generator()

    def make(
        self, content: Any, number: int, rng: np.random.Generator, generator: torch.Generator
    ) -> Any:
        """Return a batch of an epoch."""
        return self.draw(self.drawn(content, number), rng)

    def draw(self, drawn: Drawn, rng: np.random.Generator) -> Any:
        """Make a batch: ``(cells, padding, numbers of the donors)``, one draw of each."""
        draws = []
        for i in drawn.rows:
            rows = self.donors.rows[i]
            draws.append(rng.choice(rows, size=min(self.n_cells, len(rows)), replace=False))
        own = torch.from_numpy(drawn.own.astype(np.int64))
        return *self._padded(draws[drawn.part]), own

    def _padded(self, draws: Sequence[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Return cells ``(b, n, width)`` and padding ``(b, n)`` of draws of any sizes."""
        longest = max(1, *(len(draw) for draw in draws))
        cells = np.zeros((len(draws), longest, self.donors.cells.shape[1]), dtype=np.float32)
        padding = np.ones((len(draws), longest), dtype=bool)
        for i, draw in enumerate(draws):
            cells[i, : len(draw)] = self.donors.cells[draw]
            padding[i, : len(draw)] = False
        return torch.from_numpy(cells), torch.from_numpy(padding)


class PretrainingStream(DonorStream):
    """Two draws of each donor, and the cells of them that the encoder sees.

    Parameters
    ----------
    *args, **kwargs
        As for :class:`DonorStream`.
    labels
        ``(n_donors,)`` int64, −1 without a label.
    keep_share
        Share of a draw's cells that the encoder sees, at least one.
    mask_share
        Share of the elements of the other cells that is hidden.
    """

    def __init__(
        self, *args: Any, labels: np.ndarray, keep_share: float, mask_share: float, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self.labels = labels
        self.keep_share = keep_share
        self.mask_share = mask_share

    def draw(self, drawn: Drawn, rng: np.random.Generator) -> Batch:
        """Make a batch of two draws, which share no cells if the donor has more than one."""
        visible: list[list[np.ndarray]] = [[], []]
        hidden: list[list[np.ndarray]] = [[], []]
        for i in drawn.rows:
            rows = rng.permutation(self.donors.rows[i])
            half = max(1, len(rows) // 2)
            for k, part in enumerate((rows[:half], rows[half:] if len(rows) > 1 else rows)):
                draw = part[: self.n_cells]
                n_seen = max(1, round(self.keep_share * len(draw)))
                visible[k].append(draw[:n_seen])
                hidden[k].append(draw[n_seen:])
        own = drawn.part
        longest = max(1, *(len(draw) for draws in hidden for draw in draws))
        seen, seen_padding = self._padded(visible[0][own] + visible[1][own])
        unseen, unseen_padding = self._padded(hidden[0][own] + hidden[1][own])
        first, last, _ = own.indices(len(drawn.rows))
        places = np.arange(2 * len(drawn.rows)).reshape(2, -1)[:, first:last].ravel()
        shape = (2 * len(drawn.rows), longest, unseen.shape[2])
        masked = some_rows(rng, shape, places)[:, : unseen.shape[1]] < self.mask_share
        donor = np.tile(drawn.own, 2).astype(np.int64)
        return Batch(
            seen,
            seen_padding,
            unseen,
            unseen_padding,
            torch.from_numpy(masked),
            torch.from_numpy(donor),
            torch.from_numpy(self.labels[donor]),
        )


def some_rows(rng: np.random.Generator, shape: tuple[int, ...], places: np.ndarray) -> np.ndarray:
    """Return some rows of ``rng.random(shape, dtype=np.float32)``; the others are skipped.

    Parameters
    ----------
    rng
        Random numbers; they go on as if all had been drawn.
    shape
        Of all of them.
    places
        ``(k,)`` rows, ascending.
    """
    size = int(np.prod(shape[1:]))
    out = np.empty((len(places), *shape[1:]), dtype=np.float32)
    at = 0
    for i, place in enumerate(places.tolist()):
        _skip(rng, (place - at) * size)
        rng.random(out=out[i], dtype=np.float32)
        at = place + 1
    _skip(rng, (shape[0] - at) * size)
    return out


def _skip(rng: np.random.Generator, n: int) -> None:
    """Go on as if ``n`` float32 had been drawn."""
    generator = rng.bit_generator
    if n and generator.state["has_uint32"]:  # the half of a number is left over
        rng.random(dtype=np.float32)
        n -= 1
    if n > 1:
        cast("np.random.PCG64", generator).advance(n // 2)
    if n % 2:
        rng.random(dtype=np.float32)
