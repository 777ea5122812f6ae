"""The representations that a probe compares, as dense tables."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._fields import PLAIN_EXPRESSION, params_of
from cfm.data._matrix import check_indices, get_matrix, read_rows, to_dense
from cfm.data._units import looks_like_counts
from cfm.data._warn import warn_user

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

#: Name of the expression of all genes, where no representation is given.
_ALL_GENES = "expression"


def recorded_layer(adata: AnnData, use_rep: str | Sequence[str] | None) -> str | None:
    """Return the layer that the representations were made from, where their records agree."""
    keys = [use_rep] if isinstance(use_rep, str) else list(use_rep or [])
    layers = {params_of(adata.uns, key).get("layer") for key in keys}
    layer = layers.pop() if len(layers) == 1 else None
    return layer if isinstance(layer, str) and layer in adata.layers else None


def read_features(
    adata: AnnData,
    use_rep: str | Sequence[str] | None,
    layer: str | None,
    rows: np.ndarray,
    plain_expression: bool,
) -> dict[str, np.ndarray]:
    """Read the representations of some observations.

    Parameters
    ----------
    adata
        Where they are.
    use_rep
        ``obsm`` keys; ``None`` for the expression of all genes.
    layer
        Layer with the expression, ``None`` for ``X``.
    rows
        Observations, in the order wanted.
    plain_expression
        Whether expression is wanted for its principal components too.

    Returns
    -------
    By name ``(n, n_features)`` float; ``"expression PCA"`` is the expression, not yet reduced.
    Counts are scaled to the median of their sums and get ``log1p``.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a key does not exist, or a table is empty or not of numbers, or holds infinite values;
        or if the expression is a representation itself.
    """
    keys = [use_rep] if isinstance(use_rep, str) else list(use_rep or [])
    if use_rep is not None and not keys:
        raise ValueError("use_rep is an empty list; name obsm keys, or pass None for all genes.")
    found = {}
    for key in dict.fromkeys(keys):
        if key not in adata.obsm:
            raise KeyError(
                f"no {key!r} in adata.obsm; it has {list(adata.obsm)}. Embeddings come from "
                "cfm.tl.embed(adata)."
            )
        found[key] = _checked(_dense(adata.obsm[key], key)[rows], f"adata.obsm[{key!r}]")
    if keys and not plain_expression:
        return found
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if layer is None and adata.X is None:
        raise ValueError(
            "adata.X is empty, so that there is no expression to compare with; pass layer= with "
            "the expression, or plain_expression=False."
        )
    matrix = get_matrix(adata, layer=layer)
    genes = _checked(to_dense(read_rows(matrix, rows), np.float32), where)
    if looks_like_counts(matrix):
        total = genes.sum(axis=1, keepdims=True)
        genes = np.log1p(genes * (np.median(total) / np.maximum(total, 1.0)))
    same = [key for key, table in found.items() if _is_same(table, genes)]
    if same:
        raise ValueError(
            f"{where} is adata.obsm[{same[0]!r}] itself, so that plain expression would be the "
            "representation; pass layer= with the expression, or plain_expression=False."
        )
    if not keys:
        found[_ALL_GENES] = genes
    if plain_expression:
        found[PLAIN_EXPRESSION] = genes
    return found


def _is_same(table: np.ndarray, genes: np.ndarray) -> bool:
    """Whether columns of the expression are the representation."""
    if table.shape != genes.shape:
        return False
    return bool(np.allclose(table, genes, rtol=1e-4, atol=1e-6, equal_nan=True))


def _dense(values: Any, key: str) -> np.ndarray:
    if isinstance(values, pd.DataFrame):
        wrong = [str(c) for c in values if not pd.api.types.is_numeric_dtype(values[c].dtype)]
        if wrong:
            raise TypeError(f"adata.obsm[{key!r}] has columns that hold no numbers: {wrong[:5]}.")
        values = values.to_numpy(dtype=np.float64, na_value=np.nan)
    values = check_indices(values, f"adata.obsm[{key!r}]")
    if hasattr(values, "compute"):
        values = values.compute()
    table = to_dense(values)
    if table.ndim != 2 or not table.shape[1]:
        raise ValueError(f"adata.obsm[{key!r}] has shape {table.shape}; a table is expected.")
    return table


def _checked(table: np.ndarray, where: str) -> np.ndarray:
    n_infinite = int(np.isinf(table).sum())
    if n_infinite:
        raise ValueError(f"{where} holds {n_infinite} infinite values; finite ones are expected.")
    missing = float(np.isnan(table).mean())
    if missing:
        warn_user(
            f"{100 * missing:.2g} % of {where} is missing (NaN); each is filled with the mean of "
            "its column over the training observations."
        )
    return table
