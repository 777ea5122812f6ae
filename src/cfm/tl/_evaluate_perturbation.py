"""Simulated perturbations, judged by observed ones and beside baselines."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby as consecutive
from typing import TYPE_CHECKING, Literal

import numpy as np

from cfm._arguments import ABOVE_0, check_choice
from cfm._fields import BASELINES, CEILING
from cfm._units import units_of
from cfm.data._takes_anndata import takes_anndata
from cfm.tl._evaluation_cell_eval import CELL_EVAL, known_cell_eval_metrics, score_by_cell_eval
from cfm.tl._evaluation_conditions import (
    read_conditions,
    read_real,
    read_simulated,
    shared_genes,
    training_design,
)
from cfm.tl._evaluation_groups import score_group
from cfm.tl._evaluation_methods import Baseline, Halves, Observed, Simulated
from cfm.tl._evaluation_scores import ALWAYS, HIGHER_IS_BETTER, Scorer, ScoreTable
from cfm.tl._perturbation_cells import Components, LogCells, rows_hold_counts
from cfm.tl._perturbation_shift import KnownEffects, check_features

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad
    import pandas as pd

    from cfm._units import Units
    from cfm.tl._evaluation_conditions import Simulation
    from cfm.tl._evaluation_groups import Method
    from cfm.tl._perturbation_design import Design

#: Name of the observed data in ``units=``.
_REAL = "real"


@takes_anndata(
    columns=("key", "groupby", "split_key"),
    ranges={"alpha": ABOVE_0, "max_cells": 2, "n_halves": 0},
)
def evaluate_perturbation(
    real: ad.AnnData,
    simulated: ad.AnnData | Mapping[str, ad.AnnData],
    *,
    key: str,
    control: str,
    groupby: str | None = None,
    split_key: str | None = None,
    layer: str | None = None,
    units: Units | Mapping[str, Units] = "auto",
    metrics: str | Sequence[str] | None = None,
    baselines: Sequence[str] = BASELINES,
    baseline_units: Literal["log", "counts"] = "log",
    features: pd.DataFrame | None = None,
    alpha: float = 1.0,
    n_top: int = 50,
    n_components: int = 50,
    n_halves: int = 10,
    min_cells: int = 10,
    max_cells: int = 1000,
    seed: int = 0,
) -> pd.DataFrame:
    """Judge simulated perturbations by observed ones, beside baselines and the data's own ceiling.

    Every score of a method stands beside that of each baseline of
    :func:`cfm.tl.simulate_perturbation` in the same condition, and beside the ceiling: how well
    one half of the observed cells predicts the other. A condition is a perturbation in a group.

    Everything is compared as log expression on the genes that all methods simulated. Effects are
    the mean of perturbed minus the mean of control observations. Baselines never read the group's
    own observations of the perturbation, and with ``split_key`` nothing outside of training.

    Parameters
    ----------
    real
        Observed data: controls and perturbed observations, counts or log-normalised expression.
    simulated
        What was simulated, as :func:`cfm.tl.simulate_perturbation` returns it: an AnnData, whose
        methods are told apart by ``obs['simulated_by']`` (``"model"`` without it), or AnnData by
        the name of the method. In ``X`` counts or log expression, in ``obs`` the columns ``key``
        and ``groupby``. Several perturbations and groups are stacked by :func:`anndata.concat`
        with ``merge="same", uns_merge="same"``, which keeps the genes that were not predicted
        (``var["simulated"]``) apart: these are left out for all.
    key
        Column of ``obs`` with perturbations; combinations are written ``"A+B"``, in any order.
    control
        Its level for unperturbed observations. A method that simulated these as well has its
        effects measured against them; others against the observations they started from
        (``obs['simulated_from']``, if these are controls), or against all controls of the group.
    groupby
        Column of ``obs`` with groups, such as cell types or donors.
    split_key
        Column of ``real.obs`` with ``"train"`` and ``"test"``
        (:func:`cfm.pp.split_perturbations`). Methods are judged by test observations, and effects
        measured against test controls where a group has some. Without it all observations serve.
    layer
        Layer of ``real`` to read instead of ``X``.
    units
        ``"counts"``, ``"log"``, or ``"auto"``; one for all, or by name: ``"real"``, and the names
        of methods. ``"auto"`` decides of each by itself: whole numbers are counts, as are
        fractional values of which some exceed 30; fractional values are logarithms if ``expm1`` of
        all rows has the same sum, or if ``uns["log1p"]`` (:func:`scanpy.pp.log1p`) or
        ``uns["simulation"]`` says so. Else an error asks. Of counts log1p of counts per 10,000 is
        taken: of the genes that are compared, or of all genes if something else is log-normalised
        already.
    metrics
        Names, see below. By default those marked with a star. ``"cell_eval"`` adds all of
        cell-eval (needs ``cfm-tools[eval]``), ``"cell_eval:mae"`` one of its metrics.
    baselines
        Baselines to put beside: of ``"control"``, ``"mean_shift"``, ``"additive"``, ``"nearest"``
        and ``"linear"``. One that is among the simulated is not made again.
    baseline_units
        Baselines shift the log expression of the controls. ``"log"`` leaves it there, where means
        are kept: best for effects. ``"counts"`` turns it into counts, as
        :func:`cfm.tl.simulate_perturbation` does of counts: more like cells, which tests of
        differential expression favour.
    features, alpha
        For baselines, see :func:`cfm.tl.simulate_perturbation`.
    n_top
        Genes of the largest observed effects that ``"direction_accuracy"`` looks at.
    n_components
        Principal components for distances, fitted on the observed data.
    n_halves
        How often the observed cells are halved for the ceiling; 0 for none.
    min_cells
        Conditions with fewer observed, control or simulated observations are left out.
    max_cells
        Observations of a condition that distances, baselines and cell-eval take at most: a random
        part of more, drawn by their names. Effects of what was observed and simulated take all.
    seed
        Of draws and halves.

    Returns
    -------
    DataFrame, nothing is stored: a row for each condition, metric and method, in this order.

    ``group``, ``perturbation``
        str; ``group`` is ``""`` without ``groupby``.
    ``metric``
        str; see below.
    ``method``
        str: the simulated, the baselines, ``"ceiling"``.
    ``value``
        float64; NaN where a method has no answer (such as ``"additive"`` for a perturbation that
        nobody had alone), or the metric none.
    ``higher_is_better``
        bool.
    ``n_real``, ``n_simulated``
        int64, observations that were compared; of the ceiling the two halves.
    ``units_real``, ``units_simulated``
        str; ``"counts"`` or ``"log"``, what the observed data and those of the method hold.

    Metrics are

    ``"delta_pearson"`` *
        Correlation of effects over genes; 0 for no effect (:func:`cfm.metrics.delta_pearson`).
        ``"delta_pearson_top"`` takes the ``n_top`` genes; ``"delta_cosine"`` and ``"delta_r2"``
        see a shift of all genes, the latter also the size.
    ``"e_distance"`` *
        Energy distance of simulated and observed perturbed cells, unbiased, on principal
        components of the observed data (:func:`cfm.metrics.e_distance`).
    ``"mmd"`` *
        The same with Gaussian kernels, squared (:func:`cfm.metrics.mmd`), of widths around the
        mean squared distance between the observed cells of the condition and their controls.
    ``"direction_accuracy"`` *
        Share of the top genes that move the right way (:func:`cfm.metrics.direction_accuracy`).
    ``"discrimination_score"`` *
        Whether an effect is nearest to that of its own perturbation among those of the group, by
        L1 distance; ``"discrimination_score_cosine"`` by angle. Genes that are perturbed are left
        out. NaN with one perturbation (:func:`cfm.metrics.discrimination_score`).
    ``"cell_eval:..."``
        What cell-eval computes for a group, from log expression; the first pair of halves is the
        ceiling. What it scores over all perturbations is repeated for each.

    Raises
    ------
    TypeError
        If something is no AnnData.
    KeyError
        If a column, level or layer does not exist.
    ValueError
        If nothing that was simulated was observed, no gene is shared, values are not finite, may
        be counts as well as logarithms, or an argument cannot be used.
    ImportError
        If cell-eval is asked for and not installed.

    Warns
    -----
    UserWarning
        Of conditions, genes and groups that are left out.

    Notes
    -----
    The ceiling is of halves, each as noisy as half of the cells: a method that is judged by all of
    them can score above it, the more so the fewer there are. After a split of cells it is what
    repeating the training cells would score.

    A method that makes cells anew, without controls of its own, has its effects measured against
    the observed controls. If the observed effect is measured against the same ones, both share
    their noise, which looks like agreement where effects are weak: let it simulate the controls
    too, or split with ``hold_out_controls=True``.

    Cells of a condition are not independent evidence. Compare methods over conditions, for
    instance by :func:`cfm.metrics.paired_bootstrap`.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_infection_cells()
    >>> columns = {"key": "virus", "control": "none", "groupby": "cell_type"}
    >>> made = cfm.tl.simulate_perturbation(cells, "virus_A", model="mean_shift", **columns)
    >>> scores = cfm.tl.evaluate_perturbation(cells, {"mine": made}, **columns)
    >>> scores.columns.tolist()[:5]
    ['group', 'perturbation', 'metric', 'method', 'value']
    >>> scores["method"].unique().tolist()
    ['mine', 'control', 'mean_shift', 'additive', 'nearest', 'linear', 'ceiling']
    """
    scorer, by_cell_eval = _read_metrics(metrics, n_top)
    asked = _read_baselines(baselines)
    table = check_features(features)
    design, train, test = read_real(
        real, key=key, control=control, groupby=groupby, split_key=split_key, layer=layer
    )
    simulations = read_simulated(simulated, key=key, control=control, groupby=groupby)
    conditions = read_conditions(
        real, design, train, test, simulations, key=key, min_cells=min_cells
    )
    cells, made = _read_cells(real, design, simulations, layer, units)
    as_counts = baseline_units == "counts"
    if as_counts and not cells.counts:
        raise ValueError("baseline_units='counts', but the observed data are no counts; use 'log'.")
    fitted = np.flatnonzero((design.level >= 0) & design.in_group)
    components = Components(cells, fitted, n_components, seed)
    observed = Observed(cells, components, max_cells=max_cells, seed=seed)
    known = KnownEffects(cells, training_design(design, train), features=table)
    methods: dict[str, Method] = {
        s.name: Simulated(s, c, observed) for s, c in zip(simulations, made, strict=True)
    }
    methods |= {
        b: Baseline(b, known, observed, alpha=alpha, counts=as_counts)
        for b in asked
        if b not in methods
    }
    halves = Halves(observed, n_halves) if n_halves else None
    result = ScoreTable()
    for _, members in consecutive(conditions, key=lambda c: c.group):
        group = list(members)
        score_group(group, methods, observed, halves, scorer, result)
        if by_cell_eval:
            score_by_cell_eval(group, methods, observed, halves, by_cell_eval, result)
    scores = result.table([*scorer.metrics, *by_cell_eval], [*methods, CEILING])
    hold = {True: "counts", False: "log"}
    by_method = dict.fromkeys(methods, baseline_units) | {CEILING: hold[cells.counts]}
    by_method |= {s.name: hold[c.counts] for s, c in zip(simulations, made, strict=True)}
    return scores.assign(
        units_real=hold[cells.counts], units_simulated=scores["method"].map(by_method)
    )


def _read_metrics(
    metrics: str | Sequence[str] | None, n_top: int
) -> tuple[Scorer, dict[str, bool]]:
    """Return what we score, and what cell-eval scores."""
    asked = list(ALWAYS) if metrics is None else [metrics] if isinstance(metrics, str) else metrics
    names = list(dict.fromkeys(str(name) for name in asked))
    outside = [name for name in names if name.split(":", 1)[0] == CELL_EVAL]
    unknown = [name for name in names if name not in HIGHER_IS_BETTER and name not in outside]
    theirs: dict[str, bool] = {}
    if outside and not unknown:
        known = known_cell_eval_metrics()
        unknown = [name for name in outside if name != CELL_EVAL and name not in known]
        theirs = known if CELL_EVAL in outside else {n: known[n] for n in outside if n in known}
    if unknown or not names:
        raise ValueError(
            f"metrics={unknown} are not known; choose among {list(HIGHER_IS_BETTER)}, "
            f"{CELL_EVAL!r} and '{CELL_EVAL}:' with the name of one of its metrics."
        )
    return Scorer([name for name in names if name in HIGHER_IS_BETTER], n_top), theirs


def _read_baselines(baselines: Sequence[str]) -> list[str]:
    if isinstance(baselines, str):
        raise TypeError(f"baselines={baselines!r} is one text; expected a list of them.")
    unknown = [name for name in baselines if name not in BASELINES]
    if unknown:
        raise ValueError(f"baselines={unknown} are not known; choose among {list(BASELINES)}.")
    return list(dict.fromkeys(baselines))


def _read_cells(
    real: ad.AnnData,
    design: Design,
    simulations: Sequence[Simulation],
    layer: str | None,
    units: Units | Mapping[str, Units],
) -> tuple[LogCells, list[LogCells]]:
    """Return expression of the observed data and of each method, on the same genes and scale."""
    if isinstance(units, Mapping):
        for name in units:
            check_choice("a name in units", name, [_REAL, *(s.name for s in simulations)])
    genes = shared_genes(real, simulations)
    used = np.flatnonzero((design.level >= 0) & design.in_group)
    counts = rows_hold_counts(real, used, layer, units_of(_REAL, units), where="real")
    made = [
        rows_hold_counts(
            s.adata,
            np.sort(np.concatenate(list(s.rows.values()))),
            None,
            units_of(s.name, units),
            where=f"what {s.name!r} simulated",
        )
        for s in simulations
    ]
    # A logarithm was taken of shares of all genes; of counts shares of any genes can be taken.
    whole = not (counts and all(made))
    return LogCells(real, layer=layer, counts=counts, genes=genes, whole_library=whole), [
        LogCells(s.adata, counts=c, genes=genes, whole_library=whole)
        for s, c in zip(simulations, made, strict=True)
    ]
