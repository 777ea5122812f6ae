"""Scores of methods in the conditions of a group, by :mod:`cfm.metrics` and by cell-eval."""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cfm._fields import CEILING, SCORE_COLUMNS
from cfm.metrics import (
    delta_cosine,
    delta_pearson,
    delta_r2,
    direction_accuracy,
    discrimination_score,
    e_distance,
    mean_squared_distance,
    mmd,
)
from cfm.metrics._perturbation_scores import CHALLENGE_METRICS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from cfm.tl._perturbation._conditions import Condition
    from cfm.tl._perturbation._expression import Array
    from cfm.tl._perturbation._methods import Answer, Baseline, Cells, Halves, Observed, Simulated

    Method = Simulated | Baseline
    #: Values of :data:`cfm._fields.SCORE_COLUMNS`.
    Row = tuple[str, str, str, str, float, bool, int, int]

#: Genes of the largest observed effects, for metrics of top genes.
N_TOP = 50
#: Score of a condition by metric, from the observed result, that of a method, and the squared
#: distance for the widths of MMD's kernels.
_SINGLE: dict[str, Callable[[Answer, Answer, float], float]] = {
    "delta_pearson": lambda o, a, _: delta_pearson(o.effect, a.effect),
    "e_distance": lambda o, a, _: e_distance(o.points, a.points),
    "mmd": lambda o, a, sigma: mmd(o.points, a.points, sigma=sigma),
    "direction_accuracy": lambda o, a, _: direction_accuracy(o.effect, a.effect, n_top=N_TOP),
    "delta_pearson_top": lambda o, a, _: delta_pearson(o.effect, a.effect, n_top=N_TOP),
    "delta_cosine": lambda o, a, _: delta_cosine(o.effect, a.effect),
    "delta_r2": lambda o, a, _: delta_r2(o.effect, a.effect),
}
#: Scores of the conditions of a group against each other, by metric.
_TOGETHER: dict[str, Callable[[Array, Array, Sequence[np.ndarray]], Array]] = {
    "discrimination_score": lambda o, a, excluded: discrimination_score(o, a, excluded=excluded),
    "discrimination_score_cosine": lambda o, a, excluded: discrimination_score(
        o, a, distance="cosine", excluded=excluded
    ),
}
METRICS = (*_SINGLE, *_TOGETHER)
#: Metrics by default.
ALWAYS = ("delta_pearson", "e_distance", "mmd", "direction_accuracy", "discrimination_score")
_LOWER_IS_BETTER = ("e_distance", "mmd")

#: Prefix of cell-eval's metrics in the table; alone it means all of them.
CELL_EVAL = "cell_eval"
#: cell-eval's profile of the Virtual Cell Challenge.
CHALLENGE = {f"{CELL_EVAL}:vcc": [f"{CELL_EVAL}:{m}" for m in CHALLENGE_METRICS]}
#: cell-eval refuses logarithms from this value on.
_LARGEST = 15.0
_KEY, _CONTROL = "perturbation", "__control__"


