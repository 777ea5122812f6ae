"""Read expression matrices of any storage, and check that they hold what they should."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import h5py
import numpy as np
import pandas as pd
import zarr
from anndata.abc import CSCDataset, CSRDataset
from scipy import sparse

from cfm._adata import check_sparse
from cfm._arguments import check_layer, layer_names
from cfm._units import LOG2_LIMIT, LOG_CEILING
from cfm.data._disk_parts import CompressedPart, DensePart, OpenElement, load_by_columns
from cfm.data._row_stack import RowStack, stack_rows

if TYPE_CHECKING:
    from collections.abc import Iterator

    from anndata import AnnData

#: A block of rows is cut so that its dense form stays near this many values (32 MiB in float32).
_BLOCK_VALUES = 8_000_000

#: What :func:`by_rows` made of a matrix that somebody else opened, as long as that is in use.
_OPENED: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


@dataclass(frozen=True)
class CountSummary:
    """What one pass over a count matrix found.

    Attributes
    ----------
    library_size
        ``(n_obs,)`` float64, sum of the counts of each observation; 0 marks an all-zero one.
    fractional
        Whether some counts are not whole numbers (expected counts of a quantifier).
    maximum
        The largest value.
    """

    library_size: np.ndarray
    fractional: bool
    maximum: float


def in_memory_frame(frame: Any) -> pd.DataFrame:
    """Return ``obs`` or ``var`` as a DataFrame, also of :func:`anndata.experimental.read_lazy`."""
    frame = frame if isinstance(frame, pd.DataFrame) else frame.to_memory()
    # pandas groups by no column that the index is named after
    return frame.rename_axis(None) if frame.index.name in frame.columns else frame


def get_matrix(adata: AnnData, *, layer: str | None = None, use_raw: bool = False) -> Any:
    """Return ``X``, a layer or ``raw.X`` without loading it.

    Parameters
    ----------
    adata
        In memory, backed, lazy (dask) or a view.
    layer
        Name of a layer instead of ``X``.
    use_raw
        Take ``adata.raw.X``, whose columns are ``adata.raw.var_names``.

    Returns
    -------
    numpy, scipy sparse or dask array, or an on-disk dataset; read it with :func:`row_blocks` or
    :func:`read_rows`.

    Raises
    ------
    KeyError
        If the layer does not exist.
    ValueError
        If there is no matrix, it is empty, a sparse one is damaged, or both ``layer`` and
        ``use_raw`` are given.
    """
    if use_raw and layer is not None:
        raise ValueError("layer= and use_raw=True exclude each other; choose one.")
    if use_raw:
        if adata.raw is None:
            raise ValueError("use_raw=True, but adata.raw is None; store the counts or use layer=.")
        matrix = check_indices(adata.raw.X, "adata.raw.X")
    else:
        check_layer(adata, layer)
        matrix = stored_matrix(adata, layer)
    if matrix is None:
        remedy = (
            f"choose one of the layers {layer_names(adata)} with layer="
            if layer_names(adata)
            else "a matrix of observations by genes is expected, and there is no layer either"
        )
        raise ValueError(f"adata.X is None; {remedy}.")
    if 0 in matrix.shape:
        raise ValueError(
            f"the matrix is empty: {matrix.shape[0]} × {matrix.shape[1]}; at least one observation "
            "and one gene are expected."
        )
    return matrix


def stored_matrix(adata: AnnData, layer: str | None) -> Any:
    """Return ``X`` or a layer, whose indices are checked as by :func:`check_indices`.

    A view slices its whole, which is therefore checked before. There is no public way to the whole,
    nor to the rows and columns that the view has of it.
    """
    if adata.is_view:
        whole = stored_matrix(adata._adata_ref, layer)
        in_file = isinstance(whole, CSRDataset | CSCDataset) and not isinstance(whole, RowStack)
        if in_file or hasattr(whole, "map_blocks"):
            whole = by_rows(whole)
            rows, columns = (
                index if isinstance(index, slice) else np.arange(n)[index]
                for n, index in zip(whole.shape, (adata._oidx, adata._vidx), strict=True)
            )
            stays = isinstance(whole, RowStack)
            return whole.select(rows, columns) if stays else whole[rows][:, columns]
    if layer is None:
        return check_indices(adata.X, "adata.X")
    return check_indices(adata.layers[layer], f"adata.layers[{layer!r}]")


def check_indices(matrix: Any, where: str) -> Any:
    """Return a matrix of any storage whose sparse indices are checked, at the latest when read.

    Parameters
    ----------
    matrix
        In memory, of which all indices are checked now; computed by dask, of which blocks are
        checked when they are computed; or in a file, of which rows are checked when they are read.
    where
        How to name the matrix in an error.

    Raises
    ------
    ValueError
        If an index or the pointer of a matrix in memory is out of range.
    """
    if hasattr(matrix, "map_blocks"):
        from dask.array.utils import meta_from_array

        meta = meta_from_array(matrix)
        return matrix.map_blocks(check_sparse, f"a block of {where}", meta=meta)
    return check_sparse(matrix, where)


def _in_memory(block: Any) -> Any:
    """Compute dask, and settle on a numpy array or a CSR matrix."""
    if hasattr(block, "compute"):
        block = block.compute()
    if sparse.issparse(block):
        return _csr(block)
    block = np.asarray(block)
    if block.dtype.kind not in "biuf":
        raise TypeError(f"the matrix holds {block.dtype} values; numbers are expected.")
    return block.astype(_usable(block.dtype), copy=False)


def _csr(matrix: Any) -> Any:
    """Return a CSR matrix, of a scipy array too, of numbers that scipy and torch take."""
    matrix = sparse.csr_matrix(matrix)
    usable = _usable(matrix.dtype)
    if matrix.dtype != usable:  # astype of half precision fails
        parts = matrix.data.astype(usable), matrix.indices, matrix.indptr
        matrix = sparse.csr_matrix(parts, shape=matrix.shape)
    return matrix


def _usable(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the dtype in the byte order of this machine, half precision as single."""
    return np.dtype(np.float32) if dtype == np.float16 else dtype.newbyteorder("=")


