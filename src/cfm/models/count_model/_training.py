"""Fitting of the count model: means, effects and dispersions; effects that were not measured."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

import numpy as np
import torch

from cfm._adata import warn_user
from cfm.metrics import linear_shift, mean_shift
from cfm.models.count_model._conditions import shown
from cfm.models.count_model._module import (
    CONTROL,
    FIRST_PART,
    LIBRARY,
    NO_PART,
    UNKNOWN,
    NegativeBinomialModule,
)
from cfm.models.count_model._response import Cases, ResponsePredictor

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from cfm.models.count_model._conditions import ConditionLevels, PerturbationFeatures
    from cfm.models.count_model._data import DenseCountReader
    from cfm.models.count_model._module import Conditions

    Array = NDArray[np.float64]
    #: Source and sorted parts of a perturbation.
    Cell = tuple[int, tuple[int, ...]]
    Read = Callable[[np.ndarray], np.ndarray]


#: Cells that are read at a time.
_BLOCK = 512
#: Cells that a condition needs to count as measured.
LEAST_CELLS = 5
#: Expected squared counts for which a gene's own dispersion is trusted by half.
_DISPERSION_PRIOR = 20.0
_LEAST_DISPERSION, _MOST_DISPERSION = 0.02, 20.0


def fit_counts(
    reader: DenseCountReader,
    rows: np.ndarray,
    conditions: Conditions,
    levels: ConditionLevels,
    features: PerturbationFeatures | None = None,
) -> NegativeBinomialModule:
    """Fit the distribution of counts that source, perturbation and depth alone imply.

    Effects that were measured are shrunk by what chance explains of them. Those that were not
    measured in a source are predicted from the sources where they were, those of perturbations
    that were measured nowhere from others by ``features`` (:class:`ResponsePredictor`).

    Parameters
    ----------
    reader
        Of the training data.
    rows
        Cells to fit on.
    conditions
        Of all cells.
    levels, features
        Of the model.

    Warns
    -----
    UserWarning
        If a perturbation has too few cells in every source, and no features.
    """
    n_genes, n_sources = reader.alignment.n_vocabulary, len(levels.sources)
    n_parts = len(levels.perturbations)
    table = None if features is None else features.values.astype(np.float64)
    cell = _cells(conditions)
    means, variance, depths, dispersion = _moments(reader.counts, rows, cell, n_genes)
    control, n_controls = _controls(means, n_sources, n_genes)
    combinations = sorted({parts for _, parts in means if len(parts) > 1})
    module = NegativeBinomialModule(n_genes, n_sources, n_parts, combinations)
    effects = np.zeros((1 + n_sources, FIRST_PART + n_parts + len(combinations), n_genes))
    known = {
        (s, p): _shrunk(mean - control[s], variance * (1 / n + 1 / n_controls[s]))
        for (s, p), (n, mean) in means.items()
        if n >= LEAST_CELLS and p != (CONTROL,)
    }
    bare = _without_controls(means)
    _fill_unknown(effects, means, control)
    measured = _fill_parts(effects, known, control, bare, n_parts, table)
    for i, parts in enumerate(combinations):
        _fill_combination(effects, known, control, bare, parts, FIRST_PART + n_parts + i)
    every = np.concatenate(list(depths.values()))
    if n_sources:  # an unknown source is any of them
        usual = [s for s in range(1, 1 + n_sources) if s not in bare]
        unknown = effects[1:, UNKNOWN].mean(axis=0)
        effects[0] = effects[usual].mean(axis=0)
        effects[0, UNKNOWN] = unknown
    module.fill(
        control,
        np.maximum(effects, -control[:, None]),
        dispersion,
        [every, *(depths.get(s, every) for s in range(1, 1 + n_sources))],
    )
    module.measured.copy_(torch.from_numpy(measured))
    silent = [p for p, found in zip(levels.perturbations, measured, strict=True) if not found]
    if silent and (features is None or not measured.any()):
        warn_user(
            f"The effects of {len(silent)} perturbations are not known, as no source has "
            f"{LEAST_CELLS} cells of each and its parts: {shown(silent)}. Alone, the count model "
            "takes them to do nothing; leave them out, or give perturbation_features=."
        )
    return module


def _cells(conditions: Conditions) -> list[Cell]:
    """Return source and parts of each cell."""
    rows = zip(conditions.source.tolist(), conditions.parts.tolist(), strict=True)
    return [(source, tuple(p for p in parts if p != NO_PART)) for source, parts in rows]


def _moments(
    read: Read, rows: np.ndarray, cell: list[Cell], n_genes: int
) -> tuple[dict[Cell, tuple[int, Array]], Array, dict[int, Array], Array]:
    """Return number of cells and mean log expression by condition, and what all share.

    The variance of log expression within conditions, depths by source, and the dispersion.
    """
    total: dict[Cell, Array] = defaultdict(lambda: np.zeros(n_genes))
    counts: dict[Cell, Array] = defaultdict(lambda: np.zeros(n_genes))
    number: dict[Cell, int] = defaultdict(int)
    depths: dict[int, list[Array]] = defaultdict(list)
    variance = np.zeros(n_genes)
    for condition, block, depth in _blocks(read, rows, cell):
        log = np.log1p(block * (LIBRARY / np.maximum(depth, 1.0))[:, None])
        total[condition] += log.sum(axis=0)
        variance += (log**2).sum(axis=0)
        counts[condition] += block.sum(axis=0)
        number[condition] += len(block)
        depths[condition[0]].append(depth)
    squares, excess = np.zeros(n_genes), np.zeros(n_genes)
    for condition, block, depth in _blocks(read, rows, cell):
        rate = counts[condition] / max(counts[condition].sum(), 1.0)
        mean = depth[:, None] * rate
        excess += ((block - mean) ** 2 - mean).sum(axis=0)
        squares += (mean**2).sum(axis=0)
    own = excess / np.maximum(squares, 1e-9)
    trusted = squares > _DISPERSION_PRIOR / 4
    usual = float(np.median(own[trusted])) if trusted.any() else 1.0
    weight = squares / (squares + _DISPERSION_PRIOR)
    dispersion = np.clip(weight * own + (1 - weight) * usual, _LEAST_DISPERSION, _MOST_DISPERSION)
    means = {c: (number[c], total[c] / number[c]) for c in total}
    variance -= sum(n * mean**2 for n, mean in means.values())
    variance = np.maximum(variance, 0.0) / max(sum(number.values()) - len(number), 1)
    return means, variance, {s: np.concatenate(d) for s, d in depths.items()}, dispersion


def _blocks(read: Read, rows: np.ndarray, cell: list[Cell]) -> Iterator[tuple[Cell, Array, Array]]:
    """Yield the cells of a condition, their counts and depths, a block at a time."""
    for start in range(0, len(rows), _BLOCK):
        part = rows[start : start + _BLOCK]
        block = np.maximum(read(part), 0).astype(np.float64)
        depth = block.sum(axis=1)
        of = [cell[i] for i in part]
        for condition in sorted(set(of)):
            chosen = np.array([c == condition for c in of]) & (depth > 0)
            if chosen.any():
                yield condition, block[chosen], depth[chosen]


def _shrunk(effect: Array, variance: Array) -> Array:
    """Return an effect without the share of it that chance explains."""
    square = effect**2
    return effect * square / np.maximum(square + variance, 1e-12)


def _controls(
    means: dict[Cell, tuple[int, Array]], n_sources: int, n_genes: int
) -> tuple[Array, Array]:
    """Return the mean of each source's controls and their number; row 0 is that of all.

    Where nothing is perturbed, that of all its cells; for a source without controls that of all.
    """
    perturbed = any(parts not in ((UNKNOWN,), (CONTROL,)) for _, parts in means)
    wanted = (CONTROL,) if perturbed or any(p == (CONTROL,) for _, p in means) else (UNKNOWN,)
    out = np.zeros((1 + n_sources, n_genes))
    number = np.zeros(1 + n_sources)
    for (source, parts), (n, mean) in means.items():
        if parts == wanted:
            for s in {0, source}:
                out[s] += n * mean
                number[s] += n
    out /= np.maximum(number, 1)[:, None]
    out[number == 0] = out[0]
    number[number == 0] = max(number[0], 1)
    return out, number


def _without_controls(means: dict[Cell, tuple[int, Array]]) -> set[int]:
    """Return the sources that have cells and no controls, if others have some.

    Their effects are measured from the controls of others, and include the difference between the
    sources: they are not used for other sources.
    """
    controlled = {source for source, parts in means if parts == (CONTROL,)}
    return {source for source, _ in means} - controlled if controlled else set()


def _fill_parts(
    effects: Array,
    known: dict[Cell, Array],
    control: Array,
    bare: set[int],
    n_parts: int,
    features: Array | None,
) -> np.ndarray:
    """Write the effect of each single perturbation in each source; return which were measured."""
    sources = range(1 if len(control) > 1 else 0, len(control))
    numbers = range(FIRST_PART, FIRST_PART + n_parts)
    single = {
        part: {s: known[s, (part,)] for s in sources if (s, (part,)) in known} for part in numbers
    }
    for part in numbers:
        if not single[part]:
            single[part] = _from_combinations(known, single, part)
    cases = {
        part: _cases({s: e for s, e in found.items() if s not in bare} or found, control)
        for part, found in single.items()
        if found
    }
    measured = np.array([bool(single[part]) for part in numbers], dtype=bool)
    absent = [(s, part) for part in cases for s in sources if s not in single[part]]
    across = ResponsePredictor(list(cases.values())) if absent else None
    for part, found in single.items():
        for source, effect in found.items():
            effects[source, part] = effect
    for source, part in absent:
        assert across is not None
        effects[source, part] = across.predict(control[source], control[source], cases[part])
    if features is not None and measured.any() and not measured.all():
        _fill_by_features(effects, control, measured, features, sources)
    return measured


def _cases(found: dict[int, Array], control: Array) -> Cases:
    """Return the effects of a perturbation by source as cases."""
    profiles = np.stack([control[s] for s in found])
    return Cases(profiles, profiles, np.stack(list(found.values())))


def _fill_by_features(
    effects: Array, control: Array, measured: np.ndarray, features: Array, sources: range
) -> None:
    """Write the effects of perturbations that were never measured."""
    rows = FIRST_PART + np.flatnonzero(measured)
    for s in sources:
        cases = Cases.of_one_source(features[measured], control[s], effects[s, rows])
        predictor = ResponsePredictor([cases])
        for i in np.flatnonzero(~measured):
            effects[s, FIRST_PART + i] = predictor.predict(features[i], control[s], cases)


def _from_combinations(
    known: dict[Cell, Array], single: dict[int, dict[int, Array]], part: int
) -> dict[int, Array]:
    """Return the effect of a part that was measured in combinations alone, by source."""
    found: dict[int, list[Array]] = defaultdict(list)
    for (source, parts), effect in known.items():
        others = [p for p in parts if p != part]
        if part in parts and others and all(source in single.get(p, {}) for p in others):
            found[source].append(effect - sum(single[p][source] for p in others))
    return {source: mean_shift(rest) for source, rest in found.items()}


def _fill_unknown(effects: Array, means: dict[Cell, tuple[int, Array]], control: Array) -> None:
    """Write how far all cells of a source lie from its controls."""
    for source in {s for s, _ in means}:
        own = [found for (s, _), found in means.items() if s == source]
        n = sum(number for number, _ in own)
        mean = sum(number * mean for number, mean in own) / n
        effects[source, UNKNOWN] = mean - control[source]


def _fill_combination(
    effects: Array,
    known: dict[Cell, Array],
    control: Array,
    bare: set[int],
    parts: tuple[int, ...],
    row: int,
) -> None:
    """Write a combination: as measured, else from its parts or from other sources.

    Where its parts were measured, their sum and what the combination adds elsewhere; where they
    were not, the sum would add up their errors, and it is carried over as a whole.
    """
    summed = effects[:, list(parts)].sum(axis=1)
    found = {s: e for (s, p), e in known.items() if p == parts}
    usual = {s: e for s, e in found.items() if s not in bare}
    effects[:, row] = summed + _agreed([e - summed[s] for s, e in usual.items()])
    for source in range(len(effects)):
        if usual and not all((source, (part,)) in known for part in parts):
            cases = _cases(usual, control)
            effects[source, row] = linear_shift(control[source], cases.profiles, cases.effects)
    for source, effect in found.items():
        effects[source, row] = effect


def _agreed(extras: list[Array]) -> Array | float:
    """Return the mean of what a combination adds, shrunk to what sources agree on."""
    if len(extras) < 2:
        return 0.0
    table = np.stack(extras)
    mean = mean_shift(table)
    gram = table @ table.T
    n = len(table)
    between = (gram.sum() - np.trace(gram)) / (n * (n - 1))
    return mean * float(np.clip(between / max(float(mean @ mean), 1e-12), 0.0, 1.0))
