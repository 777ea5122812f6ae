"""Training and test observations of perturbation data."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd

from cfm._adata import check_key, params_of, takes_anndata, target, warn_user
from cfm._arguments import PART
from cfm._fields import PARAMS
from cfm.data._matrix import check_not_empty, check_unique_names, in_memory_frame
from cfm.pp._perturbation_parts import Parts, parts_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from anndata import AnnData

HoldOut = Literal["group", "perturbation", "combination", "cells"]
_SHARE = {"group": 0.2, "perturbation": 0.2, "combination": 0.2, "cells": 0.5}


@takes_anndata(columns=("key", "groupby"), ranges={"share": PART})
def split_perturbations(
    adata: AnnData,
    key: str,
    *,
    control: str,
    hold_out: HoldOut = "group",
    groupby: str | None = None,
    groups: Sequence[str] | None = None,
    perturbations: Sequence[str] | None = None,
    share: float | None = None,
    hold_out_controls: bool = False,
    seed: int = 0,
    key_added: str = "split",
    copy: bool = False,
) -> AnnData | None:
    """Split observations into a training and a test set for perturbation methods.

    Controls are in the training set, since predictions start from them. ``hold_out="cells"`` also
    holds out a share of the controls, so that test effects are measured on unseen observations
    only; ``hold_out_controls`` does so for the other splits.

    Parameters
    ----------
    adata
        Observations.
    key
        Column of ``obs`` with the perturbation; combinations are written ``"A+B"``.
    control
        Level of ``key`` for unperturbed observations.
    hold_out
        Test set:

        ``"group"``
            ``perturbations`` in ``groups`` (cell types, donors … of ``groupby``); the training set
            has them in other groups.
        ``"perturbation"``
            Unseen perturbations, in all groups (or in ``groups``), and the combinations that
            contain one.
        ``"combination"``
            Combinations; the training set may have their parts alone.
        ``"cells"``
            A share of the observations of each perturbation in each group, and of the controls.
    groupby
        Column of ``obs`` with groups. Observations without a group are in neither set.
    groups
        Groups with a test set. By default, with ``hold_out="group"``, a random ``share`` of the
        groups with both controls and perturbed observations; else all.
    perturbations
        Perturbations of the test set. By default all with ``hold_out`` ``"group"`` and ``"cells"``,
        a random ``share`` with ``"perturbation"``, and with ``"combination"`` a random ``share`` of
        the combinations with all parts measured alone.
    share
        Share of a random draw, above 0 and below 1; by default 0.5 for ``"cells"``, else 0.2. A
        number of names is rounded, to at least one and (except for combinations) not all; a number
        of observations is rounded down.
    hold_out_controls
        Hold out half of the controls of the groups with a test set, so that test effects are
        measured against unseen controls. Otherwise observed and simulated effects share the noise
        of the controls, which raises the scores of weak effects. ``hold_out="cells"`` always holds
        out its ``share`` of the controls, in all groups.
    seed
        Seed of the draw, which depends on names, not on the order of observations.
    key_added
        Name of the split.
    copy
        Return a changed copy instead of changing ``adata``.

    Returns
    -------
    ``None``, or with ``copy=True`` an AnnData, with these fields written:

    ``adata.obs[key_added]``
        Categorical: ``"train"``, ``"test"``, or missing like the perturbation or group.
    ``adata.uns[key_added]['params']``
        The arguments, and the groups and perturbations of the test set.

    Raises
    ------
    KeyError, TypeError, ValueError
        If a column, level or group does not exist, an argument cannot be used, or the training or
        test set has no perturbed observation.

    Warns
    -----
    UserWarning
        If a column of another function is replaced, or a part of a held-out combination is not
        measured alone.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_infection_cells()
    >>> cfm.pp.split_perturbations(
    ...     cells, "virus", control="none", groupby="cell_type", groups=["B cell"]
    ... )
    >>> held = cells.obs["split"] == "test"
    >>> cells.obs.loc[held, "cell_type"].unique().tolist()
    ['B cell']
    >>> bool((cells.obs.loc[held, "virus"] == "none").any())
    False
    """
    check_key(key_added)
    if key_added in (key, groupby):
        raise ValueError(
            f"key_added={key_added!r} would replace a column of the split; choose another."
        )
    part = _SHARE[hold_out] if share is None else share
    if hold_out == "group" and groupby is None:
        raise ValueError("hold_out='group' needs groupby=, the column of cell types or donors.")
    if groups is not None and groupby is None:
        raise ValueError("groups= was given without groupby=, the column that holds them.")
    check_not_empty(adata)
    check_unique_names(adata.obs_names, axis="obs")
    obs = in_memory_frame(adata.obs)
    level, group, present = _read(obs, key, control, groupby)
    where = _chosen_groups(level, group, present, control, hold_out, groupby, groups, part, seed)
    parts = {name: parts_of(name, control) for name in sorted(set(level[present]))}
    what = _chosen_levels(parts, hold_out, perturbations, part, seed, key)
    held = present & np.isin(group, where) & np.isin(level, what)
    controls = present & (level == control)
    if hold_out == "cells":
        held = _share_of_cells(adata, level, group, held | controls, part, seed)
    elif hold_out_controls:
        controls &= np.isin(group, where)
        held |= _share_of_cells(adata, level, group, controls, _SHARE["cells"], seed)
    _check(held, present, level, control, where, what)
    _warn_replaced(adata, key_added)
    adata = target(adata, copy=copy)
    column = np.where(held, "test", "train").astype(object)
    column[~present] = None
    adata.obs[key_added] = pd.Categorical(column, categories=["train", "test"])
    record: dict[str, Any] = {
        "key": key,
        "control": control,
        "hold_out": hold_out,
        "groupby": groupby,
        "share": float(part),
        "hold_out_controls": bool(hold_out_controls or hold_out == "cells"),
        "seed": seed,
        "held_out_groups": np.array(where, dtype=object) if groupby else None,
        "held_out_perturbations": np.array(what, dtype=object),
    }
    adata.uns[key_added] = {PARAMS: {k: v for k, v in record.items() if v is not None}}
    return adata if copy else None


def _read(
    obs: pd.DataFrame, key: str, control: str, groupby: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return perturbation and group of each observation, and whether it has both."""
    for name, column in (("key", key), ("groupby", groupby)):
        if column is not None and column not in obs:
            raise KeyError(f"{name}={column!r} is no column of adata.obs: {obs.columns.tolist()}.")
    present = obs[key].notna().to_numpy()
    group = np.full(len(obs), "", dtype=object)
    if groupby is not None:
        present = present & obs[groupby].notna().to_numpy()
        group = obs[groupby].astype(str).to_numpy(dtype=object)
    level = obs[key].astype(str).to_numpy(dtype=object)
    found = sorted(set(level[present]))
    if control not in found:
        raise KeyError(f"adata.obs[{key!r}] has no control {control!r}; it has {found[:8]}.")
    if len(found) < 2:
        raise ValueError(f"adata.obs[{key!r}] has the control {control!r} and nothing else.")
    return level, group, present


