"""What every tool checks first: its arguments, the type of its data, and their tables."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from anndata import AnnData

from cfm._arguments import checks_arguments
from cfm._tables import check_tables, require_anndata

if TYPE_CHECKING:
    from cfm._arguments import Range

P = ParamSpec("P")
R = TypeVar("R")


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
        Arguments that name columns of ``obs``; see :func:`cfm._tables.check_tables`.
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
