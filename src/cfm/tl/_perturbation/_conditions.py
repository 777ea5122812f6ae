"""Perturbations and groups of observations, and the conditions of a comparison."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from cfm._adata import require_anndata, warn_user
from cfm._fields import CEILING, COMBINED, SIMULATED, SIMULATED_BY, SIMULATED_FROM
from cfm.data._matrix import check_unique_names, get_matrix, in_memory_frame
from cfm.pp._perturbation_parts import Parts, parts_of, split_parts

if TYPE_CHECKING:
    from collections.abc import Sequence

_TRAIN, _TEST = "train", "test"


@dataclass(frozen=True)
class Design:
    """Perturbations and groups of observations.

    Attributes
    ----------
    level
        ``(n,)`` int64, number of the perturbation of each observation; −1 = missing.
    levels
        The perturbations, with the first name of each; the first has no parts: the control.
    group
        ``(n,)`` object, group of each observation, ``""`` where there is no ``groupby``.
    in_group
        ``(n,)`` bool, whether an observation belongs to a group.
    """

    level: np.ndarray
    levels: dict[Parts, str]
    group: np.ndarray
    in_group: np.ndarray

    def rows(self, group: str, parts: Parts = frozenset()) -> np.ndarray:
        """Return the observations of a group with a perturbation; by default its controls."""
        return self._rows.get((group, parts), np.zeros(0, dtype=np.int64))

    @cached_property
    def _rows(self) -> dict[tuple[str, Parts], np.ndarray]:
        used, levels = self.used, list(self.levels)
        parts: Any = pd.Series(used).groupby([self.group[used], self.level[used]])
        return {(group, levels[level]): rows.to_numpy() for (group, level), rows in parts}

    @property
    def used(self) -> np.ndarray:
        """``(n,)`` int64, the observations with a perturbation and a group."""
        return np.flatnonzero((self.level >= 0) & self.in_group)

    @property
    def groups(self) -> list[str]:
        """All groups, sorted."""
        return sorted(set(self.group[self.in_group]))


@dataclass(frozen=True)
class Condition:
    """A perturbation in a group.

    Attributes
    ----------
    group, parts, label
        Group, parts of the perturbation and its name.
    real
        Rows of the perturbed observations to compare with.
    reference
        Rows of the controls for their effect.
    known
        Rows of the controls where methods start.
    every, controls
        Rows of all perturbed observations and of all controls, for the ceiling.
    """

    group: str
    parts: Parts
    label: str
    real: np.ndarray
    reference: np.ndarray
    known: np.ndarray
    every: np.ndarray
    controls: np.ndarray


@dataclass(frozen=True)
class Simulation:
    """Simulated observations of one method.

    Attributes
    ----------
    name
        The method.
    adata
        The observations, possibly with those of other methods.
    rows
        Rows by (group, parts); simulated controls have no parts.
    sources
        ``(n_obs,)`` names of their start observations, if recorded.
    """

    name: str
    adata: ad.AnnData
    rows: dict[tuple[str, Parts], np.ndarray]
    sources: np.ndarray | None


def read_perturbation(perturbation: str | Sequence[str], control: str | None) -> list[str]:
    """Return the parts of a perturbation: one name, ``"A+B"``, or a list of names.

    A ``+`` at an end belongs to a name, as in ``"Ca2+"``; the control is no part.

    Raises
    ------
    TypeError, ValueError
        If it is no text or list of texts, empty, the control, or names a part twice.
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
    parts = [p for p in found if p != control]
    if not parts:
        raise ValueError(f"perturbation={perturbation!r} is the control itself; name another.")
    return parts


