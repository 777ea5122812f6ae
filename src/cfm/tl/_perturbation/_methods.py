"""Effects and cells of a condition: observed, simulated, of baselines, and of halves of the data.

Each class has ``answer``, what is scored here, and ``cells``, what cell-eval scores.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from cfm.tl._perturbation._expression import draw_rows, shift_log

if TYPE_CHECKING:
    from cfm.tl._perturbation._conditions import Condition, Design, Simulation
    from cfm.tl._perturbation._expression import Array, Components, LogCells
    from cfm.tl._perturbation._simulate import KnownEffects


@dataclass(frozen=True)
class Answer:
    """Effect and points of a condition.

    Attributes
    ----------
    effect
        ``(genes,)`` change of mean log expression.
    points
        ``(n_points, components)`` of some of the observations.
    n
        Number of observations.
    """

    effect: Array
    points: Array
    n: int


class Cells(NamedTuple):
    """Log expression of a condition.

    Attributes
    ----------
    perturbed, controls
        ``(n, genes)`` of some of the observations.
    n
        Number of perturbed observations.
    """

    perturbed: Array
    controls: Array
    n: int


class Observed:
    """The observed data.

    Parameters
    ----------
    expression
        Their expression.
    components
        Principal components of the expression.
    max_cells
        Largest number of drawn observations of a condition.
    seed
        Seed of draws.
    """

    def __init__(
        self, expression: LogCells, components: Components, *, max_cells: int, seed: int
    ) -> None:
        self.expression, self.components = expression, components
        self.max_cells, self.seed = max_cells, seed
        self._mean: tuple[bytes, Array] | None = None

    def mean(self, rows: np.ndarray) -> Array:
        """Return the mean of observations; the last one is cached, as controls repeat."""
        place = rows.tobytes()
        if self._mean is None or self._mean[0] != place:
            self._mean = place, self.expression.mean(rows)
        return self._mean[1]

    def read(self, rows: np.ndarray, purpose: str) -> Array:
        """Return the expression of at most ``max_cells`` observations, drawn by their names."""
        return self.expression.read(self.draw(rows, purpose))

    def draw(self, rows: np.ndarray, purpose: str) -> np.ndarray:
        """Draw at most ``max_cells`` observations."""
        return draw_rows(self.expression.names, rows, self.max_cells, self.seed, purpose)

    def answer(self, condition: Condition) -> Answer:
        """Return the observed effect and points."""
        return Answer(
            self.expression.mean(condition.real) - self.mean(condition.reference),
            self.components.of(self.read(condition.real, "observed")),
            len(condition.real),
        )

    def cells(self, condition: Condition) -> Cells:
        """Return the observed cells and controls."""
        real, reference = condition.real, condition.reference
        return Cells(self.read(real, "observed"), self.read(reference, "reference"), len(real))

    def reference_points(self, condition: Condition) -> Array:
        """Return the points of the controls of a condition."""
        rows = self.draw(condition.reference, "reference")
        return self.components.read(self.expression, rows)


class Simulated:
    """Simulated observations of a method.

    Their effect is measured against observed controls: those they started from, if recorded, else
    all controls of training.

    Parameters
    ----------
    simulation
        The simulated observations.
    expression
        Their expression.
    observed
        The observed data.
    """

    def __init__(self, simulation: Simulation, expression: LogCells, observed: Observed) -> None:
        self._rows, self._started = simulation.rows, simulation.sources
        self._expression, self._observed = expression, observed
        self._place = pd.Index(observed.expression.names)

    def answer(self, condition: Condition) -> Answer | None:
        """Return the simulated effect and points, ``None`` if there are none."""
        rows = self._rows.get((condition.group, condition.parts))
        if rows is None:
            return None
        reference = self._observed.mean(self._sources(rows, condition))
        points = self._observed.components.of(self._read(rows, "simulated"))
        return Answer(self._expression.mean(rows) - reference, points, len(rows))

    def control_difference(self, design: Design) -> float:
        """Return the largest difference of own from observed controls; 0 without own ones.

        Mean over genes of the absolute difference of mean log expression, of a group.
        """
        pairs = [(rows, design.rows(g)) for (g, parts), rows in self._rows.items() if not parts]
        means = [(self._expression.mean(a), self._observed.mean(b)) for a, b in pairs if len(b)]
        return max((float(np.abs(a - b).mean()) for a, b in means), default=0.0)

    def cells(self, condition: Condition) -> Cells | None:
        """Return the simulated cells and their controls, ``None`` if there are none."""
        rows = self._rows.get((condition.group, condition.parts))
        if rows is None:
            return None
        controls = self._observed.read(np.unique(self._sources(rows, condition)), "reference")
        return Cells(self._read(rows, "simulated"), controls, len(rows))

    def _read(self, rows: np.ndarray, purpose: str) -> Array:
        names, observed = self._expression.names, self._observed
        drawn = draw_rows(names, rows, observed.max_cells, observed.seed, purpose)
        return self._expression.read(drawn)

    def _sources(self, rows: np.ndarray, condition: Condition) -> np.ndarray:
        """Return the controls for an effect."""
        if self._started is not None:
            place = np.sort(self._place.get_indexer(pd.Index(self._started[rows])))
            if np.isin(place, condition.controls).all():
                return place
        return condition.known


class Baseline:
    """The controls of a group, shifted by the effect of a baseline.

    Parameters
    ----------
    name
        One of :data:`cfm._fields.BASELINES`.
    known
        Effects of the training data.
    observed
        The observed data.
    """

    def __init__(self, name: str, known: KnownEffects, observed: Observed) -> None:
        self._name, self._known, self._observed = name, known, observed

    def answer(self, condition: Condition) -> Answer | None:
        """Return the predicted effect and points, ``None`` without data for it."""
        pair = self._shifted(condition)
        if pair is None:
            return None
        values, moved = pair
        points = self._observed.components.of(moved)
        return Answer(moved.mean(axis=0) - values.mean(axis=0), points, len(values))

    def cells(self, condition: Condition) -> Cells | None:
        """Return the predicted cells and the controls, ``None`` if there are none."""
        pair = self._shifted(condition)
        if pair is None:
            return None
        return Cells(pair[1], self._observed.read(condition.known, "reference"), len(pair[1]))

    def _shifted(self, condition: Condition) -> tuple[Array, Array] | None:
        """Return the controls before and after the shift."""
        shift = np.zeros(len(self._observed.expression.genes))
        if self._name != "control":
            try:
                shift, _ = self._known.baseline(self._name, condition.parts, condition.group)
            except (KeyError, ValueError):
                # Values and arguments are checked already: the baseline has no data.
                return None
        values = self._observed.read(condition.known, "sources")
        return values, shift_log(values, shift)


class Halves:
    """Random halves of the observations of conditions: one half predicts the other.

    Parameters
    ----------
    observed
        The observed data.
    n_halves
        Number of random halvings.
    """

    def __init__(self, observed: Observed, n_halves: int) -> None:
        self._observed, self._n = observed, n_halves
        self._last: tuple[str, list[Array]] | None = None

    def answers(self, condition: Condition) -> list[tuple[Answer, Answer]]:
        """Return the pairs of halves, empty if there are too few observations."""
        rows, halves = self._split(condition.every, condition.label)
        if len(rows) < 4 or len(condition.controls) < 2:
            return []
        observed = self._observed
        if self._last is None or self._last[0] != condition.group:
            self._last = condition.group, self._means(*self._split(condition.controls, ""))
        effects = [
            mean - control
            for mean, control in zip(self._means(rows, halves), self._last[1], strict=True)
        ]
        names = observed.expression.names
        drawn = draw_rows(names, rows, 2 * observed.max_cells, observed.seed, "halves")
        points = observed.components.read(observed.expression, drawn)
        member = halves[:, :, pd.Index(rows).get_indexer(pd.Index(drawn))]
        n = int(halves[0, 0].sum())
        first, second = (
            [Answer(effects[h][i], points[member[h, i]], n) for i in range(self._n)] for h in (0, 1)
        )
        return list(zip(first, second, strict=True))

    def cells(self, condition: Condition) -> tuple[Cells | None, Cells | None]:
        """Return the first pair of halves, ``None`` if there are too few observations."""
        rows, halves = self._split(condition.every, condition.label)
        controls, of_controls = self._split(condition.controls, "")
        if len(rows) < 4 or len(controls) < 2:
            return None, None
        first, second = (
            Cells(
                perturbed := self._observed.read(rows[halves[h, 0]], "half"),
                self._observed.read(controls[of_controls[h, 0]], "half"),
                len(perturbed),
            )
            for h in (0, 1)
        )
        return first, second

    def _means(self, rows: np.ndarray, halves: np.ndarray) -> list[Array]:
        """Return ``(n_halves, genes)`` means of the first and of the second halves."""
        weights = halves / halves.sum(axis=2, keepdims=True)
        return [self._observed.expression.weighted(rows, w) for w in weights]

    def _split(self, rows: np.ndarray, purpose: str) -> tuple[np.ndarray, np.ndarray]:
        """Return rows in the order of their names, and bool ``(2, n_halves, n)``: the halves."""
        names = self._observed.expression.names
        rows = rows[np.argsort(names[rows], kind="stable")]
        half = len(rows) // 2
        halves = np.zeros((2, self._n, len(rows)), dtype=bool)
        for i in range(self._n):
            rng = np.random.default_rng([self._observed.seed, i, zlib.crc32(purpose.encode())])
            order = rng.permutation(len(rows))
            # The odd one of an odd number is in neither half.
            halves[0, i, order[:half]] = True
            halves[1, i, order[half : 2 * half]] = True
        return rows, halves
