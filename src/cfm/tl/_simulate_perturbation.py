"""Cells, samples or profiles after a perturbation, by a model or a baseline."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import anndata as ad
import numpy as np
import pandas as pd
from scipy import sparse

from cfm._arguments import ABOVE_0, checks_arguments
from cfm._fields import (
    BASELINES,
    LEARNED_FROM,
    PARAMS,
    PERTURBATION,
    SIMULATED,
    SIMULATED_BY,
    SIMULATED_FROM,
    SIMULATION,
)
from cfm._units import Units, decide_units
from cfm.data._matrix import (
    check_unique_names,
    get_matrix,
    in_memory_frame,
    read_rows,
    to_dense,
)
from cfm.data._takes_anndata import takes_anndata
from cfm.data._warn import warn_user
from cfm.hub._resolve import known_names
from cfm.models import PerturbationModel, PretrainedModel, load_model
from cfm.tl._perturbation_cells import LogCells
from cfm.tl._perturbation_design import Design, draw_sources, read_design
from cfm.tl._perturbation_shift import KnownEffects, baseline_shift, check_features
from cfm.tl._perturbation_units import shifted, units_of_model
from cfm.tl._store import run_record

if TYPE_CHECKING:
    from collections.abc import Sequence


#: Observations that a baseline shifts at a time.
_BLOCK = 512


@takes_anndata(columns=("key", "groupby"))
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
    batch_size: int = 64,
    device: str | None = None,
    seed: int = 0,
    **options: Any,
) -> ad.AnnData:
    """Simulate a perturbation of cells, samples or profiles.

    One new observation is made for each unperturbed one that is started from. Observations of a
    group that had the perturbation are never read for the prediction of that group, so that they
    can serve to judge it.

    Parameters
    ----------
    adata
        Observations by genes, of the kind that the model reads: for BulkFormer log TPM of samples
        (:func:`cfm.pp.tpm`), for CellPulse log2 fold changes of contrasts
        (:func:`cfm.pp.contrasts`), for CellVQ counts of cells or, with ``units="log1p_cp10k"``,
        their logarithms, for baselines log-normalised expression or counts.
    perturbation
        A name, or a combination: ``"A+B"`` or ``["A", "B"]``, in any order. For CellPulse,
        BulkFormer and CellVQ a gene, for a BulkFormer that was taught compounds also one of
        these, for CellVQ with ``targets=`` a drug.
    model
        A model, the name of a checkpoint (:func:`cfm.hub.list_checkpoints`), a folder,
        ``hf://org/name``, any object with the method of
        :class:`cfm.models.PerturbationModel`, or a baseline (:mod:`cfm.metrics`):

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
            The effect in the group whose controls are most like this group's (Pearson). If no
            other group has it, the effect of the perturbation with the most similar features.
        ``"linear"``
            Ridge regression of the effect on the mean of the controls, over groups; if no other
            group has it, on the features, over perturbations.
    key
        Column of ``obs`` with the perturbation of each observation; combinations are written
        ``"A+B"``. Without it all observations are taken as unperturbed.
    control
        Its level for unperturbed observations, which simulations start from. Needed with ``key``.
    groupby
        Column of ``obs`` with groups, such as cell types or donors. Observations without a group
        are left out.
    groups
        Groups to simulate; all with unperturbed observations by default.
    n_cells
        Observations to make in each group: from a random part of the unperturbed ones, or from
        each of them several times. By default one from each.
    layer
        Layer to read instead of ``X``.
    batch_size
        Observations at a time; the result does not depend on it.
    device
        Where a model runs: ``"auto"`` (a GPU if there is one), ``"cpu"``, ``"cuda"`` …
    seed
        Of the draw of observations, of rounding to counts, and of what is random in a model.
    **options
        For a model those of its ``simulate``. For a baseline:

        ``features``
            DataFrame, perturbations (single ones) by features, for perturbations that no other
            group has; those of a combination are summed. By default, perturbations that are
            genes of ``adata`` are described by how these vary over the unperturbed observations.
        ``units``
            ``"log"``, ``"counts"``, or ``"auto"``, which decides as in
            :func:`cfm.tl.evaluate_perturbation`, by the values that are started from. Of counts
            the logarithm of counts per 10,000 is shifted and turned back into counts of the same
            library size, rounded at random.
        ``alpha``
            Penalty of ``"linear"``, 1.0; see :func:`cfm.metrics.linear_shift`.

    Returns
    -------
    New AnnData in memory, one row for each observation that was started from, in their order, and
    all genes of ``adata`` (and those that only the model has, if it predicts them). ``adata`` is
    not changed.

    ``.X``
        Predicted expression in the units of what was read; CSR where counts were made. Log
        expression is not negative where that of the source is not.
    ``.obs``
        The source's columns, with ``[key | 'perturbation']`` the perturbation (categorical),
        ``'simulated_from'`` the source's name and ``'simulated_by'`` the model; and what the model
        says of single observations, such as ``'cell_code_before'`` and ``'cell_code_after'`` of
        :class:`cfm.models.CellVQ`.
    ``.var``
        As in ``adata``, with ``'simulated'`` bool: False where the model does not know a gene,
        which then is as in the source.
    ``.uns['simulation']['params']``
        Arguments, model, SHA-256, device, vocabulary share; ``"units"`` of ``X``: ``"counts"`` or
        ``"log"``, or as they were declared to the model. Not there for a model of your own whose
        values may be both.
    ``.uns['simulation']['learned_from']``
        Of a baseline: DataFrame of str, what its effect was learned from in each ``group``.
    ``.uns['simulation']['code_transitions']``
        Of :class:`cfm.models.CellVQ`: DataFrame, how many cells move from which code to which.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData, the model cannot simulate, or an option does not exist.
    KeyError
        If a column, level, group or layer does not exist, or the perturbation is unknown to the
        model or to a baseline that needs to know it.
    ValueError
        If there is nothing to start from or to learn from, names are not unique, or the matrix is
        not what is read.

    Warns
    -----
    UserWarning
        If groups have no unperturbed observation, or ``"mean_shift"`` is asked for a perturbation
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
    get_matrix(adata, layer=layer)
    design = read_design(
        adata, perturbation, key=key, control=control, groupby=groupby, groups=groups
    )
    rows = draw_sources(adata, design, n_cells, seed)
    obs = _new_obs(adata, design, rows, key)
    record: dict[str, Any] = {
        "perturbation": design.label,
        "key": key,
        "control": control,
        "groupby": groupby,
        "groups": None if groups is None else np.array(design.groups, dtype=object),
        "n_cells": n_cells,
        "layer": layer,
        "seed": seed,
    }
    tables: dict[str, pd.DataFrame] = {}
    if isinstance(model, str) and model in BASELINES:
        x, found, learned = _by_baseline(
            model, adata, design, rows, list(obs.index), layer, seed, **options
        )
        var = in_memory_frame(adata.var).copy()
        var[SIMULATED] = True
        tables = {LEARNED_FROM: learned}
        name = model
        record |= found | {"model": model}
    else:
        simulator = _as_simulator(model, device)
        sources = _source_data(adata, rows, obs, layer)
        predicted = simulator.simulate(
            sources,
            sorted(design.parts),
            layer=None,
            groupby=groupby,
            batch_size=batch_size,
            seed=seed,
            **options,
        )
        x, var = _merged(sources, predicted)
        for column in predicted.obs.columns.difference([key or PERTURBATION, SIMULATED_FROM]):
            obs[column] = predicted.obs[column].array
        tables = dict(predicted.uns)
        name = type(simulator).__name__
        if isinstance(simulator, PretrainedModel):
            record = run_record(simulator, adata, batch_size=batch_size, **record)
            name = record["model"]
        record |= {"model": name} | _storable(options)
        if units := units_of_model(simulator, x, adata.uns if layer is None else None):
            record.setdefault("units", units)
    obs[SIMULATED_BY] = pd.Categorical([name] * len(obs))
    out = ad.AnnData(x, obs=obs, var=var)
    out.uns[SIMULATION] = tables | {PARAMS: {k: v for k, v in record.items() if v is not None}}
    return out


