"""Co-expression graph of genes, the prior knowledge of BulkFormer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import sparse, stats

from cfm._adata import check_key, takes_anndata, target, warn_overwritten, warn_user
from cfm._arguments import SHARE
from cfm._fields import PARAMS
from cfm.data._counts import looks_like_counts
from cfm.data._matrix import get_matrix, row_blocks, to_dense

if TYPE_CHECKING:
    from anndata import AnnData

#: Steps of correlations in comparisons: differences by rounding are ties.
_STEPS = 1_000_000
#: A gene whose spread is below this share of its size is constant up to rounding (float32).
_CONSTANT = 1e-6
#: Genes with correlations in memory at a time: 80 MB for 20,000 genes.
_BLOCK = 512
#: Columns converted to float64 at a time.
_TILE = 2048
#: Warn where more pairs than this share pass the threshold by chance.
_CHANCE = 0.05


@takes_anndata(ranges={"min_correlation": SHARE})
def coexpression_graph(
    adata: AnnData,
    *,
    layer: str | None = None,
    n_neighbors: int = 20,
    min_correlation: float = 0.4,
    symmetric: bool = False,
    key_added: str = "coexpression",
    copy: bool = False,
) -> AnnData | None:
    r"""Compute a graph that links each gene to the genes of most correlated expression.

    The weight of genes :math:`g` and :math:`h` is the absolute Pearson correlation
    :math:`|r_{gh}|` over the observations. Each gene keeps its ``n_neighbors`` largest weights of
    at least ``min_correlation``, without itself.

    Correlations are rounded to six decimals before comparisons, and ties go to the gene that is
    first in ``var_names``, so the graph does not depend on the order of observations. Memory is
    about
    ``n_obs × n_vars × 4`` + ``n_vars × 4,096`` bytes; time grows with ``n_obs × n_vars²``.

    Parameters
    ----------
    adata
        Observations by genes with log expression, such as the layer that :func:`cfm.pp.tpm`
        makes: dense, sparse, backed or dask-backed.
    layer
        Layer to read instead of ``X``.
    n_neighbors
        Largest number of neighbours of a gene.
    min_correlation
        Smallest absolute correlation of neighbours, 0 (any) to 1.
    symmetric
        Add the reverse of each link; genes may then have more than ``n_neighbors``. Without it,
        row :math:`g` holds the neighbours of gene :math:`g`.
    key_added
        Name of the result.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or with ``copy=True`` an AnnData, with these fields written:

    ``adata.varp[key_added]``
        ``(n_vars, n_vars)`` CSR float32 of absolute correlations, columns in rising order.
    ``adata.uns[key_added]``
        ``params``; ``n_edges``, stored entries; ``n_constant``, genes without variance and
        neighbours; ``n_isolated``, all genes without a neighbour, these included.

    Raises
    ------
    KeyError
        If the layer does not exist.
    ValueError
        If there are fewer than 3 observations, values are NaN or infinite, no gene varies, or an
        argument is out of range.

    Warns
    -----
    UserWarning
        If values are counts, whose correlations follow the size of the libraries; if with so few
        observations more than 5 % of gene pairs exceed the threshold by chance; or if a graph of
        another function is replaced.

    Notes
    -----
    BulkFormer (Kang et al. 2026, Cell Systems, 101657): absolute correlation, 20 edges per
    gene, 0.4 and above.

    Examples
    --------
    >>> import anndata as ad, numpy as np, cfm
    >>> level = np.random.default_rng(0).normal(size=(50, 1))
    >>> noise = np.random.default_rng(1).normal(size=(50, 4))
    >>> adata = ad.AnnData(np.hstack([level, -level, noise]))
    >>> cfm.pp.coexpression_graph(adata)
    >>> adata.varp["coexpression"].toarray()[0].round(2).tolist()
    [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    """
    check_key(key_added)
    matrix = get_matrix(adata, layer=layer)
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if adata.n_obs < 3:
        raise ValueError(
            f"{where} has {adata.n_obs} observations; a correlation needs at least 3, and some "
            "dozens to mean anything."
        )
    unit, varies = _unit_columns(matrix, where)
    if looks_like_counts(matrix):
        warn_user(
            f"{where} looks like counts, whose correlations follow the size of the libraries; "
            "call cfm.pp.tpm(adata) and pass layer='log_tpm'."
        )
    _warn_of_chance(adata.n_obs, min_correlation)
    graph = _nearest(unit, n_neighbors, min_correlation, adata.n_vars, varies)
    if symmetric:
        graph = graph.maximum(graph.T).tocsr()
        graph.sort_indices()

    adata = target(adata, copy=copy)
    warn_overwritten(adata, key_added, {"varp": [key_added]})
    adata.varp[key_added] = graph
    linked = np.zeros(adata.n_vars, dtype=bool)
    linked[np.unique(graph.indices)] = True
    linked |= np.diff(graph.indptr) > 0
    adata.uns[key_added] = {
        PARAMS: {
            "layer": layer or "",
            "n_neighbors": int(n_neighbors),
            "min_correlation": float(min_correlation),
            "symmetric": bool(symmetric),
            "weight": "absolute Pearson correlation",
            "n_obs": int(adata.n_obs),
        },
        "n_edges": int(graph.nnz),
        "n_constant": int(adata.n_vars - len(varies)),
        "n_isolated": int((~linked).sum()),
    }
    return adata if copy else None


def _unit_columns(matrix: Any, where: str) -> tuple[np.ndarray, np.ndarray]:
    """Centre the columns and scale them to length 1, without constant columns.

    Returns ``(n_obs, n)`` float32 and the ``(n,)`` numbers of the columns.
    """
    values = np.empty(matrix.shape, dtype=np.float32)
    for rows, block in row_blocks(matrix):
        values[rows] = to_dense(block, np.float32)
    varies = np.zeros(matrix.shape[1], dtype=bool)
    for start in range(0, matrix.shape[1], _TILE):
        tile = values[:, start : start + _TILE].astype(np.float64)
        if not np.isfinite(tile).all():
            raise ValueError(
                f"{where} holds {int((~np.isfinite(tile)).sum())} NaN or infinite values in one "
                "block of genes; drop or fill these genes first."
            )
        size = np.sqrt((tile**2).sum(axis=0))
        tile -= tile.mean(axis=0)
        spread = np.sqrt((tile**2).sum(axis=0))
        moves = spread > _CONSTANT * size
        varies[start : start + _TILE] = moves
        values[:, start : start + _TILE] = tile / np.where(moves, spread, 1.0)
    if not varies.any():
        raise ValueError(f"no gene of {where} varies over the observations; there is no graph.")
    kept = np.flatnonzero(varies)
    return (values if varies.all() else values[:, kept]), kept


def _warn_of_chance(n_obs: int, min_correlation: float) -> None:
    if not 0 < min_correlation < 1:
        return
    t = min_correlation * np.sqrt((n_obs - 2) / (1 - min_correlation**2))
    share = float(2 * stats.t.sf(t, n_obs - 2))
    if share > _CHANCE:
        warn_user(
            f"with {n_obs} observations, {100 * share:.0f} % of unrelated gene pairs have a "
            f"correlation of {min_correlation} or more by chance; use more observations or raise "
            "min_correlation=."
        )


def _nearest(
    unit: np.ndarray,
    n_neighbors: int,
    min_correlation: float,
    n_vars: int,
    columns: np.ndarray,
) -> sparse.csr_matrix:
    """Return the ``n_neighbors`` largest absolute correlations of each column of ``unit``."""
    n = unit.shape[1]
    keep = min(n_neighbors, n - 1)
    lowest = np.rint(min_correlation * _STEPS)
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    last = np.arange(n - 1, -1, -1.0)  # among ties, the first column has the largest key
    for start in range(0, n, _BLOCK):
        own = np.arange(start, min(start + _BLOCK, n))
        left = np.ascontiguousarray(unit[:, own].T, dtype=np.float64)
        keys = np.empty((len(own), n))  # (block, n)
        for first in range(0, n, _TILE):
            keys[:, first : first + _TILE] = left @ unit[:, first : first + _TILE].astype(float)
        # One exact whole number below 2**53 holds the rounded correlation and the column: it can
        # be sorted in place, and no two are equal.
        np.abs(keys, out=keys)
        keys *= _STEPS
        np.rint(keys, out=keys)
        np.minimum(keys, _STEPS, out=keys)
        keys *= n
        keys += last
        keys[np.arange(len(own)), own] = -1.0
        if keep < n:
            keys.partition(n - keep, axis=1)
        best = keys[:, n - keep :] if keep else keys[:, :0]
        steps = np.floor_divide(best, n)
        column = (n - 1 - (best - steps * n)).astype(np.int64)
        passes = (steps >= lowest) & (best >= 0)
        row = np.broadcast_to(own[:, None], best.shape)
        found.append((row[passes], column[passes], steps[passes]))
    rows, neighbours, steps = (np.concatenate(part) for part in zip(*found, strict=True))
    graph = sparse.csr_matrix(
        ((steps / _STEPS).astype(np.float32), (columns[rows], columns[neighbours])),
        shape=(n_vars, n_vars),
    )
    graph.eliminate_zeros()
    graph.sort_indices()
    return graph
