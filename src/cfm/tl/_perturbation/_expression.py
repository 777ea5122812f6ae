"""Log expression of observations in blocks, random draws of observations, and shifts."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np

from cfm._units import LIBRARY, decide_units
from cfm.data._matrix import by_rows, get_matrix, read_rows, to_dense

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import pandas as pd
    from anndata import AnnData
    from numpy.typing import NDArray

    from cfm._units import Units

    Array = NDArray[np.float64]

#: Rows in a block.
_BLOCK = 1024
#: Largest number of observations to fit principal components.
_FITTED = 4096


class LogCells:
    """Log expression of an AnnData: the values, or log1p of counts per 10,000.

    Parameters
    ----------
    adata
        Observations.
    layer
        Layer to read instead of ``X``.
    counts
        Whether the matrix holds counts.
    genes
        Names of the genes to read, in their order; all by default.
    whole_library
        Whether the library size of counts is over all genes, or over those to read.

    Attributes
    ----------
    genes
        Names of the columns to read.
    names
        ``(n,)`` names of the observations.
    counts
        Whether the matrix holds counts.
    """

    def __init__(
        self,
        adata: AnnData,
        *,
        layer: str | None = None,
        counts: bool = False,
        genes: pd.Index | None = None,
        whole_library: bool = True,
    ) -> None:
        self.genes = adata.var_names if genes is None else genes
        self.names = adata.obs_names.to_numpy(dtype=object)
        self.counts = counts
        self._matrix = by_rows(get_matrix(adata, layer=layer))
        self._whole = whole_library
        same = self.genes.equals(adata.var_names)
        self._columns = slice(None) if same else adata.var_names.get_indexer(self.genes)

    def read(self, rows: np.ndarray) -> Array:
        """Return ``(n, genes)`` float64 of some observations, in the order given.

        Raises
        ------
        ValueError
            If a value is not finite, or a count is negative.
        """
        block = read_rows(self._matrix, rows)
        if self.counts and self._whole:
            return to_log(to_dense(block), counts=True)[:, self._columns]
        return to_log(to_dense(block[:, self._columns]), counts=self.counts)

    def blocks(self, rows: np.ndarray) -> Iterator[tuple[slice, Array]]:
        """Yield the places in ``rows`` and the expression of a block of them at a time."""
        for start in range(0, len(rows), _BLOCK):
            place = slice(start, start + _BLOCK)
            yield place, self.read(rows[place])

    def weighted(self, rows: np.ndarray, weights: np.ndarray) -> Array:
        """Return ``(k, genes)`` weighted sums for ``(k, n)`` weights."""
        total = np.zeros((len(weights), len(self.genes)))
        for place, block in self.blocks(rows):
            total += weights[:, place] @ block
        return total

    def mean(self, rows: np.ndarray) -> Array:
        """Return the ``(genes,)`` mean over at least one observation."""
        return self.weighted(rows, np.full((1, len(rows)), 1.0 / len(rows)))[0]


class Components:
    """Principal components of log expression.

    Parameters
    ----------
    cells
        Observations to fit.
    rows
        Row numbers; of many, a random part.
    n_components
        Number of components; fewer where there are fewer genes or observations.
    seed
        Seed of the draw, and of a randomised solver.
    """

    def __init__(self, cells: LogCells, rows: np.ndarray, n_components: int, seed: int) -> None:
        from sklearn.decomposition import PCA

        rows = draw_rows(cells.names, rows, _FITTED, seed, "components")
        values = np.empty((len(rows), len(cells.genes)), dtype=np.float32)
        for place, block in cells.blocks(rows):
            values[place] = block
        n = min(n_components, len(rows) - 1, values.shape[1])
        fitted = PCA(n_components=max(n, 1), random_state=seed).fit(values)
        self._mean = fitted.mean_.astype(np.float64)
        self._axes = fitted.components_.astype(np.float64).T

    def of(self, values: Array) -> Array:
        """Return ``(n, components)`` of ``(n, genes)`` log expression."""
        return (values - self._mean) @ self._axes

    def read(self, cells: LogCells, rows: np.ndarray) -> Array:
        """Return the components of observations."""
        return np.vstack([self.of(block) for _, block in cells.blocks(rows)])


def draw_rows(names: np.ndarray, rows: np.ndarray, n: int, seed: int, purpose: str) -> np.ndarray:
    """Draw at most ``n`` of some rows by their names, independent of their order.

    Parameters
    ----------
    names
        Names of all observations.
    rows
        Row numbers to draw from.
    n
        Largest number of rows.
    seed, purpose
        Seeds of the draw.

    Returns
    -------
    Row numbers in the order of their names.
    """
    rows = rows[np.argsort(names[rows], kind="stable")]
    if len(rows) <= n:
        return rows
    rng = np.random.default_rng([seed, zlib.crc32(purpose.encode())])
    return rows[np.sort(rng.permutation(len(rows))[:n])]


def rows_hold_counts(
    adata: AnnData, rows: np.ndarray, layer: str | None, units: Units, *, where: str
) -> bool:
    """Return whether some rows of a matrix hold counts; check that values are finite.

    Raises
    ------
    ValueError
        If a value is not finite, or units are unclear; see :func:`cfm._units.decide_units`.
    """
    matrix = by_rows(get_matrix(adata, layer=layer))
    starts = range(0, len(rows), _BLOCK)
    blocks = (read_rows(matrix, rows[start : start + _BLOCK]) for start in starts)
    uns = adata.uns if layer is None else None
    return decide_units(blocks, units, where=where, uns=uns) == "counts"


def to_log(values: Array, *, counts: bool) -> Array:
    """Return log expression: the values, or log1p of counts per 10,000.

    Raises
    ------
    ValueError
        If a value is not finite, or a count is negative.
    """
    if not np.isfinite(values).all():
        raise ValueError(
            "The matrix holds NaN or infinite values, which have no mean; "
            "drop those genes or observations."
        )
    if not counts:
        return values
    if (values < 0).any():
        raise ValueError("The matrix holds negative values, so these are not counts.")
    total = values.sum(axis=1, keepdims=True)
    return np.log1p(values * (LIBRARY / np.where(total > 0, total, 1.0)))


def shift_log(values: Array, shift: Array) -> Array:
    """Add a change to log expression; observations without negative values stay at 0 or above.

    Parameters
    ----------
    values
        ``(n, genes)`` log expression.
    shift
        ``(genes,)`` or ``(n, genes)`` change.
    """
    signed = (values < 0).any(axis=1, keepdims=True)
    moved = values + shift
    return np.where(signed, moved, np.maximum(moved, 0.0))


def shift_counts(values: Array, shift: Array, names: Iterable[str], seed: int) -> Array:
    """Shift log1p of counts per 10,000, and convert it to counts of the same library size.

    Parameters
    ----------
    values
        ``(n, genes)`` counts.
    shift
        ``(genes,)`` or ``(n, genes)`` change of log expression.
    names, seed
        ``(n,)`` names of the new observations: with the seed the source of the rounding, up or
        down at random so that the mean stays.
    """
    expected = np.expm1(np.maximum(to_log(values, counts=True) + shift, 0.0))
    total = expected.sum(axis=1, keepdims=True)
    expected *= values.sum(axis=1, keepdims=True) / np.where(total > 0, total, 1.0)
    whole = np.floor(expected)
    draws = (np.random.default_rng([seed, zlib.crc32(name.encode())]) for name in names)
    return whole + (np.stack([d.random(values.shape[1]) for d in draws]) < expected - whole)