def _new_obs(adata: ad.AnnData, design: Design, rows: np.ndarray, key: str | None) -> pd.DataFrame:
    """Return ``obs`` of the new observations: that of their sources, and what they are."""
    sources = adata.obs_names[rows].astype(str)
    obs = in_memory_frame(adata.obs).iloc[rows]
    # what scvi-tools notes of registered data is not of the new ones
    obs = obs.loc[:, [not str(column).startswith("_scvi") for column in obs.columns]].copy()
    copy = pd.Series(sources).groupby(sources.to_numpy()).cumcount().to_numpy()
    obs.index = [
        f"{source}-{design.label}" + (f"-{i + 1}" if i else "")
        for source, i in zip(sources, copy, strict=True)
    ]
    obs[key or PERTURBATION] = pd.Categorical([design.label] * len(obs))
    obs[SIMULATED_FROM] = sources.to_numpy(dtype=object)
    for column in obs.columns:
        if isinstance(obs[column].dtype, pd.CategoricalDtype):
            obs[column] = obs[column].cat.remove_unused_categories()
    return obs


@checks_arguments(alpha=ABOVE_0)
def _by_baseline(
    name: str,
    adata: ad.AnnData,
    design: Design,
    rows: np.ndarray,
    names: Sequence[str],
    layer: str | None,
    seed: int,
    *,
    features: Any = None,
    units: Units = "auto",
    alpha: float = 1.0,
    **unknown: Any,
) -> tuple[Any, dict[str, Any], pd.DataFrame]:
    """Return the expression that a baseline predicts, what to record, and what it learned from."""
    if unknown:
        raise TypeError(
            f"model={name!r} takes no {sorted(unknown)}; it takes features, units and alpha."
        )
    table = check_features(features)
    block = read_rows(get_matrix(adata, layer=layer), rows)
    uns, where = (adata.uns, "adata.X") if layer is None else (None, f"adata.layers[{layer!r}]")
    counts = (found := decide_units([block], units, where=where, uns=uns)) == "counts"
    record: dict[str, Any] = {"units": found, "alpha": alpha}
    if table is not None:
        record["features"] = f"{table.shape[0]} x {table.shape[1]}"
    cells = LogCells(adata, layer=layer, counts=counts)
    known = KnownEffects(cells, design, features=table)
    if name == "mean_shift" and not design.parts <= frozenset().union(*design.levels):
        warn_user(
            f"No observation had {design.label!r}; the mean of other perturbations is what "
            "model='mean_shift' predicts for it. Check the spelling if it should be known."
        )
    if name == "control":
        x, sources = block, dict.fromkeys(design.groups, "nothing")
    else:
        shifts = {g: baseline_shift(name, known, g, record["alpha"]) for g in design.groups}
        sources = {g: source for g, (_, source) in shifts.items()}
        parts = []
        for start in range(0, len(rows), _BLOCK):
            part = slice(start, start + _BLOCK)
            shift = np.stack([shifts[g][0] for g in design.group[rows[part]]])
            values = to_dense(block[part])
            moved = shifted(values, shift, names[part], counts=counts, seed=seed)
            parts.append(sparse.csr_matrix(moved) if counts else moved.astype(np.float32))
        x = sparse.vstack(parts, format="csr") if counts else np.vstack(parts)
    learned = pd.DataFrame(
        {"group": list(sources), LEARNED_FROM: list(sources.values())},
        index=[str(i) for i in range(len(sources))],
        dtype=object,
    )
    return x.astype(np.float32), record, learned