def read_design(
    adata: ad.AnnData,
    *,
    key: str | None,
    control: str | None,
    groupby: str | None,
    name: str = "adata",
) -> Design:
    """Read perturbations and groups from ``obs``; see :func:`cfm.tl.simulate_perturbation`.

    Raises
    ------
    KeyError, ValueError
        If a column or the control does not exist.
    """
    obs = in_memory_frame(adata.obs)
    for column in (key, groupby):
        if column is not None and column not in obs:
            raise KeyError(f"{name}.obs has no column {column!r}; it has {obs.columns.tolist()}.")
    level, names = np.zeros(len(obs), dtype=np.int64), [""]
    if key is not None:
        present = obs[key].notna().to_numpy()
        values = obs[key].astype(str).to_numpy(dtype=object)
        names = sorted(set(values[present]))
        if control is None:
            raise ValueError(
                f"key={key!r} was given without control=, the level of unperturbed observations; "
                f"choose one of {_some(names)}."
            )
        if control not in names:
            raise KeyError(
                f"{name}.obs[{key!r}] has no control {control!r}; it has {_some(names)}."
            )
        names = [control, *(n for n in names if n != control)]
        level = np.where(present, pd.Index(names).get_indexer(pd.Index(values)), -1)
    elif control is not None:
        raise ValueError(
            f"control={control!r} was given without key=, the column of obs with the perturbations."
        )
    # Two spellings of one combination are one perturbation.
    levels: dict[Parts, str] = {}
    for label in names:
        levels.setdefault(parts_of(label, control), label)
    place = np.array([list(levels).index(parts_of(n, control)) for n in names] + [-1])
    group, in_group = np.full(len(obs), "", dtype=object), np.ones(len(obs), dtype=bool)
    if groupby is not None:
        group = obs[groupby].astype(str).to_numpy(dtype=object)
        in_group = obs[groupby].notna().to_numpy()
    return Design(place[level].astype(np.int64), levels, group, in_group)


def choose_groups(
    design: Design, groupby: str | None, groups: Sequence[str] | None, control: str | None
) -> list[str]:
    """Return the groups to simulate, sorted: those given, or all with a control.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a group does not exist, or has no control to start from.

    Warns
    -----
    UserWarning
        If groups without controls are left out.
    """
    known = design.groups
    if not known:
        raise ValueError(f"adata.obs[{groupby!r}] is missing in all observations.")
    with_control = [g for g in known if len(design.rows(g))]
    if groups is None:
        if not with_control:
            raise ValueError(f"No group of {groupby!r} has observations of {control!r}.")
        if missing := [g for g in known if g not in with_control]:
            warn_user(
                f"{_some(missing)} of {groupby!r} have no observation of the control {control!r} "
                "to start from and are left out."
            )
        return with_control
    if groupby is None:
        raise ValueError("groups= was given without groupby=, the column that holds them.")
    if isinstance(groups, str):
        raise TypeError(f"groups={groups!r} is one text; expected a list of groups.")
    wanted = sorted({str(g) for g in groups})
    if unknown := [g for g in wanted if g not in known]:
        raise KeyError(f"adata.obs[{groupby!r}] has no {unknown}; it has {_some(known)}.")
    without = [g for g in wanted if g not in with_control]
    if without or not wanted:
        raise ValueError(
            f"groups={list(groups)}: {without or 'none'} with observations of the control "
            f"{control!r} to start from; choose among {_some(with_control)}."
        )
    return wanted


def draw_sources(
    names: pd.Index, design: Design, groups: Sequence[str], n_cells: int | None, seed: int
) -> np.ndarray:
    """Choose the observations to start from, ``(n,)`` int64 ascending row numbers.

    Parameters
    ----------
    names
        Names of the observations, which determine the draw, not their order.
    design
        Groups and controls.
    groups
        Groups to simulate.
    n_cells
        Number per group: a random part of the controls, or all of them several times; ``None``
        for each once.
    seed
        Seed of the draw.
    """
    chosen = []
    for group in groups:
        rows = design.rows(group)
        if n_cells is not None:
            rng = np.random.default_rng([seed, zlib.crc32(group.encode())])
            rows = rows[np.argsort(names[rows].to_numpy(dtype=object), kind="stable")]
            whole, rest = divmod(n_cells, len(rows))
            rows = np.concatenate([*[rows] * whole, rng.permutation(rows)[:rest]])
        chosen.append(rows)
    return np.sort(np.concatenate(chosen)).astype(np.int64)


