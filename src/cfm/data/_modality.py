"""Tools of one AnnData that also take a MuData, of which they work on one modality."""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from os import PathLike
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

import numpy as np
import pandas as pd
from anndata import AnnData

from cfm._arguments import Range, checks_arguments
from cfm._tables import check_tables
from cfm.data._matrix import select_modality
from cfm.data._warn import warn_user

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
    changes_genes: Callable[[Mapping[str, Any]], bool] | None = None,
    ranges: Mapping[str, int | Range] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a tool, whose first argument is an AnnData, take a MuData and ``modality=``.

    The tool itself is given the modality in place of the MuData, and its name as ``modality``,
    which belongs into its record. It writes into the modality; what it makes of ``copy=True`` is
    put into a copy of the MuData. A MuData of which genes were dropped or renamed is updated.
    Arguments are checked as their annotations say.

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
    changes_genes
        Says of the arguments whether the tool may drop, merge or rename genes. It then works on a
        copy, and the modality becomes that copy when the MuData is known to follow.
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
            anew = changes_genes is not None and changes_genes(given.arguments)
            copy = bool(given.arguments.get("copy"))
            return cast("R", _work(tool, data, name, given, copy=copy, anew=anew))

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


def update(mdata: MuData) -> None:
    """Call ``mdata.update()``, as mudata is set up."""
    with _quiet():
        mdata.update()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what mudata says of its next version, which is not for our users to act on."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning, message="From 0.4")
        yield


def _follow(mdata: MuData, name: str, old: pd.Index, adata: AnnData) -> None:
    """Bring a MuData into line with a modality whose genes were others before."""
    new = adata.var_names
    if len(new) != len(old) and not new.isin(old).all():
        # mudata cannot follow genes that are renamed and dropped at once: all leave and come anew
        mdata.mod[name] = type(adata)(obs=adata.obs[[]])
        update(mdata)
        mdata.mod[name] = adata
    update(mdata)


def _replace_genes(mdata: MuData, name: str, made: AnnData) -> None:
    """Let a modality become one of other genes, or leave everything as it is.

    Raises
    ------
    ValueError
        If the MuData is a view, or mudata cannot follow.
    """
    if mdata.is_view:
        raise ValueError(
            "The genes of a view of a MuData cannot be changed in place; pass mdata.copy(), or use "
            "copy=True."
        )
    old = mdata.mod[name].var_names
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # said when it is done in earnest
            rehearsed = type(mdata)({key: _names_only(mod) for key, mod in mdata.mod.items()})
            rehearsed.mod[name]._init_as_actual(_names_only(made))
            _follow(rehearsed, name, old, rehearsed.mod[name])
    except (NotImplementedError, ValueError, KeyError, IndexError) as error:
        raise ValueError(
            f"mudata cannot follow the change of the genes of {name!r} ({error}). Make names of "
            "genes unique in and between modalities (mdata.var_names_make_unique()), or call the "
            f"tool on mdata[{name!r}] and make the MuData anew."
        ) from error
    before = mdata.var.copy()
    varm = {key: mdata.varm[key] for key in mdata.varm if key not in mdata.mod}
    varp = dict(mdata.varp.items())
    for key in varm:
        del mdata.varm[key]
    for key in varp:
        del mdata.varp[key]
    mdata.mod[name]._init_as_actual(made)  # who holds the modality goes on holding it
    _follow(mdata, name, old, mdata.mod[name])
    lost = [f"varm[{key!r}]" for key in varm] + [f"varp[{key!r}]" for key in varp]
    if before.index.is_unique and mdata.var.index.is_unique:
        for column in before.columns.intersection(mdata.var.columns):
            now, kept = mdata.var[column], before[column].reindex(mdata.var_names)
            mdata.var[column] = now.where(now.notna(), kept)
        place = before.index.get_indexer(mdata.var_names)
        for key, values in varm.items():
            mdata.varm[key] = _rows(values, place, mdata.var_names)
        if (place >= 0).all():
            for key, values in varp.items():
                mdata.varp[key] = values[place][:, place]
        lost = [] if (place >= 0).all() else lost[len(varm) :]
    if lost:
        warn_user(
            f"{', '.join(lost)} of the MuData were of the genes as they were, and are removed."
        )


def _rows(values: Any, place: np.ndarray, names: pd.Index) -> Any:
    """Take rows of the genes that are left; those of new genes are NaN."""
    if isinstance(values, pd.DataFrame):
        return values.reindex(names)
    values = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    if (place >= 0).all():
        return values[place]
    taken = values[place].astype(np.result_type(values.dtype, np.float32))
    taken[place < 0] = np.nan
    return taken


def _names_only(adata: AnnData) -> AnnData:
    return type(adata)(obs=pd.DataFrame(index=adata.obs_names), var=adata.var[[]].copy())


def _work(
    tool: Callable[..., Any],
    data: MuData,
    name: str,
    given: inspect.BoundArguments,
    *,
    copy: bool,
    anew: bool,
) -> Any:
    """Call the tool on a modality, and bring the MuData into line with what became of it."""
    adata: AnnData = data.mod[name]
    if copy and data.isbacked:
        raise ValueError(
            f"copy=True would read all modalities of {data.filename} into memory; leave it out, "
            "or read the file with mudata.read_h5mu first."
        )
    anew = anew and not adata.isbacked  # of which the tool says what to do
    if anew:
        given.arguments["copy"] = True
    result = tool(*given.args, **given.kwargs)
    if not (copy or anew):
        return result
    if copy:
        with _quiet():
            data = data.copy()
    if result.var_names.equals(adata.var_names):
        data.mod[name]._init_as_actual(result)
    else:
        _replace_genes(data, name, result)
    return data if copy else None


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
