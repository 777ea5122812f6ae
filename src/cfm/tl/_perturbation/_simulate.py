"""Cells, samples or profiles after a perturbation, by a model or a baseline."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cfm._adata import takes_anndata, warn_user
from cfm._arguments import ABOVE_0, checks_arguments
from cfm._docs import fill_docs
from cfm._fields import (
    BASELINES,
    COMBINED,
    LEARNED_FROM,
    PARAMS,
    PERTURBATION,
    SIMULATED,
    SIMULATED_BY,
    SIMULATED_FROM,
    SIMULATION,
)
from cfm._units import decide_units
from cfm.data._matrix import (
    check_unique_names,
    get_matrix,
    in_memory_frame,
    read_rows,
    to_dense,
)
from cfm.hub._resolve import known_names
from cfm.metrics import additive_shift, linear_shift, mean_shift, nearest_shift
from cfm.models import PerturbationModel, PretrainedModel, load_model
from cfm.tl._perturbation._conditions import (
    choose_groups,
    draw_sources,
    read_design,
    read_perturbation,
)
from cfm.tl._perturbation._expression import (
    LogCells,
    draw_rows,
    shift_counts,
    shift_log,
    to_log,
)
from cfm.tl._run import TEXTS, run_record

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cfm._units import KnownUnits, Units
    from cfm.pp._perturbation_parts import Parts
    from cfm.tl._perturbation._conditions import Design
    from cfm.tl._perturbation._expression import Array

#: Observations of a baseline in a block.
_BLOCK = 512
#: Largest number of controls for features of genes, and number of components.
_MOST_CONTROLS, _N_COMPONENTS = 4096, 10


@takes_anndata(columns=("key", "groupby"))
@fill_docs(TEXTS)
def simulate_perturbation(
    adata: ad.AnnData,
    perturbation: str | Sequence[str],
    *,
    model: str | Path | PretrainedModel | PerturbationModel,
    key: str | None = None,
    control: str | None = None,
    groupby: str | None = None,
    groups: Sequence[str] | None = None,
    n_cells: int | None = None,
    layer: str | None = None,
    device: str | None = None,
    seed: int = 0,
    **options: Any,
) -> ad.AnnData:
    """Return an AnnData with a simulated perturbation of cells, samples or profiles.

    Each unperturbed observation gives one new observation. The prediction for a group never uses
    observations of that group with the perturbation, so these can evaluate it.

    Parameters
    ----------
    adata
        Observations by genes, in the units of the model: log TPM of samples for BulkFormer
        (:func:`cfm.pp.tpm`), log2 fold changes of contrasts for CellPulse
        (:func:`cfm.pp.contrasts`), counts of cells for CellVQ or, with ``units="log1p_cp10k"``,
        their logarithms, log-normalised expression or counts for baselines.
    perturbation
        A name, or a combination: ``"A+B"`` or ``["A", "B"]``, in any order. CellPulse,
        BulkFormer and CellVQ take genes, a BulkFormer trained with compounds also these, and CellVQ
        with ``targets=`` drugs.
    model
        A model, or any object with the method of :class:`cfm.models.PerturbationModel`.
        %(load)s
        Or a baseline (:mod:`cfm.metrics`):

        ``"control"``
            No change.
        ``"mean_shift"``
            The mean effect (perturbed minus control mean of log expression) of the same
            perturbation in the other groups. If no other group has it, or without ``groupby``, the
            mean effect of the other perturbations.
        ``"additive"``
            The sum of the effects of the parts of a combination, in the same group where they
            were measured alone, else their mean over other groups.
        ``"nearest"``
            The effect in the group with the most similar controls (Pearson). If no other group has
            it, the effect of the perturbation with the most similar features.
        ``"linear"``
            Ridge regression of the effect on the mean of the controls, over groups; if no other
            group has it, on the features, over perturbations.
    key
        Column of ``obs`` with the perturbation of each observation; combinations are written
        ``"A+B"``. Without it all observations count as unperturbed.
    control
        Level of ``key`` for unperturbed observations, where simulations start. Needed with ``key``.
    groupby
        Column of ``obs`` with groups, such as cell types or donors. Observations without a group
        are left out.
    groups
        Groups to simulate; all with unperturbed observations by default.
    n_cells
        Number of new observations in each group: from a random part of the unperturbed ones, or
        several from each of them. By default one from each.
    %(layer)s
    device
        Device of the model: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
    seed
        Seed of the draw of observations, of rounding to counts, and of a model's random numbers.
    **options
        Options of the model's ``simulate``, such as ``batch_size``. For a baseline:

        ``features``
            DataFrame, single perturbations by features, for perturbations that no other group has;
            features of a combination are summed. By default the features of a gene are its loadings
            on principal components of the unperturbed observations.
        ``units``
            ``"log"``, ``"counts"``, or ``"auto"``, by the unperturbed values as in
            :func:`cfm.tl.evaluate_perturbation`. For counts the logarithm of counts per 10,000 is
            shifted and converted to counts of the same library size, with random rounding.
        ``alpha``
            Penalty of ``"linear"``, 1.0; see :func:`cfm.metrics.linear_shift`.

    Returns
    -------
    New AnnData in memory, one row for each start observation, in their order, and all genes of
    ``adata`` (with further genes of the model, if it predicts them). ``adata`` stays unchanged.

    ``.X``
        Predicted expression in the units of the input; CSR for counts. Log expression is not
        negative if that of the source is not.
    ``.obs``
        The source's columns, with ``[key | 'perturbation']`` the perturbation (categorical),
        ``'simulated_from'`` the source's name and ``'simulated_by'`` the model; and columns that
        the model adds, such as ``'cell_code_before'`` and ``'cell_code_after'`` of
        :class:`cfm.models.CellVQ`.
    ``.var``
        As in ``adata``, with ``'simulated'`` bool: False for genes that are not in the
        model's vocabulary, which stay as in the source.
    ``.uns['simulation']['params']``
        Arguments, model, SHA-256, device, vocabulary share; ``"units"`` of ``X``: ``"counts"`` or
        ``"log"``, or as declared for the model; without it if values of an own model may be both.
    ``.uns['simulation']['learned_from']``
        With a baseline: DataFrame of str, the source of its effect in each ``group``.
    ``.uns['simulation']['code_transitions']``
        With :class:`cfm.models.CellVQ`: DataFrame, number of cells by code before and after.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData, the model cannot simulate, or an option does not exist.
    KeyError
        If a column, level, group or layer does not exist, or the model or baseline has neither
        data nor a vocabulary with the perturbation.
    ValueError
        If there is no unperturbed observation, a baseline has no data for the perturbation, names
        are not unique, or values are in other units.

    Warns
    -----
    UserWarning
        If groups have no unperturbed observation, or ``"mean_shift"`` is used for a perturbation
        that ``key`` does not have.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_infection_cells()
    >>> infected = cfm.tl.simulate_perturbation(
    ...     cells, "virus_A", model="mean_shift", key="virus", control="none", groupby="cell_type"
    ... )
    >>> infected.n_obs == int((cells.obs["virus"] == "none").sum())
    True
    >>> infected.uns["simulation"]["params"]["units"]
    'counts'
    """
    check_unique_names(adata.obs_names, axis="obs")
    check_unique_names(adata.var_names, axis="var")
    matrix = get_matrix(adata, layer=layer)
    named = read_perturbation(perturbation, control)
    design = read_design(adata, key=key, control=control, groupby=groupby)
    parts = frozenset(named)
    label = design.levels.get(parts, COMBINED.join(named))
    chosen = choose_groups(design, groupby, groups, control)
    rows = draw_sources(adata.obs_names, design, chosen, n_cells, seed)
    obs = _new_obs(adata, label, rows, key)
    record: dict[str, Any] = {
        "perturbation": label,
        "key": key,
        "control": control,
        "groupby": groupby,
        "groups": None if groups is None else np.array(chosen, dtype=object),
        "n_cells": n_cells,
        "layer": layer,
        "seed": seed,
    }
    tables: dict[str, pd.DataFrame] = {}
    block = read_rows(matrix, rows)
    if isinstance(model, str) and model in BASELINES:
        if unknown := sorted(set(options) - {"features", "units", "alpha"}):
            raise TypeError(
                f"model={model!r} takes no {unknown}; it takes features, units and alpha."
            )
        x, found, learned = _by_baseline(
            model, adata, design, parts, block, rows, obs.index, layer, seed, **options
        )
        var = in_memory_frame(adata.var).copy()
        var[SIMULATED] = True
        places = [str(i) for i in range(len(learned))]
        columns = {"group": list(learned), LEARNED_FROM: list(learned.values())}
        tables = {LEARNED_FROM: pd.DataFrame(columns, index=places, dtype=object)}
        name = model
        record |= found | {"model": model}
    else:
        simulator = _as_simulator(model, device)
        sources = ad.AnnData(
            block,
            obs=in_memory_frame(adata.obs).iloc[rows].set_axis(obs.index, axis=0),
            var=in_memory_frame(adata.var).copy(),
        )
        predicted = simulator.simulate(
            sources, sorted(parts), layer=None, groupby=groupby, seed=seed, **options
        )
        x, var = _merge_genes(sources, predicted)
        for column in predicted.obs.columns.difference([key or PERTURBATION, SIMULATED_FROM]):
            obs[column] = predicted.obs[column].array
        tables = dict(predicted.uns)
        name = type(simulator).__name__
        if isinstance(simulator, PretrainedModel):
            record = run_record(simulator, adata, **record)
            name = record["model"]
        record |= {"model": name} | _storable(options)
        if units := _units_of_model(simulator, x, adata.uns if layer is None else None):
            record.setdefault("units", units)
    obs[SIMULATED_BY] = pd.Categorical([name] * len(obs))
    out = ad.AnnData(x, obs=obs, var=var)
    out.uns[SIMULATION] = tables | {PARAMS: {k: v for k, v in record.items() if v is not None}}
    return out


def _new_obs(adata: ad.AnnData, label: str, rows: np.ndarray, key: str | None) -> pd.DataFrame:
    """Return ``obs`` of the new observations: that of their sources, with their perturbation."""
    sources = adata.obs_names[rows].astype(str)
    obs = in_memory_frame(adata.obs).iloc[rows]
    # Columns of scvi-tools' registration belong to the sources.
    obs = obs.loc[:, [not str(column).startswith("_scvi") for column in obs.columns]].copy()
    copy = pd.Series(sources).groupby(sources.to_numpy()).cumcount().to_numpy()
    obs.index = [
        f"{source}-{label}" + (f"-{i + 1}" if i else "")
        for source, i in zip(sources, copy, strict=True)
    ]
    obs[key or PERTURBATION] = pd.Categorical([label] * len(obs))
    obs[SIMULATED_FROM] = sources.to_numpy(dtype=object)
    for column in obs.columns:
        if isinstance(obs[column].dtype, pd.CategoricalDtype):
            obs[column] = obs[column].cat.remove_unused_categories()
    return obs


def _as_simulator(model: Any, device: str | None) -> PerturbationModel:
    """Return the object with ``simulate`` for ``model=``."""
    if isinstance(model, str) and "/" not in model:
        known = known_names()
        if model not in known and not Path(model).exists():
            raise ValueError(
                f"model={model!r} is no baseline ({', '.join(BASELINES)}), no checkpoint "
                f"({', '.join(known)}) and no folder here."
            )
    if not isinstance(model, PerturbationModel) or isinstance(model, PretrainedModel):
        model = load_model(model, device=device)
    if not isinstance(model, PerturbationModel):
        raise TypeError(
            f"A {type(model).__name__} does not simulate perturbations; see "
            "cfm.models.PerturbationModel for what a model needs."
        )
    return model


def _merge_genes(sources: ad.AnnData, predicted: ad.AnnData) -> tuple[Any, pd.DataFrame]:
    """Return ``X`` and ``var``: the predicted genes, and the others as in the sources."""
    if predicted.n_obs != sources.n_obs:
        raise ValueError(
            f"The model returned {predicted.n_obs} observations for {sources.n_obs}; expected one "
            "for each."
        )
    var, extra = sources.var, predicted.var_names.difference(sources.var_names, sort=False)
    if len(extra):
        # A bool column with gaps becomes an object column, which no file takes.
        flags = var.select_dtypes(bool).columns
        var = var.astype(dict.fromkeys(flags, "boolean")).reindex(var.index.append(extra))
    place = predicted.var_names.get_indexer(var.index)
    var[SIMULATED] = place >= 0
    column = np.where(place >= 0, sources.n_vars + place, np.arange(len(var)))
    if sparse.issparse(predicted.X):
        both = [sparse.csr_matrix(part.X) for part in (sources, predicted)]
        return sparse.hstack(both, format="csr")[:, column].astype(np.float32), var
    both = [to_dense(part.X, np.float32) for part in (sources, predicted)]
    return np.hstack(both)[:, column], var


def _units_of_model(model: Any, x: Any, uns: Any) -> KnownUnits | None:
    """Return the units that a model returned, ``None`` for a user's model if both may be."""
    if isinstance(model, PretrainedModel):  # each returns whole counts or logarithms
        values = x.data if sparse.issparse(x) else x
        return "counts" if (values == np.rint(values)).all() else "log"
    try:  # it returns the units that it read
        return decide_units([x], where="X", uns=uns)
    except ValueError:
        return None


