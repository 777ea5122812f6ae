"""Scores of all methods in the conditions of a group."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._fields import CEILING
from cfm.tl._evaluation_scores import kernel_width

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cfm.tl._evaluation_conditions import Condition
    from cfm.tl._evaluation_methods import Answer, Baseline, Halves, Observed, Simulated
    from cfm.tl._evaluation_scores import Scorer, ScoreTable
    from cfm.tl._perturbation_cells import Array

    Method = Simulated | Baseline


def score_group(
    conditions: Sequence[Condition],
    methods: Mapping[str, Method],
    observed: Observed,
    halves: Halves | None,
    scorer: Scorer,
    result: ScoreTable,
) -> None:
    """Score methods, and halves of the data, in the conditions of a group.

    Parameters
    ----------
    conditions
        Conditions of the group.
    methods
        By name, what answers.
    observed
        What was observed.
    halves
        Halves of it; ``None`` to leave them out.
    scorer
        What is scored.
    result
        Where scores go.
    """
    truth = np.empty((len(conditions), len(observed.cells.genes)))
    guesses = {name: np.full_like(truth, np.nan) for name in methods}
    numbers: list[dict[str, tuple[int, int]]] = [{} for _ in conditions]
    pairs: list[list[tuple[Array, Array]]] = []
    for i, condition in enumerate(conditions):
        seen = observed.answer(condition)
        truth[i] = seen.effect
        sigma = kernel_width(seen, observed.reference_points(condition))
        for name, method in methods.items():
            answer = method.answer(condition)
            numbers[i][name] = seen.n, answer.n if answer else 0
            if answer:
                guesses[name][i] = answer.effect
            found = scorer.score(seen, answer, sigma) if answer else scorer.nothing
            result.add(condition, name, found, numbers[i][name])
        if halves is not None:
            answers = halves.answers(condition)
            numbers[i][CEILING] = (answers[0][0].n, answers[0][1].n) if answers else (0, 0)
            result.add(condition, CEILING, _mean(answers, scorer, sigma), numbers[i][CEILING])
            pairs.append([(first.effect, second.effect) for first, second in answers])
    _discriminate(conditions, truth, guesses, pairs, numbers, observed, scorer, result)


def _mean(answers: list[tuple[Answer, Answer]], scorer: Scorer, sigma: float) -> dict[str, float]:
    """Return the mean scores of a half by the other."""
    scores = [scorer.score(first, second, sigma) for first, second in answers]
    return {m: _nan_mean([s[m] for s in scores]) for m in scorer.nothing}


def _discriminate(
    conditions: Sequence[Condition],
    truth: Array,
    guesses: dict[str, Array],
    pairs: list[list[tuple[Array, Array]]],
    numbers: list[dict[str, tuple[int, int]]],
    observed: Observed,
    scorer: Scorer,
    result: ScoreTable,
) -> None:
    """Score the effects of a group against each other."""
    place = observed.cells.genes.get_indexer
    targets = [
        place(pd.Index(sorted(c.parts & set(observed.cells.genes)), dtype=object))
        for c in conditions
    ]
    found = {name: scorer.discriminate(truth, guess, targets) for name, guess in guesses.items()}
    if pairs:
        n = min(len(p) for p in pairs)
        each = [
            scorer.discriminate(
                np.stack([p[r][0] for p in pairs]), np.stack([p[r][1] for p in pairs]), targets
            )
            for r in range(n)
        ]
        nothing = scorer.discriminate(truth, np.full_like(truth, np.nan), targets)
        found[CEILING] = {
            m: np.mean([e[m] for e in each], axis=0) if n else nothing[m] for m in nothing
        }
    for i, condition in enumerate(conditions):
        for name, scores in found.items():
            own = {metric: float(values[i]) for metric, values in scores.items()}
            result.add(condition, name, own, numbers[i][name])


def _nan_mean(values: Sequence[float]) -> float:
    kept = [v for v in values if not np.isnan(v)]
    return float(np.mean(kept)) if kept else float("nan")