def _chosen_groups(
    level: np.ndarray,
    group: np.ndarray,
    present: np.ndarray,
    control: str,
    hold_out: HoldOut,
    groupby: str | None,
    groups: Sequence[str] | None,
    share: float,
    seed: int,
) -> list[str]:
    """Return the groups with a test set."""
    known = sorted(set(group[present]))
    if groups is not None:
        return _check_names(groups, known, f"groups= and adata.obs[{groupby!r}]")
    if hold_out != "group":
        return known
    with_control = set(group[present & (level == control)])
    perturbed = set(group[present & (level != control)])
    usable = [g for g in known if g in with_control and g in perturbed]
    return _draw(usable, share, seed, f"groups of {groupby!r} with controls and perturbed cells")


def _chosen_levels(
    parts: dict[str, Parts],
    hold_out: HoldOut,
    perturbations: Sequence[str] | None,
    share: float,
    seed: int,
    key: str,
) -> list[str]:
    """Return the perturbations of the test set."""
    known = [name for name, found in parts.items() if found]
    alone = {found for found in parts.values() if len(found) == 1}
    combined = [name for name in known if len(parts[name]) > 1]
    if perturbations is not None:
        chosen = _check_names(perturbations, known, f"perturbations= and adata.obs[{key!r}]")
        if hold_out == "combination":
            if single := [name for name in chosen if name not in combined]:
                raise ValueError(
                    f"{single} are no combinations; hold_out='combination' takes those."
                )
            missing = {p for name in chosen for p in parts[name] if frozenset([p]) not in alone}
            if missing:
                warn_user(
                    f"{sorted(missing)} of the combinations that are held out are not there alone, "
                    "so the sum of their effects is not measured."
                )
    elif hold_out in ("group", "cells"):
        return known
    elif hold_out == "combination":
        chosen = [name for name in combined if all(frozenset([p]) in alone for p in parts[name])]
        chosen = _draw(chosen, share, seed, "combinations whose parts are there alone", least=1)
    else:
        single = [name for name in known if len(parts[name]) == 1] or known
        chosen = _draw(single, share, seed, f"perturbations in {key!r}")
    if hold_out == "perturbation":
        held = [parts[name] for name in chosen]
        return [name for name in known if any(one <= parts[name] for one in held)]
    return chosen


