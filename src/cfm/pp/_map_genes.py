"""Gene identifiers mapped to current symbols, duplicates merged."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfm._adata import check_tables, keep_genes, require_anndata, warn_overwritten, warn_user
from cfm._arguments import checks_flags, layer_names
from cfm._fields import MAP_GENES, PARAMS
from cfm.data._genes import Organism, map_identifiers
from cfm.data._matrix import LOG_CEILING, row_blocks, stored_matrix

if TYPE_CHECKING:
    from cfm.data._genes import GeneMapping

logger = logging.getLogger(__name__)

Aggregate = Literal["sum", "mean"]
Unmapped = Literal["keep", "drop"]
#: Below this share, of at least so many identifiers, hits are chance: "g10" is an alias of BUD31.
_FEW, _ENOUGH = 0.1, 20


@checks_flags
def map_genes(
    adata: AnnData,
    *,
    organism: Organism = "auto",
    var_key: str | None = None,
    aggregate: Aggregate = "sum",
    unmapped: Unmapped = "keep",
    copy: bool = False,
) -> AnnData | None:
    """Rename genes to current HGNC symbols, and merge those with the same symbol.

    Identifiers are symbols, previous symbols, human Ensembl ids with or without version, or a
    mixture. Mouse symbols become the human symbols of the same letters (``Isg15`` → ``ISG15``), an
    approximation of orthologues. Mouse Ensembl ids stay unmapped.

    Genes with the same symbol become one column, in the place of the first, in ``X`` and in every
    layer. ``varm``, ``varp`` and other ``var`` columns keep the first one's values; ``raw`` stays
    unchanged. The number of genes changes, so a backed AnnData needs ``copy=True``, which reads it
    into memory; a view becomes an actual AnnData.

    Parameters
    ----------
    adata
        Any AnnData; dense, CSR, CSC or dask-backed.
    organism
        ``"human"``, ``"mouse"`` or ``"auto"`` (the more frequent kind of symbol). Other
        species with human-like upper-case symbols count as human.
    var_key
        Column of ``var`` with the identifiers, instead of ``var_names``. ``var_names`` replace
        empty and unknown ones.
    aggregate
        How values are merged: ``"sum"`` for counts and TPM, ``"mean"`` for log values.
    unmapped
        ``"keep"`` unknown genes under their name, or ``"drop"`` them.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or with ``copy=True`` an AnnData, with these fields written (over existing ones):

    ``adata.var_names``
        Symbols, unique.
    ``adata.var['original_id']``
        The identifiers of the gene, joined by ``";"``.
    ``adata.var['mapping']``
        Kind of these identifiers: ``symbol``, ``alias``, ``ensembl``, ``ortholog`` or ``unmapped``;
        several joined by ``";"``.
    ``adata.uns['map_genes']``
        ``params`` (arguments, organism found); ``n_mapped`` and ``n_unmapped`` identifiers;
        ``n_merged``, columns merged into others; ``unmapped``, array of names.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData. Of a MuData pass a modality, and make a new MuData from the
        result, as a MuData is not updated when genes are merged or renamed.
    KeyError
        If ``var_key`` does not exist.
    ValueError
        If an argument is out of its choices, no identifier is known, or ``adata`` is backed.

    Warns
    -----
    UserWarning
        If log-transformed values are summed, fewer than a tenth of 20 or more identifiers are
        known, or fields of another function are replaced.

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, cfm
    >>> names = ["ENSG00000157601.14", "G1P2", "ISG15"]
    >>> adata = ad.AnnData(np.array([[3.0, 1.0, 2.0]]), var=pd.DataFrame(index=names))
    >>> cfm.pp.map_genes(adata)
    >>> dict(zip(adata.var_names, adata.X[0].tolist()))
    {'MX1': 3.0, 'ISG15': 3.0}
    """
    require_anndata(adata)
    check_tables(adata)
    if var_key is not None and var_key not in adata.var.columns:
        raise KeyError(f"no column {var_key!r} in adata.var; it has {list(adata.var.columns)}.")
    if adata.isbacked and not copy:
        raise ValueError(
            "adata is backed, and merging genes would rewrite its file; use copy=True, which "
            "reads it into memory."
        )
    if not adata.n_vars:
        raise ValueError("adata has no genes (n_vars is 0); observations by genes are expected.")
    identifiers, mapping = _map(adata, var_key, organism)
    n_mapped = int(mapping.mapped.sum())
    if not n_mapped:
        shown = ", ".join(repr(str(name)) for name in identifiers[:3])
        raise ValueError(
            f"none of the {len(identifiers)} gene identifiers ({shown}, …) is known; human "
            "symbols, human Ensembl ids or mouse symbols are expected; if they are in a column of "
            f"adata.var, name it by var_key= (columns: {list(adata.var.columns)})."
        )
    if len(identifiers) >= _ENOUGH and n_mapped < _FEW * len(identifiers):
        warn_user(
            f"only {n_mapped} of {len(identifiers)} gene identifiers are known; check that these "
            "are genes, or name their column of adata.var by var_key=."
        )
    kept = np.flatnonzero(mapping.mapped | (unmapped == "keep"))
    names = np.where(mapping.mapped, mapping.symbol, identifiers)[kept]
    group, new_names = pd.factorize(names)  # (n_kept,) column of the result, in order of arrival
    first = kept[np.unique(group, return_index=True)[1]]

    if adata.isbacked:
        adata = adata.to_memory()
    keys = [*layer_names(adata), *([] if adata.X is None else [None])]
    checked = {key: stored_matrix(adata, key) for key in keys}  # before they are cut
    if copy:
        adata = adata.copy()
    merged: dict[str | None, Any] = {}
    if len(new_names) < len(kept):
        member = sparse.csr_matrix(
            (np.ones(len(kept), dtype=np.int8), (kept, group)),
            shape=(adata.n_vars, len(new_names)),
        )
        for key, matrix in checked.items():
            if aggregate == "sum":
                _warn_of_logs(matrix, "adata.X" if key is None else f"adata.layers[{key!r}]")
            merged[key] = _merge_columns(matrix, member, aggregate)

    # nothing fails from here on: adata changes
    columns = ["original_id", "mapping"]
    warn_overwritten(adata, MAP_GENES, {"var": columns}, "rename it first to keep it")
    if len(new_names) < adata.n_vars:
        keep_genes(adata, first)
    elif adata.is_view:
        AnnData.__init__(adata, adata.copy())
    for key, matrix in merged.items():
        if key is None:
            adata.X = matrix
        else:
            adata.layers[key] = matrix
    adata.var_names = pd.Index(new_names.astype(str))
    adata.var["original_id"] = _join(identifiers[kept], group)
    adata.var["mapping"] = pd.Categorical(_join(mapping.source[kept], group))
    adata.uns[MAP_GENES] = {
        PARAMS: {
            "organism": mapping.organism,
            "var_key": var_key or "",
            "aggregate": aggregate,
            "unmapped": unmapped,
        },
        "n_mapped": n_mapped,
        "n_unmapped": len(identifiers) - n_mapped,
        "n_merged": len(kept) - len(new_names),
        "unmapped": identifiers[~mapping.mapped].astype(str).astype(object),
    }
    logger.info(
        "%d of %d identifiers mapped (%s), %d merged into others",
        n_mapped,
        len(identifiers),
        mapping.organism,
        len(kept) - len(new_names),
    )
    return adata if copy else None


def _map(adata: AnnData, var_key: str | None, organism: Organism) -> tuple[np.ndarray, GeneMapping]:
    """Return the identifier of each gene, and what it maps to."""
    fallback = adata.var_names.astype(str).to_numpy(dtype=object)
    if var_key is None:
        return fallback, map_identifiers(fallback, organism)
    given = adata.var[var_key].astype(object)
    texts = given.where(given.notna(), "").astype(str).str.strip().to_numpy(dtype=object)
    mapping = map_identifiers(texts, organism)
    second = map_identifiers(fallback, mapping.organism)
    use_second = ~mapping.mapped & (second.mapped | (texts == ""))
    mapping.symbol[use_second] = second.symbol[use_second]
    mapping.source[use_second] = second.source[use_second]
    return np.where(use_second, fallback, texts), mapping


def _join(texts: np.ndarray, group: np.ndarray) -> list[str]:
    """Join the different texts of each group by ";", in order of arrival."""
    joined: list[dict[str, None]] = [{} for _ in range(int(group.max()) + 1)]
    for text, number in zip(texts, group, strict=True):
        joined[number][str(text)] = None
    return [";".join(texts_of) for texts_of in joined]


def _warn_of_logs(matrix: Any, where: str) -> None:
    """Warn if the values to sum are negative, or small and fractional."""
    _, block = next(row_blocks(matrix))
    values = block.data if sparse.issparse(block) else block
    if not values.size or values.dtype.kind != "f":
        return
    fractional = bool((values != np.rint(values)).any())
    if values.min() < 0 or (fractional and values.max() <= LOG_CEILING):
        warn_user(
            f"{where} looks log-transformed, and genes with the same symbol are summed; use "
            "aggregate='mean', or map genes before taking logarithms."
        )


def _merge_columns(matrix: Any, member: sparse.csr_matrix, aggregate: Aggregate) -> Any:
    """Sum or average the columns of each group, in the storage and dtype of the matrix.

    ``member`` is ``(n_old, n_new)``, 1 where an old column belongs to a new one. Means of integers
    become float64.
    """
    dtype = _merged_dtype(matrix.dtype, aggregate)
    if hasattr(matrix, "map_blocks"):  # dask stays lazy, a block of rows at a time
        from dask.array.utils import meta_from_array

        whole_rows = matrix.rechunk({1: -1})
        return whole_rows.map_blocks(
            _merge_columns,
            member=member,
            aggregate=aggregate,
            dtype=dtype,
            chunks=(whole_rows.chunks[0], (member.shape[1],)),
            meta=meta_from_array(matrix),
        )
    weights: Any = member.astype(dtype)
    if aggregate == "mean":
        sizes = np.asarray(member.sum(axis=0)).ravel()
        weights = weights @ sparse.diags_array(1.0 / sizes).astype(dtype)
    if sparse.issparse(matrix):
        return (matrix.astype(dtype, copy=False) @ weights).asformat(matrix.format)
    dense = np.asarray(matrix).astype(dtype, copy=False)
    return np.ascontiguousarray((weights.T @ dense.T).T)


def _merged_dtype(dtype: Any, aggregate: Aggregate) -> np.dtype:
    """Return the dtype of sums (as stored; bool counts up) or means (floating)."""
    dtype = np.dtype(dtype)
    if aggregate == "mean" and dtype.kind != "f":
        return np.dtype(np.float64)
    return np.dtype(np.int64) if dtype.kind == "b" else dtype
