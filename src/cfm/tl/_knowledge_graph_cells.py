"""Cells behind :func:`cfm.tl.knowledge_graph`: their codes, and what the genes do in each code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import ttest_ind_from_stats

from cfm.data._counts import Units, canonical, check_count_values, check_log_cp10k, log1p_cp10k
from cfm.data._matrix import check_unique_names, get_matrix, in_memory_frame, row_blocks
from cfm.data._warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@dataclass(frozen=True)
class CodedCells:
    """Which cells have which code.

    Attributes
    ----------
    names
        Codes with enough cells, numbers in their order, else sorted.
    rows
        ``(n,)`` int64, row numbers of the cells with any code, by their names: what is drawn at
        random from them does not depend on the order of the data.
    code
        ``(n,)`` int64, place of their code in ``names``, −1 for a code with too few cells.
    """

    names: list[str]
    rows: np.ndarray
    code: np.ndarray

    @property
    def sizes(self) -> np.ndarray:
        """Number of cells of each code."""
        return np.bincount(self.code[self.code >= 0], minlength=len(self.names))


@dataclass(frozen=True)
class CodeExpression:
    """What each gene does in each code, arrays ``(n_codes, n_genes)`` float64.

    Attributes
    ----------
    mean
        Mean of ``log1p`` of counts per 10,000.
    share
        Share of cells that express the gene.
    log2_fold_change
        Of the mean counts per 10,000 in the code against those in the other cells, 1 added to each.
    p_value
        Of Welch's t-test that the code has more.
    """

    mean: np.ndarray
    share: np.ndarray
    log2_fold_change: np.ndarray
    p_value: np.ndarray


def read_codes(adata: AnnData, codes: str, min_cells: int) -> CodedCells:
    """Read the codes of cells from a column of ``obs``.

    Raises
    ------
    KeyError
        If the column does not exist.
    ValueError
        If it holds measurements, or fewer than two groups of cells, or no code has enough cells.

    Warns
    -----
    UserWarning
        If codes have too few cells.
    """
    obs = in_memory_frame(adata.obs)
    if codes not in obs:
        raise KeyError(
            f"adata.obs has no column {codes!r}; it has {obs.columns.tolist()}. Run "
            f"cfm.tl.cell_codes(adata, key_added={codes!r}) first, or name a column of groups "
            "such as clusters with codes=."
        )
    check_unique_names(adata.obs_names, axis="obs")
    labels = category_texts(obs[codes], f"codes={codes!r}")
    present = np.flatnonzero(labels != "")
    found, counts = np.unique(labels[present].astype(str), return_counts=True)
    if len(found) < 2:
        raise ValueError(
            f"adata.obs[{codes!r}] has {len(found)} code ({', '.join(found) or 'all missing'}) in "
            f"{adata.n_obs} cells; a graph sets codes apart, so at least two are needed."
        )
    names = sorted(found[counts >= min_cells].tolist(), key=_natural)
    if not names:
        raise ValueError(
            f"adata.obs[{codes!r}] has {len(found)} codes in {len(present)} cells, and none has "
            f"min_cells={min_cells} (the largest has {counts.max()}); use coarser codes, or lower "
            "min_cells."
        )
    if len(names) < len(found):
        n_left = int(counts[counts < min_cells].sum())
        warn_user(
            f"{len(found) - len(names)} of {len(found)} codes have fewer than "
            f"min_cells={min_cells} cells ({n_left} cells together) and are left out of the graph."
        )
    rows = present[np.argsort(adata.obs_names.astype(str).to_numpy()[present], kind="stable")]
    return CodedCells(names, rows, pd.Index(names).get_indexer(labels[rows]).astype(np.int64))


def category_texts(column: pd.Series, what: str) -> np.ndarray:
    """Return a column of categories as text, ``""`` where it is missing.

    Raises
    ------
    ValueError
        If it holds measurements.
    """
    if column.dtype.kind == "f" and (column.dropna() % 1 != 0).any():
        raise ValueError(
            f"{what} holds numbers that are not whole, such as {column.dropna().iloc[0]:.4g}; "
            "expected categories: cut it into some with pandas.cut."
        )
    if column.dtype.kind == "f":
        column = column.astype("Int64")
    values = column.astype(object)
    return values.where(values.notna(), "").astype(str).to_numpy(dtype=object)


def _natural(name: str) -> tuple[bool, float, str]:
    """Sort key: numbers by size, before texts."""
    is_number = name.isdecimal()
    return (not is_number, float(name) if is_number else 0.0, name)


class ExpressionReader:
    """Expression of cells as ``log1p`` of counts per 10,000, in one pass.

    Parameters
    ----------
    adata
        Cells by genes, any storage.
    layer
        Layer to read instead of ``X``.
    units
        What it holds; checked.

    Raises
    ------
    KeyError, ValueError
        If the layer does not exist, is empty, or ``units`` is unknown.
    """

    def __init__(self, adata: AnnData, layer: str | None, units: Units) -> None:
        self.units = units
        self._matrix = get_matrix(adata, layer=layer)
        self._where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"

    def read(
        self, cells: CodedCells, columns: np.ndarray
    ) -> tuple[CodeExpression, sparse.csc_matrix]:
        """Return what the genes do in each code, and some genes in each cell.

        Parameters
        ----------
        cells
            The cells that count.
        columns
            ``(m,)`` genes to keep.

        Returns
        -------
        expression
            Of all genes.
        kept
            ``(n, m)`` CSC float64: the cells in the order of ``cells.rows``.

        Raises
        ------
        ValueError
            If the values are not in the units that were declared.
        """
        n_obs, n_genes = self._matrix.shape
        n_codes = len(cells.names)
        group = np.full(n_obs, -1, dtype=np.int64)
        group[cells.rows] = np.where(cells.code < 0, n_codes, cells.code)
        sums, squares, expressed, linear = (np.zeros((n_codes + 1, n_genes)) for _ in range(4))
        kept = []
        for rows, block in row_blocks(self._matrix):
            values = self._normalised(sparse.csr_matrix(block))
            known = np.flatnonzero(group[rows] >= 0)
            member = sparse.csr_matrix(
                (np.ones(len(known)), (group[rows][known], known)),
                shape=(n_codes + 1, values.shape[0]),
            )
            sums += (member @ values).toarray()
            squares += (member @ values.power(2)).toarray()
            expressed += (member @ values.sign()).toarray()
            linear += (member @ values.expm1()).toarray()
            kept.append(values[:, columns])
        sizes = np.bincount(group[cells.rows], minlength=n_codes + 1)
        chosen = sparse.vstack(kept, format="csr")[cells.rows].tocsc()
        return _summary(sums, squares, expressed, linear, sizes), chosen

    def _normalised(self, block: sparse.csr_matrix) -> sparse.csr_matrix:
        if self.units == "counts":
            check_count_values(block.data, self._where)
            return log1p_cp10k(block)[0]
        check_log_cp10k(block, self._where)
        return canonical(block, np.float64)


def _summary(
    sums: np.ndarray,
    squares: np.ndarray,
    expressed: np.ndarray,
    linear: np.ndarray,
    sizes: np.ndarray,
) -> CodeExpression:
    """Return the statistics of codes from sums; the last row is of cells in none of them."""
    own_n = sizes[:-1, None].astype(np.float64)
    other_n = sizes.sum() - own_n
    own = sums[:-1] / own_n
    with np.errstate(all="ignore"):  # of one cell there is no variance, and no test
        other = (sums.sum(axis=0) - sums[:-1]) / other_n
        elsewhere = (linear.sum(axis=0) - linear[:-1]) / other_n
        own_var = (squares[:-1] - own_n * own**2) / (own_n - 1)
        other_var = (squares.sum(axis=0) - squares[:-1] - other_n * other**2) / (other_n - 1)
        p_value = ttest_ind_from_stats(
            own,
            np.sqrt(np.maximum(own_var, 0.0)),
            own_n,
            other,
            np.sqrt(np.maximum(other_var, 0.0)),
            other_n,
            equal_var=False,
            alternative="greater",
        ).pvalue
    return CodeExpression(
        mean=own,
        share=expressed[:-1] / own_n,
        log2_fold_change=np.log2((linear[:-1] / own_n + 1.0) / (elsewhere + 1.0)),
        p_value=np.where(np.isfinite(p_value), p_value, 1.0),
    )


def sample_cells(cells: CodedCells, n_cells: int, seed: int) -> list[np.ndarray]:
    """Draw at most ``n_cells`` cells of each code; returns their row numbers.

    The draw of a code depends on the seed, its own name and cells only.
    """
    drawn = []
    for number, name in enumerate(cells.names):
        own = cells.rows[cells.code == number]
        rng = np.random.default_rng([seed, *name.encode()])
        drawn.append(own[np.sort(rng.permutation(len(own))[:n_cells])])
    return drawn


def gene_columns(names: Sequence[str], adata: AnnData) -> dict[str, int]:
    """Find genes among the columns of data, also under previous symbols or Ensembl ids."""
    from cfm.data import GeneVocabulary

    listed = sorted(set(names) - {""})
    if not listed:
        return {}
    found = GeneVocabulary(listed).align(adata.var_names, min_genes=0)
    return {
        listed[place]: int(column)
        for place, column in zip(found.positions, found.columns, strict=True)
    }