def score_group(
    conditions: Sequence[Condition],
    methods: Mapping[str, Method],
    observed: Observed,
    halves: Halves | None,
    metrics: Sequence[str],
) -> list[Row]:
    """Score methods, and halves of the data, in the conditions of a group.

    Parameters
    ----------
    conditions
        Conditions of the group.
    methods
        Methods by name.
    observed
        The observed data.
    halves
        Halves of the data; ``None`` without ceiling.
    metrics
        Names in :data:`METRICS`.

    Returns
    -------
    Rows of the table, in no order.
    """
    rows: list[Row] = []

    def add(c: Condition, name: str, metric: str, value: float, n: tuple[int, int]) -> None:
        better = metric not in _LOWER_IS_BETTER
        rows.append((c.group, c.label, metric, name, float(value), better, *n))

    single = [m for m in metrics if m in _SINGLE]
    genes = observed.expression.genes
    truth = np.empty((len(conditions), len(genes)))
    guesses = {name: np.full_like(truth, np.nan) for name in methods}
    numbers: dict[str, list[tuple[int, int]]] = {name: [] for name in (*methods, CEILING)}
    pairs: list[list[tuple[Array, Array]]] = []
    for i, condition in enumerate(conditions):
        seen = observed.answer(condition)
        truth[i] = seen.effect
        # The same width for all methods.
        both = np.vstack([seen.points, observed.reference_points(condition)])
        sigma = mean_squared_distance(both) or 1.0
        for name, method in methods.items():
            answer = method.answer(condition)
            numbers[name].append((seen.n, answer.n if answer else 0))
            if answer:
                guesses[name][i] = answer.effect
            for metric in single:
                value = _SINGLE[metric](seen, answer, sigma) if answer else np.nan
                add(condition, name, metric, value, numbers[name][i])
        if halves is not None:
            found = halves.answers(condition)
            numbers[CEILING].append((found[0][0].n, found[0][1].n) if found else (0, 0))
            for metric in single:
                values = [_SINGLE[metric](first, second, sigma) for first, second in found]
                add(condition, CEILING, metric, _nan_mean(values), numbers[CEILING][i])
            pairs.append([(first.effect, second.effect) for first, second in found])
    names = set(genes)
    targets = [pd.Index(sorted(c.parts & names), dtype=object) for c in conditions]
    excluded = [genes.get_indexer(target) for target in targets]
    for metric in (m for m in metrics if m in _TOGETHER):
        score = _TOGETHER[metric]
        scores = {name: score(truth, guess, excluded) for name, guess in guesses.items()}
        if halves is not None:
            each = [
                score(
                    np.stack([p[k][0] for p in pairs]), np.stack([p[k][1] for p in pairs]), excluded
                )
                for k in range(min(map(len, pairs)))
            ]
            scores[CEILING] = np.mean(each, axis=0) if each else np.full(len(truth), np.nan)
        for name, of_all in scores.items():
            for i, condition in enumerate(conditions):
                add(condition, name, metric, of_all[i], numbers[name][i])
    return rows


def score_table(
    rows: Iterable[Row], metrics: Sequence[str], methods: Sequence[str]
) -> pd.DataFrame:
    """Return the table of scores, sorted by group, perturbation, metric and method."""
    table = pd.DataFrame(list(rows), columns=list(SCORE_COLUMNS))
    rank = {
        "metric": {name: i for i, name in enumerate(metrics)},
        "method": {name: i for i, name in enumerate(methods)},
    }
    table = table.sort_values(
        ["group", "perturbation", "metric", "method"],
        key=lambda c: c.map(rank[c.name]) if c.name in rank else c,
        kind="stable",
    )
    counts = {"n_real": np.int64, "n_simulated": np.int64}
    kinds: dict[str, type] = {"value": np.float64, "higher_is_better": bool, **counts}
    return table.reset_index(drop=True).astype(kinds)


def known_cell_eval_metrics() -> dict[str, bool]:
    """Return the names of cell-eval's scores with the prefix, True if higher is better.

    Raises
    ------
    ImportError
        If cell-eval is not installed.
    """
    try:
        from cell_eval.metrics import metrics_registry
    except ImportError as error:
        raise ImportError(
            "metrics='cell_eval' needs cell-eval; install it with pip install 'cfm-tools[eval]'."
        ) from error
    best = {
        m: metrics_registry.get_metric(m).best_value.name for m in metrics_registry.list_metrics()
    }
    # Metrics without a best value are numbers of genes.
    return {f"{CELL_EVAL}:{m}": b == "ONE" for m, b in best.items() if b in ("ONE", "ZERO")}