def _check_names(given: Sequence[str], known: list[str], where: str) -> list[str]:
    if isinstance(given, str):
        raise TypeError(f"{where}: {given!r} is one text; expected a list, such as [{given!r}].")
    names = sorted({str(name) for name in given})
    unknown = [name for name in names if name not in known]
    if unknown:
        raise KeyError(f"{where}: {unknown} do not exist; there are {known[:8]}.")
    if not names:
        raise ValueError(f"{where}: the list is empty; leave it out to draw from all.")
    return names


def _draw(names: list[str], share: float, seed: int, what: str, least: int = 2) -> list[str]:
    """Draw a share of names: at least one, and not all if ``least`` is 2."""
    if len(names) < least:
        raise ValueError(f"There are {len(names)} {what}; at least {least} are needed for a split.")
    n = min(max(1, round(share * len(names))), len(names) - (least - 1))
    rng = np.random.default_rng(seed)
    return sorted(str(name) for name in rng.permutation(np.array(sorted(names), dtype=object))[:n])


def _share_of_cells(
    adata: AnnData,
    level: np.ndarray,
    group: np.ndarray,
    candidates: np.ndarray,
    share: float,
    seed: int,
) -> np.ndarray:
    """Return ``(n_obs,)`` bool: a share of the observations of each perturbation in each group."""
    names = adata.obs_names.to_numpy(dtype=object)
    held = np.zeros(len(level), dtype=bool)
    rows = np.flatnonzero(candidates)
    for place, found in pd.Series(rows).groupby([group[rows], level[rows]]):
        members = found.to_numpy()
        members = members[np.argsort(names[members], kind="stable")]
        rng = np.random.default_rng([seed, zlib.crc32("|".join(map(str, place)).encode())])
        # the odd one of an odd number stays in training
        held[rng.permutation(members)[: int(share * len(members))]] = True
    return held


def _check(
    held: np.ndarray,
    present: np.ndarray,
    level: np.ndarray,
    control: str,
    where: list[str],
    what: list[str],
) -> None:
    if not (held & (level != control)).any():
        raise ValueError(
            f"No perturbed observation would be held out ({what[:8]} in {where[:8]}); choose "
            "others, or a larger share."
        )
    if not (present & ~held & (level != control)).any():
        raise ValueError(
            f"All perturbed observations would be held out ({what[:8]} in {where[:8]}), so the "
            "training set would have none; hold out fewer."
        )


def _warn_replaced(adata: AnnData, key_added: str) -> None:
    ours = "hold_out" in params_of(adata.uns, key_added)
    if (key_added in adata.obs or adata.uns.get(key_added) is not None) and not ours:
        warn_user(
            f"obs[{key_added!r}] or uns[{key_added!r}] was not written by this function and is "
            "replaced; pass another key_added= to keep it."
        )
