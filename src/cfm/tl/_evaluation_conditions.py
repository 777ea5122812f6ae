"""What is compared: conditions that were observed and simulated, on genes that both have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd

from cfm._fields import CEILING, SIMULATED, SIMULATED_BY, SIMULATED_FROM
from cfm.data._matrix import check_unique_names, get_matrix, in_memory_frame
from cfm.data._takes_anndata import require_anndata
from cfm.data._warn import warn_user
from cfm.pp._perturbation_parts import Parts, parts_of
from cfm.tl._perturbation_design import Design, read_design

if TYPE_CHECKING:
    from collections.abc import Sequence

TRAIN, TEST = "train", "test"


@dataclass(frozen=True)
class Condition:
    """A perturbation in a group.

    Attributes
    ----------
    group, parts, label
        Which, and the name of the perturbation.
    real
        Rows of the perturbed observations that a method is judged by.
    reference
        Rows of the controls that their effect is measured against.
    known
        Rows of the controls that methods start from.
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
        Where they are.
    rows
        Rows by (group, parts); those without parts are simulated controls.
    sources
        ``(n_obs,)`` names of the observations that they started from, if known.
    """

    name: str
    adata: ad.AnnData
    rows: dict[tuple[str, Parts], np.ndarray]
    sources: np.ndarray | None


def read_real(
    real: ad.AnnData,
    *,
    key: str,
    control: str,
    groupby: str | None,
    split_key: str | None,
    layer: str | None,
) -> tuple[Design, np.ndarray, np.ndarray]:
    """Check the observed data; return what was done to them, and what is training and test.

    Raises
    ------
    KeyError, TypeError, ValueError
        If something does not exist or cannot be used.
    """
    require_anndata(real)
    check_unique_names(real.obs_names, axis="obs")
    check_unique_names(real.var_names, axis="var")
    get_matrix(real, layer=layer)
    obs = in_memory_frame(real.obs)
    if key not in obs:
        raise KeyError(f"real.obs has no column {key!r}; it has {obs.columns.tolist()}.")
    levels = sorted(set(obs[key].dropna().astype(str)) - {control})
    if not levels:
        raise ValueError(f"real.obs[{key!r}] has nothing but the control {control!r}.")
    design = read_design(real, [levels[0]], key=key, control=control, groupby=groupby, groups=None)
    if split_key is None:
        everything = np.ones(len(obs), dtype=bool)
        return design, everything, everything
    if split_key not in obs:
        raise KeyError(
            f"real.obs has no column {split_key!r}; make one with cfm.pp.split_perturbations, or "
            f"choose among {obs.columns.tolist()}."
        )
    part = obs[split_key].astype(object).to_numpy()
    train, test = part == TRAIN, part == TEST
    if not train.any() or not test.any():
        raise ValueError(
            f"real.obs[{split_key!r}] holds {sorted(set(obs[split_key].dropna().astype(str)))}; "
            f"expected both {TRAIN!r} and {TEST!r}."
        )
    return design, train, test


def read_simulated(
    simulated: ad.AnnData | Mapping[str, ad.AnnData],
    *,
    key: str,
    control: str,
    groupby: str | None,
) -> list[Simulation]:
    """Read who simulated what.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a column does not exist, or names cannot be used.
    """
    if isinstance(simulated, Mapping):
        if not simulated:
            raise ValueError("simulated= is empty; expected an AnnData, or at least one by name.")
        named: list[tuple[str, Any, np.ndarray | None]] = []
        for name, adata in simulated.items():
            require_anndata(adata)
            named.append((str(name), adata, None))
    else:
        require_anndata(simulated)
        obs = in_memory_frame(simulated.obs)
        if SIMULATED_BY not in obs:
            named = [("model", simulated, None)]
        else:
            made_by = obs[SIMULATED_BY].astype(str).to_numpy(dtype=object)
            present = obs[SIMULATED_BY].notna().to_numpy()
            names = sorted(set(made_by[present]))
            named = [(name, simulated, present & (made_by == name)) for name in names]
    if CEILING in [name for name, _, _ in named]:
        raise ValueError(f"A method cannot be called {CEILING!r}, which are halves of the data.")
    return [
        _simulation(name, adata, mask, key=key, control=control, groupby=groupby)
        for name, adata, mask in named
    ]


def _simulation(
    name: str,
    adata: ad.AnnData,
    mask: np.ndarray | None,
    *,
    key: str,
    control: str,
    groupby: str | None,
) -> Simulation:
    obs = in_memory_frame(adata.obs)
    for column in (key, groupby):
        if column is not None and column not in obs:
            raise KeyError(
                f"The observations simulated by {name!r} have no column {column!r} in obs; they "
                f"have {obs.columns.tolist()}."
            )
    get_matrix(adata)
    check_unique_names(adata.var_names, axis="var")
    keep = obs[key].notna().to_numpy()
    if mask is not None:
        keep = keep & mask
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


def training_design(design: Design, train: np.ndarray) -> Design:
    """Return a design in which observations outside of training are not there."""
    return replace(design, level=np.where(train, design.level, -1))


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
    """Return what was both observed and simulated, by group and name.

    Raises
    ------
    ValueError
        If there is nothing.

    Warns
    -----
    UserWarning
        Of what was simulated and cannot be judged.
    """
    names = in_memory_frame(real.obs)[key].astype(str).to_numpy(dtype=object)
    asked = sorted({place for s in simulations for place in s.rows if place[1]}, key=_order)
    found: list[Condition] = []
    skipped: dict[str, list[str]] = {}
    for group, parts in asked:
        every, controls = design.rows(group, parts), design.rows(group)
        rows, known = every[test[every]], controls[train[controls]]
        held = controls[test[controls]]
        reference = held if len(held) else known
        n_simulated = max(len(s.rows.get((group, parts), ())) for s in simulations)
        # of two spellings of a combination that of the data, of two in these the first by name
        label = min(names[every]) if len(every) else "+".join(sorted(parts))
        reason = (
            "have no observed test cells"
            if not len(rows)
            else "have no controls to compare with"
            if not len(known)
            else f"have fewer than min_cells={min_cells} observed or simulated observations"
            if min(len(rows), len(reference), n_simulated) < min_cells
            else None
        )
        if reason is not None:
            skipped.setdefault(reason, []).append(f"{label} in {group}" if group else label)
            continue
        found.append(Condition(group, parts, label, rows, reference, known, every, controls))
    for reason, what in skipped.items():
        more = " …" if len(what) > 5 else ""
        warn_user(f"{len(what)} simulated condition(s) {reason} and are left out: {what[:5]}{more}")
    if not found:
        raise ValueError(
            "Nothing that was simulated was also observed, with controls and enough observations: "
            + ("; ".join(f"{what[:5]} {reason}" for reason, what in skipped.items()) or "no rows")
            + ". Check key=, groupby=, split_key= and min_cells=."
        )
    return found


def shared_genes(real: ad.AnnData, simulations: Sequence[Simulation]) -> pd.Index:
    """Return the genes of the observed data that every method simulated, in their order.

    Raises
    ------
    ValueError
        If there is none.

    Warns
    -----
    UserWarning
        If some were not.
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
        raise ValueError("No gene was simulated by all methods; judge them one by one.")
    if not kept.all():
        left_out = genes[~kept]
        warn_user(
            f"{len(left_out)} of {len(genes)} genes were not simulated by every method and are "
            f"left out for all: {left_out[:5].tolist()}{' …' if len(left_out) > 5 else ''}"
        )
    return genes[kept]


def _order(place: tuple[str, Parts]) -> tuple[str, list[str]]:
    return place[0], sorted(place[1])
