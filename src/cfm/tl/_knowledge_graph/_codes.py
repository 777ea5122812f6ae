"""Codes of cells, and the genes and annotations that distinguish a code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse
from scipy.stats import false_discovery_control, hypergeom

from cfm._adata import warn_user
from cfm.data._counts import Units, canonical, check_count_values, check_log_cp10k, log1p_cp10k
from cfm.data._matrix import check_unique_names, in_memory_frame, row_blocks
from cfm.stats._welch import welch_greater
from cfm.tl._code_tables import group_sums, membership

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from anndata import AnnData

#: Added to attention before ratios: mean attention in one cell of ten.
_PRIOR = 0.1


@dataclass(frozen=True)
class CodedCells:
    """The code of each cell.

    Attributes
    ----------
    names
        Codes with enough cells, numbers in their order, else sorted.
    rows
        ``(n,)`` int64, row numbers of the cells with any code, sorted by name: random draws do
        not depend on the order of the data.
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

    def sample(self, n_cells: int, seed: int) -> list[np.ndarray]:
        """Draw at most ``n_cells`` cells of each code; returns their row numbers.

        The draw of a code depends on the seed, its own name and cells only.
        """
        drawn = []
        for number, name in enumerate(self.names):
            own = self.rows[self.code == number]
            rng = np.random.default_rng([seed, *name.encode()])
            drawn.append(own[np.sort(rng.permutation(len(own))[:n_cells])])
        return drawn


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
    labels = _texts(obs[codes], f"codes={codes!r}")
    present = np.flatnonzero(labels != "")
    found, counts = np.unique(labels[present].astype(str), return_counts=True)
    if len(found) < 2:
        raise ValueError(
            f"adata.obs[{codes!r}] has {len(found)} code ({', '.join(found) or 'all missing'}) in "
            f"{adata.n_obs} cells; a graph compares codes, so at least two are needed."
        )
    names = sorted(found[counts >= min_cells].tolist(), key=_natural)
    if not names:
        raise ValueError(
            f"adata.obs[{codes!r}] has {len(found)} codes in {len(present)} cells, and none has "
            f"{min_cells} (the largest has {counts.max()}); use coarser codes, such as the groups "
            "of cfm.tl.cell_codes(adata, n_groups=…)."
        )
    if len(names) < len(found):
        n_left = int(counts[counts < min_cells].sum())
        warn_user(
            f"{len(found) - len(names)} of {len(found)} codes have fewer than {min_cells} cells "
            f"({n_left} cells together) and are left out of the graph."
        )
    rows = present[np.argsort(adata.obs_names.astype(str).to_numpy()[present], kind="stable")]
    return CodedCells(names, rows, pd.Index(names).get_indexer(labels[rows]).astype(np.int64))


def read_annotations(
    adata: AnnData, columns: Sequence[str], codes: str, reserved: Iterable[str]
) -> dict[str, np.ndarray]:
    """Read columns of ``obs`` as text, ``""`` where they are missing.

    Raises
    ------
    TypeError
        If ``columns`` is no list of names.
    KeyError
        If a column does not exist.
    ValueError
        If a column is named twice, is that of the codes, has the name of another kind of node
        or edge, or holds measurements.
    """
    if isinstance(columns, str):
        raise TypeError(f"annotations={columns!r} is one text; expected a list: [{columns!r}].")
    wanted = [str(name) for name in columns]
    obs = in_memory_frame(adata.obs)
    missing = [name for name in wanted if name not in obs]
    if missing:
        raise KeyError(
            f"adata.obs has no columns {missing} (annotations=); it has {obs.columns.tolist()}."
        )
    if len(set(wanted)) < len(wanted) or codes in wanted:
        raise ValueError(
            f"annotations={wanted} with codes={codes!r}; expected each column once, and others "
            "than that of the codes."
        )
    clash = sorted(set(reserved).intersection(wanted))
    if clash:
        raise ValueError(
            f"annotations holds {clash}, which are names of other kinds in the graph; rename "
            f"the columns, as in adata.obs.rename(columns={{{clash[0]!r}: 'my_{clash[0]}'}})."
        )
    return {name: _texts(obs[name], f"annotations: obs[{name!r}]") for name in wanted}


