"""The design of contrasts: compared samples, omissions with reasons, and hints of mistakes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from scipy import sparse

from cfm._adata import warn_user
from cfm._fields import SET_SEPARATOR
from cfm.data._matrix import row_blocks

if TYPE_CHECKING:
    from anndata import AnnData

#: Columns of the result, which ``groupby`` and ``by`` must not name.
RESERVED = ("control", "n_cases", "n_controls", "n_pairs", "case", "control_sample")
#: So many observations, with a median library below the second number, count as single cells.
_MANY = 100
_CELL_LIBRARY = 20_000.0


@dataclass
class Skipped:
    """Collects omissions: one warning per kind, all cases in a table."""

    rows: list[tuple[str, str, str]] = field(default_factory=list)
    messages: list[str] = field(default_factory=list)

    def add(self, stratum: str, level: str, reason: str) -> None:
        """Record that a level (``""`` = all) of a stratum (``""`` = none) is left out."""
        self.rows.append((stratum, level, reason))

    def note(self, found: int, what: str, examples: Sequence[str]) -> None:
        """Add the warning for several records of a kind."""
        shown = ", ".join(repr(str(e)) for e in examples[:5]) + (", …" if found > 5 else "")
        self.messages.append(
            f"left out {found} {what}: {shown}; the result's 'skipped' table lists all."
        )

    def warn(self) -> None:
        """Warn of each kind, at the line of the user."""
        for message in self.messages:
            warn_user(message)

    def frame(self) -> pd.DataFrame:
        """Return the records as a table of strings."""
        frame = pd.DataFrame(self.rows, columns=["stratum", "level", "reason"], dtype=object)
        return frame.set_axis(frame.index.astype(str), axis=0)


@dataclass(frozen=True)
class Contrast:
    """One level against the control in one stratum; ``cases`` and ``controls`` are row numbers.

    ``number`` identifies the stratum, ``stratum`` is its name.
    """

    number: int
    stratum: str
    level: Any
    cases: np.ndarray
    controls: np.ndarray

    @property
    def rows(self) -> np.ndarray:
        """Cases, then controls."""
        return np.concatenate([self.cases, self.controls])


def check_columns(obs: pd.DataFrame, groupby: str, by: Sequence[str], *others: str | None) -> None:
    """Check that the columns exist, differ, and have no reserved name.

    Raises
    ------
    KeyError
        For a column that does not exist.
    ValueError
        If a column is used twice or has a name of the result's own columns.
    """
    for column in (groupby, *by, *(o for o in others if o is not None)):
        if column not in obs.columns:
            raise KeyError(f"no column {column!r} in adata.obs; it has {list(obs.columns)}.")
    if groupby in by or len(set(by)) != len(by):
        raise ValueError(
            f"by={list(by)} must name different columns, none of them groupby={groupby!r}."
        )
    clash = [column for column in (groupby, *by) if column in RESERVED]
    if clash:
        raise ValueError(
            f"adata.obs column {clash[0]!r} has the name of a column of the result; rename it."
        )


def find_control(column: pd.Series, control: Any) -> Any:
    """Return the level that is the control: equal to ``control``, or written the same.

    Raises
    ------
    ValueError
        If there is none; the message lists the levels.
    """
    levels = list(pd.unique(column.dropna()))
    for level in levels:
        if level == control or str(level) == str(control):
            return level
    shown = ", ".join(repr(str(level)) for level in sorted(levels, key=str)[:20])
    raise ValueError(
        f"control={control!r} is not a level of adata.obs[{column.name!r}]; it has {shown}."
    )


def label(values: Sequence[Any]) -> str:
    """Return a readable name of a stratum: ``A549|24`` (24.0 hours are written 24)."""
    return "|".join(f"{v:g}" if isinstance(v, float | np.floating) else str(v) for v in values)


def build_design(
    obs: pd.DataFrame,
    groupby: str,
    control: Any,
    by: Sequence[str],
    usable: np.ndarray,
    skipped: Skipped,
) -> list[Contrast]:
    """Return the contrasts of each level with the control, stratum by stratum.

    Strata and levels follow the order of their categories or sorted values, never that of rows.

    Parameters
    ----------
    obs
        Samples.
    groupby, control, by
        As in :func:`cfm.pp.contrasts`.
    usable
        ``(n_obs,)`` bool; other samples are skipped, and already recorded.
    skipped
        Collects samples with missing values and strata without controls or cases.

    Raises
    ------
    ValueError
        If the control does not exist.
    """
    control = find_control(obs[groupby], control)
    missing = obs[[groupby, *by]].isna()
    for column in (groupby, *by):
        named = obs.index[missing[column]]
        for name in named:
            skipped.add("", "", f"sample {name!r} has no value in {column!r}")
        if len(named):
            skipped.note(len(named), f"sample(s) without a value in obs[{column!r}]", list(named))
    usable = usable & ~missing.any(axis=1).to_numpy()

    strata = _number_groups(obs, by)
    levels = _number_groups(obs, [groupby])
    contrasts: list[Contrast] = []
    no_control: list[str] = []
    no_case: list[str] = []
    is_control = (obs[groupby] == control).to_numpy(dtype=bool, na_value=False)
    for number in np.unique(strata[usable]):
        rows = np.flatnonzero(usable & (strata == number))
        name = label(obs.iloc[rows[0]][list(by)].tolist()) if by else ""
        cases = rows[~is_control[rows]]
        controls = rows[is_control[rows]]
        if not len(controls):
            for level in pd.unique(obs[groupby].iloc[cases]):
                skipped.add(
                    name, str(level), f"no {str(control)!r} (control) sample in the stratum"
                )
            no_control.append(name)
        elif not len(cases):
            skipped.add(name, "", f"only {str(control)!r} (control) samples in the stratum")
            no_case.append(name)
        else:
            for level_number in np.unique(levels[cases]):
                of_level = cases[levels[cases] == level_number]
                level = obs[groupby].iloc[of_level[0]]
                contrasts.append(Contrast(int(number), name, level, of_level, controls))
    if no_control:
        skipped.note(
            len(no_control), f"strata without a {str(control)!r} (control) sample", no_control
        )
    if no_case:
        skipped.note(len(no_case), f"strata with only {str(control)!r} (control) samples", no_case)
    return contrasts


def _number_groups(obs: pd.DataFrame, columns: Sequence[str]) -> np.ndarray:
    """Return ``(n_obs,)`` the group of each row in sorted order, -1 for missing values."""
    if not columns:
        return np.zeros(len(obs), dtype=np.int64)
    groups = obs.groupby(list(columns), observed=True, sort=True, dropna=True)
    return groups.ngroup().fillna(-1).to_numpy(dtype=np.int64)


def describe(
    contrasts: Sequence[Contrast], obs: pd.DataFrame, groupby: str, control: Any, by: Sequence[str]
) -> pd.DataFrame:
    """Return the ``obs`` of the result: level, control, strata, numbers of samples and studies.

    Columns keep the dtype of the input; names are ``stratum|level_vs_control``, made unique.
    """
    from anndata.utils import make_index_unique

    first = [contrast.cases[0] for contrast in contrasts]
    frame = obs.iloc[first][[groupby, *by]].copy()
    for column in frame:
        if isinstance(frame[column].dtype, pd.CategoricalDtype):
            frame[column] = frame[column].cat.remove_unused_categories()
    control = find_control(obs[groupby], control)
    frame.insert(1, "control", str(control))
    frame["control"] = frame["control"].astype("category")
    frame["n_cases"] = np.array([len(c.cases) for c in contrasts], dtype=np.int64)
    frame["n_controls"] = np.array([len(c.controls) for c in contrasts], dtype=np.int64)
    if "study" in obs and "study" not in frame:
        studies = [obs["study"].iloc[c.cases].dropna().astype(str).unique() for c in contrasts]
        frame["study"] = pd.Categorical([SET_SEPARATOR.join(sorted(names)) for names in studies])
    names = [
        label([*([c.stratum] if c.stratum else []), f"{label([c.level])}_vs_{label([control])}"])
        for c in contrasts
    ]
    return frame.set_axis(make_index_unique(pd.Index(names, dtype=str)), axis=0)


def pseudobulk(
    matrix: Any,
    obs: pd.DataFrame,
    keys: Sequence[str],
    *,
    min_cells: int,
    skipped: Skipped,
) -> tuple[np.ndarray, pd.DataFrame]:
    """Sum the counts of the cells that agree in all ``keys``.

    The cells are read in blocks, so the matrix may be on disk or dask-backed; each block is summed
    by :func:`decoupler.pp.pseudobulk` and the sums are added.

    Parameters
    ----------
    matrix
        ``(n_cells, n_genes)`` counts of any storage.
    obs
        Table of the cells.
    keys
        Columns of ``obs`` that define a pseudobulk sample; cells with a missing value are left out.
    min_cells
        Smaller samples are left out and recorded.
    skipped
        Collects the samples that are left out.

    Returns
    -------
    ``(n_samples, n_genes)`` float64 sums, and a table of ``keys`` and ``n_cells`` whose index
    names the samples.

    Raises
    ------
    ValueError
        If no sample has enough cells.
    """
    import anndata as ad
    import decoupler as dc

    groups = obs.groupby(list(keys), observed=True, sort=True, dropna=True)
    number = groups.ngroup().fillna(-1).to_numpy(dtype=np.int64)
    n_missing = int((number < 0).sum())
    if n_missing:
        skipped.add("", "", f"{n_missing} cells have a missing value in one of {list(keys)}")
        skipped.note(n_missing, "cell(s) with a missing value in one of", list(keys))
    n_cells = np.bincount(number[number >= 0])
    _, first = np.unique(number, return_index=True)
    table = obs.iloc[first[-len(n_cells) :] if len(n_cells) else []][list(keys)].copy()
    table["n_cells"] = n_cells
    table.index = pd.Index(["|".join(map(str, row)) for row in table[list(keys)].to_numpy()])

    enough = n_cells >= min_cells
    if not enough.any():
        raise ValueError(
            f"no combination of {list(keys)} has min_cells={min_cells} cells (largest: "
            f"{n_cells.max(initial=0)}); lower min_cells or choose coarser columns."
        )
    small = table.index[~enough]
    for name, found in zip(small, n_cells[~enough], strict=True):
        skipped.add("", "", f"pseudobulk {name!r} has {found} cells, fewer than {min_cells}")
    if len(small):
        skipped.note(len(small), f"pseudobulk(s) of fewer than {min_cells} cells", list(small))

    codes = np.array([f"{i:09d}" for i in range(len(n_cells))])
    sums = np.zeros((len(n_cells), matrix.shape[1]))
    for rows, block in row_blocks(matrix):
        wanted = np.flatnonzero((number[rows] >= 0) & enough[number[rows]])
        if not len(wanted):
            continue
        part = block[wanted].astype(np.float64)
        cells = ad.AnnData(
            X=part if sparse.issparse(part) else np.asarray(part),
            obs=pd.DataFrame({"sample": codes[number[rows][wanted]]}, index=wanted.astype(str)),
        )
        # counts are checked already; expected counts may be fractional
        summed = dc.pp.pseudobulk(
            cells, sample_col="sample", groups_col=None, mode="sum", empty=False, skip_checks=True
        )
        sums[summed.obs_names.astype(int)] += summed.X
    return sums[enough], table[enough]


def hints_about_logs(adata: AnnData) -> list[str]:
    """Return a warning if ``uns`` records natural logarithms in ``X``."""
    scanpy = adata.uns.get("log1p")
    if not (isinstance(scanpy, Mapping) and scanpy.get("base") in (None, np.e)):
        return []
    return [
        "adata.uns['log1p'] records natural logarithms in X, but units='log' expects "
        "log2 values; divide X by np.log(2), or pass the counts."
    ]


def hints_about_counts(adata: AnnData) -> list[str]:
    """Return a warning if ``uns`` names other units of ``X`` than counts."""
    stated = adata.uns.get("units")
    if not isinstance(stated, str) or "count" in stated.lower():
        return []
    return [
        f"adata.uns['units'] is {stated!r}, but counts are expected; pass counts, or log2 values "
        "with units='log'."
    ]


def hints_about_cells(library_size: np.ndarray) -> list[str]:
    """Return a warning if ``(n_obs,)`` sums of counts are those of single cells."""
    typical = float(np.median(library_size))
    if len(library_size) < _MANY or not 0 < typical < _CELL_LIBRARY:
        return []
    return [
        f"{len(library_size)} observations with a median of {typical:.0f} counts look like single "
        "cells, but each counts as a sample; name the column with the sample of each cell by "
        "sample_key=, so that counts are summed."
    ]


def hints_about_pooling(
    obs: pd.DataFrame, contrasts: Sequence[Contrast], groupby: str
) -> list[str]:
    """Return a warning of columns with levels of the pooled controls that the cases lack.

    Such controls are of another study, treatment or time than the cases. Columns with names of
    samples (more levels than half the samples) and other names of the condition (no level in
    common) are ignored.
    """
    found: dict[str, str] = {}
    for column in obs.columns.drop(groupby):
        values = obs[column].astype(str).where(obs[column].notna(), "").to_numpy(dtype=str)
        if 2 * len(np.unique(values)) > len(values):
            continue
        for contrast in contrasts:
            cases, controls = set(values[contrast.cases]), set(values[contrast.controls])
            if controls & cases and controls - cases:
                level = repr(str(min(controls - cases)))
                found[str(column)] = f"{column!r} (controls of {level} for {contrast.level})"
                break
    if not found:
        return []
    names = list(found)
    return [
        f"the pooled controls differ from the cases in {', '.join(found.values())}, which is "
        f"confounded with the effect of {groupby!r}. Compare within by={names!r}, or drop those "
        "controls."
    ]