def score_by_cell_eval(
    conditions: Sequence[Condition],
    methods: Mapping[str, Method],
    observed: Observed,
    halves: Halves | None,
    metrics: Mapping[str, bool],
) -> list[Row]:
    """Score methods in the conditions of a group by cell-eval.

    A group is one run, with at most ``max_cells`` observations of each condition.

    Parameters
    ----------
    conditions, methods, observed, halves
        As for :func:`score_group`.
    metrics
        Metrics as :func:`known_cell_eval_metrics` names them.

    Returns
    -------
    Rows of the table, in no order.
    """

    def runs() -> Iterator[tuple[str, list[tuple[Cells | None, Cells | None]]]]:
        truth = [observed.cells(c) for c in conditions]
        for name, method in methods.items():
            cells = [method.cells(c) for c in conditions]
            yield name, list(zip(truth, cells, strict=True))
        if halves is not None:
            yield CEILING, [halves.cells(c) for c in conditions]

    genes = observed.expression.genes
    rows: list[Row] = []
    for name, pairs in runs():
        both = [(c.label, r, p) for c, (r, p) in zip(conditions, pairs, strict=True) if r and p]
        scores = pd.DataFrame()
        if both:
            scores = _cell_eval(
                _pool([(label, r) for label, r, _ in both], genes),
                _pool([(label, p) for label, _, p in both], genes),
                [m.split(":", 1)[1] for m in metrics],
            )
        for condition, (r, p) in zip(conditions, pairs, strict=True):
            numbers = r.n if r else 0, p.n if p else 0
            for metric, better in metrics.items():
                column = metric.split(":", 1)[1]
                values = scores[column].to_dict() if p and column in scores else {}
                value = values.get(condition.label, float("nan"))
                rows.append(
                    (condition.group, condition.label, metric, name, value, better, *numbers)
                )
    return rows


def _pool(cells: Sequence[tuple[str, Cells]], genes: pd.Index) -> ad.AnnData:
    """Return observations of conditions, and the controls of the first (which all share)."""
    blocks = [*((label, c.perturbed) for label, c in cells), (_CONTROL, cells[0][1].controls)]
    labels = [label for label, block in blocks for _ in range(len(block))]
    obs = pd.DataFrame({_KEY: pd.Categorical(labels)}, index=[str(i) for i in range(len(labels))])
    x = sparse.vstack([sparse.csr_matrix(block) for _, block in blocks], format="csr")
    x = x.astype(np.float32)
    if x.min() < 0 or x.max() >= _LARGEST:
        raise ValueError(
            f"cell-eval takes log1p-normalised expression, from 0 to {_LARGEST:g}; found "
            f"{x.min():.3g} to {x.max():.3g}. Pass counts, or leave out metrics='cell_eval'."
        )
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes))


def _cell_eval(real: ad.AnnData, predicted: ad.AnnData, names: Sequence[str]) -> pd.DataFrame:
    """Return scores by perturbation, for the metrics that cell-eval can compute."""
    from cell_eval import MetricsEvaluator
    from cell_eval.metrics import metrics_registry

    every = metrics_registry.list_metrics()
    arrays = {m for m in every if metrics_registry.get_metric(m).type.name == "ANNDATA_PAIR"}
    loggers = [logging.getLogger(n) for n in ("cell_eval", "pdex")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:  # one line per metric, and an error where one cannot be computed
        logger.setLevel(logging.CRITICAL)
    arguments: dict[str, Any] = {"control_pert": _CONTROL, "pert_col": _KEY, "num_threads": 1}
    try:
        with (
            tempfile.TemporaryDirectory() as folder,
            warnings.catch_warnings(),
            contextlib.redirect_stderr(io.StringIO()),  # a progress bar for each metric
        ):
            warnings.simplefilter("ignore")
            run = MetricsEvaluator(
                adata_pred=predicted,
                adata_real=real,
                outdir=folder,
                skip_de=set(names) <= arrays,
                **arguments,
            )
            skipped = [m for m in every if m not in names]
            found, _ = run.compute(profile="full", skip_metrics=skipped, write_csv=False)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    columns = {name: found[name].to_list() for name in found.columns}
    index = columns.pop("perturbation", [])
    return pd.DataFrame(columns, index=pd.Index(index, dtype=object)).astype(np.float64)


def _nan_mean(values: Sequence[float]) -> float:
    kept = [v for v in values if not np.isnan(v)]
    return float(np.mean(kept)) if kept else float("nan")
