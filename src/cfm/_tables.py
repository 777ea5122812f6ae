"""What every tool and model does first with the tables of an AnnData."""

from __future__ import annotations

from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

import pandas as pd

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from anndata import AnnData


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
