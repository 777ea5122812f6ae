"""Which observations a simulation starts from, and what was perturbed in the others."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._fields import COMBINED
from cfm.data._matrix import in_memory_frame
from cfm.data._warn import warn_user
from cfm.pp._perturbation_parts import Parts, parts_of, split_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData


@dataclass(frozen=True)
class Design:
    """What is known of the observations.

    Attributes
    ----------
    parts
        What is asked for.
    label
        Its name: as ``adata`` spells it, or the parts joined by ``+``.
    level
        ``(n,)`` int64, number of the perturbation of each observation; −1 = not known.
    levels
        The perturbations; the first has no parts and is the control.
    group
        ``(n,)`` object, group of each observation, ``""`` where there is no ``groupby``.
    in_group
        ``(n,)`` bool, whether an observation belongs to a group.
    groups
        Groups to simulate, sorted.
    """

    parts: Parts
    label: str
    level: np.ndarray
    levels: list[Parts]
    group: np.ndarray
    in_group: np.ndarray
    groups: list[str]

    def rows(self, group: str, parts: Parts = frozenset()) -> np.ndarray:
        """Return the observations of a group with a perturbation; by default its controls."""
        if parts not in self.levels:
            return np.zeros(0, dtype=np.int64)
        wanted = self.level == self.levels.index(parts)
        return np.flatnonzero(wanted & self.in_group & (self.group == group))

    @property
    def all_groups(self) -> list[str]:
        """All groups, also those that are not simulated, sorted."""
        return sorted(set(self.group[self.in_group]))


def read_parts(perturbation: str | Sequence[str]) -> list[str]:
    """Return the parts of a perturbation as given: one name, ``"A+B"``, or a list of names.

    A ``+`` at an end belongs to a name, as in ``"Ca2+"``.

    Raises
    ------
    TypeError, ValueError
        If it is no text or list of texts, empty, or names a part twice.
    """
    if isinstance(perturbation, str):
        found = split_parts(perturbation)
    elif isinstance(perturbation, list | tuple) and all(isinstance(p, str) for p in perturbation):
        found = [part for p in perturbation for part in split_parts(p)]
    else:
        raise TypeError(
            f"perturbation= is {perturbation!r}; expected a name, a combination such as 'A+B', or "
            "a list of names that are combined."
        )
    if not found or "" in found:
        raise ValueError(f"perturbation={perturbation!r} holds an empty name.")
    if len(set(found)) < len(found):
        raise ValueError(f"perturbation={perturbation!r} names a part twice; name each once.")
    return found


def read_design(
    adata: AnnData,
    perturbation: str | Sequence[str],
    *,
    key: str | None,
    control: str | None,
    groupby: str | None,
    groups: Sequence[str] | None,
) -> Design:
    """Read perturbations and groups from ``obs``; see :func:`cfm.tl.simulate_perturbation`.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a column, level or group does not exist, or there is nothing to start from.
    """
    asked = read_parts(perturbation)
    obs = in_memory_frame(adata.obs)
    level, names = _levels(obs, key, control)
    levels = [parts_of(name, control) for name in names]
    if control in asked:
        asked = [p for p in asked if p != control]
        if not asked:
            raise ValueError(
                f"perturbation={perturbation!r} is the control itself; ask for something else."
            )
    # Two spellings of one combination are one perturbation.
    unique = list(dict.fromkeys(levels))
    place = np.array([unique.index(parts) for parts in levels] + [-1], dtype=np.int64)
    spelled = {parts: name for name, parts in reversed(list(zip(names, levels, strict=True)))}
    parts = frozenset(asked)
    group, in_group = _groups(obs, groupby)
    design = Design(
        parts, spelled.get(parts, COMBINED.join(asked)), place[level], unique, group, in_group, []
    )
    return _with_groups(design, groupby, groups, control)


def draw_sources(adata: AnnData, design: Design, n_cells: int | None, seed: int) -> np.ndarray:
    """Choose the observations to start from, ``(n,)`` int64 ascending row numbers.

    Parameters
    ----------
    adata
        The observations; their names decide, not their order.
    design
        Which are controls of which group.
    n_cells
        How many per group: a random part of the controls, or all of them several times; ``None``
        for each once.
    seed
        Of the draw.
    """
    chosen = []
    for group in design.groups:
        rows = design.rows(group)
        if n_cells is None:
            chosen.append(rows)
            continue
        rng = np.random.default_rng([seed, zlib.crc32(group.encode())])
        rows = rows[np.argsort(adata.obs_names[rows].to_numpy(dtype=object), kind="stable")]
        whole, rest = divmod(n_cells, len(rows))
        chosen += [rows] * whole + [rng.permutation(rows)[:rest]]
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def _levels(
    obs: pd.DataFrame, key: str | None, control: str | None
) -> tuple[np.ndarray, list[str]]:
    """Return the number of the perturbation of each observation, and names, the control first."""
    if key is None:
        if control is not None:
            raise ValueError(
                f"control={control!r} was given without key=, the column of obs that says what "
                "was done to an observation."
            )
        return np.zeros(len(obs), dtype=np.int64), [""]
    if key not in obs:
        raise KeyError(f"adata.obs has no column {key!r}; it has {obs.columns.tolist()}.")
    present = obs[key].notna().to_numpy()
    values = obs[key].astype(str).to_numpy(dtype=object)
    names = sorted(set(values[present]))
    if control is None:
        raise ValueError(
            f"key={key!r} was given without control=; say which of {_some(names)} is unperturbed."
        )
    if control not in names:
        raise KeyError(f"adata.obs[{key!r}] has no control {control!r}; it has {_some(names)}.")
    names.remove(control)
    names.insert(0, control)
    level = pd.Index(names).get_indexer(pd.Index(values))
    return np.where(present, level, -1).astype(np.int64), names


def _groups(obs: pd.DataFrame, groupby: str | None) -> tuple[np.ndarray, np.ndarray]:
    if groupby is None:
        return np.full(len(obs), "", dtype=object), np.ones(len(obs), dtype=bool)
    if groupby not in obs:
        raise KeyError(f"adata.obs has no column {groupby!r}; it has {obs.columns.tolist()}.")
    return obs[groupby].astype(str).to_numpy(dtype=object), obs[groupby].notna().to_numpy()


def _with_groups(
    design: Design, groupby: str | None, groups: Sequence[str] | None, control: str | None
) -> Design:
    """Add the groups to simulate: those that were asked for, or all that have a control."""
    known = design.all_groups
    if not known:
        raise ValueError(f"adata.obs[{groupby!r}] is missing in all observations.")
    with_control = [g for g in known if len(design.rows(g))]
    if groups is not None:
        if groupby is None:
            raise ValueError("groups= was given without groupby=, the column that holds them.")
        if isinstance(groups, str):
            raise TypeError(f"groups={groups!r} is one text; expected a list of groups.")
        wanted = sorted({str(g) for g in groups})
        unknown = [g for g in wanted if g not in known]
        if unknown:
            raise KeyError(f"adata.obs[{groupby!r}] has no {unknown}; it has {_some(known)}.")
        without = [g for g in wanted if g not in with_control]
        if without or not wanted:
            raise ValueError(
                f"groups={list(groups)}: {without or 'none'} with observations of the control "
                f"{control!r} to start from; choose among {_some(with_control)}."
            )
    else:
        wanted = with_control
        if not wanted:
            raise ValueError(f"No group of {groupby!r} has observations of {control!r}.")
        if len(wanted) < len(known):
            missing = [g for g in known if g not in wanted]
            warn_user(
                f"{_some(missing)} of {groupby!r} have no observation of the control {control!r} "
                "to start from and are left out."
            )
    return replace(design, groups=wanted)


def _some(names: Sequence[str], n: int = 8) -> str:
    return f"{list(names[:n])}{' …' if len(names) > n else ''}"