def by_rows(matrix: Any) -> Any:
    """Return the matrix in a form of which rows are read fast.

    What lies in a file is read in stretches of rows. What is stored by columns (CSC) is turned
    into CSR in memory, for its rows cannot be read one by one.

    Parameters
    ----------
    matrix
        What :func:`get_matrix` returned.
    """
    if sparse.issparse(matrix):
        return _csr(matrix)
    if isinstance(matrix, h5py.Dataset | zarr.Array):
        return stack_rows([DensePart(OpenElement(matrix))])
    if isinstance(matrix, CSRDataset | CSCDataset) and hasattr(matrix, "group"):
        if matrix not in _OPENED:
            _OPENED[matrix] = _from_file(matrix)
        return _OPENED[matrix]
    return matrix


def _from_file(matrix: Any) -> Any:
    if matrix.format == "csr":
        return stack_rows([CompressedPart(OpenElement(matrix.group))])
    return _csr(load_by_columns(OpenElement(matrix.group)))


def row_blocks(matrix: Any, n_rows: int | None = None) -> Iterator[tuple[slice, Any]]:
    """Go through a matrix in blocks of consecutive rows, whatever its storage.

    Parameters
    ----------
    matrix
        What :func:`get_matrix` returned.
    n_rows
        Rows per block; chosen by the number of columns if not given.

    Yields
    ------
    The rows as a slice, and the block in memory: numpy array or CSR, dtype as stored.
    """
    matrix = by_rows(matrix)
    total, n_columns = matrix.shape
    step = n_rows or max(1, _BLOCK_VALUES // max(1, n_columns))
    for start in range(0, total, step):
        rows = slice(start, min(start + step, total))
        yield rows, _in_memory(matrix[rows])


def read_rows(matrix: Any, rows: np.ndarray) -> Any:
    """Read some rows, in the order given, into a numpy array or CSR matrix.

    Parameters
    ----------
    matrix
        What :func:`get_matrix` returned.
    rows
        ``(n,)`` integer row numbers; repeats are allowed.
    """
    # files want their rows sorted and once each
    unique, inverse = np.unique(np.asarray(rows, dtype=np.int64), return_inverse=True)
    block = _in_memory(by_rows(matrix)[unique])
    return block if np.array_equal(unique, rows) else block[inverse]


def to_dense(block: Any, dtype: Any = np.float64) -> np.ndarray:
    """Return a block as a dense array of the given dtype."""
    dense = block.toarray() if sparse.issparse(block) else block
    return np.asarray(dense, dtype=dtype)


def _values(block: Any) -> np.ndarray:
    """Return the values that can be anything but zero."""
    return block.data if sparse.issparse(block) else block.ravel()


def _check_finite(values: np.ndarray, where: str) -> None:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        n_nan = int(np.isnan(values).sum())
        n_inf = int(np.isinf(values).sum())
        raise ValueError(
            f"{where} holds {n_nan} NaN and {n_inf} infinite values in one block of rows; "
            "finite numbers are expected: drop or repair these samples or genes."
        )


def check_counts(matrix: Any, *, where: str = "adata.X") -> CountSummary:
    """Check, in one pass of blocks, that a matrix holds counts.

    Whole numbers stored as any dtype are counts. Fractional values pass as *expected counts* (as
    salmon, kallisto or RSEM give) if the largest value exceeds 30, which no logarithm of a count
    reaches, and if the observations do not all have the same sum, as TPM and CPM have. FPKM
    cannot be distinguished from expected counts by its values; the caller has to declare it.

    Parameters
    ----------
    matrix
        What :func:`get_matrix` returned.
    where
        How to name the matrix in an error.

    Returns
    -------
    Library sizes and the kind of counts.

    Raises
    ------
    ValueError
        If values are negative, NaN or infinite, or look log-transformed or normalised.
    """
    library_size = np.zeros(matrix.shape[0])
    fractional = False
    maximum = 0.0
    for rows, block in row_blocks(matrix):
        values = _values(block)
        _check_finite(values, where)
        if values.size:
            if values.min() < 0:
                raise ValueError(
                    f"{where} holds negative values (smallest {values.min():.4g}), so these are "
                    "not counts; pass the raw counts (layer=), or log2 values with units='log' "
                    "where that is offered."
                )
            maximum = max(maximum, float(values.max()))
            if values.dtype.kind == "f" and not fractional:
                fractional = bool((values != np.rint(values)).any())
        library_size[rows] = np.asarray(block.sum(axis=1, dtype=np.float64)).ravel()
    if fractional:
        _refuse_transformed(library_size, maximum, where)
    return CountSummary(library_size, fractional, maximum)


def _refuse_transformed(library_size: np.ndarray, maximum: float, where: str) -> None:
    if maximum <= LOG_CEILING:
        raise ValueError(
            f"{where} holds fractional values of at most {maximum:.4g}, which look "
            "log-transformed, not like counts; pass the raw counts (layer=), or log2 values with "
            "units='log' where that is offered."
        )
    sums = library_size[library_size > 0]
    same = sums.size > 1 and np.ptp(sums) <= 1e-3 * sums.mean()
    if same or np.allclose(sums, 1e6, rtol=1e-3):
        raise ValueError(
            f"{where} holds fractional values and every sample sums to {sums.mean():.6g}, so it "
            "is normalised (TPM, CPM or scaled), not counts; pass the raw counts (layer=), or "
            "log2 values with units='log' where that is offered."
        )


def check_log_values(matrix: Any, *, where: str = "adata.X") -> None:
    """Check, in one pass of blocks, that a matrix may hold log2 expression.

    Raises
    ------
    ValueError
        If values are NaN or infinite, or beyond ±64, which no log2 expression value is.
    """
    for _, block in row_blocks(matrix):
        values = _values(block)
        _check_finite(values, where)
        largest = float(np.abs(values).max()) if values.size else 0.0
        if largest > LOG2_LIMIT:
            raise ValueError(
                f"{where} holds values up to {largest:.6g}, which are not log2 expression; pass "
                "counts with units='counts', or take log2 first."
            )


def check_not_empty(adata: AnnData) -> None:
    """Check that there are observations.

    Raises
    ------
    ValueError
        If there are none.
    """
    if not adata.n_obs:
        raise ValueError("adata has no observations (n_obs is 0); at least one is expected.")


def check_unique_names(names: pd.Index, *, axis: str) -> None:
    """Check that observation (``axis="obs"``) or gene (``axis="var"``) names are unique, not empty.

    Raises
    ------
    ValueError
        Naming some of the duplicates, and the function that repairs them.
    """
    repair = {
        "var": "merge them with cfm.pp.map_genes(adata), or call adata.var_names_make_unique()",
        "obs": "call adata.obs_names_make_unique()",
    }[axis]
    twice = names[names.duplicated()].unique()
    if len(twice):
        shown = ", ".join(repr(str(name)) for name in twice[:5])
        raise ValueError(f"{len(twice)} {axis}_names occur more than once ({shown}); {repair}.")
    n_empty = int((pd.Series(names, dtype=object).fillna("").astype(str).str.strip() == "").sum())
    if n_empty:
        raise ValueError(f"{n_empty} of adata.{axis}_names is empty; give it a name or drop it.")