def _texts(column: pd.Series, what: str) -> np.ndarray:
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


@dataclass(frozen=True)
class CodeExpression:
    """Statistics of each gene in each code, arrays ``(n_codes, n_genes)`` float64.

    Attributes
    ----------
    share
        Share of cells that express the gene.
    log2_fold_change
        Log2 ratio of the mean counts per 10,000, plus 1, in the code and in the other cells.
    p_value
        P-value of Welch's t-test that the code has more, on ``log1p`` of counts per 10,000.
    """

    share: np.ndarray
    log2_fold_change: np.ndarray
    p_value: np.ndarray


def read_expression(
    matrix: Any, where: str, units: Units, cells: CodedCells, columns: np.ndarray
) -> tuple[CodeExpression, sparse.csr_matrix]:
    """Return statistics of the genes in each code, and some genes in each cell, in one pass.

    Parameters
    ----------
    matrix
        Cells by genes, any storage.
    where
        Name of the matrix, for errors.
    units
        Units of the matrix; checked.
    cells
        Codes of the cells.
    columns
        ``(m,)`` genes to keep.

    Returns
    -------
    expression
        Statistics of all genes.
    kept
        ``(n, m)`` CSR float64, ``log1p`` of counts per 10,000: the cells in the order of
        ``cells.rows``.

    Raises
    ------
    ValueError
        If the values are not in the declared units.
    """
    n_obs, n_genes = matrix.shape
    n_codes = len(cells.names)  # the last group has the cells without a code
    group = np.full(n_obs, -1, dtype=np.int64)
    group[cells.rows] = np.where(cells.code < 0, n_codes, cells.code)
    linear = np.zeros((n_codes + 1, n_genes))
    kept = []

    def blocks() -> Iterator[tuple[slice, sparse.csr_matrix]]:
        for rows, block in row_blocks(matrix):
            values = sparse.csr_matrix(block)
            if units == "counts":
                check_count_values(values.data, where)
                values = log1p_cp10k(values)[0]
            else:
                check_log_cp10k(values, where)
                values = canonical(values, np.float64)
            linear[:] += (membership(group[rows], n_codes + 1) @ values.expm1()).toarray()
            kept.append(values[:, columns])
            yield rows, values

    sums = group_sums(blocks(), group, n_codes + 1, n_genes)
    own, everything = sums.of(slice(n_codes)), sums.all()
    others = everything.minus(own)
    with np.errstate(invalid="ignore"):
        elsewhere = (linear.sum(axis=0) - linear[:-1]) / others.n
    expression = CodeExpression(
        share=own.positive / own.n,
        log2_fold_change=np.log2((linear[:-1] / own.n + 1.0) / (elsewhere + 1.0)),
        p_value=welch_greater(own, others)[1],
    )
    return expression, sparse.vstack(kept, format="csr")[cells.rows]


