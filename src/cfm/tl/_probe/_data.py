"""Targets, groups and features of a probe, read and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import pandas as pd

from cfm._adata import check_sparse, params_of, warn_user
from cfm._fields import PLAIN_EXPRESSION
from cfm.data._counts import looks_like_counts
from cfm.data._matrix import check_unique_names, get_matrix, in_memory_frame, read_rows, to_dense
from cfm.tl._representation import read_representation, representation_name

if TYPE_CHECKING:
    from anndata import AnnData

    from cfm.tl._representation import LatentModel

Task = Literal["classification", "regression", "survival"]

#: Names of columns with groups of observations.
_GROUP_NAMES = ("patient", "donor", "subject", "individual", "study")
#: Name of the expression of all genes, the default representation.
_ALL_GENES = "expression"


@dataclass(frozen=True)
class Target:
    """The observations with a target, in the order of their names.

    Attributes
    ----------
    task
        Kind of target.
    rows
        ``(n,)`` row numbers in the AnnData, sorted by name, so that folds do not depend on the
        order of the rows.
    names
        Names of the targets; of a survival target, of the time and the event.
    values
        ``(n, n_targets)`` float64: class numbers, values (NaN where one of several is unknown), or
        time and event.
    classes
        Names of the classes in sorted order, else empty.
    groups
        ``(n,)`` text: groups that no split divides.
    grouped
        Whether there are groups; else each observation is one.
    trains
        ``(n,)`` bool, training rows with ``test_on``; the others are predicted. ``None``:
        cross-validation.
    """

    task: Task
    rows: np.ndarray
    names: list[str]
    values: np.ndarray
    classes: list[str]
    groups: np.ndarray
    grouped: bool
    trains: np.ndarray | None = None

    def part(self, rows: np.ndarray) -> Target:
        """Return some of the observations, all of one kind."""
        own = {"rows": self.rows[rows], "values": self.values[rows], "groups": self.groups[rows]}
        return replace(self, **own, trains=None)

    @property
    def strata(self) -> np.ndarray:
        """``(n,)`` int64, the strata of folds: classes, or events."""
        if self.task == "regression":
            return np.zeros(len(self.rows), dtype=np.int64)
        return self.values[:, 0 if self.task == "classification" else 1].astype(np.int64)

    @property
    def scored_names(self) -> list[str]:
        """Names of the scored targets: each value, the class, or time and event as one."""
        return self.names if self.task == "regression" else ["/".join(self.names)]


def read_target(
    adata: AnnData,
    target: str | Sequence[str],
    task: Task,
    groups: str | None,
    n_folds: int,
    test_on: str | Sequence[str] | None = None,
) -> Target:
    """Read targets and groups, leave out observations without a target, and check the rest.

    Raises
    ------
    KeyError
        If a key does not exist.
    TypeError, ValueError
        If the target does not fit the task or the folds.
    """
    check_unique_names(adata.obs_names, axis="obs")
    obs = in_memory_frame(adata.obs)
    frame = _target_frame(adata, obs, target, task)
    classes: list[str] = []
    if task == "classification":
        column = frame.iloc[:, 0]
        texts = column.astype(str)
        known = ~(column.isna() | (texts.str.strip() == "")).to_numpy()
        found_classes, codes = np.unique(texts[known], return_inverse=True)
        classes = list(found_classes)
        values = np.full((adata.n_obs, 1), np.nan)
        values[known, 0] = codes
    else:
        values = np.column_stack([_numbers(frame[name], str(name)) for name in frame])
        known = np.isfinite(values)
        known = known.all(axis=1) if task == "survival" else known.any(axis=1)
    if np.isinf(values).any():
        raise ValueError("the target holds infinite values; finite numbers or NaN are expected.")
    if not known.any():
        raise ValueError(f"no observation has a value of {list(frame)}; nothing can be learned.")
    names = adata.obs_names.astype(str).to_numpy()
    rows = np.flatnonzero(known)
    rows = rows[np.argsort(names[rows], kind="stable")]
    members = names[rows] if groups is None else _groups(obs, groups, rows)
    targets = list(map(str, frame))
    found = Target(task, rows, targets, values[rows], classes, members, groups is not None)
    check = _CHECKS[task]
    if test_on is not None:
        tested = _test_rows(found, groups, test_on)
        check(replace(found.part(np.flatnonzero(~tested)), grouped=False), 2)
        found = replace(found, trains=~tested)
    else:
        n_groups = len(np.unique(members))
        if groups is not None and n_groups == 1:
            raise ValueError(
                f"obs[{groups!r}] has one level, {str(members[0])!r}: nothing is left to "
                "train on; leave groups= out, or name the column of patients or samples."
            )
        check(found, n_folds)
        what = "observations with a target" if groups is None else f"groups in obs[{groups!r}]"
        two_cohorts = groups is not None and n_groups == 2  # each is predicted by the other
        if n_groups < max(n_folds, 3) and not two_cohorts:
            raise ValueError(f"there are {n_groups} {what}, but {n_folds} folds; use fewer folds.")
    if groups is None:
        _warn_of_groups(obs.iloc[rows].drop(columns=targets, errors="ignore"), found)
    n_dropped = adata.n_obs - len(rows)
    if n_dropped:
        warn_user(
            f"{n_dropped} of {adata.n_obs} observations have no value of "
            f"{' and '.join(map(repr, list(frame)[:3]))}{' …' if frame.shape[1] > 3 else ''} and "
            "are left out."
        )
    return found


def _target_frame(
    adata: AnnData, obs: pd.DataFrame, target: str | Sequence[str], task: Task
) -> pd.DataFrame:
    """Return the columns of the targets, in the number that the task requires."""
    if isinstance(target, str) and target not in obs.columns and target in adata.obsm:
        values = adata.obsm[target]
        if isinstance(values, pd.DataFrame):
            frame = values
        else:
            array = to_dense(check_sparse(values, f"adata.obsm[{target!r}]"), None)
            frame = pd.DataFrame(array, columns=[f"{target}_{i}" for i in range(array.shape[1])])
    else:
        names = [target] if isinstance(target, str) else target
        if (
            not isinstance(names, Sequence)
            or not names
            or not all(isinstance(name, str) for name in names)
        ):
            raise TypeError(
                f"target={target!r}; expected the name of an obs column or obsm key, or a list of "
                "obs columns."
            )
        missing = [name for name in names if name not in obs.columns]
        if missing:
            raise KeyError(
                f"no {missing} in obs; obs has {list(obs.columns)}, obsm {list(adata.obsm)}."
            )
        if len(set(names)) < len(names):
            raise ValueError(f"target={list(names)} names a column twice.")
        frame = obs[list(names)]
    if task == "survival" and frame.shape[1] != 2:
        raise ValueError(
            f"survival needs two targets, found {list(frame)}; pass the columns of the time and of "
            "the event: target=('time', 'event')."
        )
    if task == "classification" and frame.shape[1] != 1:
        raise ValueError(
            f"classification predicts one target at a time, found {frame.shape[1]}; call it once "
            "for each, with a key_added= of its own."
        )
    return frame


def _numbers(column: pd.Series, name: str) -> np.ndarray:
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if not pd.api.types.is_numeric_dtype(column.dtype):
        raise TypeError(
            f"target {name!r} holds {column.dtype} values; numbers are expected (an event is 1 "
            "or True if it was observed; for categories use task='classification')."
        )
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _groups(obs: pd.DataFrame, groups: str, rows: np.ndarray) -> np.ndarray:
    if groups not in obs.columns:
        raise KeyError(f"no column {groups!r} in adata.obs; it has {list(obs.columns)}.")
    column = obs[groups].iloc[rows]
    texts = column.astype(str)
    missing = int((column.isna() | (texts.str.strip() == "")).sum())
    if missing:
        raise ValueError(
            f"{missing} observations with a target have no group in obs[{groups!r}]; name their "
            "group, or drop them."
        )
    return texts.to_numpy(dtype=str)


def _test_rows(found: Target, groups: str | None, test_on: str | Sequence[str]) -> np.ndarray:
    """Return ``(n,)`` bool, the observations of the groups to test on."""
    if groups is None:
        raise ValueError("test_on= names levels of groups=; pass that column too.")
    named = {test_on} if isinstance(test_on, str) else set(map(str, test_on))
    present = np.unique(found.groups)
    unknown = sorted(named - set(present))
    if unknown or not named or len(named) == len(present):
        wrong = (
            f"names {unknown or 'no level'}" if unknown or not named else "leaves none to train on"
        )
        raise ValueError(
            f"test_on= {wrong}; obs[{groups!r}] has {present[:10].tolist()} among the observations "
            "with a target."
        )
    return np.isin(found.groups, sorted(named))


def _warn_of_groups(obs: pd.DataFrame, found: Target) -> None:
    """Warn of a column whose name and repeated values indicate groups of observations.

    Columns that cannot be ``groups=`` are ignored: with one level, missing values, or classes in
    one level each.
    """
    for column in map(str, obs.columns):
        if column.lower().removesuffix("_id") not in _GROUP_NAMES or obs[column].isna().any():
            continue
        levels = obs[column].astype(str)
        usable = levels.nunique() > 1
        if found.task == "classification":
            usable &= bool((levels.groupby(found.strata).nunique() > 1).all())
        if usable and levels.nunique() < len(levels):
            warn_user(
                f"obs[{column!r}] has repeated values: observations that belong together may be "
                f"split between training and test, which flatters every score; pass "
                f"groups={column!r}."
            )
            return


def _check_classes(found: Target, n_folds: int) -> None:
    codes, name = found.strata, found.names[0]
    if len(found.classes) < 2:
        raise ValueError(
            f"the target {name!r} has one class, {found.classes[0]!r}; at least two are needed."
        )
    sizes = np.bincount(codes, minlength=len(found.classes))
    small = [f"{found.classes[c]!r} ({sizes[c]})" for c in np.flatnonzero(sizes < n_folds)]
    if small:
        shown = ", ".join(small[:5]) + (" …" if len(small) > 5 else "")
        raise ValueError(
            f"{len(small)} of {len(sizes)} classes of {name!r} have fewer members than "
            f"the {n_folds} folds: {shown}; use fewer folds, drop or merge them"
            + (" (numbers that are no classes: task='regression')." if len(small) > 5 else ".")
        )
    n_groups = pd.Series(found.groups).groupby(codes).nunique().to_numpy()
    if found.grouped and (n_groups < 2).any():
        alone = [found.classes[c] for c in np.flatnonzero(n_groups < 2)]
        raise ValueError(
            f"classes {alone[:5]} occur in one group each, so they have no training "
            "observations when that group is held out; drop them."
        )


def _check_values(found: Target, n_folds: int) -> None:
    for name, column in zip(found.names, found.values.T, strict=True):
        known = column[np.isfinite(column)]
        if len(known) < 2 * n_folds:
            raise ValueError(
                f"target {name!r} has {len(known)} values, too few for {n_folds} folds; "
                "use fewer folds or drop the target."
            )
        if np.ptp(known) == 0:
            raise ValueError(
                f"target {name!r} is {known[0]:g} in all observations; a constant cannot be "
                "predicted better or worse."
            )


def _check_survival(found: Target, n_folds: int) -> None:
    (time_name, event_name), (time, event) = found.names, found.values.T
    if (time < 0).any():
        raise ValueError(
            f"{int((time < 0).sum())} times in {time_name!r} are negative (smallest "
            f"{time.min():g}); time since the start of observation is expected."
        )
    wrong = sorted(set(np.unique(event)) - {0.0, 1.0})
    if wrong:
        shown = ", ".join(f"{value:g}" for value in wrong[:5])
        raise ValueError(
            f"{event_name!r} holds {shown}; expected 1 (or True) if the event was observed and 0 "
            "(or False) if the observation ended before."
        )
    n_events = int(event.sum())
    if n_events < n_folds:
        raise ValueError(
            f"{event_name!r} holds {n_events or 'no'} events in {len(event)} observations; at "
            f"least one for each of the {n_folds} folds is needed."
        )
    if np.ptp(time) == 0:
        raise ValueError(f"all times in {time_name!r} are {time[0]:g}; expected different times.")


_CHECKS = {
    "classification": _check_classes,
    "regression": _check_values,
    "survival": _check_survival,
}


def recorded_layer(adata: AnnData, use_rep: Sequence[str | LatentModel]) -> str | None:
    """Return the recorded layer of the representations, if they have the same."""
    layers = {params_of(adata.uns, key).get("layer") for key in use_rep if isinstance(key, str)}
    layer = layers.pop() if len(layers) == 1 else None
    return layer if isinstance(layer, str) and layer in adata.layers else None


def read_features(
    adata: AnnData, use_rep: Sequence[str | LatentModel], layer: str | None, rows: np.ndarray
) -> dict[str, np.ndarray]:
    """Read the representations of some observations.

    Parameters
    ----------
    adata
        The observations.
    use_rep
        ``obsm`` keys or models; empty for the expression of all genes.
    layer
        Layer with the expression, ``None`` for ``X``.
    rows
        Row numbers, in the order of the result.

    Returns
    -------
    By name ``(n, n_features)`` float; ``"expression PCA"`` is the expression, not yet reduced, and
    only there if there is expression. Counts are scaled to the median of their sums and transformed
    by ``log1p``.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a key does not exist, or a table is empty or not of numbers, or holds infinite values.

    Warns
    -----
    UserWarning
        If features are missing, or there is no expression as a baseline.
    """
    found: dict[str, np.ndarray] = {}
    for rep in dict.fromkeys(use_rep):
        name = representation_name(rep)
        if name in found:
            raise ValueError(
                f"two representations are named {name!r}; embed one of them with "
                "cfm.tl.embed(adata, model, key_added=…) and pass that name."
            )
        table = read_representation(adata, rep, "adata")[rows]
        found[name] = _check_table(table, f"representation {name!r}")
    where = "adata.X" if layer is None else f"adata.layers[{layer!r}]"
    if layer is None and (adata.X is None or not adata.n_vars):
        if not use_rep:
            raise ValueError(
                "adata.X is empty; name a representation by use_rep=, or the layer with the "
                "expression by layer=."
            )
        warn_user(
            "adata.X is empty, so that plain expression is not compared with; pass layer= with "
            "the expression."
        )
        return found
    matrix = get_matrix(adata, layer=layer)
    genes = _check_table(to_dense(read_rows(matrix, rows), np.float32), where)
    if looks_like_counts(matrix):
        total = genes.sum(axis=1, keepdims=True)
        genes = np.log1p(genes * (np.median(total) / np.maximum(total, 1.0)))
    same = [
        name
        for name, table in found.items()
        if table.shape == genes.shape
        and np.allclose(table, genes, rtol=1e-4, atol=1e-6, equal_nan=True)
    ]
    if same:
        warn_user(
            f"{where} is the representation {same[0]!r} itself, so that plain expression is not "
            "compared with; pass layer= with the expression."
        )
        return found
    return (found or {_ALL_GENES: genes}) | {PLAIN_EXPRESSION: genes}


def _check_table(table: np.ndarray, where: str) -> np.ndarray:
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
