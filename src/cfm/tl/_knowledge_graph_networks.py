"""Whether a network of known interactions supports relations that a model has between genes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from cfm.tl._knowledge_graph_cells import gene_columns

if TYPE_CHECKING:
    from collections.abc import Mapping

    from anndata import AnnData

#: Names that are looked up at a time, over all permutations.
_LOOKUPS = 10_000_000
#: Parts of the genes by expression, within which names are permuted.
_STRATA = 10


def read_network(
    table: Any, adata: AnnData, *, name: str, columns: tuple[str, str]
) -> sparse.csr_matrix:
    """Find a network in data.

    Returns
    -------
    ``(n_genes, n_genes)`` symmetric CSR of 0 and 1, without the diagonal.

    Raises
    ------
    TypeError
        If ``table`` is no DataFrame.
    ValueError
        If a column is missing, or no interaction has both genes measured.
    """
    if not isinstance(table, pd.DataFrame):
        raise TypeError(
            f"{name} is a {type(table).__name__}; expected a DataFrame with the columns "
            f"{' and '.join(columns)}."
        )
    missing = [column for column in columns if column not in table]
    if missing:
        raise ValueError(
            f"{name} has no column {', '.join(missing)}; it has {table.columns.tolist()}, and "
            f"{' and '.join(columns)} are expected: rename them."
        )
    ends = table[list(columns)].dropna().astype(str)
    place = gene_columns(ends.to_numpy().ravel().tolist(), adata)
    a, b = (ends[column].map(place) for column in columns)
    known = (a.notna() & b.notna() & (a != b)).to_numpy()
    if not known.any():
        example = ", ".join(map(" – ".join, ends.iloc[:3].to_numpy()))
        raise ValueError(
            f"None of the {len(ends)} interactions of {name} has both genes measured, looking for "
            f"such as {example} among such as {', '.join(map(str, adata.var_names[:3]))}; use the "
            "same kind of gene names."
        )
    row, column = a[known].to_numpy(dtype=np.int64), b[known].to_numpy(dtype=np.int64)
    shape = (adata.n_vars, adata.n_vars)
    network = sparse.csr_matrix((np.ones(len(row), dtype=np.int8), (row, column)), shape=shape)
    network = (network + network.T).tocsr()
    network.data[:] = 1
    return network


def supported(network: sparse.csr_matrix, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return whether pairs of columns are in a network, ``(n,)`` bool."""
    return np.asarray(network[a, b]).ravel() > 0 if len(a) else np.zeros(0, dtype=bool)


def support_test(
    network: sparse.csr_matrix,
    a: np.ndarray,
    b: np.ndarray,
    genes: np.ndarray,
    *,
    level: np.ndarray,
    n_permutations: int,
    seed: int,
) -> Mapping[str, float | int]:
    """Test whether a network supports more of some edges than of random ones.

    The names of genes that are about as much expressed are permuted, so that the random edges have
    the same hubs, and are between genes as well known: much expressed genes are studied more.

    Parameters
    ----------
    network
        Of :func:`read_network`.
    a, b
        ``(n,)`` columns of the ends of the edges; each pair once.
    genes
        Columns among which edges were looked for, sorted and different.
    level
        ``(len(genes),)`` how much each is expressed; names are permuted within tenths of it.
    n_permutations
        Random edge sets; 0 for none.
    seed
        Of the permutations.

    Returns
    -------
    ``n_edges``, ``n_supported``, ``expected`` (the mean over permutations, without them the share
    of all pairs times ``n_edges``) and ``p_value`` (``NaN`` without permutations).
    """
    known = (network[genes][:, genes].toarray() > 0) if len(genes) else np.zeros((0, 0), dtype=bool)
    x, y = np.searchsorted(genes, a), np.searchsorted(genes, b)
    found = int(known[x, y].sum())
    n_pairs = max(1, len(genes) * (len(genes) - 1))
    expected, p_value = len(a) * float(known.sum()) / n_pairs, float("nan")
    if n_permutations and len(a):
        rng = np.random.default_rng(seed)
        counts = []
        step = max(1, _LOOKUPS // max(len(genes), len(a)))
        for start in range(0, n_permutations, step):
            n = min(step, n_permutations - start)
            renamed = np.tile(np.arange(len(genes)), (n, 1))
            for part in np.array_split(np.argsort(level, kind="stable"), _STRATA):
                renamed[:, part] = rng.permuted(renamed[:, part], axis=1)
            counts.append(known[renamed[:, x], renamed[:, y]].sum(axis=1))
        chance = np.concatenate(counts)
        expected = float(chance.mean())
        p_value = float((1 + (chance >= found).sum()) / (1 + n_permutations))
    return {
        "n_edges": len(a),
        "n_supported": found,
        "expected": expected,
        "p_value": p_value,
    }