def importance(
    expression: CodeExpression,
    attention: np.ndarray | None,
    names: np.ndarray,
    *,
    n_genes: int,
    min_share: float,
    max_fdr: float,
) -> pd.DataFrame:
    """Return the genes of each code with the largest fold changes.

    Parameters
    ----------
    expression
        Statistics of the genes.
    attention
        ``(n_codes, n_genes)`` attention to each gene; ``None`` without a model.
    names
        ``(n_genes,)`` names, which order ties.
    n_genes
        Largest number of genes of a code.
    min_share
        Least share of the cells of the code that express a gene.
    max_fdr
        Largest false discovery rate within a code.

    Returns
    -------
    A row per code and gene, those of the largest weight first: ``code``, ``gene`` (column),
    ``weight``, ``attention``, ``attention_lift`` (``NaN`` without a model), ``log2_fold_change``,
    ``share``, ``p_value``, ``fdr``.
    """
    change, share = expression.log2_fold_change, expression.share
    fdr = false_discovery_control(expression.p_value, axis=1)
    attention = np.full_like(change, np.nan) if attention is None else attention
    fields = {
        "weight": change,
        "attention": attention,
        "attention_lift": attention_lift(attention),
        "log2_fold_change": change,
        "share": share,
        "p_value": expression.p_value,
        "fdr": fdr,
    }
    code, gene = np.nonzero((change > 0) & (share > 0) & (share >= min_share) & (fdr <= max_fdr))
    order = np.lexsort((names[gene], -change[code, gene], code))
    code, gene = code[order], gene[order]
    table = pd.DataFrame({name: values[code, gene] for name, values in fields.items()})
    return table.assign(code=code, gene=gene).groupby("code").head(n_genes).reset_index(drop=True)


def attention_lift(attention: np.ndarray) -> np.ndarray:
    """Return the log2 ratio of a code's attention to the mean of the other codes'.

    Parameters
    ----------
    attention
        ``(n_codes, n_genes)``.
    """
    others = (attention.sum(axis=0) - attention) / max(1, len(attention) - 1)
    return np.log2((attention + _PRIOR) / (others + _PRIOR))


def enrichment(cells: CodedCells, annotations: dict[str, np.ndarray]) -> pd.DataFrame:
    r"""Test each code and level of each annotation.

    One-sided hypergeometric test that the code has the level more often than the other cells;
    background are all cells with a code and the annotation. The log odds ratio is

    .. math:: \ln \frac{(a + \frac12)(d + \frac12)}{(b + \frac12)(c + \frac12)}

    of the two by two table.

    Returns
    -------
    A row per code, annotation and level: ``code`` (place in ``cells.names``),
    ``annotation``, ``level``, ``overlap``, ``code_cells``, ``expected``, ``log_odds``, ``p_value``
    and ``fdr`` (Benjamini-Hochberg within the annotation).

    Warns
    -----
    UserWarning
        If an annotation has fewer than two levels; it is left out.
    """
    tables = []
    for name, labels in annotations.items():
        own = labels[cells.rows]
        known = own != ""
        levels, level = np.unique(own[known].astype(str), return_inverse=True)
        if len(levels) < 2:
            what = f"one level ({str(levels[0])!r})" if len(levels) else "no value"
            warn_user(
                f"obs[{name!r}] has {what} in the cells with a code: nothing can be enriched, and "
                "the annotation is left out of the graph."
            )
            continue
        code = cells.code[known]
        shape = (len(cells.names), len(levels))
        place = np.ravel_multi_index((code[code >= 0], level[code >= 0]), shape)
        both = np.bincount(place, minlength=shape[0] * shape[1]).reshape(shape)
        of_level, of_code = np.bincount(level)[None], both.sum(axis=1, keepdims=True)
        total = int(known.sum())
        p_value = hypergeom.sf(both - 1, total, of_level, of_code).ravel()
        only_code, only_level = of_code - both, of_level - both
        neither = total - both - only_code - only_level
        odds = (both + 0.5) * (neither + 0.5) / ((only_code + 0.5) * (only_level + 0.5))
        row, column = (x.ravel() for x in np.indices(shape))
        table = {
            "code": row,
            "annotation": name,
            "level": levels[column].astype(object),
            "overlap": both.ravel(),
            "code_cells": of_code[row, 0],
            "expected": (of_code * of_level / total).ravel(),
            "log_odds": np.log(odds).ravel(),
            "p_value": p_value,
            "fdr": false_discovery_control(p_value),
        }
        tables.append(pd.DataFrame(table))
    none = pd.DataFrame(columns=["code", "annotation", "level", "fdr", "log_odds"])
    return pd.concat(tables, ignore_index=True) if tables else none
