"""Simulated perturbations against real ones: gene by gene, and on one map."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import numpy as np
from anndata import AnnData

from cfm._arguments import checks_arguments
from cfm._docs import fill_docs
from cfm.pl import _figure as fig
from cfm.pl._perturbation_cells import read_screen

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from matplotlib.axes import Axes
    from matplotlib.lines import Line2D

    from cfm._units import Units
    from cfm.pl._perturbation_cells import Cells, Screen

_reads_cells = fill_docs(
    {
        "cells": """
real
    Observations by genes, controls and perturbed ones.
simulated
    What :func:`cfm.tl.simulate_perturbation` made; several may be concatenated, with
    ``merge="same"``. Genes that the model did not predict (``var["simulated"]``) are left out.
key, control
    Column of ``obs`` with the perturbation, and its level for unperturbed observations. By
    default what ``simulated.uns["simulation"]`` records.
perturbation
    Which to draw; ``None`` draws all that are in both.
""",
        "units": """
layer
    Layer to read instead of ``X``, by default the recorded one; of ``simulated`` ``X`` is read
    if it has no such layer.
units
    ``"counts"``, ``"log"``, or ``"auto"``, which decides as in
    :func:`cfm.tl.evaluate_perturbation`; one for both, or by name: ``"real"`` and
    ``"simulated"``. Counts are brought to log1p of counts per 10,000.
