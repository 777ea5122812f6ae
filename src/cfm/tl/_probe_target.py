"""What a probe shall predict, read from an AnnData and checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from cfm._sparse_indices import check_sparse
from cfm.data._matrix import check_unique_names, in_memory_frame
from cfm.data._warn import warn_user

if TYPE_CHECKING:
    from anndata import AnnData

Task = Literal["classification", "regression", "survival"]
#: Levels of ``groups``.
Levels = str | Sequence[str] | None

#: Columns whose repeated values say that observations belong together.
_GROUP_NAMES = ("patient", "donor", "subject", "individual", "study")


@dataclass(frozen=True)
class ProbeTarget:
    """The observations with a target, in the order of their names, and what is known of them.

    Attributes
    ----------
    task
        What kind of target it is.
    rows
        ``(n,)`` their numbers in the AnnData. Sorted by name, so that folds and seeds mean the
        same whatever the order of the rows.
    names
        Names of the targets; of a survival target, of the time and the event.
    values
        ``(n, n_targets)`` float64: class numbers, values (NaN where one of several is unknown), or
        time and event.
    classes
        Names of the classes in sorted order, else empty.
    groups
        ``(n,)`` text: what must stay on one side of each split.
    grouped
        Whether groups were given; else each observation is one.
    trains
        ``(n,)`` bool, training rows where groups to train or test on were named; the others are
        predicted. ``None``: cross-validation.
    """

    task: Task
    rows: np.ndarray
    names: list[str]
    values: np.ndarray
    classes: list[str]
    groups: np.ndarray
    grouped: bool
    trains: np.ndarray | None = None

    def part(self, rows: np.ndarray) -> ProbeTarget:
        """Return some of the observations, all of one kind."""
        own = {"rows": self.rows[rows], "values": self.values[rows], "groups": self.groups[rows]}
        return replace(self, **own, trains=None)

    @property
    def strata(self) -> np.ndarray:
        """``(n,)`` int64, what folds should hold in equal shares: classes, or events."""
        if self.task == "regression":
            return np.zeros(len(self.rows), dtype=np.int64)
        return self.values[:, 0 if self.task == "classification" else 1].astype(np.int64)


def read_target(
    adata: AnnData,
    target: str | Sequence[str],
    task: Task,
    groups: str | None,
    n_folds: int,
    sides: tuple[Levels, Levels] = (None, None),
) -> ProbeTarget:
    """Read targets and groups, leave out observations without a target, and check the rest.

    ``sides`` are the groups to train and to test on.

    Raises
    ------
    KeyError
        If a key does not exist.
    TypeError, ValueError
        If the target does not fit the task or the folds.
    """
    check_unique_names(adata.obs_names, axis="obs")
    frame = _target_frame(adata, target, task)
    if task == "classification":
        column = frame.iloc[:, 0]
        if column.dtype == bool:
            column = column.astype(str)
        missing = column.isna() | (column.astype(str).str.strip() == "")
        known = (~missing).to_numpy()
        classes, codes = np.unique(column[known].astype(str), return_inverse=True)
        values = np.full((adata.n_obs, 1), np.nan)
        values[known, 0] = codes
    else:
        values = np.column_stack([_numbers(frame[name], str(name)) for name in frame])
        classes = np.array([], dtype=object)
        known = np.isfinite(values)
        known = known.all(axis=1) if task == "survival" else known.any(axis=1)
    if np.isinf(values).any():
        raise ValueError("the target holds infinite values; finite numbers or NaN are expected.")
    if not known.any():
        raise ValueError(f"no observation has a value of {list(frame)}; nothing can be learned.")
    names = adata.obs_names.astype(str).to_numpy()
    rows = np.flatnonzero(known)
    rows = rows[np.argsort(names[rows], kind="stable")]
    members = names[rows]
    if groups is not None:
        members = _groups(adata, groups, rows)
    targets = list(map(str, frame))
    found = ProbeTarget(
        task, rows, targets, values[rows], list(classes), members, groups is not None
    )
    check = {
        "classification": _check_classes,
        "regression": _check_values,
        "survival": _check_survival,
    }[task]
    if sides != (None, None):
        found = _with_sides(found, groups, *sides)
        assert found.trains is not None
        check(replace(found.part(np.flatnonzero(found.trains)), grouped=False), 2)
    else:
        if groups is not None and len(np.unique(found.groups)) == 1:
            raise ValueError(
                f"obs[{groups!r}] has one level, {str(found.groups[0])!r}: nothing is left to "
                "train on; leave groups= out, or name the column of patients or samples."
            )
        check(found, n_folds)
        _check_groups(found, groups, n_folds)
    if groups is None:
        obs = in_memory_frame(adata.obs).iloc[rows]
        _warn_of_groups(obs.drop(columns=targets, errors="ignore"), found)
    n_dropped = adata.n_obs - len(rows)
    if n_dropped:
        warn_user(
            f"{n_dropped} of {adata.n_obs} observations have no value of "
            f"{' and '.join(map(repr, list(frame)[:3]))}{' …' if frame.shape[1] > 3 else ''} and "
            "are left out."
        )
    return found


def _target_frame(adata: AnnData, target: str | Sequence[str], task: Task) -> pd.DataFrame:
    obs = in_memory_frame(adata.obs)
    if isinstance(target, str):
        if target in obs.columns:
            names = [target]
        elif target in adata.obsm:
            return _check_number_of_targets(_obsm_frame(adata.obsm[target], target), task)
        else:
            raise KeyError(
                f"no {target!r} in obs or obsm; obs has {list(obs.columns)}, obsm "
                f"{list(adata.obsm)}."
            )
    elif isinstance(target, Sequence) and target and all(isinstance(t, str) for t in target):
        names = list(target)
    else:
        raise TypeError(
            f"target={target!r}; expected the name of an obs column or obsm key, or a list of obs "
            "columns."
        )
    missing = [name for name in names if name not in obs.columns]
    if missing:
        raise KeyError(f"no column {missing} in adata.obs; it has {list(obs.columns)}.")
    if len(set(names)) < len(names):
        raise ValueError(f"target={names} names a column twice.")
    return _check_number_of_targets(obs[names], task)


def _obsm_frame(values: Any, key: str) -> pd.DataFrame:
    if isinstance(values, pd.DataFrame):
        return values
    values = check_sparse(values, f"adata.obsm[{key!r}]")
    array = values.toarray() if hasattr(values, "toarray") else np.asarray(values)
    return pd.DataFrame(array, columns=[f"{key}_{i}" for i in range(array.shape[1])])


def _check_number_of_targets(frame: pd.DataFrame, task: Task) -> pd.DataFrame:
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
            "or True where it was seen; for categories use task='classification')."
        )
    return column.to_numpy(dtype=np.float64, na_value=np.nan)


def _warn_of_groups(obs: pd.DataFrame, found: ProbeTarget) -> None:
    """Point at a column whose name and repeated values say that observations belong together.

    Not at one that could not be passed as ``groups=``: one level, missing values, or classes that
    are in one level each.
    """
    for column in map(str, obs.columns):
        if column.lower().removesuffix("_id") not in _GROUP_NAMES or obs[column].isna().any():
            continue
        levels = obs[column].astype(str).to_numpy(dtype=str)
        usable = len(np.unique(levels)) > 1
        if found.task == "classification":
            codes = found.strata
            usable &= all(len(np.unique(levels[codes == c])) > 1 for c in np.unique(codes))
        if usable and len(np.unique(levels)) < len(levels):
            warn_user(
                f"obs[{column!r}] has repeated values: observations that belong together may be "
                f"split between training and test, which flatters every score; pass "
                f"groups={column!r}."
            )
            return


def _groups(adata: AnnData, groups: str, rows: np.ndarray) -> np.ndarray:
    obs = in_memory_frame(adata.obs)
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


def _with_sides(
    found: ProbeTarget, groups: str | None, train_on: Levels, test_on: Levels
) -> ProbeTarget:
    """Keep the groups to train and to test on, and mark which is which."""
    if groups is None:
        raise ValueError("train_on= and test_on= name levels of groups=; pass that column too.")
    present = np.unique(found.groups)
    named = [
        None if side is None else {str(s) for s in ([side] if isinstance(side, str) else side)}
        for side in (train_on, test_on)
    ]
    for argument, side in zip(("train_on", "test_on"), named, strict=True):
        unknown = sorted((side or set()) - set(present))
        if unknown or side == set():
            raise ValueError(
                f"{argument}= names {unknown or 'no level'}; obs[{groups!r}] has "
                f"{present[:10].tolist()} among the observations with a target."
            )
    train, test = named
    train = set(present) - (test or set()) if train is None else train
    test = set(present) - train if test is None else test
    if train & test:
        raise ValueError(f"{sorted(train & test)} are in train_on= and in test_on=.")
    if not train or not test:
        raise ValueError(
            f"train_on= and test_on= leave {'no group to test on' if train else 'none to train on'}"
            f"; obs[{groups!r}] has {present[:10].tolist()}."
        )
    kept = found.part(np.flatnonzero(np.isin(found.groups, sorted(train | test))))
    return replace(kept, trains=np.isin(kept.groups, sorted(train)))


def _check_groups(found: ProbeTarget, groups: str | None, n_folds: int) -> None:
    n_groups = len(np.unique(found.groups))
    what = "observations with a target" if groups is None else f"groups in obs[{groups!r}]"
    two_cohorts = groups is not None and n_groups == 2  # each is predicted by the other
    if n_groups < max(n_folds, 3) and not two_cohorts:
        raise ValueError(f"there are {n_groups} {what}, but {n_folds} folds; use fewer folds.")


def _check_classes(found: ProbeTarget, n_folds: int) -> None:
    codes = found.strata
    if len(found.classes) < 2:
        raise ValueError(
            f"the target {found.names[0]!r} has one class, {found.classes[0]!r}; at least two are "
            "needed."
        )
    sizes = np.bincount(codes)
    small = [f"{found.classes[c]!r} ({sizes[c]})" for c in np.flatnonzero(sizes < n_folds)]
    if small:
        shown = ", ".join(small[:5]) + (" …" if len(small) > 5 else "")
        raise ValueError(
            f"{len(small)} of {len(sizes)} classes of {found.names[0]!r} have fewer members than "
            f"the {n_folds} folds: {shown}; use fewer folds, drop or merge them"
            + (" (numbers that are no classes: task='regression')." if len(small) > 5 else ".")
        )
    if found.grouped:
        alone = [
            found.classes[c]
            for c in range(len(sizes))
            if len(np.unique(found.groups[codes == c])) < 2
        ]
        if alone:
            raise ValueError(
                f"classes {alone[:5]} occur in one group each, so that nothing is left to learn "
                "them from when that group is held out; drop them."
            )


def _check_values(found: ProbeTarget, n_folds: int) -> None:
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


def _check_survival(found: ProbeTarget, n_folds: int) -> None:
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
            f"{event_name!r} holds {shown}; expected 1 (or True) where the event was seen and 0 "
            "(or False) where the observation ended before."
        )
    n_events = int(event.sum())
    if n_events < n_folds:
        raise ValueError(
            f"{event_name!r} holds {n_events or 'no'} events in {len(event)} observations; at "
            f"least one for each of the {n_folds} folds is needed."
        )
    if np.ptp(time) == 0:
        raise ValueError(f"all times in {time_name!r} are {time[0]:g}; nobody was first.")