def read_real(
    real: ad.AnnData,
    *,
    key: str,
    control: str,
    groupby: str | None,
    split_key: str | None,
    layer: str | None,
) -> tuple[Design, np.ndarray, np.ndarray]:
    """Check the observed data; return their design, and the masks of training and test.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a column or level does not exist, or an argument cannot be used.
    """
    require_anndata(real)
    check_unique_names(real.obs_names, axis="obs")
    check_unique_names(real.var_names, axis="var")
    get_matrix(real, layer=layer)
    design = read_design(real, key=key, control=control, groupby=groupby, name="real")
    if len(design.levels) == 1:
        raise ValueError(f"real.obs[{key!r}] has nothing but the control {control!r}.")
    if split_key is None:
        everything = np.ones(real.n_obs, dtype=bool)
        return design, everything, everything
    obs = in_memory_frame(real.obs)
    if split_key not in obs:
        raise KeyError(
            f"real.obs has no column {split_key!r}; make one with cfm.pp.split_perturbations, or "
            f"choose among {obs.columns.tolist()}."
        )
    part = obs[split_key].astype(object).to_numpy()
    train, test = part == _TRAIN, part == _TEST
    if not train.any() or not test.any():
        raise ValueError(
            f"real.obs[{split_key!r}] holds {sorted(set(obs[split_key].dropna().astype(str)))}; "
            f"expected both {_TRAIN!r} and {_TEST!r}."
        )
    return design, train, test


def training_design(design: Design, train: np.ndarray) -> Design:
    """Return the design of the training observations: the others have no perturbation."""
    return replace(design, level=np.where(train, design.level, -1))


def read_simulated(
    simulated: ad.AnnData | Mapping[str, ad.AnnData],
    *,
    key: str,
    control: str,
    groupby: str | None,
) -> list[Simulation]:
    """Return the simulated observations of each method.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a column does not exist, or names cannot be used.
    """
    if isinstance(simulated, Mapping):
        if not simulated:
            raise ValueError("simulated= is empty; expected an AnnData, or at least one by name.")
        for adata in simulated.values():
            require_anndata(adata)
        named: list[tuple[str, Any, Any]] = [(str(n), a, True) for n, a in simulated.items()]
    else:
        require_anndata(simulated)
        obs = in_memory_frame(simulated.obs)
        named = [("model", simulated, True)]
        if SIMULATED_BY in obs:
            present = obs[SIMULATED_BY].notna().to_numpy()
            made_by = obs[SIMULATED_BY].astype(str).to_numpy(dtype=object)
            names = sorted(set(made_by[present]))
            named = [(name, simulated, present & (made_by == name)) for name in names]
    if CEILING in [name for name, _, _ in named]:
        raise ValueError(f"A method cannot be called {CEILING!r}, which are halves of the data.")
    return [_simulation(*one, key=key, control=control, groupby=groupby) for one in named]


def _simulation(
    name: str, adata: ad.AnnData, mask: Any, *, key: str, control: str, groupby: str | None
) -> Simulation:
    """Read the observations of a method, those in a mask, by group and perturbation."""
    obs = in_memory_frame(adata.obs)
    for column in (key, groupby):
        if column is not None and column not in obs:
            raise KeyError(
                f"The observations simulated by {name!r} have no column {column!r} in obs; they "
                f"have {obs.columns.tolist()}."
            )
    get_matrix(adata)
    check_unique_names(adata.var_names, axis="var")
    keep = mask & obs[key].notna().to_numpy()
    if groupby is not None:
        keep = keep & obs[groupby].notna().to_numpy()
    rows = np.flatnonzero(keep)
    check_unique_names(adata.obs_names[rows], axis="obs")
    level = obs[key].astype(str).to_numpy(dtype=object)[rows]
    group = np.full(len(rows), "", dtype=object)
    if groupby is not None:
        group = obs[groupby].astype(str).to_numpy(dtype=object)[rows]
    found: dict[tuple[str, Parts], list[np.ndarray]] = {}
    for (where, what), part in pd.Series(rows).groupby([group, level]):
        found.setdefault((str(where), parts_of(str(what), control)), []).append(part.to_numpy())
    sources = None
    if SIMULATED_FROM in obs and obs[SIMULATED_FROM].iloc[rows].notna().all():
        sources = obs[SIMULATED_FROM].astype(str).to_numpy(dtype=object)
    whole = {place: np.sort(np.concatenate(parts)) for place, parts in found.items()}
    return Simulation(name, adata, whole, sources)


