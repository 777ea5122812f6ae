"""Effects of perturbations that are in the data, and what baselines make of them."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._fields import COMBINED
from cfm.metrics import additive_shift, linear_shift, mean_shift, nearest_shift
from cfm.tl._perturbation_cells import draw_rows

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cfm.pp._perturbation_parts import Parts
    from cfm.tl._perturbation_cells import LogCells
    from cfm.tl._perturbation_design import Design

    Array = NDArray[np.float64]

#: Controls that gene features are made of at most.
_MOST_CONTROLS = 4096
_N_COMPONENTS = 10


class KnownEffects:
    """Mean log expression per group and perturbation, read where it is asked for and not before.

    Parameters
    ----------
    cells
        Expression of the observations.
    design
        What was done to them.
    features
        Perturbations by features, if given.
    """

    def __init__(self, cells: LogCells, design: Design, *, features: pd.DataFrame | None) -> None:
        self.design = design
        self.features = features
        self._cells = cells
        self._means: dict[tuple[str, Parts], Array | None] = {}
        self._tables: dict[str, pd.DataFrame] = {}

    def asked_for(self, design: Design) -> KnownEffects:
        """Return the same of the same observations, for another perturbation of them.

        What was read is shared.
        """
        other = copy.copy(self)
        other.design = design
        return other

    def mean(self, group: str, parts: Parts) -> Array | None:
        """Return ``(genes,)`` mean log expression, ``None`` where there is no observation."""
        place = (group, parts)
        if place not in self._means:
            rows = self.design.rows(group, parts)
            self._means[place] = self._cells.mean(rows) if len(rows) else None
        return self._means[place]

    def control(self, group: str) -> Array:
        """Return the mean of the controls of a group that has some."""
        mean = self.mean(group, frozenset())
        assert mean is not None
        return mean

    def effect(self, group: str, parts: Parts) -> Array | None:
        """Return perturbed mean minus control mean, ``None`` where either is not there."""
        if parts == frozenset() or not len(self.design.rows(group)):
            return None
        perturbed = self.mean(group, parts)
        return None if perturbed is None else perturbed - self.control(group)

    def elsewhere(self, group: str, parts: Parts) -> dict[str, Array]:
        """Return the effects of a perturbation in the other groups."""
        others = (g for g in self.design.all_groups if g != group)
        found = {g: self.effect(g, parts) for g in others}
        return {g: e for g, e in found.items() if e is not None}

    def others(self, group: str, parts: Parts) -> dict[Parts, Array]:
        """Return effects of the other perturbations: in the group, else the mean elsewhere."""
        found = {}
        for level in sorted(self.design.levels, key=sorted):
            if level in (frozenset(), parts):
                continue
            effect = self.effect(group, level)
            if effect is None and (away := self.elsewhere(group, level)):
                effect = mean_shift(list(away.values()))
            if effect is not None:
                found[level] = effect
        return found

    def describe(self, parts: Parts) -> Array | None:
        """Return the features of a perturbation, the sum over its parts; ``None`` if unknown."""
        table = self._gene_features() if self.features is None else self.features
        if not parts or not parts.issubset(table.index):
            return None
        return table.loc[sorted(parts)].to_numpy(dtype=np.float64).sum(axis=0)

    def _gene_features(self) -> pd.DataFrame:
        """Describe genes by how they vary with each other over the controls."""
        if "genes" not in self._tables:
            rows = np.concatenate([self.design.rows(g) for g in self.design.all_groups])
            rows = draw_rows(self._cells.names, rows, _MOST_CONTROLS, 0, "gene features")
            values = self._cells.read(rows)
            values -= values.mean(axis=0)
            _, size, loading = np.linalg.svd(values, full_matrices=False)
            # The sign of a component is arbitrary, and must not depend on the order of rows.
            size = size * np.sign(loading[np.arange(len(loading)), np.abs(loading).argmax(axis=1)])
            table = (loading[:_N_COMPONENTS] * size[:_N_COMPONENTS, None]).T / np.sqrt(len(rows))
            self._tables["genes"] = pd.DataFrame(table, index=self._cells.genes)
        return self._tables["genes"]


def baseline_shift(name: str, known: KnownEffects, group: str, alpha: float) -> tuple[Array, str]:
    """Return the change that a baseline predicts for a group, and what it was learned from.

    The observations of the group that had this perturbation are never read.

    Raises
    ------
    KeyError, ValueError
        If there is nothing to learn it from.
    """
    parts = known.design.parts
    if name == "additive":
        return _additive(known, group)
    same = known.elsewhere(group, parts)
    if same:
        effects = list(same.values())
        where = f"{known.design.label} in {', '.join(sorted(same))}"
        if name == "mean_shift":
            return mean_shift(effects), where
        profiles = [known.control(g) for g in same]
        if name == "nearest":
            return nearest_shift(known.control(group), profiles, effects), f"the nearest: {where}"
        return linear_shift(known.control(group), profiles, effects, alpha=alpha), where
    others = known.others(group, parts)
    if not others:
        raise ValueError(
            f"model={name!r} has nothing to learn {known.design.label!r} from: no other group has "
            "it, there is no other perturbation, and the observations that are to be predicted are "
            "not looked at. Give groupby= with more groups, or data with more perturbations."
        )
    if name == "mean_shift":
        return mean_shift(list(others.values())), f"{len(others)} other perturbations"
    query = known.describe(parts)
    described = {q: known.describe(q) for q in others}
    usable = [q for q, f in described.items() if f is not None]
    if query is None or not usable:
        raise KeyError(
            f"No other group has {known.design.label!r}, so model={name!r} goes by what "
            "perturbations are alike, and needs to know: give features=, a table with a row for "
            f"{sorted(parts)} and for other perturbations. (Without it they are taken as genes.)"
        )
    profiles = [f for q in usable if (f := described[q]) is not None]
    effects = [others[q] for q in usable]
    where = f"{len(usable)} other perturbations by their features"
    if name == "nearest":
        return nearest_shift(query, profiles, effects), f"the nearest of {where}"
    return linear_shift(query, profiles, effects, alpha=alpha), where


def _additive(known: KnownEffects, group: str) -> tuple[Array, str]:
    """Sum the effects of the parts: in the group, or where it has none their mean elsewhere."""
    effects, where, missing = [], [], []
    for part in sorted(known.design.parts):
        single = frozenset([part])
        effect = None if single == known.design.parts else known.effect(group, single)
        if effect is not None:
            where.append(f"{part} in the group" if group else part)
        elif away := known.elsewhere(group, single):
            effect = mean_shift(list(away.values()))
            where.append(f"{part} in {', '.join(sorted(away))}")
        if effect is None:
            missing.append(part)
        else:
            effects.append(effect)
    if missing:
        raise KeyError(
            f"model='additive' sums the effects of single perturbations, and {missing} is not "
            f"there alone{' or in another group' if len(known.design.parts) == 1 else ''}; it "
            f"knows {sorted(COMBINED.join(sorted(q)) for q in known.design.levels if len(q) == 1)}."
        )
    return additive_shift(effects), " + ".join(where)


def check_features(features: Any) -> pd.DataFrame | None:
    """Check a table of features of perturbations.

    Raises
    ------
    TypeError, ValueError
        If it is no DataFrame of finite numbers with a row per perturbation.
    """
    if features is None:
        return None
    if not isinstance(features, pd.DataFrame):
        raise TypeError(
            f"features= is a {type(features).__name__}; expected a DataFrame, perturbations by "
            "features."
        )
    table = features.set_axis(features.index.astype(str), axis=0)
    if not table.index.is_unique or not table.shape[1]:
        raise ValueError("features= needs a row per perturbation, each once, and a column.")
    try:
        values = table.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"features= holds something else than numbers ({error}).") from error
    if not np.isfinite(values).all():
        raise ValueError("features= holds NaN or infinite values; drop those rows or columns.")
    return table
