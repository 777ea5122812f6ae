"""Log transcripts per million of counts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import sparse

from cfm._adata import check_key, keep_genes, takes_anndata, target, warn_overwritten, warn_user
from cfm._fields import GENE_LENGTH, PARAMS
from cfm.data._genes import gene_lengths as shipped_lengths
from cfm.data._genes import map_identifiers
from cfm.data._matrix import check_counts, get_matrix, row_blocks

if TYPE_CHECKING:
    from anndata import AnnData

MissingLength = Literal["one_kb", "drop", "error"]

#: Lengths with a median below this are not base pairs of genes.
_SHORTEST_MEDIAN = 50.0
_NOT_COUNTS = ("tpm", "fpkm", "rpkm", "cpm", "log")


@takes_anndata()
def tpm(
    adata: AnnData,
    *,
    gene_lengths: pd.Series | Mapping[str, float] | str | None = None,
    layer: str | None = None,
    missing_length: MissingLength = "one_kb",
    key_added: str = "log_tpm",
    copy: bool = False,
) -> AnnData | None:
    r"""Compute log transcripts per million from counts, the input of BulkFormer.

    .. math:: \ln\Bigl(1 + 10^6 \frac{y_{ig} / l_g}{\sum_h y_{ih} / l_h}\Bigr)

    with :math:`y_{ig}` the count of gene :math:`g` in sample :math:`i` and :math:`l_g` its length
    in kilobases. The sum runs over all genes of ``adata``, so compute TPM before you drop genes.

    Parameters
    ----------
    adata
        Samples by genes, counts (whole or expected) in ``X`` or a layer: dense, CSR, CSC, backed
        or dask-backed.
    gene_lengths
        Lengths in base pairs: a Series or dict by gene name, or the name of a ``var`` column.
        ``None`` uses the shipped table of 78,932 human genes, by symbol (current or previous) or
        Ensembl id of any version.
    layer
        Layer with the counts instead of ``X``.
    missing_length
        Genes of unknown length: ``"one_kb"`` sets 1,000 base pairs, as BulkFormer does; ``"drop"``
        leaves them out of the sum and of ``adata``; ``"error"`` raises an error.
    key_added
        Name of the layer.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or with ``copy=True`` an AnnData, with these fields written:

    ``adata.layers[key_added]``
        ``(n_obs, n_vars)`` float32, sparse or dask like the counts, in memory if ``adata`` is
        backed.
    ``adata.var['gene_length']``
        float64, length in base pairs, NaN if unknown.
    ``adata.uns[key_added]``
        ``params``; ``n_without_length`` and ``without_length``, the genes of unknown length.

    Raises
    ------
    KeyError
        If the layer or the ``var`` column does not exist.
    TypeError
        If ``gene_lengths`` or the column is of the wrong type.
    ValueError
        If the values are no counts (negative, logarithms, TPM, CPM), a sample has no counts,
        lengths are not positive, no gene has a length, or genes are of the mouse and
        ``gene_lengths`` is ``None``.

    Warns
    -----
    UserWarning
        If genes have no length, the median length is below 50 base pairs, or a layer of another
        function is replaced.

    Notes
    -----
    Formula and the rule for unknown lengths are those of BulkFormer's notebook. The shipped table
    is that of BulkFormer (KangBoming/BulkFormer, MIT licence).

    Examples
    --------
    >>> import anndata as ad, numpy as np, pandas as pd, cfm
    >>> genes = pd.DataFrame(index=["ISG15", "ENSG00000157601.14"])
    >>> adata = ad.AnnData(np.array([[10.0, 30.0], [0.0, 7.0]]), var=genes)
    >>> cfm.pp.tpm(adata, gene_lengths={"ISG15": 1000, "ENSG00000157601": 3000})
    >>> np.expm1(adata.layers["log_tpm"]).round().tolist()
    [[500000.0, 500000.0], [0.0, 1000000.0]]
    """
    check_key(key_added)
    if adata.isbacked and missing_length == "drop" and not copy:
        raise ValueError(
            "adata is backed, and missing_length='drop' would rewrite its file; use copy=True, "
            "which reads it into memory."
        )
    matrix = get_matrix(adata, layer=layer)
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    _refuse_other_units(adata, layer)
    library = check_counts(matrix, where=where).library_size
    lengths, source = _lengths(adata, gene_lengths)
    unknown = np.isnan(lengths)
    _report_unknown(adata.var_names, unknown, missing_length)
    kilobases = np.where(unknown, np.inf if missing_length == "drop" else 1.0, lengths / 1000.0)
    if missing_length == "drop" and unknown.any():
        library = np.concatenate([_sums(block[:, ~unknown]) for _, block in row_blocks(matrix)])
    _refuse_empty(adata, library, where)
    values = _log_tpm_any(matrix, 1.0 / kilobases)

    # nothing fails from here on: adata changes
    adata = target(adata, copy=copy)
    warn_overwritten(adata, key_added, {"layers": [key_added]})
    adata.layers[key_added] = values
    adata.var[GENE_LENGTH] = lengths
    adata.uns[key_added] = {
        PARAMS: {
            "layer": layer or "",
            "gene_lengths": source,
            "missing_length": missing_length,
            "units": "ln(TPM + 1)",
        },
        "n_without_length": int(unknown.sum()),
        "without_length": adata.var_names[unknown].astype(str).to_numpy(dtype=object),
    }
    if missing_length == "drop" and unknown.any():
        keep_genes(adata, np.flatnonzero(~unknown))
    return adata if copy else None


def _refuse_other_units(adata: AnnData, layer: str | None) -> None:
    stated = adata.uns.get("units")
    if layer is None and isinstance(stated, str):
        words = stated.lower()
        if "count" not in words and any(word in words for word in _NOT_COUNTS):
            raise ValueError(
                f"adata.uns['units'] is {stated!r}, but TPM is made from "
                "counts; name the layer with the counts by layer=, or correct uns['units']. "
                "Values that are TPM already need np.log1p only."
            )


def _lengths(adata: AnnData, given: Any) -> tuple[np.ndarray, str]:
    """Return ``(n_vars,)`` base pairs, NaN where unknown, and their source."""
    names = adata.var_names.astype(str)
    if given is None:
        if map_identifiers(names).organism == "mouse":
            raise ValueError(
                "the genes look like those of the mouse, but the shipped lengths are human; give "
                "lengths in base pairs by gene_lengths=."
            )
        lengths, source = shipped_lengths(names), "shipped"
    elif isinstance(given, str):
        if given not in adata.var.columns:
            raise KeyError(f"no column {given!r} in adata.var; it has {list(adata.var.columns)}.")
        lengths, source = _as_numbers(adata.var[given]), f"var[{given!r}]"
    elif isinstance(given, pd.Series | Mapping):
        series = pd.Series(given)
        if series.index.has_duplicates:
            twice = series.index[series.index.duplicated()][0]
            raise ValueError(f"gene_lengths has more than one length of {twice!r}; give one each.")
        series = pd.Series(_as_numbers(series), index=series.index.astype(str))
        lengths = series.reindex(names).to_numpy()
        # Ensembl ids match whatever their version
        plain = pd.Series(series.to_numpy(), index=_without_version(series.index))
        plain = plain[~plain.index.duplicated()]
        second = plain.reindex(_without_version(names)).to_numpy()
        lengths, source = np.where(np.isnan(lengths), second, lengths), "given"
    else:
        raise TypeError(
            f"gene_lengths is a {type(given).__name__}; expected a Series or dict of base pairs "
            "by gene, the name of a var column, or None for the shipped lengths."
        )
    known = lengths[~np.isnan(lengths)]
    if not known.size:
        shown = ", ".join(map(repr, names[:3]))
        raise ValueError(
            f"none of the {len(names)} genes ({shown}, …) has a length; human symbols or Ensembl "
            "ids are expected as var_names, or lengths of these genes by gene_lengths=."
        )
    if not (np.isfinite(known) & (known > 0)).all():
        raise ValueError(
            f"{int((~np.isfinite(known) | (known <= 0)).sum())} gene lengths are not above 0 or "
            "not finite; give base pairs, and NaN where a length is not known."
        )
    if source != "shipped" and np.median(known) < _SHORTEST_MEDIAN:
        warn_user(
            f"the median of the gene lengths is {np.median(known):.3g}, which looks like "
            "kilobases; lengths are read as base pairs (this matters for genes of unknown length)."
        )
    return lengths, source


def _as_numbers(column: pd.Series) -> np.ndarray:
    if not pd.api.types.is_numeric_dtype(column.dtype) and column.dtype != object:
        raise TypeError(f"gene lengths are {column.dtype}; numbers (base pairs) are expected.")
    return pd.to_numeric(column, errors="raise").to_numpy(dtype=np.float64, na_value=np.nan)


def _without_version(names: pd.Index) -> pd.Index:
    return names.str.replace(r"^(ENS[A-Z]*G\d+)\.\d+", r"\1", regex=True)


def _report_unknown(names: pd.Index, unknown: np.ndarray, missing_length: str) -> None:
    if not unknown.any():
        return
    shown = ", ".join(map(repr, names[unknown][:3].astype(str)))
    found = f"{int(unknown.sum())} of {len(names)} genes have no known length ({shown}, …)"
    if missing_length == "error":
        raise ValueError(f"{found}; give theirs by gene_lengths=, or use missing_length='drop'.")
    done = "are left out" if missing_length == "drop" else "count as 1,000 base pairs long"
    warn_user(f"{found} and {done}; give theirs by gene_lengths=.")


def _refuse_empty(adata: AnnData, library: np.ndarray, where: str) -> None:
    empty = np.flatnonzero(library == 0)
    if empty.size:
        shown = ", ".join(map(repr, adata.obs_names[empty[:5]].astype(str)))
        raise ValueError(
            f"{empty.size} samples of {where} have no counts at all ({shown}), so shares of a "
            "million do not exist; drop them first (sc.pp.filter_cells(adata, min_counts=1))."
        )


def _sums(block: Any) -> np.ndarray:
    return np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()


def _log_tpm_any(matrix: Any, weight: np.ndarray) -> Any:
    """Apply :func:`_log_tpm` to any storage; sparse stays sparse, dask stays lazy."""
    if hasattr(matrix, "map_blocks"):
        from dask.array.utils import meta_from_array

        whole_rows = matrix.rechunk({1: -1})
        meta = meta_from_array(whole_rows).astype(np.float32)
        return whole_rows.map_blocks(_log_tpm, weight=weight, dtype=np.float32, meta=meta)
    blocks = [_log_tpm(block, weight) for _, block in row_blocks(matrix)]
    if not sparse.issparse(blocks[0]):
        return np.vstack(blocks)
    # a sparse array stays one
    kind = sparse.csr_array if isinstance(matrix, sparse.sparray) else sparse.csr_matrix
    stacked = kind(sparse.vstack(blocks, format="csr"))
    return stacked.asformat(matrix.format) if sparse.issparse(matrix) else stacked


def _log_tpm(block: Any, weight: np.ndarray) -> Any:
    """Return ln(1 + TPM) of a block of whole rows; ``weight`` is 1 / kilobases of each gene."""
    if sparse.issparse(block):
        rates = block.astype(np.float64).multiply(weight[None, :]).tocsr()
        total = _sums(rates)
        # an all-zero row keeps its zeros
        scale = np.divide(1e6, total, out=np.zeros_like(total), where=total > 0)
        rates = rates.multiply(scale[:, None]).tocsr()
        return rates.log1p().astype(np.float32)
    rates = np.asarray(block, dtype=np.float64) * weight
    total = rates.sum(axis=1, keepdims=True)
    rates *= np.divide(1e6, total, out=np.zeros_like(total), where=total > 0)
    return np.log1p(rates, out=rates).astype(np.float32)
