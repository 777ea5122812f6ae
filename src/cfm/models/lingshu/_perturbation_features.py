"""Perturbations described by features, so that one never seen in training can be asked for."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cfm._arguments import check_number
from cfm.models.lingshu._levels import ConditionLevels, shown

if TYPE_CHECKING:
    from collections.abc import Sequence


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
        values = _numbers(table, "perturbation_features=")
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
        values = _numbers(named[self.names].to_frame(), "features=")[:, 0]
        return ((values - self.mean) / self.spread).astype(np.float32)

    def config(self) -> dict[str, Any]:
        """Return what a checkpoint stores beside the values."""
        return {"names": self.names, "mean": self.mean.tolist(), "spread": self.spread.tolist()}

    @classmethod
    def from_config(
        cls, config: dict[str, Any], values: np.ndarray, targets: Sequence[str]
    ) -> PerturbationFeatures:
        """Make again what :meth:`config` stored."""
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


def _numbers(table: pd.DataFrame, where: str) -> np.ndarray:
    try:
        values = table.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where} holds something else than numbers ({error}).") from error
    if not np.isfinite(values).all():
        raise ValueError(f"{where} holds NaN or infinite values; drop those rows or columns.")
    return values
