"""Groups of cells that donors' embeddings come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator

from cfm._arguments import checks_arguments
from cfm._fields import CELL_IMPORTANCE_KEY, IMPORTANCE_GROUPS, params_of
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish, legend_below, new_figure
from cfm.pl._labels import shorten
from cfm.pl._palette import COLORS, GREY
from cfm.pl._stored import stored_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

Kind = Literal["importance", "removal"]
_COLUMNS = ("donor", "group", "enrichment", "removal", "removal_random")
_HEIGHT = 0.32
_TITLES = {
    "attention": "attention over share of cells",
    "gradient": "|gradient × input| over share of cells",
}


@checks_arguments()
def cell_importance(
    adata: AnnData,
    *,
    key: str = CELL_IMPORTANCE_KEY,
    kind: Kind = "importance",
    groups: Sequence[str] | None = None,
    n_groups: int = 20,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw how much groups of cells count for donors, a small dot per donor.

    ``"importance"`` shows the share of importance over the share of cells, on a logarithmic axis:
    1 is a group that counts as much as it has cells. ``"removal"`` shows how far the embedding of
    a donor moves without the group (filled), and without as many random cells (open): the check on
    the former.

    Parameters
    ----------
    adata
        Cells with the fields written by :func:`cfm.tl.cell_importance` with ``groupby``.
    key
        Its ``key_added``.
    kind
        ``"importance"`` or ``"removal"``.
    groups
        Groups to draw; by default those with the highest median.
    n_groups
        How many at most, where ``groups`` is not given.
    ax
        Draw here instead of into a new figure.
    show
        Show the figure. ``False`` closes it; the returned Axes can still be saved.
    save
        File to write the figure to.

    Returns
    -------
    The Axes drawn on.

    Raises
    ------
    KeyError
        If the table or a group is not there.
    ValueError
        If ``kind`` is unknown, or there is nothing to draw.

    Examples
    --------
    >>> import cfm, scanpy as sc
    >>> cells = cfm.datasets.toy_donors(n_donors=4, n_cells=30)
    >>> sc.pp.pca(cells, n_comps=10)
    >>> cfm.models.Pulsar.setup_anndata(cells, donor_key="donor_id", use_rep="X_pca")
    >>> cfm.tl.cell_importance(cells, "donor_id", cfm.models.Pulsar(cells), groupby="cell_type")
    >>> ax = cfm.pl.cell_importance(cells, show=False)
    >>> sorted(label.get_text() for label in ax.get_yticklabels())
    ['B cell (4)', 'Monocyte (4)', 'NK cell (4)', 'T cell (4)']
    """
    require_anndata(adata)
    table = stored_table(
        adata,
        key,
        IMPORTANCE_GROUPS,
        tool="cell_importance",
        columns=_COLUMNS,
        arguments="groupby=…",
    )
    value = "enrichment" if kind == "importance" else "removal"
    table = table[np.isfinite(table[value])]
    if kind == "importance":
        table = table[table[value] > 0]  # a logarithmic axis
    if table.empty:
        raise ValueError(
            f"uns[{key!r}][{IMPORTANCE_GROUPS!r}] has no finite {value} to draw: every donor has "
            "cells of one group only."
        )
    order = _order(table, value, groups, n_groups)
    owned = ax is None
    if ax is None:
        ax = new_figure(5.4, 1.5 + _HEIGHT * len(order)).subplots()
    for y, group in enumerate(order):
        part = table[table["group"] == group]
        _row(ax, part[value].to_numpy(), y, filled=True, lift=0.0 if kind == "importance" else 0.15)
        if kind == "removal":
            _row(ax, part["removal_random"].to_numpy(), y, filled=False, lift=-0.15)
    counts = table.groupby("group")["donor"].nunique()
    ax.set_yticks(range(len(order)), [f"{shorten(g, 28)} ({counts[g]})" for g in order], fontsize=8)
    ax.set_ylim(len(order) - 0.5, -0.5)
    if kind == "importance":
        ax.set_xscale("log", base=2)
        drawn = table.loc[table["group"].isin(order), value]
        narrow = drawn.max() < 4 * drawn.min()  # powers of two alone would leave it without a scale
        ax.xaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.25, 1.5) if narrow else (1.0,)))
        ax.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        ax.axvline(1.0, color=GREY, linewidth=0.8, linestyle="--", zorder=0)
        method = str(params_of(adata.uns, key).get("method", "attention"))
        ax.set_xlabel(_TITLES.get(method, "importance over share of cells"))
    else:
        ax.set_xlim(left=0)
        ax.set_xlabel("distance that the donor's embedding moves")
    legend_below(ax, _legend(kind), columns=2, drop=0.5)
    finish(figure_of(ax), owned=owned, show=show, save=save)
    return ax


def _order(
    table: pd.DataFrame, value: str, groups: Sequence[str] | None, n_groups: int
) -> list[str]:
    """Return the groups to draw, from the top."""
    median = table.groupby("group")[value].median().sort_values(ascending=False, kind="stable")
    if groups is None:
        return [str(g) for g in median.index[: max(1, n_groups)]]
    unknown = [g for g in groups if g not in median.index]
    if unknown or not len(groups):
        raise KeyError(f"There are no groups {unknown}; there are {median.index.tolist()}.")
    return list(groups)


def _row(ax: Axes, values: np.ndarray, y: int, *, filled: bool, lift: float) -> None:
    """Draw the donors of one group, and their median."""
    values = values[np.isfinite(values)]
    if not len(values):
        return
    color = COLORS[0] if filled else COLORS[1]
    # spread evenly, so that no two dots of a group hide each other
    shift = 0.18 * ((np.arange(len(values)) * 0.618) % 1.0 - 0.5)
    place = np.full(len(values), y - lift) + shift
    marker, face = ("o", color) if filled else ("D", "none")
    ax.scatter(values, place, s=9, marker=marker, facecolors=face, edgecolors=color, alpha=0.6)
    ax.scatter(
        [np.median(values)],
        [y - lift],
        s=60,
        marker=marker,
        facecolors=face,
        edgecolors=color,
        linewidths=1.6,
        zorder=3,
    )


def _legend(kind: str) -> list[Line2D]:
    """Say what the large marks are."""

    def mark(marker: str, color: str, face: str, text: str) -> Line2D:
        return Line2D(
            [], [], linestyle="", marker=marker, color=color, markerfacecolor=face, label=text
        )

    if kind == "importance":
        return [mark("o", COLORS[0], COLORS[0], "median over donors (number in brackets)")]
    return [
        mark("o", COLORS[0], COLORS[0], "without the group"),
        mark("D", COLORS[1], "none", "without as many random cells"),
    ]