""",
    }
)

#: More panels than this cannot be read.
_MOST = 24
_RIGHT, _WRONG = fig.COLORS[0], fig.COLORS[1]
#: Genes that are marked, and how many of them are named: more would cover each other.
_TOP, _NAMED = 20, 8
#: With more points than this a figure in a vector format holds them as a picture.
_RASTER = 2000
#: Genes whose share of the correlation is shown, and the least correlation of which there is one.
_FEW, _LEAST = 3, 0.1
#: A change this much smaller than the largest observed effect is none: float32 is no finer.
_FLAT = 1e-5


@checks_arguments()
@fig.documented
@_reads_cells
def perturbation_effect(
    real: AnnData,
    simulated: AnnData,
    *,
    key: str | None = None,
    control: str | None = None,
    perturbation: str | Sequence[str] | None = None,
    groupby: str | None = None,
    layer: str | None = None,
    units: Units | Mapping[str, Units] = "auto",
    gene_symbols: str | None = None,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | dict[str, Axes]:
    """Draw the change of each gene that was predicted against the one that was observed.

    A point for each gene: the change of its mean log expression, observed (against the controls)
    and predicted (against what the method made of the control if it did, else the observations it
    started from). The 20 genes with the strongest observed effect are coloured by whether their
    direction was predicted, and the first ones are named. Beside the correlation, from 0.1 on,
    stands the share of the covariance that three genes make: a high correlation may be theirs.

    Parameters
    ----------
    %(cells)s
    groupby
        Column of ``obs`` with groups, such as cell types: one panel each, of those in both. Pass
        ``simulated[simulated.obs[groupby] == name]`` to draw one of them.
    %(units)s
    gene_symbols
        Column of ``real.var`` with the names to write.
    %(panel)s

    Returns
    -------
    The Axes drawn on. For several panels a dict: from group, perturbation, or
    ``"perturbation | group"`` where there are groups and several perturbations.

    Raises
    ------
    TypeError
        If ``real`` or ``simulated`` is no AnnData.
    KeyError
        If a column, perturbation, control or layer is not there.
    ValueError
        If cells of one kind are missing, real and simulated ones share no gene or differ in
        units, values are not finite, there are more than 24 panels, or ``ax`` is given with
        several.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_perturbation()
    >>> simulated = cfm.tl.simulate_perturbation(
    ...     cells,
    ...     "IFNB1",
    ...     model="mean_shift",
    ...     key="perturbation",
    ...     control="control",
    ...     groupby="cell_type",
    ... )
    >>> axes = cfm.pl.perturbation_effect(cells, simulated, groupby="cell_type", show=False)
    >>> list(axes)
    ['B cell', 'Monocyte', 'NK cell', 'T cell']
    """
    screen = read_screen(
        real,
        simulated,
        key=key,
        control=control,
        perturbation=perturbation,
        groupby=groupby,
        layer=layer,
        units=units,
        gene_symbols=gene_symbols,
    )
    several = len(screen.perturbations) > 1
    cases = {
        " | ".join(filter(None, (name if several or not group else "", group))): (name, group)
        for name in screen.perturbations
        for group in screen.groups
    }
    if len(cases) > _MOST:
        raise ValueError(
            f"{len(screen.perturbations)} perturbations in {len(screen.groups)} groups make "
            f"{len(cases)} panels, more than {_MOST}; name some with perturbation=, or pass fewer "
            "simulated cells."
        )
    effects = {name: screen.effects(*case) for name, case in cases.items()}  # before a figure opens
    panels = fig.open_panels(list(cases), ax, 3.5, 4.1, argument="perturbation and groups")
    top = {}
    for name, panel in panels.items():
        top[name] = _draw_effect(panel, *effects[name], screen.n_unpredicted)
        head = fig.shorten(", ".join(filter(None, cases[name])), 44)
        title = f"{head}\n{_agreement(*effects[name])}"
        panel.set_title(title, fontsize=9, loc="left")
    fig.settle(next(iter(panels.values())))  # places of names need the final layout
    for name, panel in panels.items():
        points = np.column_stack(effects[name])[top[name]]
        names = [fig.shorten(gene, 13) for gene in screen.genes[top[name][:_NAMED]]]
        names += [""] * (len(points) - len(names))
        inside = panel.get_window_extent().padded(-3)
        fig.label_points(panel, points, names, radius=3.0, frame=inside, halo="white")
    return fig.one_or_all(fig.finish(panels, ax, show=show, save=save), perturbation)


def _draw_effect(
    ax: Axes, observed: np.ndarray, predicted: np.ndarray, n_unpredicted: int
) -> np.ndarray:
    """Draw one point for each gene and the line of a perfect prediction; return the top genes."""
    size = np.abs(observed)
    order = np.argsort(-size, kind="stable")[:_TOP]
    top = order[size[order] > 0]
    rest = np.setdiff1d(np.arange(len(observed)), top)
    floor = _FLAT * max(size.max(), 1.0)
    right = (np.sign(observed) == np.sign(predicted)) & (np.abs(predicted) > floor)

    # both axes have the same range: only then does the diagonal look like one
    low, high = min(observed.min(), predicted.min(), 0.0), max(observed.max(), predicted.max(), 0.0)
    room = 0.08 * (high - low) or 1.0
    ax.set(xlim=(low - room, high + room), ylim=(low - room, high + room))
    ax.set_aspect("equal", adjustable="box")
    ax.axhline(0, color="#C8C8C8", linewidth=0.8, zorder=0)
    ax.axvline(0, color="#C8C8C8", linewidth=0.8, zorder=0)
    ax.axline((0, 0), slope=1, color=fig.INK, linestyle=fig.DASHED, linewidth=1.0, zorder=1)
    points = np.column_stack([observed, predicted])
    many = len(points) > _RASTER
    look = fig.Look(s=7, color=fig.GREY, alpha=0.55, linewidths=0, zorder=2)
    fig.scatter(ax, points[rest], rasterized=many, **look)
    handles: list[Line2D] = []
    for part, marker, color, text in (
        (top[right[top]], "o", _RIGHT, "right direction"),
        (top[~right[top]], "s", _WRONG, "wrong or none"),
    ):
        look = fig.Look(s=24, color=color, edgecolors="white", linewidths=0.5, zorder=3)
        fig.scatter(ax, points[part], marker=marker, **look)
        if len(part):
            handles.append(fig.mark(f"{text} ({len(part)} of top {len(top)})", color, marker, ms=5))
    handles.append(fig.mark(f"other genes ({len(rest):,})", fig.GREY, ".", ms=5))
    handles.append(fig.mark("identity", fig.INK, line=fig.DASHED, lw=1.0))
    if n_unpredicted:
        handles.append(fig.mark(f"not predicted ({n_unpredicted:,})"))
    ax.set(xlabel="observed effect (change of mean log expression)", ylabel="predicted effect")
    fig.tidy(ax)
    fig.legend_below(ax, handles, columns=2)
    return top


def _agreement(observed: np.ndarray, predicted: np.ndarray) -> str:
    error = f"RMSE {np.sqrt(((observed - predicted) ** 2).mean()):.3f}"
    if min(np.ptp(observed), np.ptp(predicted)) <= _FLAT * max(1.0, np.abs(observed).max()):
        return f"Pearson not defined (no change), {error}"
    pearson = np.corrcoef(observed, predicted)[0, 1]
    products = (observed - observed.mean()) * (predicted - predicted.mean())
    first = products[np.argsort(-np.abs(products), kind="stable")[:_FEW]].sum() / products.sum()
    share = f" ({_FEW} genes make {100 * first:.0f}\N{NO-BREAK SPACE}%)"
    return fig.minus(f"Pearson {pearson:.2f}{share if abs(pearson) >= _LEAST else ''}, {error}")


# --- Map -------------------------------------------------------------------------------------

#: Of control, real and simulated cells.
_STYLES = (fig.Style(fig.GREY, "o"), fig.Style(fig.COLORS[0], "^"), fig.Style(fig.COLORS[1], "s"))
_N_GENES, _N_COMPONENTS, _N_NEIGHBORS = 2000, 30, 15
#: Of the cells that are drawn, and of the layout.
_SEED = 0
#: Cells are drawn in so many rounds, so that no kind covers the others.
_ROUNDS = 20
#: The name of a group stands on it; names of groups that lie together below each other.
_MIDDLE: tuple[fig.Place, ...] = tuple(
    (0.0, 11.0 * turn, "center", "center") for turn in (0, -1, 1, -2, 2, -3, 3)
)


@checks_arguments(n_cells=2)
@fig.documented
@_reads_cells
def perturbation_umap(
    real: AnnData,
    simulated: AnnData,
    *,
    key: str | None = None,
    control: str | None = None,
    perturbation: str | Sequence[str] | None = None,
    groupby: str | None = None,
    layer: str | None = None,
    units: Units | Mapping[str, Units] = "auto",
    n_cells: int = 500,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw control, real perturbed and simulated cells on one map.

    All three kinds are laid out together with scanpy: log expression of the 2,000 most variable
    genes, 30 principal components, 15 neighbours, UMAP. Good simulations lie among the real
    perturbed cells. Distances between clouds of a UMAP mean little.

    Parameters
    ----------
    %(cells)s
    groupby
        Column of ``obs`` with groups, such as cell types: cells of those in both are drawn, with
        the names of the groups on the map.
    %(units)s
    n_cells
        At most so many cells of each of the three kinds, drawn at random.
    %(ax)s

    Returns
    -------
    %(axes)s

    Raises
    ------
    TypeError
        If ``real`` or ``simulated`` is no AnnData.
    KeyError
        If a column, perturbation, control or layer is not there.
    ValueError
        If there are fewer than two cells of a kind, real and simulated ones share no gene or
        differ in units, values are not finite, or fewer than two genes vary.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_perturbation(n_cells=600)
    >>> columns = {"key": "perturbation", "control": "control", "groupby": "cell_type"}
    >>> simulated = cfm.tl.simulate_perturbation(cells, "IFNB1", model="mean_shift", **columns)
    >>> ax = cfm.pl.perturbation_umap(cells, simulated, groupby="cell_type", show=False)
    >>> ax.get_xlabel()
    'UMAP 1'
    """
    screen = read_screen(
        real,
        simulated,
        key=key,
        control=control,
        perturbation=perturbation,
        groupby=groupby,
        layer=layer,
        units=units,
    )
    points, kind, group = _joint_map(screen, n_cells)
    panel = ax or fig.new_figure(5.2, 4.8).add_subplot()
    names = screen.perturbations
    what = fig.shorten(names[0] if len(names) == 1 else "perturbed", 24)
    by = f" ({fig.shorten(screen.model, 24)})" if screen.model else ""
    area = float(np.clip(9_000 / len(points), 5, 30))
    rounds = np.random.default_rng(_SEED).integers(_ROUNDS, size=len(points))
    handles = []
    texts = (screen.control, f"{what}, real", f"{what}, simulated{by}")
    for number, ((color, marker), text) in enumerate(zip(_STYLES, texts, strict=True)):
        look = fig.Look(color=color, marker=marker)
        for turn in range(_ROUNDS):
            own = points[(kind == number) & (rounds == turn)]
            look_ = look | {"alpha": 0.75, "linewidths": 0, "rasterized": True}
            fig.scatter(panel, own, s=area, zorder=2 + turn / _ROUNDS, **look_)
        label = f"{fig.shorten(text, 50)}: {int((kind == number).sum()):,} cells"
        handles.append(panel.scatter([], [], s=26, label=label, **look))
    panel.set(xticks=[], yticks=[], xlabel="UMAP 1", ylabel="UMAP 2")
    panel.margins(0.06)
    fig.tidy(panel)
    fig.legend_below(panel, handles, columns=1, drop=0.22)
    if groupby is not None:
        fig.settle(panel)  # places of names need the final layout
        # control cells show where a group lies: the others may have gone astray
        middles = [
            np.median(points[(group == name) & (kind == kind[group == name].min())], axis=0)
            for name in dict.fromkeys(group)
        ]
        names = [fig.shorten(name, 24) for name in dict.fromkeys(group)]
        look = fig.Look(fontsize=8.5, halo="white", places=_MIDDLE)
        fig.label_points(panel, np.array(middles), names, **look)
    return fig.finish(panel, ax, show=show, save=save)


