"""Tools of one AnnData that also take a MuData, of which they work on one modality."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from anndata import AnnData

from cfm._arguments import Range, checks_arguments
from cfm._tables import check_tables
from cfm.data._matrix import select_modality

if TYPE_CHECKING:
    from mudata import MuData

P = ParamSpec("P")
R = TypeVar("R")

_MODALITY = "modality"


def on_modality(
    *,
    columns: Iterable[str] = (),
    also: Iterable[str] = (),
    made_from: str | None = None,
    ranges: Mapping[str, int | Range] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a tool, whose first argument is an AnnData, take a MuData and ``modality=``.

    The tool itself is given the modality in place of the MuData, and its name as ``modality``,
    which belongs into its record. It writes into the modality, with ``copy=True`` into that of a
    copy of the MuData. Arguments are checked as their annotations say.

    Parameters
    ----------
    columns
        Arguments that name columns of ``obs``: one that only the MuData has is a ``KeyError`` that
        says how to hand it down.
    also
        Arguments that may be a MuData as well, or a mapping that holds some: of these the same
        modality is taken.
    made_from
        With this argument the tool makes new observations and reads the MuData by itself
        (:func:`cfm.data._matrix.select_modality`), as :func:`cfm.tl.predict_virus` does with
        ``groupby=``.
    ranges
        Of the tool's numbers; see :func:`cfm._arguments.checks_arguments`.
    """

    def decorate(tool: Callable[P, R]) -> Callable[P, R]:
        tool = checks_arguments(**(ranges or {}))(tool)
        signature = inspect.signature(tool)
        first = next(iter(signature.parameters))

        @functools.wraps(tool)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            data: Any = args[0] if args else kwargs.get(first)
            if isinstance(data, AnnData):
                check_tables(data, map(kwargs.get, columns))
            modality = cast("str | None", kwargs.get(_MODALITY))
            others = {name: kwargs[name] for name in also if name in kwargs}
            if len(args) > 1:
                bound = signature.bind_partial(*args).arguments
                others |= {name: bound[name] for name in also if name in bound}
            if not any(map(_holds_mudata, (data, *others.values()))):
                if modality is not None and _has_none(data):
                    raise ValueError(_superfluous(data, modality))
                return tool(*args, **kwargs)
            if made_from is not None and kwargs.get(made_from) is not None:
                return tool(*args, **kwargs)
            given = signature.bind(*args, **kwargs)
            for name, value in others.items():
                given.arguments[name] = _taken(value, modality)
            if not is_mudata(data):
                return tool(*given.args, **given.kwargs)
            given.arguments[first], _ = select_modality(data, modality)
            check_tables(given.arguments[first], map(given.arguments.get, columns))
            name = modality or next(iter(data.mod))
            given.arguments[_MODALITY] = name
            for argument in columns:
                _check_columns(data, name, argument, given.arguments.get(argument))
            copy = bool(given.arguments.get("copy"))
            return cast("R", _work(tool, data, name, given, copy=copy))

        return wrapper

    return decorate


def require_anndata(adata: object) -> None:
    """Check that something is an AnnData.

    Raises
    ------
    TypeError
        If it is not; of a MuData the error asks for one modality.
    """
    from anndata import AnnData

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


def is_mudata(data: object) -> bool:
    """Whether it is a MuData."""
    import mudata as md

    return isinstance(data, md.MuData)


@contextmanager
def quiet_mudata() -> Iterator[None]:
    """Ignore what mudata 0.3 warns of its next version, which our users cannot act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message="From 0.4")
        yield


def _work(
    tool: Callable[P, R], data: MuData, name: str, given: inspect.BoundArguments, *, copy: bool
) -> R | MuData:
    """Call the tool on a modality, of a copy of the MuData if one is asked for."""
    if not copy or given.arguments.get("output") is not None:  # together the tool refuses them
        return tool(*given.args, **given.kwargs)
    if data.isbacked:
        raise ValueError(
            f"copy=True would read all modalities of {data.filename} into memory; leave it out, "
            "or read the file with mudata.read_h5mu first."
        )
    with quiet_mudata():
        data = data.copy()
    given.arguments[next(iter(given.arguments))] = data.mod[name]
    given.arguments["copy"] = False
    tool(*given.args, **given.kwargs)
    return data


def _holds_mudata(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(map(is_mudata, value.values()))
    return is_mudata(value)


def _taken(value: Any, modality: str | None) -> Any:
    """Return the modality of a MuData, also of those in a mapping; all else as it is."""
    if isinstance(value, Mapping) and _holds_mudata(value):
        return {key: _taken(each, modality) for key, each in value.items()}
    return select_modality(value, modality)[0] if is_mudata(value) else value


def _has_none(data: object) -> bool:
    """Whether it is something that tools take, and that has no modalities."""
    from anndata import AnnData

    return isinstance(data, AnnData | str | PathLike | Sequence)


def _superfluous(data: object, modality: str) -> str:
    from anndata import AnnData

    if not isinstance(data, AnnData):
        return f"modality={modality!r} goes with a MuData; files hold an AnnData."
    return (
        f"modality={modality!r} was given for an AnnData, which has none; leave it out or pass the "
        "MuData."
    )


def _check_columns(mdata: MuData, name: str, argument: str, value: Any) -> None:
    """Check that no column is named that only ``MuData.obs`` has."""
    named = [value] if isinstance(value, str) else value if isinstance(value, list | tuple) else []
    own = mdata.mod[name].obs.columns
    for column in named:
        if column not in own and column in mdata.obs.columns:
            raise KeyError(
                f"{argument}={column!r} is a column of mdata.obs, not of mdata[{name!r}].obs; copy "
                f"it there with mdata.push_obs([{column!r}], mods=[{name!r}])."
            )
