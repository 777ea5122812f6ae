"""Simulated perturbations against real ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import pandas as pd

from cfm._arguments import checks_arguments
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish
from cfm.pl._panels import group_axes, one_or_all
from cfm.pl._perturbation_cells import read_screen
from cfm.pl._perturbation_effect import draw_effect, mean_effects, name_genes
from cfm.pl._perturbation_metrics import draw_scores, read_scores, score_axes
from cfm.pl._perturbation_umap import draw_map, joint_map

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

    from cfm._units import Units
    from cfm.pl._perturbation_cells import Screen

#: More panels than this cannot be read.
_MOST = 24


@checks_arguments(n_named=0, n_cells=2)
def perturbation(
    real: AnnData | pd.DataFrame,
    simulated: AnnData | None = None,
    *,
    kind: Literal["effect", "metrics", "umap"] | None = None,
    key: str | None = None,
    control: str | None = None,
    perturbation: str | Sequence[str] | None = None,
    groupby: str | None = None,
    group: str | Sequence[str] | None = None,
    metric: str | Sequence[str] | None = None,
    layer: str | None = None,
    units: Units | Mapping[str, Units] = "auto",
    gene_symbols: str | None = None,
    n_top: int = 20,
    n_named: int = 8,
    n_cells: int = 500,
    seed: int = 0,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | dict[str, Axes]:
    """Draw what was simulated against what was observed.

    ``"effect"``: a point for each gene, the change of its mean log expression, observed (against
    the controls) and predicted (against what the method made of the control if it did, else the
    observations it started from). The genes with the strongest observed effect are coloured by
    whether their direction was predicted, and the first ones are named. Beside the correlation
    stands the share of the covariance that three genes make: a high correlation may be theirs.

    ``"metrics"``: the table of :func:`cfm.tl.evaluate_perturbation` as bars, a panel for each
    metric: models, baselines, and the ceiling of the data. A bar is the mean over groups and
    perturbations, which are the dots. Bold is the method, or baseline, that is ahead of each
    other by two standard errors over the cases that both were scored in; none with fewer than
    three cases.

    ``"umap"``: control, real perturbed and simulated cells on one map, laid out together with
    scanpy: log expression of the 2,000 most variable genes, 30 principal components, 15
    neighbours, UMAP. Good simulations lie among the real perturbed cells. Distances between
    clouds of a UMAP mean little.

    Parameters
    ----------
    real
        Observations by genes, controls and perturbed ones; for ``"metrics"`` the table.
    simulated
        What :func:`cfm.tl.simulate_perturbation` made; several may be concatenated, with
        ``merge="same"``. Genes that the model did not predict (``var["simulated"]``) are left out.
    kind
        Which of the three; by default ``"metrics"`` for a table, else ``"effect"``.
    key, control
        Column of ``obs`` with the perturbation, and its level for unperturbed observations. By
        default what ``simulated.uns["simulation"]`` records.
    perturbation
        Which to draw; ``None`` draws all that are in both.
    groupby
        Column of ``obs`` with groups, such as cell types: for ``"effect"`` one panel each, for
        ``"umap"`` their names on the map.
    group
        Which of them to draw; ``None`` draws all that are in both.
    metric
        For ``"metrics"``: which to draw; ``None`` draws all that are defined anywhere, but not
        those of cell-eval.
    layer
        Layer to read instead of ``X``, by default the recorded one; of ``simulated`` ``X`` is read
        if it has no such layer.
    units
        ``"counts"``, ``"log"``, or ``"auto"``, which decides as in
        :func:`cfm.tl.evaluate_perturbation`; one for both, or by name: ``"real"`` and
        ``"simulated"``. Counts are brought to log1p of counts per 10,000.
    gene_symbols
        For ``"effect"``: column of ``real.var`` with the names to write.
    n_top, n_named
        For ``"effect"``: how many genes are marked, and how many of these are named at most.
    n_cells
        For ``"umap"``: at most so many cells of each of the three kinds, drawn at random.
    seed
        Of that draw and of the layout.
    ax
        Draw here instead of into a new figure (one panel).
    show
        Show the figure. ``False`` closes it; the returned Axes can still be saved.
    save
        File to write the figure to.

    Returns
    -------
    The Axes drawn on. For several panels a dict: from group, perturbation, or
    ``"perturbation | group"`` where there are groups and several perturbations (``"effect"``), or
    from metric (``"metrics"``).

    Raises
    ------
    TypeError
        If ``real`` or ``simulated`` is not what the kind needs.
    KeyError
        If a column, perturbation, control, group, layer or metric is not there.
    ValueError
        If cells of one kind are missing, real and simulated ones share no gene or differ in
        units, values are not finite, a number is too small, or ``ax`` is given with several
        panels.

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
    >>> axes = cfm.pl.perturbation(cells, simulated, groupby="cell_type", show=False)
    >>> list(axes)
    ['B cell', 'Monocyte', 'NK cell', 'T cell']
    """
    if not isinstance(real, pd.DataFrame):
        require_anndata(real)
    kind = kind or ("metrics" if isinstance(real, pd.DataFrame) else "effect")
    owned = ax is None
    if kind == "metrics":
        if not isinstance(real, pd.DataFrame):
            raise TypeError(
                f"kind='metrics' got a {type(real).__name__}; pass the table of "
                "cfm.tl.evaluate_perturbation(real, simulated, …) as the first argument."
            )
        table, metrics = read_scores(real, metric=metric, perturbation=perturbation, group=group)
        panels = score_axes(metrics, table, ax)
        draw_scores(panels, table, owned=owned)
        finish(figure_of(panels[metrics[0]]), owned=owned, show=show, save=save)
        return one_or_all(panels, metric)
    if isinstance(real, pd.DataFrame):
        raise TypeError(
            f"kind={kind!r} needs the real and the simulated cells; a table of scores is drawn by "
            "kind='metrics'."
        )
    screen = read_screen(
        real,
        simulated,
        key=key,
        control=control,
        perturbation=perturbation,
        groupby=groupby,
        group=group,
        layer=layer,
        units=units,
        gene_symbols=gene_symbols,
    )
    if kind == "umap":
        points, kinds, groups = joint_map(screen, n_cells=n_cells, seed=seed)
        (panel,) = group_axes(["umap"], ax, 5.2, 4.8).values()
        draw_map(panel, points, kinds, groups, screen, seed)
        finish(figure_of(panel), owned=owned, show=show, save=save)
        return panel
    panels = _effects(screen, ax, n_top, n_named)
    finish(figure_of(next(iter(panels.values()))), owned=owned, show=show, save=save)
    asked = [given for given in (perturbation, group) if given is not None]
    single = len(panels) == 1 and all(isinstance(given, str) for given in asked)
    return next(iter(panels.values())) if single else panels


def _effects(screen: Screen, ax: Axes | None, n_top: int, n_named: int) -> dict[str, Axes]:
    cases = [(name, group) for name in screen.perturbations for group in screen.groups]
    if len(cases) > _MOST:
        raise ValueError(
            f"{len(screen.perturbations)} perturbations in {len(screen.groups)} groups make "
            f"{len(cases)} panels, more than {_MOST}; name some with perturbation= or group=."
        )
    effects = {case: mean_effects(screen, *case) for case in cases}  # before a figure is opened
    several, grouped = len(screen.perturbations) > 1, screen.groups != [""]
    keys = {
        case: " | ".join(case) if several and grouped else case[1] if grouped else case[0]
        for case in cases
    }
    axes = group_axes(list(keys.values()), ax, 3.5, 4.1)
    named = []
    for case, name in keys.items():
        observed, predicted = effects[case]
        points, names = draw_effect(
            axes[name],
            observed,
            predicted,
            screen.genes,
            title=", ".join(part for part in case if part),
            n_top=n_top,
            n_named=n_named,
            n_unpredicted=screen.n_unpredicted,
        )
        named.append((axes[name], points, names))
    name_genes(named)
    return axes