def read_conditions(
    real: ad.AnnData,
    design: Design,
    train: np.ndarray,
    test: np.ndarray,
    simulations: Sequence[Simulation],
    *,
    key: str,
    min_cells: int,
) -> list[Condition]:
    """Return the conditions in both observed and simulated data, by group and parts.

    Raises
    ------
    ValueError
        If there is no condition.

    Warns
    -----
    UserWarning
        If simulated conditions cannot be compared.
    """
    names = in_memory_frame(real.obs)[key].astype(str).to_numpy(dtype=object)
    simulated = {place for s in simulations for place in s.rows if place[1]}
    found: list[Condition] = []
    skipped: dict[str, list[str]] = {}
    for group, parts in sorted(simulated, key=lambda place: (place[0], sorted(place[1]))):
        every, controls = design.rows(group, parts), design.rows(group)
        rows, known = every[test[every]], controls[train[controls]]
        held = controls[test[controls]]
        reference = held if len(held) else known
        n_simulated = max(len(s.rows.get((group, parts), ())) for s in simulations)
        # The first spelling in the data, by name.
        label = min(names[every]) if len(every) else COMBINED.join(sorted(parts))
        if not len(rows):
            reason = "have no observed test cells"
        elif not len(known):
            reason = "have no controls to compare with"
        elif min(len(rows), len(reference), n_simulated) < min_cells:
            reason = f"have fewer than min_cells={min_cells} observed or simulated observations"
        else:
            found.append(Condition(group, parts, label, rows, reference, known, every, controls))
            continue
        skipped.setdefault(reason, []).append(f"{label} in {group}" if group else label)
    for reason, what in skipped.items():
        warn_user(f"{len(what)} simulated condition(s) {reason} and are left out: {_some(what, 5)}")
    if not found:
        raise ValueError(
            "No simulated condition was observed, with controls and enough observations: "
            + ("; ".join(f"{what[:5]} {reason}" for reason, what in skipped.items()) or "no rows")
            + ". Check key=, groupby=, split_key= and min_cells=."
        )
    return found


def held_out(condition: Condition, known: Design) -> str:
    """Return what training data lack of a condition, as ``hold_out=`` of the split names it.

    ``"cells"`` if its group had the perturbation, else ``"group"`` if another one had, else
    ``"combination"`` if each of its parts was seen alone, else ``"perturbation"``.
    """
    seen = [g for g in known.groups if len(known.rows(g, condition.parts))]
    if seen:
        return "cells" if condition.group in seen else "group"
    parts = [any(len(known.rows(g, frozenset([p]))) for g in known.groups) for p in condition.parts]
    return "combination" if all(parts) else "perturbation"


def shared_genes(real: ad.AnnData, simulations: Sequence[Simulation]) -> pd.Index:
    """Return the genes of the observed data that every method simulates, in their order.

    Raises
    ------
    ValueError
        If there is none.

    Warns
    -----
    UserWarning
        If genes are left out.
    """
    genes = real.var_names
    kept = np.ones(len(genes), dtype=bool)
    for simulation in simulations:
        var = in_memory_frame(simulation.adata.var)
        made = np.ones(len(var), dtype=bool)
        if SIMULATED in var:
            made = var[SIMULATED].fillna(True).astype(bool).to_numpy()
        known = genes.isin(var.index[made])
        if not known.any():
            raise ValueError(
                f"{simulation.name!r} simulated none of the {len(genes)} genes of the observed "
                f"data (such as {genes[:3].tolist()}; it has {var.index[:3].tolist()}); map both "
                "to the same identifiers, for instance with cfm.pp.map_genes."
            )
        kept &= known
    if not kept.any():
        raise ValueError("No gene was simulated by all methods; evaluate them one by one.")
    if not kept.all():
        warn_user(
            f"{(~kept).sum()} of {len(genes)} genes were not simulated by every method and are "
            f"left out for all: {_some(genes[~kept].tolist(), 5)}"
        )
    return genes[kept]


def _some(names: Sequence[str], n: int = 8) -> str:
    return f"{list(names[:n])}{' …' if len(names) > n else ''}"
