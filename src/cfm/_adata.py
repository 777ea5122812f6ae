"""The AnnData of a user: checks before it is read, warnings, tables that tools stored, and fields.

Also checks that the values of a sparse matrix lie within it: SciPy slices and densifies without
that, an index outside of the matrix ends the process, and ``check_format`` changes the matrix.
"""

from __future__ import annotations

import functools
import sys
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager, nullcontext
from os import PathLike
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import numpy as np
import pandas as pd
from anndata import AnnData
from scipy import sparse

from cfm._arguments import checks_arguments
from cfm._fields import PARAMS

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cfm._arguments import Range

P = ParamSpec("P")
R = TypeVar("R")

#: Frames of these lie between a user and our functions, and are not what a warning is about.
_INSIDE = ("cfm", "torch", "scvi", "lightning", "contextlib")
#: These call the tools themselves, and collect their warnings.
_CALLERS = ("cfm._cli.", "cfm._report.")
_AXES = {"csr": ("row", "column"), "csc": ("column", "row")}


def takes_anndata(
    *,
    columns: Iterable[str] = (),
    ranges: Mapping[str, int | Range] | None = None,
    others: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Check the arguments of a tool by their annotations, and the tables of its AnnData.

    Parameters
    ----------
    columns
        Arguments that name columns of ``obs``; see :func:`check_tables`.
    ranges
        Ranges of the tool's numbers; see :func:`cfm._arguments.checks_arguments`.
    others
        Whether the first argument may be something else than an AnnData, such as a path.
    """

    def decorate(tool: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(tool)
        def guarded(*args: P.args, **kwargs: P.kwargs) -> R:
            data = args[0] if args else next(iter(kwargs.values()), None)
            if not others and (args or kwargs):
                require_anndata(data)
            if isinstance(data, AnnData):
                check_tables(data, map(kwargs.get, columns))
            return tool(*args, **kwargs)

        return checks_arguments(**(ranges or {}))(guarded)

    return decorate


def load_tables(adata: AnnData) -> None:
    """Load ``obs`` and ``var`` of :func:`anndata.experimental.read_lazy`; matrices stay on disk.

    Registering data writes columns into ``obs``.
    """
    for name in ("obs", "var"):
        table = getattr(adata, name)
        if not isinstance(table, pd.DataFrame):
            setattr(adata, name, table.to_memory())


@contextmanager
def text_is_written() -> Iterator[None]:
    """Let anndata write the text columns of pandas 3, which it refuses by default before 0.13."""
    from anndata import settings

    refused = settings.allow_write_nullable_strings is False
    with settings.override(allow_write_nullable_strings=True) if refused else nullcontext():
        yield


def check_tables(adata: AnnData, labels: Iterable[Any] = (), *, one_kind: bool = False) -> None:
    """Check that names are text, no column is there twice, and columns of ``obs`` hold labels.

    anndata neither copies nor writes what is stored for names that are no text.

    Parameters
    ----------
    labels
        Names of columns of ``obs``, or lists of names; one that does not exist is left aside.
    one_kind
        Whether text and numbers may not stand in the same column.

    Raises
    ------
    ValueError
        If something is not so, or a column holds lists, dictionaries or the like.
    """
    for axis in ("obs", "var"):
        names = getattr(adata, f"{axis}_names")
        if pd.api.types.is_numeric_dtype(names.dtype):
            raise ValueError(
                f"adata.{axis}_names holds {names.dtype} values; expected text: adata.{axis}_names "
                f"= adata.{axis}_names.astype(str)."
            )
        columns = getattr(adata, axis).columns
        twice = list(columns[columns.duplicated()].unique())
        if twice:
            raise ValueError(
                f"adata.{axis} holds more than one column {', '.join(map(repr, twice))}; drop or "
                "rename all but one."
            )
    _check_labels(adata, labels, one_kind)


def _check_labels(adata: AnnData, columns: Iterable[Any], one_kind: bool) -> None:
    for column in columns:
        if isinstance(column, list | tuple):
            _check_labels(adata, column, one_kind)
        elif isinstance(column, str) and column in adata.obs.columns:
            table = adata.obs[[column]]
            values = (table if isinstance(table, pd.DataFrame) else table.to_memory())[column]
            if values.dtype != object:
                continue
            kinds = {type(value).__name__: value for value in values[values.notna()]}
            lists = [name for name, value in kinds.items() if not pd.api.types.is_hashable(value)]
            if lists or (one_kind and len(kinds) > 1):
                raise ValueError(
                    f"adata.obs[{column!r}] holds values of type {', '.join(lists or kinds)}; "
                    "expected one text in each row, or numbers only: see "
                    f"adata.obs[{column!r}].astype(str)."
                )


def require_anndata(adata: object) -> None:
    """Check that something is an AnnData.

    Raises
    ------
    TypeError
        If it is not. For a MuData the message names ``mdata["rna"]``, for a path how to read it.
    """
    if isinstance(adata, str | PathLike):
        raise TypeError(
            f"Found the path {str(adata)!r}; expected an AnnData: read it with anndata.read_h5ad, "
            "or open it with cfm.data.open_files."
        )
    if not isinstance(adata, AnnData):
        raise TypeError(
            f"Found a {type(adata).__name__}; expected an AnnData. Of a MuData, pass "
            "one modality: mdata['rna']."
        )


def stored_table(
    adata: AnnData,
    key: str,
    table: str,
    columns: Sequence[str] = (),
    *,
    tool: str,
    empty: bool = False,
    arguments: str = "",
) -> pd.DataFrame:
    """Return a copy of the table ``uns[key][table]`` that a tool stored, its texts as plain text.

    Parameters
    ----------
    columns
        What has to be there.
    tool
        Name of the tool, such as ``"host_factors"``, for the error.
    empty
        Whether a table without rows will do.
    arguments
        What the tool needs so that it writes the table, such as ``"groupby=…"``.

    Raises
    ------
    KeyError
        If the table or a column is missing; the text names the tool that writes them.
    ValueError
        If the table has no rows.
    """
    frame = _stored(adata, key, table)
    call = ", ".join(filter(None, ("adata", arguments, f"key_added={key!r}")))
    advice = f"run cfm.tl.{tool}({call}) first, or pass the key it was stored under."
    if frame is None:
        tables = {repr(name): _stored(adata, name, table) for name in adata.uns}
        like = [n for n, t in tables.items() if t is not None and set(columns) <= set(t)]
        found = f" Found such tables with key={' and '.join(like)}." if like else ""
        raise KeyError(f"uns[{key!r}][{table!r}] not found; {advice}{found}")
    if missing := [name for name in columns if name not in frame]:
        raise KeyError(f"uns[{key!r}][{table!r}] has no column {', '.join(missing)}; {advice}")
    if frame.empty and not empty:
        raise ValueError(f"uns[{key!r}][{table!r}] has no rows: cfm.tl.{tool} found nothing.")
    plain = frame.copy()
    for name in plain:  # a file gives texts back as categories
        if not pd.api.types.is_numeric_dtype(plain[name]):
            plain[name] = plain[name].astype(str)
    return plain


def params_of(uns: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """Return how a result was made, ``uns[key][PARAMS]``; empty if that is not recorded."""
    stored = uns.get(key)
    params = stored.get(PARAMS) if isinstance(stored, Mapping) else None
    return params if isinstance(params, Mapping) else {}


def pick(
    what: str, wanted: str | Sequence[str] | None, known: Iterable[object], where: str
) -> list[str]:
    """Return the names to use: the one or those wanted, each once, or all that are known.

    Raises
    ------
    KeyError
        If a name is not known.
    ValueError
        If the list is empty.
    """
    names = list(map(str, known))
    if wanted is None:
        return names
    found = list(dict.fromkeys([wanted] if isinstance(wanted, str) else map(str, wanted)))
    if not found:
        raise ValueError(f"{what} is an empty list; pass None for all or name at least one.")
    if missing := [name for name in found if name not in names]:
        some = ", ".join(names[:20]) + (", …" if len(names) > 20 else "")
        raise KeyError(f"{what} {missing[0]!r} is not in {where}; expected one of {some}.")
    return found


def _stored(adata: AnnData, key: str, table: str) -> pd.DataFrame | None:
    """Return ``uns[key][table]`` in memory, also of :func:`anndata.experimental.read_lazy`."""
    stored = adata.uns.get(key)
    frame = in_memory(stored.get(table)) if hasattr(stored, "get") else None
    return frame if isinstance(frame, pd.DataFrame) else None


def in_memory(table: Any) -> Any:
    """Return a table in memory, also one of :func:`anndata.experimental.read_lazy`."""
    return table.to_memory() if hasattr(table, "to_memory") else table


def target(adata: AnnData, *, copy: bool) -> AnnData:
    """Return the AnnData to write to: a copy in memory with ``copy=True``."""
    if not copy:
        return adata
    return adata.to_memory() if adata.isbacked else adata.copy()


def keep_genes(adata: AnnData, columns: np.ndarray) -> None:
    """Keep some genes, by their number, in place; a view becomes an AnnData of its own."""
    AnnData.__init__(adata, adata[:, columns].copy())


def check_key(key_added: str) -> None:
    """Check that a name can be stored in h5ad and zarr files, before anything is computed.

    Raises
    ------
    TypeError, ValueError
        If it is no text, empty, or holds a ``/``.
    """
    if not isinstance(key_added, str):
        raise TypeError(f"key_added is a {type(key_added).__name__}; expected text.")
    if not key_added or "/" in key_added:
        raise ValueError(
            f"key_added={key_added!r} cannot be stored in a file; use a name without '/'."
        )


def warn_overwritten(
    adata: AnnData,
    key: str,
    fields: Mapping[str, Sequence[str]],
    remedy: str = "pass another key_added= to keep it",
) -> None:
    """Warn if fields that this tool did not write are about to be replaced.

    Parameters
    ----------
    adata
        Where they would be written.
    key
        ``uns[key]`` holds the tool's record if it wrote them.
    fields
        Names by slot: ``{"obs": [...], "obsm": [...]}``.
    remedy
        What to do about it.
    """
    record = adata.uns.get(key)
    taken = [
        f"{slot}[{name!r}]"
        for slot, names in fields.items()
        for name in names
        if name in getattr(adata, slot)
    ]
    # A record without any of the fields is another tool's, such as uns["contrasts"].
    if taken and isinstance(record, Mapping) and PARAMS in record:
        return
    if record is not None:
        taken.append(f"uns[{key!r}]")
    if taken:
        warn_user(f"{', '.join(taken)} was not written by this tool and is replaced; {remedy}.")


def warn_user(message: str) -> None:
    """Warn, in the name of the first line outside the package, however deep the call is."""
    level = 1
    frame = sys._getframe(1)
    while frame.f_back is not None and _is_inside(str(frame.f_globals.get("__name__", ""))):
        frame = frame.f_back
        level += 1
    warnings.warn(message, UserWarning, stacklevel=level + 1)


def _is_inside(module: str) -> bool:
    return module.split(".")[0] in _INSIDE and not f"{module}.".startswith(_CALLERS)


def check_sparse(matrix: Any, where: str) -> Any:
    """Return a matrix in memory, of which all values lie within it if it is sparse.

    Parameters
    ----------
    matrix
        What is not sparse is returned as it is; a format other than CSR and CSC becomes COO.
    where
        How to name the matrix in an error.

    Raises
    ------
    ValueError
        If the pointer (``indptr``) or an index is out of range.
    """
    if not sparse.issparse(matrix):
        return matrix
    problem: object = None
    if matrix.format in _AXES:
        n_pieces, n_across = matrix.shape if matrix.format == "csr" else matrix.shape[::-1]
        n_values = min(len(matrix.indices), len(matrix.data))
        problem = pointer_problem(matrix.indptr, n_pieces, n_values, matrix.format)
        if problem is None:
            indices = matrix.indices[: matrix.indptr[-1]]
            problem = index_problem(indices, matrix.indptr, n_across, matrix.format)
    else:
        matrix = matrix.tocoo()
        try:  # a new COO matrix is checked
            matrix = type(matrix)((matrix.data, (matrix.row, matrix.col)), shape=matrix.shape)
        except ValueError as error:
            problem = error
    if problem is not None:
        raise ValueError(
            f"{where} is damaged: {problem}. Read it from its file again; if that has the same "
            "error, copy or download the file again."
        )
    return matrix


def pointer_problem(
    indptr: np.ndarray, n_pieces: int, n_values: int, kind: str = "csr"
) -> str | None:
    """Return what is wrong with the pointer of a CSR or CSC matrix, if anything is.

    Parameters
    ----------
    indptr
        The pointer.
    n_pieces
        Rows of a CSR matrix, columns of a CSC matrix.
    n_values
        Values that are stored.
    kind
        ``"csr"`` or ``"csc"``.
    """
    if indptr.shape != (n_pieces + 1,) or indptr.dtype.kind not in "iu":
        return (
            f"indptr has shape {indptr.shape} and {indptr.dtype} values; expected {n_pieces + 1} "
            "integers"
        )
    falls = np.flatnonzero(indptr[1:] < indptr[:-1])
    if len(falls):
        here, axis = int(falls[0]), _AXES[kind][0]
        return (
            f"indptr falls from {indptr[here]} to {indptr[here + 1]} at {axis} {here}; expected "
            "values that never fall"
        )
    if indptr[0] != 0 or indptr[-1] > n_values:
        return f"indptr goes from {indptr[0]} to {indptr[-1]}; expected 0 to {n_values}"
    return None


def index_problem(
    indices: np.ndarray,
    indptr: np.ndarray,
    n_across: int,
    kind: str = "csr",
    pieces: np.ndarray | None = None,
) -> str | None:
    """Return which index of a CSR or CSC matrix is out of range, if one is.

    Parameters
    ----------
    indices
        Columns of the values of a CSR matrix, rows of those of a CSC matrix.
    indptr
        The pointer, in range.
    n_across
        Columns of a CSR matrix, rows of a CSC matrix.
    kind
        ``"csr"`` or ``"csc"``.
    pieces
        Numbers of the rows (columns) if they are some of a larger matrix.
    """
    if indices.dtype.kind not in "iu":
        return f"indices are {indices.dtype} values; integers are expected"
    # as unsigned numbers those below 0 are the largest, so that one pass finds all
    unsigned = indices.view(indices.dtype.str.replace("i", "u"))
    if not unsigned.size or unsigned.max() < n_across:
        return None
    here = int(np.argmax(unsigned >= n_across))
    piece = int(np.searchsorted(indptr, here, "right")) - 1
    piece = piece if pieces is None else int(pieces[piece])
    axis, across = _AXES[kind]
    return f"{axis} {piece} holds a value in {across} {indices[here]}; expected 0 to {n_across - 1}"
