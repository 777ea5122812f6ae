"""Simulated perturbations against observed ones, beside baselines and a ceiling."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import groupby as consecutive
from typing import TYPE_CHECKING

import numpy as np

from cfm._adata import takes_anndata, warn_user
from cfm._arguments import check_choice
from cfm._fields import BASELINES, CEILING
from cfm._units import units_of
from cfm.tl._perturbation._conditions import (
    held_out,
    read_conditions,
    read_real,
    read_simulated,
    shared_genes,
    training_design,
)
from cfm.tl._perturbation._expression import Components, LogCells, rows_hold_counts
from cfm.tl._perturbation._methods import Baseline, Halves, Observed, Simulated
from cfm.tl._perturbation._scores import (
    ALWAYS,
    CELL_EVAL,
    CHALLENGE,
    METRICS,
    known_cell_eval_metrics,
    score_by_cell_eval,
    score_group,
    score_table,
)
from cfm.tl._perturbation._simulate import KnownEffects

if TYPE_CHECKING:
    from collections.abc import Sequence

    import anndata as ad
    import pandas as pd

    from cfm._units import Units
    from cfm.tl._perturbation._conditions import Design, Simulation
    from cfm.tl._perturbation._scores import Method

#: Principal components of the observed data, for distances.
N_COMPONENTS = 50
#: Halvings of the observed cells; each costs as much as scoring one method.
N_HALVES = 10
#: Largest number of observations of a condition for distances, baselines and cell-eval: the time
#: of a distance grows with the square.
MAX_CELLS = 1000
#: Name of the observed data in ``units=``.
_REAL = "real"
#: Difference of controls that rounding explains.
_SAME = 1e-4


@takes_anndata(columns=("key", "groupby", "split_key"))
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
    baselines: Sequence[str] = (*BASELINES, CEILING),
    min_cells: int = 10,
    seed: int = 0,
) -> pd.DataFrame:
    """Score simulated perturbations against observed ones, with baselines and a ceiling.

    For every condition the table has the scores of each method, of each baseline of
    :func:`cfm.tl.simulate_perturbation`, and of the ceiling, the prediction of one half of the
    observed cells by the other. A condition is a perturbation in a group.

    All methods are compared in log expression on the genes that all simulate. An effect is the mean
    of perturbed minus the mean of control observations. Baselines never use the group's own
    observations of the perturbation, and with ``split_key`` only training observations.

    Parameters
    ----------
    real
        Observed data: controls and perturbed observations, counts or log-normalised expression.
    simulated
        Simulated observations, as :func:`cfm.tl.simulate_perturbation` returns them: an AnnData
        with the method in ``obs['simulated_by']`` (``"model"`` without it), or AnnData by the name
        of the method. In ``X`` counts or log expression, in ``obs`` the columns ``key`` and
        ``groupby``. Several perturbations and groups are stacked by :func:`anndata.concat` with
        ``merge="same", uns_merge="same"``, which keeps ``var["simulated"]``: genes without a
        prediction are left out for all.
    key
        Column of ``obs`` with perturbations; combinations are written ``"A+B"``, in any order.
    control
        Level of ``key`` for unperturbed observations. Effects of a method are measured against its
        start observations (``obs['simulated_from']``, if they are controls), else against all
        observed controls of the group; controls that it simulated are never used.
    groupby
        Column of ``obs`` with groups, such as cell types or donors.
    split_key
        Column of ``real.obs`` with ``"train"`` and ``"test"``
        (:func:`cfm.pp.split_perturbations`). Methods are compared with test observations, and
        effects measured against test controls if a group has some. By default all observations are
        used.
    layer
        Layer of ``real`` to read instead of ``X``.
    units
        ``"counts"``, ``"log"``, or ``"auto"``; one for all, or by name: ``"real"``, and the names
        of methods. With ``"auto"`` whole numbers and fractional values above 30 are counts;
        fractional values are logarithms if ``expm1`` of all rows has the same sum, or if
        ``uns["log1p"]`` (:func:`scanpy.pp.log1p`) or ``uns["simulation"]`` records it; else there
        is an error. Counts become log1p of counts per 10,000: of the compared genes, or of all
        genes if another matrix is log-normalised already.
    metrics
        Names of metrics (below); by default those marked with a star. ``"cell_eval"`` adds all of
        cell-eval (needs ``cfm-tools[eval]``), ``"cell_eval:mae"`` one of its metrics, and
        ``"cell_eval:vcc"`` the three of :func:`cfm.metrics.challenge_score`.
    baselines
        Any of ``"control"``, ``"mean_shift"``, ``"additive"``, ``"nearest"`` and ``"linear"``,
        which shift the log expression of the controls, and ``"ceiling"``, means over 10 random
        halvings of the observed cells. A baseline in ``simulated`` is used as it is: for
        ``features``, ``alpha`` or counts, simulate it by :func:`cfm.tl.simulate_perturbation` from
        the training observations.
    min_cells
        Conditions with fewer observed, control or simulated observations are left out.
    seed
        Seed of draws and halves. Distances, baselines and cell-eval use at most 1,000 observations
        of a condition, drawn by their names; effects use all.

    Returns
    -------
    DataFrame, a row for each condition, metric and method, in this order; nothing is stored.

    ``group``, ``perturbation``
        str; ``group`` is ``""`` without ``groupby``.
    ``metric``
        str; see below.
    ``method``
        str: names in ``simulated``, baselines, ``"ceiling"``.
    ``value``
        float64; NaN if a method or metric has no value, such as ``"additive"`` for a
        combination whose parts were not measured alone.
    ``higher_is_better``
        bool.
    ``n_real``, ``n_simulated``
        int64, compared observations; for the ceiling the two halves.
    ``units_real``, ``units_simulated``
        str; ``"counts"`` or ``"log"``, the units of the observed data and of those of the method.
    ``held_out``
        str; what training lacked: ``"group"`` (the perturbation was seen in other groups),
        ``"combination"`` (its parts were seen alone), ``"perturbation"``, or ``"cells"``; ``""``
        without ``split_key``.

    Metrics are

    ``"delta_pearson"`` *
        Correlation of effects over genes; 0 for no effect (:func:`cfm.metrics.delta_pearson`).
        ``"delta_pearson_top"`` takes the 50 genes with the largest observed effects;
        ``"delta_cosine"`` and ``"delta_r2"`` depend on a shift of all genes, the latter also on the
        size.
    ``"e_distance"`` *
        Energy distance of simulated and observed perturbed cells, unbiased, on 50 principal
        components of the observed data (:func:`cfm.metrics.e_distance`).
    ``"mmd"`` *
        The same with Gaussian kernels, squared (:func:`cfm.metrics.mmd`), of widths around the
        mean squared distance between the observed cells of the condition and their controls.
    ``"direction_accuracy"`` *
        Share of the 50 genes with the largest observed effects that move the right way
        (:func:`cfm.metrics.direction_accuracy`).
    ``"discrimination_score"`` *
        Whether an effect is nearest to that of its own perturbation among those of the group, by
        L1 distance; ``"discrimination_score_cosine"`` by angle. Genes that are perturbed are left
        out. NaN with one perturbation (:func:`cfm.metrics.discrimination_score`).
    ``"cell_eval:..."``
        cell-eval's score for a group, from log expression; the first pair of halves is the
        ceiling. A score over all perturbations is repeated for each.

    Raises
    ------
    TypeError
        If ``real`` or ``simulated`` is of another type.
    KeyError
        If a column, level or layer does not exist.
    ValueError
        If no simulated condition was observed, no gene is shared, values are not finite or of
        unclear units, or an argument cannot be used.
    ImportError
        If cell-eval is named in ``metrics`` and not installed.

    Warns
    -----
    UserWarning
        If conditions or genes are left out, or a method's own controls differ from the observed.

    Notes
    -----
    The ceiling compares halves, which are noisier than all cells: with few cells a method can score
    above it. After a split of cells it is the score of the training cells.

    Observed and simulated effects are measured against the same controls, and share their noise,
    which raises the scores of weak effects: split with ``hold_out_controls=True``.

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
    ours, by_cell_eval = _read_metrics(metrics)
    beside = _read_baselines(baselines)
    design, train, test = read_real(
        real, key=key, control=control, groupby=groupby, split_key=split_key, layer=layer
    )
    simulations = read_simulated(simulated, key=key, control=control, groupby=groupby)
    conditions = read_conditions(
        real, design, train, test, simulations, key=key, min_cells=min_cells
    )
    cells, made = _read_cells(real, design, simulations, layer, units)
    components = Components(cells, design.used, N_COMPONENTS, seed)
    observed = Observed(cells, components, max_cells=MAX_CELLS, seed=seed)
    learned = training_design(design, train)
    known = KnownEffects(cells, learned)
    methods: dict[str, Method] = {}
    for s, c in zip(simulations, made, strict=True):
        methods[s.name] = method = Simulated(s, c, observed)
        if (difference := method.control_difference(design)) > _SAME:
            warn_user(
                f"{s.name!r} has controls of its own, whose mean log expression differs from that "
                f"of the observed ones by up to {difference:.3g} (mean over genes). They are not "
                "used: effects are measured against observed controls."
            )
    methods |= {b: Baseline(b, known, observed) for b in beside if b not in (*methods, CEILING)}
    halves = Halves(observed, N_HALVES) if CEILING in beside else None
    rows = []
    for _, members in consecutive(conditions, key=lambda c: c.group):
        group = list(members)
        rows += score_group(group, methods, observed, halves, ours)
        if by_cell_eval:
            rows += score_by_cell_eval(group, methods, observed, halves, by_cell_eval)
    scores = score_table(rows, [*ours, *by_cell_eval], [*methods, CEILING])
    hold = {True: "counts", False: "log"}
    by_method = dict.fromkeys(methods, "log") | {CEILING: hold[cells.counts]}
    by_method |= {s.name: hold[c.counts] for s, c in zip(simulations, made, strict=True)}
    lacking = {(c.group, c.label): held_out(c, learned) if split_key else "" for c in conditions}
    places = zip(scores["group"], scores["perturbation"], strict=True)
    return scores.assign(
        units_real=hold[cells.counts],
        units_simulated=scores["method"].map(by_method),
        held_out=[lacking[place] for place in places],
    )


