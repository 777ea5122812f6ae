"""The metrics of cell-eval, where it is installed."""

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

from cfm._fields import CEILING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cfm.tl._evaluation_conditions import Condition
    from cfm.tl._evaluation_groups import Method
    from cfm.tl._evaluation_methods import Answer, Halves, Observed
    from cfm.tl._evaluation_scores import ScoreTable

#: Prefix of cell-eval's metrics in the table; alone it stands for all of them.
CELL_EVAL = "cell_eval"
#: Values from which cell-eval takes a matrix for something else than logarithms.
_LARGEST = 15.0
_KEY, _CONTROL = "perturbation", "__control__"


def known_cell_eval_metrics() -> dict[str, bool]:
    """Return the names of cell-eval's scores with our prefix, True where higher is better.

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
    found = {}
    for name in metrics_registry.list_metrics():
        best = metrics_registry.get_metric(name).best_value.name
        # what has no best value is a number of genes and no score
        if best in ("ONE", "ZERO"):
            found[f"{CELL_EVAL}:{name}"] = best == "ONE"
    return found


def score_by_cell_eval(
    conditions: Sequence[Condition],
    methods: Mapping[str, Method],
    observed: Observed,
    halves: Halves | None,
    metrics: Mapping[str, bool],
    result: ScoreTable,
) -> None:
    """Score methods in the conditions of a group by cell-eval.

    A group is one run, with at most ``max_cells`` observations of each condition.

    Parameters
    ----------
    conditions, methods, observed, halves, result
        As for :func:`cfm.tl._evaluation_groups.score_group`.
    metrics
        What is asked for, as :func:`known_cell_eval_metrics` names it.
    """
    observed.keep = True
    truth = [observed.answer(c) for c in conditions]
    for name, method in methods.items():
        answers = [method.answer(c) for c in conditions]
        _run(conditions, truth, answers, name, observed, metrics, result)
    observed.keep = False
    if halves is not None:
        pairs = [halves.expression(c) for c in conditions]
        first = [p[0] if p else None for p in pairs]
        second = [p[1] if p else None for p in pairs]
        _run(conditions, first, second, CEILING, observed, metrics, result)


def _run(
    conditions: Sequence[Condition],
    truth: Sequence[Answer | None],
    answers: Sequence[Answer | None],
    name: str,
    observed: Observed,
    metrics: Mapping[str, bool],
    result: ScoreTable,
) -> None:
    """Run cell-eval on what a method answered, and add its scores."""
    both = [(c, t, a) for c, t, a in zip(conditions, truth, answers, strict=True) if t and a]
    scores = pd.DataFrame()
    if both:
        genes = observed.cells.genes
        real = _pooled([(c.label, t) for c, t, _ in both], genes)
        predicted = _pooled([(c.label, a) for c, _, a in both], genes)
        scores = _scores(real, predicted, [m.split(":", 1)[1] for m in metrics])
    for condition, t, a in zip(conditions, truth, answers, strict=True):
        found = {}
        for metric in metrics:
            column = metric.split(":", 1)[1]
            values = scores[column].to_dict() if a is not None and column in scores else {}
            found[metric] = values.get(condition.label, float("nan"))
        numbers = t.n if t else 0, a.n if a else 0
        result.add(condition, name, found, numbers, dict(metrics))


def _pooled(answers: Sequence[tuple[str, Answer]], genes: pd.Index) -> ad.AnnData:
    """Return observations of conditions, and the controls of the first (which all share)."""
    blocks, labels = [], []
    for label, answer in answers:
        assert answer.cells is not None
        blocks.append(sparse.csr_matrix(answer.cells))
        labels += [label] * len(answer.cells)
    controls = answers[0][1].controls
    assert controls is not None
    blocks.append(sparse.csr_matrix(controls))
    labels += [_CONTROL] * len(controls)
    obs = pd.DataFrame({_KEY: pd.Categorical(labels)}, index=[str(i) for i in range(len(labels))])
    x = sparse.vstack(blocks, format="csr").astype(np.float32)
    if x.min() < 0 or x.max() >= _LARGEST:
        raise ValueError(
            f"cell-eval takes log1p-normalised expression, from 0 to {_LARGEST:g}; found "
            f"{x.min():.3g} to {x.max():.3g}. Pass counts, or leave out metrics='cell_eval'."
        )
    return ad.AnnData(x, obs=obs, var=pd.DataFrame(index=genes))


def _scores(real: ad.AnnData, predicted: ad.AnnData, names: Sequence[str]) -> pd.DataFrame:
    """Return scores by perturbation, of those metrics that cell-eval could compute."""
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