def _storable(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options in a form that files take; tables become their size."""
    plain = {k: v for k, v in options.items() if isinstance(v, str | int | float | np.generic)}
    tables = {k: " x ".join(map(str, v.shape)) for k, v in options.items() if hasattr(v, "shape")}
    return tables | plain


@checks_arguments(alpha=ABOVE_0)
def _by_baseline(
    name: str,
    adata: ad.AnnData,
    design: Design,
    parts: Parts,
    block: Any,
    rows: np.ndarray,
    names: pd.Index,
    layer: str | None,
    seed: int,
    *,
    features: Any = None,
    units: Units = "auto",
    alpha: float = 1.0,
) -> tuple[Any, dict[str, Any], dict[str, str]]:
    """Return the predicted expression, the record, and the source of each group's effect."""
    table = _check_features(features)
    uns, where = (adata.uns, "adata.X") if layer is None else (None, f"adata.layers[{layer!r}]")
    counts = (found := decide_units([block], units, where=where, uns=uns)) == "counts"
    record: dict[str, Any] = {"units": found, "alpha": alpha}
    if table is not None:
        record["features"] = f"{table.shape[0]} x {table.shape[1]}"
    if name == "mean_shift" and not parts <= frozenset().union(*design.levels):
        warn_user(
            f"No observation had {COMBINED.join(sorted(parts))!r}; model='mean_shift' predicts the "
            "mean of other perturbations for it. Check the spelling if it should be there."
        )
    groups = dict.fromkeys(sorted(set(design.group[rows])), "nothing")
    if name == "control":
        return block.astype(np.float32), record, groups
    known = KnownEffects(LogCells(adata, layer=layer, counts=counts), design, features=table)
    shifts = {g: known.baseline(name, parts, g, alpha) for g in groups}
    made = []
    for start in range(0, len(rows), _BLOCK):
        part = slice(start, start + _BLOCK)
        shift = np.stack([shifts[g][0] for g in design.group[rows[part]]])
        values = to_dense(block[part])
        if counts:
            made.append(sparse.csr_matrix(shift_counts(values, shift, names[part], seed)))
        else:
            made.append(shift_log(to_log(values, counts=False), shift).astype(np.float32))
    x = sparse.vstack(made, format="csr") if counts else np.vstack(made)
    return x.astype(np.float32), record, {g: source for g, (_, source) in shifts.items()}


def _check_features(features: Any) -> pd.DataFrame | None:
    """Check a table of features of perturbations."""
    if features is None:
        return None
    if not isinstance(features, pd.DataFrame):
        raise TypeError(
            f"features= is a {type(features).__name__}; expected a DataFrame, perturbations by "
            "features."
        )
    table = features.set_axis(features.index.astype(str), axis=0)
    if not table.index.is_unique or not table.shape[1]:
        raise ValueError("features= needs a row per perturbation, each once, and a column.")
    try:
        values = table.to_numpy(dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"features= holds something else than numbers ({error}).") from error
    if not np.isfinite(values).all():
        raise ValueError("features= holds NaN or infinite values; drop those rows or columns.")
    return table


class KnownEffects:
    """Effects of perturbations in the data, and the baselines from them.

    Mean log expression of a group and perturbation is read when it is first needed.

    Parameters
    ----------
    cells
        Expression of the observations.
    design
        Their perturbations and groups.
    features
        Perturbations by features; by default perturbations that are genes are described by how
        these vary over the controls.
    """

    def __init__(
        self, cells: LogCells, design: Design, *, features: pd.DataFrame | None = None
    ) -> None:
        self._cells, self._design, self._features = cells, design, features
        self._means: dict[tuple[str, Parts], Array] = {}

    def baseline(
        self, name: str, parts: Parts, group: str, alpha: float = 1.0
    ) -> tuple[Array, str]:
        """Return the ``(genes,)`` change by a baseline for a group, and its source.

        Observations of the group that had this perturbation are never read.

        Raises
        ------
        KeyError, ValueError
            If there are no data for it.
        """
        if name == "additive":
            return self._additive(parts, group)
        label = self._design.levels.get(parts, COMBINED.join(sorted(parts)))
        same = self._elsewhere(group, parts)
        if same:
            cases = [self._mean(g, frozenset()) for g in same]
            query, effects = self._mean(group, frozenset()), list(same.values())
            source = f"{label} in {', '.join(sorted(same))}"
        else:
            others = self._others(group, parts)
            if not others:
                raise ValueError(
                    f"model={name!r} has no data for {label!r}: no other group has it, "
                    "there is no other perturbation, and the observations to predict "
                    "are not used. Give groupby= with more groups, or data with more "
                    "perturbations."
                )
            if name == "mean_shift":
                return mean_shift(list(others.values())), f"{len(others)} other perturbations"
            described = self._described
            usable = [q for q in others if q <= described.keys()]
            if not parts <= described.keys() or not usable:
                raise KeyError(
                    f"No other group has {label!r}, so model={name!r} needs similar perturbations: "
                    f"give features=, a table with a row for {sorted(parts)} and for other "
                    "perturbations. (By default names must be genes.)"
                )
            query, *cases = (
                np.sum([described[part] for part in sorted(q)], axis=0) for q in (parts, *usable)
            )
            effects = [others[q] for q in usable]
            source = f"{len(usable)} other perturbations by their features"
        if name == "mean_shift":
            return mean_shift(effects), source
        if name == "nearest":
            which = "the nearest: " if same else "the nearest of "
            return nearest_shift(query, cases, effects), which + source
        return linear_shift(query, cases, effects, alpha=alpha), source

    def _additive(self, parts: Parts, group: str) -> tuple[Array, str]:
        """Sum the effects of the parts: in the group, or else their mean over other groups."""
        effects, where, missing = [], [], []
        for part in sorted(parts):
            single = frozenset([part])
            effect = None if single == parts else self._effect(group, single)
            if effect is not None:
                where.append(f"{part} in the group" if group else part)
            elif away := self._elsewhere(group, single):
                effect = mean_shift(list(away.values()))
                where.append(f"{part} in {', '.join(sorted(away))}")
            if effect is None:
                missing.append(part)
            else:
                effects.append(effect)
        if missing:
            singles = [COMBINED.join(q) for q in self._design.levels if len(q) == 1]
            raise KeyError(
                f"model='additive' sums the effects of single perturbations, and {missing} is not "
                f"there alone{' or in another group' if len(parts) == 1 else ''}; there are "
                f"{sorted(singles)}."
            )
        return additive_shift(effects), " + ".join(where)

    def _mean(self, group: str, parts: Parts) -> Array:
        """Return the ``(genes,)`` mean log expression of a condition with observations."""
        place = (group, parts)
        if place not in self._means:
            self._means[place] = self._cells.mean(self._design.rows(group, parts))
        return self._means[place]

    def _effect(self, group: str, parts: Parts) -> Array | None:
        """Return perturbed mean minus control mean, ``None`` without one of them."""
        if not parts or not len(self._design.rows(group)):
            return None
        if not len(self._design.rows(group, parts)):
            return None
        return self._mean(group, parts) - self._mean(group, frozenset())

    def _elsewhere(self, group: str, parts: Parts) -> dict[str, Array]:
        """Return the effects of a perturbation in the other groups."""
        found = {g: self._effect(g, parts) for g in self._design.groups if g != group}
        return {g: e for g, e in found.items() if e is not None}

    def _others(self, group: str, parts: Parts) -> dict[Parts, Array]:
        """Return effects of the other perturbations: in the group, else the mean over others."""
        found = {}
        for level in sorted(self._design.levels, key=sorted):
            if level == parts:
                continue
            effect = self._effect(group, level)
            if effect is None and (away := self._elsewhere(group, level)):
                effect = mean_shift(list(away.values()))
            if effect is not None:
                found[level] = effect
        return found

    @cached_property
    def _described(self) -> dict[str, Array]:
        """Features of perturbations; by default loadings of genes on components of controls."""
        if self._features is not None:
            values = self._features.to_numpy(dtype=np.float64)
            return dict(zip(self._features.index, values, strict=True))
        rows = np.concatenate([self._design.rows(g) for g in self._design.groups])
        rows = draw_rows(self._cells.names, rows, _MOST_CONTROLS, 0, "gene features")
        values = self._cells.read(rows)
        values -= values.mean(axis=0)
        _, size, loading = np.linalg.svd(values, full_matrices=False)
        # The sign of a component is arbitrary: it is fixed to be independent of the order of rows.
        size = size * np.sign(loading[np.arange(len(loading)), np.abs(loading).argmax(axis=1)])
        table = (loading[:_N_COMPONENTS] * size[:_N_COMPONENTS, None]).T / np.sqrt(len(rows))
        return dict(zip(self._cells.genes, table, strict=True))
