"""What methods say of a condition: an effect on the mean, and observations as points."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm.tl._perturbation_cells import draw_rows
from cfm.tl._perturbation_shift import KnownEffects, baseline_shift
from cfm.tl._perturbation_units import shifted

if TYPE_CHECKING:
    from cfm.tl._evaluation_conditions import Condition, Simulation
    from cfm.tl._perturbation_cells import Array, Components, LogCells
    from cfm.tl._perturbation_design import Design


@dataclass(frozen=True)
class Answer:
    """What a method says of a condition, or what was observed.

    Attributes
    ----------
    effect
        ``(genes,)`` change of mean log expression.
    points
        ``(n, components)`` of some of the observations.
    cells, controls
        ``(n, genes)`` log expression of these observations and of controls, where asked for.
    n
        How many observations there are.
    """

    effect: Array
    points: Array
    n: int
    cells: Array | None = None
    controls: Array | None = None


class Observed:
    """What was observed.

    Parameters
    ----------
    cells
        Expression of the observed data.
    components
        Where points lie.
    max_cells
        Observations of a condition that become points at most.
    seed
        Of draws.

    Attributes
    ----------
    keep
        Whether answers keep expression beside points.
    """

    def __init__(
        self, cells: LogCells, components: Components, *, max_cells: int, seed: int
    ) -> None:
        self.cells, self.components = cells, components
        self.max_cells, self.seed = max_cells, seed
        self.keep = False
        self._means: dict[bytes, Array] = {}

    def mean(self, rows: np.ndarray) -> Array:
        """Return the mean of observations, and keep the last one: controls serve many times."""
        place = rows.tobytes()
        if place not in self._means:
            self._means = {place: self.cells.mean(rows)}
        return self._means[place]

    def draw(self, rows: np.ndarray, purpose: str) -> np.ndarray:
        """Draw the observations that become points."""
        return draw_rows(self.cells.names, rows, self.max_cells, self.seed, purpose)

    def answer(self, condition: Condition) -> Answer:
        """Return the effect and points that methods are judged by."""
        reference = self.mean(condition.reference)
        values = self.cells.read(self.draw(condition.real, "observed"))
        controls = None
        if self.keep:
            controls = self.cells.read(self.draw(condition.reference, "reference"))
        return Answer(
            self.cells.mean(condition.real) - reference,
            self.components.of(values),
            len(condition.real),
            values if self.keep else None,
            controls,
        )

    def reference_points(self, condition: Condition) -> Array:
        """Return points of the controls of a condition."""
        rows = self.draw(condition.reference, "reference")
        return self.components.read(self.cells, rows)


class Simulated:
    """What a method simulated.

    The effect is measured against the controls that the method simulated, if it did; else against
    the observations it started from, if these are known controls; else against all controls that
    it may know.

    Parameters
    ----------
    simulation
        Which observations it made.
    cells
        Their expression.
    observed
        The observed data.
    """

    def __init__(self, simulation: Simulation, cells: LogCells, observed: Observed) -> None:
        self.simulation, self._cells, self._observed = simulation, cells, observed
        self._place = pd.Index(observed.cells.names)

    def answer(self, condition: Condition) -> Answer | None:
        """Return what the method made for a condition, ``None`` if nothing."""
        rows = self.simulation.rows.get((condition.group, condition.parts))
        if rows is None:
            return None
        observed = self._observed
        drawn = draw_rows(self._cells.names, rows, observed.max_cells, observed.seed, "simulated")
        values = self._cells.read(drawn)
        own = self.simulation.rows.get((condition.group, frozenset()))
        start = self._sources(rows, condition)
        if own is not None:
            reference = self._cells.mean(own)
        else:
            reference = observed.mean(condition.known if start is None else start)
        controls = None
        if observed.keep and own is not None:
            controls = self._cells.read(
                draw_rows(self._cells.names, own, observed.max_cells, observed.seed, "reference")
            )
        elif observed.keep:
            known = condition.known if start is None else np.unique(start)
            controls = observed.cells.read(observed.draw(known, "reference"))
        return Answer(
            self._cells.mean(rows) - reference,
            observed.components.of(values),
            len(rows),
            values if observed.keep else None,
            controls,
        )

    def _sources(self, rows: np.ndarray, condition: Condition) -> np.ndarray | None:
        if self.simulation.sources is None:
            return None
        place = np.sort(self._place.get_indexer(pd.Index(self.simulation.sources[rows])))
        return place if np.isin(place, condition.controls).all() else None


class Baseline:
    """What a baseline makes of the controls of a group.

    Parameters
    ----------
    name
        One of :data:`cfm._fields.BASELINES`.
    known
        Effects that can be learned from.
    observed
        The observed data.
    alpha
        Penalty of ``"linear"``.
    counts
        Whether it makes counts of counts.
    """

    def __init__(
        self, name: str, known: KnownEffects, observed: Observed, *, alpha: float, counts: bool
    ) -> None:
        self._name, self._known, self._observed = name, known, observed
        self._alpha, self._counts = alpha, counts

    def answer(self, condition: Condition) -> Answer | None:
        """Return what the baseline says, ``None`` if it has nothing to learn it from."""
        observed = self._observed
        design: Design = replace(self._known.design, parts=condition.parts, label=condition.label)
        shift = np.zeros(len(observed.cells.genes))
        if self._name != "control":
            known = self._known.asked_for(design)
            try:
                shift, _ = baseline_shift(self._name, known, condition.group, self._alpha)
            except (KeyError, ValueError):
                # All values and arguments were checked before: there is nothing to learn from.
                return None
        start = observed.draw(condition.known, "sources")
        cells, stored = observed.cells, observed.cells.stored(start)
        values = cells.log(stored)
        if self._counts and self._name != "control":
            names = [f"{name}-{condition.label}" for name in cells.names[start]]
            made = shifted(stored, cells.widened(shift), names, counts=True, seed=observed.seed)
            moved = cells.log(made)
        else:
            moved = shifted(values, shift, [], counts=False, seed=observed.seed)
        controls = None
        if observed.keep:
            controls = observed.cells.read(observed.draw(condition.known, "reference"))
        return Answer(
            moved.mean(axis=0) - values.mean(axis=0),
            observed.components.of(moved),
            len(start),
            moved if observed.keep else None,
            controls,
        )


class Halves:
    """Random halves of the observations of conditions: what the data say of themselves.

    Parameters
    ----------
    observed
        The observed data.
    n_halves
        How often they are halved.
    """

    def __init__(self, observed: Observed, n_halves: int) -> None:
        self._observed, self._n = observed, n_halves
        self._last: tuple[str, tuple[Array, Array]] | None = None

    def answers(self, condition: Condition) -> list[tuple[Answer, Answer]]:
        """Return each half beside the other, empty if there are too few observations."""
        rows, first, second = self._split(condition.every, condition.label)
        if len(rows) < 4 or len(condition.controls) < 2:
            return []
        observed = self._observed
        effects = [
            observed.cells.weighted(rows, half / half.sum(axis=1, keepdims=True)) - control
            for half, control in zip((first, second), self._control(condition), strict=True)
        ]
        drawn = draw_rows(
            observed.cells.names, rows, 2 * observed.max_cells, observed.seed, "halves"
        )
        points = observed.components.read(observed.cells, drawn)
        place = pd.Index(rows).get_indexer(pd.Index(drawn))
        n = int(first[0].sum())
        return [
            (
                Answer(effects[0][i], points[first[i, place]], n),
                Answer(effects[1][i], points[second[i, place]], n),
            )
            for i in range(self._n)
        ]

    def expression(self, condition: Condition) -> tuple[Answer, Answer] | None:
        """Return the expression of the first pair of halves, ``None`` if there are too few."""
        rows, first, second = self._split(condition.every, condition.label)
        controls, *controls_of = self._split(condition.controls, "")
        if len(rows) < 4 or len(controls) < 2:
            return None
        observed = self._observed
        nothing = np.zeros(0)
        answers = []
        for half, control in zip((first, second), controls_of, strict=True):
            drawn = observed.draw(rows[half[0]], "half")
            reference = observed.draw(controls[control[0]], "half")
            values = observed.cells.read(drawn), observed.cells.read(reference)
            answers.append(Answer(nothing, nothing, len(drawn), *values))
        return answers[0], answers[1]

    def _control(self, condition: Condition) -> tuple[Array, Array]:
        """Return the means of halves of the controls of a group."""
        if self._last is None or self._last[0] != condition.group:
            rows, first, second = self._split(condition.controls, "")
            means = [
                self._observed.cells.weighted(rows, half / half.sum(axis=1, keepdims=True))
                for half in (first, second)
            ]
            self._last = condition.group, (means[0], means[1])
        return self._last[1]

    def _split(self, rows: np.ndarray, purpose: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return rows in the order of their names, and ``(n_halves, n)`` who is in which half."""
        names = self._observed.cells.names
        rows = rows[np.argsort(names[rows], kind="stable")]
        half = len(rows) // 2
        halves = np.zeros((2, self._n, len(rows)), dtype=bool)
        for i in range(self._n):
            rng = np.random.default_rng([self._observed.seed, i, zlib.crc32(purpose.encode())])
            order = rng.permutation(len(rows))
            # of an odd number one is in neither
            halves[0, i, order[:half]] = True
            halves[1, i, order[half : 2 * half]] = True
        return rows, halves[0], halves[1]
