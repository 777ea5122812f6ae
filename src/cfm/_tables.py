"""Tables of an AnnData: checks before they are read, and tables that tools stored."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from os import PathLike
from typing import TYPE_CHECKING, Any

import pandas as pd
from anndata import AnnData

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence


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
