"""Log expression of observations, read in parts, and points that stand for them."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._units import decide_units
from cfm.data._matrix import by_rows, get_matrix, read_rows, to_dense
from cfm.tl._perturbation_units import to_log

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData
    from numpy.typing import NDArray

    from cfm._units import Units

    Array = NDArray[np.float64]

#: Rows that are read at a time.
_BLOCK = 1024
#: Observations that principal components are fitted on at most.
_FITTED = 4096


class LogCells:
    """Log expression of an AnnData: as it is, or log1p of counts per 10,000.

    Parameters
    ----------
    adata
        Observations.
    layer
        Layer to read instead of ``X``.
    counts
        Whether it holds counts.
    genes
        Names of the genes to read, in their order; all by default.
    whole_library
        Of counts, whether the library size counts all genes or only those that are read.

    Attributes
    ----------
    genes
        Names of the columns that are read.
    names
        ``(n,)`` names of the observations.
    counts
        Whether there are counts.
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
        self._matrix = by_rows(get_matrix(adata, layer=layer))
        self.counts = counts
        self._whole = whole_library
        same = genes is None or genes.equals(adata.var_names)
        self._columns = None if same else adata.var_names.get_indexer(self.genes)

    def read(self, rows: np.ndarray) -> Array:
        """Return ``(n, genes)`` float64 of some observations, in the order given.

        Raises
        ------
        ValueError
            If a value is not finite, or a count is negative.
        """
        return self.log(self.stored(rows))

    def stored(self, rows: np.ndarray) -> Array:
        """Return values as they are stored, of all genes whose sum is the library size."""
        block = read_rows(self._matrix, rows)
        return to_dense(block if self._all_stored else block[:, self._columns])

    def log(self, stored: Array) -> Array:
        """Return ``(n, genes)`` log expression of values such as :meth:`stored` returns."""
        values = to_log(stored, counts=self.counts)
        cut = self._all_stored and self._columns is not None
        return values[:, self._columns] if cut else values

    def widened(self, shift: Array) -> Array:
        """Return a ``(genes,)`` shift for what :meth:`stored` returns: 0 for the other genes."""
        if not self._all_stored or self._columns is None:
            return shift
        wide = np.zeros(self._matrix.shape[1])
        wide[self._columns] = shift
        return wide

    @property
    def _all_stored(self) -> bool:
        return self._columns is None or (self.counts and self._whole)

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
        """Return ``(genes,)`` mean over at least one observation."""
        return self.weighted(rows, np.full((1, len(rows)), 1.0 / len(rows)))[0]


class Components:
    """Principal components of log expression.

    Parameters
    ----------
    cells
        What they are fitted on.
    rows
        Its observations to fit; of many, a random part.
    n_components
        Number of components; fewer where there are fewer genes or observations.
    seed
        Of the draw, and of a randomised solver.
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
    """Draw at most ``n`` of some rows by their names, whatever their order.

    Parameters
    ----------
    names
        Names of all observations.
    rows
        Row numbers to draw from.
    n
        How many.
    seed, purpose
        What the draw depends on.

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
    """Decide whether some rows of a matrix hold counts, and check that all values can be used.

    Raises
    ------
    ValueError
        If a value is not finite, or it cannot be decided; see :func:`cfm._units.decide_units`.
    """
    matrix = by_rows(get_matrix(adata, layer=layer))
    starts = range(0, len(rows), _BLOCK)
    blocks = (read_rows(matrix, rows[start : start + _BLOCK]) for start in starts)
    uns = adata.uns if layer is None else None
    return decide_units(blocks, units, where=where, uns=uns) == "counts"
