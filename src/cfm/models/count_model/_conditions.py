"""Conditions of cells: by name, as the numbers that a module reads, and described by features."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from cfm._arguments import check_number
from cfm.models.count_model._module import CONTROL, FIRST_PART, NO_PART, UNKNOWN, Conditions
from cfm.pp._perturbation_parts import split_parts

if TYPE_CHECKING:
    from collections.abc import Sequence


@dataclass(frozen=True)
class ConditionLevels:
    """Conditions of cells in a model, and their levels.

    Attributes
    ----------
    source_key, sources
        Column of ``obs`` with the source (cell line, donor, cell type) and its levels; ``None``
        and empty without.
    perturbation_key, perturbations, control
        Column with the perturbation, its single parts without the control, and the control.
    covariates
        Levels by column of the further conditions.
    """

    source_key: str | None = None
    sources: list[str] = field(default_factory=list)
    perturbation_key: str | None = None
    perturbations: list[str] = field(default_factory=list)
    control: str | None = None
    covariates: dict[str, list[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if (self.perturbation_key is None) != (self.control is None):
            raise ValueError("perturbation_key and control are given together or not at all.")
        if self.control in self.perturbations:
            raise ValueError(f"The control {self.control!r} is not one of the perturbations.")
        keys = (self.source_key, self.perturbation_key, self.control)
        named = (self.sources, self.perturbations, *self.covariates.values())
        if not all(key is None or isinstance(key, str) for key in keys) or not all(
            isinstance(name, str) for levels in named for name in levels
        ):
            raise TypeError("Columns of conditions and their levels are named by text.")
        if (self.source_key is None and self.sources) or (
            self.perturbation_key is None and self.perturbations
        ):
            raise ValueError("Levels of a condition are given without the column they are from.")
        for levels in named:
            if len(set(levels)) < len(levels):
                raise ValueError(f"Levels of a condition are named twice: {levels}.")

    def check_table(self, table: pd.DataFrame, *, named: bool) -> None:
        """Check that a table of cells has a condition, if no argument names one.

        Raises
        ------
        ValueError
            If it has columns, and none of the model's conditions: they may be misspelt.
        """
        known = [k for k in (self.source_key, self.perturbation_key, *self.covariates) if k]
        if known and not named and len(table.columns) and "depth" not in table:
            raise ValueError(
                f"cells= has the columns {table.columns.tolist()}, and none of the conditions of "
                f"the model, {known}. Rename them, or take them out."
            )

    @classmethod
    def of(
        cls,
        obs: pd.DataFrame,
        source_key: str | None,
        perturbation_key: str | None,
        control: str | None,
        covariate_keys: Sequence[str],
    ) -> ConditionLevels:
        """Collect the levels of columns of ``obs``, which are there and complete."""

        def levels(key: str | None) -> list[str]:
            return [] if key is None else sorted(set(obs[key].astype(str)))

        perturbed = (level for level in levels(perturbation_key) if level != control)
        parts = {p for level in perturbed for p in split_parts(level)}
        return cls(
            source_key=source_key,
            sources=levels(source_key),
            perturbation_key=perturbation_key,
            perturbations=sorted(parts - {control or ""}),
            control=control,
            covariates={key: levels(key) for key in covariate_keys},
        )

    def module_arguments(self) -> dict[str, Any]:
        """Return the constructor arguments of the module."""
        return {
            "n_sources": len(self.sources),
            "n_parts": None if self.perturbation_key is None else len(self.perturbations),
            "covariate_sizes": [len(levels) for levels in self.covariates.values()],
        }

    def source_numbers(self, names: Sequence[str] | np.ndarray | None, n: int) -> np.ndarray:
        """Return the number of each source, ``(n,)`` int64; ``None`` is unknown.

        Raises
        ------
        KeyError, ValueError
            If the model has no such source, or none at all.
        """
        if names is None:
            return np.full(n, UNKNOWN, dtype=np.int64)
        if self.source_key is None:
            raise ValueError("source= was given, but the model was trained without source_key=.")
        return _numbers(names, self.sources, f"source ({self.source_key})") + 1

    def covariate_numbers(self, table: pd.DataFrame | None, n: int) -> np.ndarray:
        """Return the number of each covariate, ``(n, n_covariates)`` int64; unknown if not given.

        Raises
        ------
        KeyError
            If the model has no such covariate, or no such level.
        """
        out = np.full((n, len(self.covariates)), UNKNOWN, dtype=np.int64)
        if table is None:
            return out
        for key in table:
            if key not in self.covariates:
                raise KeyError(
                    f"The model has no covariate {key!r}; it has {list(self.covariates)}."
                )
            levels = self.covariates[key]
            place = list(self.covariates).index(key)
            out[:, place] = _numbers(table[key], levels, f"covariate {key}") + 1
        return out

    def part_numbers(
        self,
        perturbations: Sequence[str] | np.ndarray | None,
        n: int,
        described: Sequence[str] = (),
    ) -> np.ndarray:
        """Return the parts of each perturbation, ``(n, k)`` int64 filled up with −1.

        Parameters
        ----------
        perturbations
            ``(n,)`` names, ``"A+B"`` for combinations in any order; ``None`` is unknown.
        n
            Number of cells.
        described
            Names beyond those of the model, which were described by features.

        Raises
        ------
        KeyError, ValueError
            If the model has no such perturbation, or none at all.
        """
        if perturbations is None:
            return np.full((n, 1), UNKNOWN, dtype=np.int64)
        if self.perturbation_key is None:
            raise ValueError(
                "A perturbation was given, but the model was trained without perturbation_key=."
            )
        names = pd.Series(np.asarray(perturbations, dtype=object).astype(str))
        known = [*self.perturbations, *described]
        number = {name: i + FIRST_PART for i, name in enumerate(known)}
        number[str(self.control)] = CONTROL
        found: dict[str, list[int]] = {}
        for name in names.unique():
            parts = [name] if name == self.control else split_parts(name)
            unknown = [p for p in parts if p not in number]
            if unknown:
                raise KeyError(
                    f"The model does not have the perturbation {unknown[0]!r}; it has "
                    f"{shown(self.perturbations)} and the control {self.control!r}. A model with "
                    "perturbation_features= takes others by features=."
                )
            # a control beside another part, and the order of parts, have no meaning
            numbers = sorted({number[p] for p in parts})
            found[name] = [p for p in numbers if p != CONTROL] or [CONTROL]
        width = max((len(parts) for parts in found.values()), default=1)
        filled = {k: v + [NO_PART] * (width - len(v)) for k, v in found.items()}
        return np.array([filled[name] for name in names], dtype=np.int64).reshape(-1, width)

    def conditions(
        self,
        n: int,
        *,
        source: Sequence[str] | np.ndarray | None = None,
        perturbation: Sequence[str] | np.ndarray | None = None,
        covariates: pd.DataFrame | None = None,
        depth: np.ndarray | None = None,
        described: Sequence[str] = (),
    ) -> Conditions:
        """Turn names into tensors for the network; missing conditions are unknown."""
        depths = np.full(n, np.nan, dtype=np.float32) if depth is None else depth
        return Conditions(
            torch.from_numpy(self.source_numbers(source, n)),
            torch.from_numpy(self.part_numbers(perturbation, n, described)),
            torch.from_numpy(self.covariate_numbers(covariates, n)),
            torch.from_numpy(np.array(depths, dtype=np.float32)),
        )


@dataclass(frozen=True)
class PerturbationFeatures:
    """Standardised features of single perturbations.

    Attributes
    ----------
    targets
        Names of the rows.
    names
        Names of the features.
    values
        ``(n_targets, n_features)`` float32, ``(x - mean) / spread``.
    mean, spread
        ``(n_features,)`` float64.
    """

    targets: list[str]
    names: list[str]
    values: np.ndarray
    mean: np.ndarray
    spread: np.ndarray

    @classmethod
    def of(cls, table: pd.DataFrame, control: str | None) -> PerturbationFeatures:
        """Standardise a table, targets by features; a row of the control is left out.

        Raises
        ------
        TypeError, ValueError
            If it is no table of finite numbers with a row per target.
        """
        if not isinstance(table, pd.DataFrame):
            raise TypeError(
                f"perturbation_features= is a {type(table).__name__}; expected a DataFrame, "
                "targets by features."
            )
        table = table.loc[table.index.astype(str) != control]
        targets = [str(t) for t in table.index]
        if not table.size or len(set(targets)) < len(targets):
            raise ValueError("perturbation_features= needs a row per target, each once.")
        if len({str(name) for name in table.columns}) < table.shape[1]:
            raise ValueError("perturbation_features= names a feature twice; name each once.")
        values = _finite(table, "perturbation_features=")
        mean, spread = values.mean(axis=0), values.std(axis=0)
        spread = np.where(spread > 0, spread, 1.0)
        scaled = ((values - mean) / spread).astype(np.float32)
        return cls(targets, [str(c) for c in table.columns], scaled, mean, spread)

    def levels(self, levels: ConditionLevels) -> ConditionLevels:
        """Return levels with all targets of the table as perturbations, in its order.

        Raises
        ------
        KeyError, ValueError
            If a perturbation of the data is not in the table, or the data have none.
        """
        if levels.perturbation_key is None:
            raise ValueError("perturbation_features= was given without perturbation_key=.")
        missing = sorted(set(levels.perturbations) - set(self.targets))
        if missing:
            raise KeyError(
                f"perturbation_features= has no row for {shown(missing)}; every perturbation of "
                "the data needs one."
            )
        return replace(levels, perturbations=self.targets)

    def describe(self, features: pd.Series) -> np.ndarray:
        """Standardise the features of one more target, ``(n_features,)`` float32.

        Raises
        ------
        TypeError, ValueError, KeyError
            If it is no Series of finite numbers, or lacks a feature.
        """
        if not isinstance(features, pd.Series):
            raise TypeError(
                f"features= is a {type(features).__name__}; expected a Series, a value per feature."
            )
        named = features.set_axis(features.index.astype(str))
        missing = [name for name in self.names if name not in named.index]
        if missing:
            raise KeyError(f"features= lacks {shown(missing)}; it needs {shown(self.names)}.")
        values = _finite(named[self.names].to_frame(), "features=")[:, 0]
        return ((values - self.mean) / self.spread).astype(np.float32)

    def config(self) -> dict[str, Any]:
        """Return the settings of a checkpoint, beside the values."""
        return {"names": self.names, "mean": self.mean.tolist(), "spread": self.spread.tolist()}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], values: np.ndarray, targets: Sequence[str]
    ) -> PerturbationFeatures:
        """Restore the features from :meth:`config`."""
        names = list(config["names"])
        if not all(isinstance(name, str) for name in names):
            raise TypeError("features whose names are no text")
        mean, spread = (
            np.array([check_number(k, x) for x in config[k]]) for k in ("mean", "spread")
        )
        if values.shape != (len(targets), len(names)) or not (
            mean.shape == spread.shape == (len(names),)
        ):
            raise TypeError(f"features of shape {values.shape} do not fit their names")
        if not (np.isfinite(mean) & (spread > 0)).all():
            raise TypeError("features without a mean and a spread")
        return cls(list(targets), names, values, mean, spread)


def shown(names: Sequence[str], n: int = 8) -> str:
    """Return the first names for an error."""
    return f"{list(names[:n])}{' …' if len(names) > n else ''}"


def _numbers(names: Sequence[str] | np.ndarray | pd.Series, levels: list[str], what: str) -> Any:
    wanted = pd.Index(np.asarray(names, dtype=object).astype(str))
    found = pd.Index(levels).get_indexer(wanted)
    if (found < 0).any():
        raise KeyError(
            f"The model does not have the {what} {wanted[found < 0][0]!r}; it has {shown(levels)}."
        )
    return found.astype(np.int64)


def _finite(table: pd.DataFrame, where: str) -> np.ndarray:
    try:
        values = table.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} holds something else than numbers ({error}).") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{where} holds NaN or infinite values; drop those rows or columns.")
    return values