def _read_metrics(metrics: str | Sequence[str] | None) -> tuple[list[str], dict[str, bool]]:
    """Return the metrics of this package, and those of cell-eval: True where higher is better."""
    given = ALWAYS if metrics is None else [metrics] if isinstance(metrics, str) else metrics
    names = list(dict.fromkeys(n for name in given for n in CHALLENGE.get(str(name), [str(name)])))
    outside = [name for name in names if name.split(":", 1)[0] == CELL_EVAL]
    unknown = [name for name in names if name not in METRICS and name not in outside]
    theirs: dict[str, bool] = {}
    if outside and not unknown:
        known = known_cell_eval_metrics()
        unknown = [name for name in outside if name != CELL_EVAL and name not in known]
        theirs = known if CELL_EVAL in outside else {n: known[n] for n in outside if n in known}
    if unknown or not names:
        raise ValueError(
            f"metrics={unknown} are not known; choose among {list(METRICS)}, "
            f"{CELL_EVAL!r} and '{CELL_EVAL}:' with the name of one of its metrics."
        )
    return [name for name in names if name in METRICS], theirs


def _read_baselines(baselines: Sequence[str]) -> list[str]:
    """Return the names of baselines, each once."""
    if isinstance(baselines, str):
        raise TypeError(f"baselines={baselines!r} is one text; expected a list of them.")
    every = (*BASELINES, CEILING)
    unknown = [name for name in baselines if name not in every]
    if unknown:
        raise ValueError(f"baselines={unknown} are not known; choose among {list(every)}.")
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
    counts = rows_hold_counts(real, design.used, layer, units_of(_REAL, units), where="real")
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
    # Logarithms are of shares of all genes; counts give shares of any genes.
    whole = not (counts and all(made))
    return LogCells(real, layer=layer, counts=counts, genes=genes, whole_library=whole), [
        LogCells(s.adata, counts=c, genes=genes, whole_library=whole)
        for s, c in zip(simulations, made, strict=True)
    ]