def _as_simulator(model: Any, device: str | None) -> PerturbationModel:
    """Return something that simulates for what a user passes as ``model=``."""
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


def _source_data(
    adata: ad.AnnData, rows: np.ndarray, obs: pd.DataFrame, layer: str | None
) -> ad.AnnData:
    """Return the observations to start from, in memory, one for each that is asked for."""
    block = read_rows(get_matrix(adata, layer=layer), rows)
    return ad.AnnData(
        block,
        obs=in_memory_frame(adata.obs).iloc[rows].set_axis(obs.index, axis=0),
        var=in_memory_frame(adata.var).copy(),
    )


def _merged(sources: ad.AnnData, predicted: ad.AnnData) -> tuple[Any, pd.DataFrame]:
    """Return ``X`` and ``var``: what was predicted, and the other genes as in the sources."""
    if predicted.n_obs != sources.n_obs:
        raise ValueError(
            f"The model returned {predicted.n_obs} observations for {sources.n_obs}; expected one "
            "for each."
        )
    place = sources.var_names.get_indexer(predicted.var_names)
    extra = np.flatnonzero(place < 0)
    known = np.isin(np.arange(sources.n_vars), place)
    var = sources.var
    if len(extra):
        # with gaps a plain bool column would turn into one that no file takes
        flags = var.select_dtypes(bool).columns
        var = var.astype(dict.fromkeys(flags, "boolean"))
        var = var.reindex(var.index.append(predicted.var_names[extra]))
    var[SIMULATED] = np.concatenate([known, np.ones(len(extra), dtype=bool)])
    # Stacked as untouched, predicted, extra; then brought into the order of ``var``.
    inside = np.flatnonzero(place >= 0)
    kept = np.flatnonzero(~known)
    order = np.empty(len(var), dtype=np.int64)
    order[np.concatenate([kept, place[inside], sources.n_vars + np.arange(len(extra))])] = (
        np.arange(len(var))
    )
    parts = [sources.X[:, kept], predicted.X[:, inside], predicted.X[:, extra]]
    if sparse.issparse(predicted.X):
        x = sparse.hstack([sparse.csr_matrix(p) for p in parts], format="csr")
    else:
        x = np.hstack([to_dense(p, np.float32) for p in parts])
    return x[:, order].astype(np.float32), var


def _storable(options: dict[str, Any]) -> dict[str, Any]:
    """Return the options that can be written into a file; of tables their size."""
    plain = {k: v for k, v in options.items() if isinstance(v, str | int | float | np.generic)}
    tables = {k: " x ".join(map(str, v.shape)) for k, v in options.items() if hasattr(v, "shape")}
    return tables | plain