def _joint_map(screen: Screen, n_cells: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Lay out all three kinds of cells together.

    Returns
    -------
    ``(n, 2)`` coordinates; ``(n,)`` kind: 0 control, 1 real, 2 simulated; ``(n,)`` group.
    """
    import scanpy as sc

    parts = (
        (screen.real, screen.control, "control"),
        (screen.real, screen.perturbations, "perturbed"),
        (screen.simulated, screen.perturbations, "simulated"),
    )
    values, kinds, groups = [], [], []
    for kind, (cells, levels, name) in enumerate(parts):
        rows = _drawn(cells, cells.rows(levels, screen.groups), n_cells, _SEED + kind)
        if len(rows) < 2:
            raise ValueError(f"There are {len(rows)} {name} cells to draw; at least 2 are needed.")
        values.append(cells.read(rows))
        kinds.append(np.full(len(rows), kind))
        groups.append(cells.group[rows])
    joint = AnnData(np.concatenate(values).astype(np.float32))
    joint = joint[:, joint.X.std(axis=0) > 0].copy()
    if joint.n_vars < 2:
        raise ValueError("Fewer than two genes vary over the cells; there is nothing to lay out.")
    if joint.n_vars > _N_GENES:
        sc.pp.highly_variable_genes(joint, n_top_genes=_N_GENES)
        joint = joint[:, joint.var["highly_variable"].to_numpy()].copy()
    n_components = min(_N_COMPONENTS, joint.n_obs - 1, joint.n_vars - 1)
    with warnings.catch_warnings():
        # umap-learn warns that one thread is used with a seed, and how it starts on few cells
        warnings.filterwarnings("ignore", module="umap")
        warnings.filterwarnings("ignore", module="sklearn")
        sc.pp.pca(joint, n_comps=n_components, random_state=_SEED)
        sc.pp.neighbors(joint, n_neighbors=min(_N_NEIGHBORS, joint.n_obs - 1), random_state=_SEED)
        sc.tl.umap(joint, random_state=_SEED)
    return np.asarray(joint.obsm["X_umap"]), np.concatenate(kinds), np.concatenate(groups)


def _drawn(cells: Cells, rows: np.ndarray, n_cells: int, seed: int) -> np.ndarray:
    """Choose cells at random; their names decide, also in which order they are laid out."""
    names = cells.adata.obs_names[rows].to_numpy(dtype=object)
    rows = rows[np.argsort(names, kind="stable")]
    drawn = np.random.default_rng(seed).permutation(len(rows))[:n_cells]
    return rows[np.sort(drawn)]
