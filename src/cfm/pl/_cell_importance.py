"""Groups of cells that donors' embeddings come from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.ticker import LogLocator

from cfm._adata import params_of
from cfm._arguments import checks_arguments
from cfm._fields import CELL_IMPORTANCE_KEY, IMPORTANCE_GROUPS
from cfm.pl import _figure as fig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

_COLUMNS = ("donor", "group", "enrichment", "removal", "removal_random")
_TITLES = {
    "attention": "attention over share of cells",
    "gradient": "|gradient × input| over share of cells",
}
#: Colour, marker and filling of a group, and of as many random cells.
_GROUP = (fig.COLORS[0], "o", fig.COLORS[0])
_RANDOM = (fig.COLORS[1], "D", "none")


@checks_arguments()
@fig.documented
def cell_importance(
    adata: AnnData,
    *,
    key: str = CELL_IMPORTANCE_KEY,
    kind: Literal["importance", "removal"] = "importance",
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
    %(key)s
    kind
        ``"importance"`` or ``"removal"``.
    groups
        Groups to draw; by default those with the highest median.
    n_groups
        How many at most, where ``groups`` is not given.
    %(ax)s

    Returns
    -------
    %(axes)s

    Raises
    ------
    KeyError
        If the table or a group is not there.
    ValueError
        If ``kind`` is unknown, ``groups`` is empty, or there is nothing to draw.

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
    fig.require_anndata(adata)
    look = fig.Look(tool="cell_importance", arguments="groupby=…")
    table = fig.stored_table(adata, key, IMPORTANCE_GROUPS, _COLUMNS, **look)
    importance = kind == "importance"
    value = "enrichment" if importance else "removal"
    table = table[np.isfinite(table[value])]
    if importance:
        table = table[table[value] > 0]  # a logarithmic axis
    if table.empty:
        raise ValueError(
            f"uns[{key!r}][{IMPORTANCE_GROUPS!r}] has no finite {value} to draw: every donor has "
            "cells of one group only."
        )
    median = table.groupby("group")[value].median().sort_values(ascending=False, kind="stable")
    order = fig.pick("group", groups, median.index, f"uns[{key!r}]")
    order = order if groups is not None else order[:n_groups]
    panel = ax or fig.new_figure(5.4, 1.5 + 0.32 * len(order)).add_subplot()
    for y, group in enumerate(order):
        part = table[table["group"] == group]
        _draw_row(panel, part[value].to_numpy(), y if importance else y - 0.15, *_GROUP)
        if not importance:
            _draw_row(panel, part["removal_random"].to_numpy(), y + 0.15, *_RANDOM)
    counts = table.groupby("group")["donor"].nunique()
    names = [f"{fig.shorten(group, 28)} ({counts[group]})" for group in order]
    panel.set_yticks(range(len(order)), names, fontsize=8)
    panel.set_ylim(len(order) - 0.5, -0.5)
    if importance:
        panel.set_xscale("log", base=2)
        drawn = table.loc[table["group"].isin(order), value]
        narrow = drawn.max() < 4 * drawn.min()  # powers of two alone would leave it without a scale
        steps = (1.0, 1.25, 1.5) if narrow else (1.0,)
        panel.xaxis.set_major_locator(LogLocator(base=2, subs=steps))
        panel.xaxis.set_major_formatter(lambda x, _: f"{x:g}")
        panel.axvline(1.0, color=fig.GREY, linewidth=0.8, linestyle="--", zorder=0)
        method = str(params_of(adata.uns, key).get("method", "attention"))
        panel.set_xlabel(_TITLES.get(method, "importance over share of cells"))
        texts = ["median over donors (number in brackets)"]
    else:
        panel.set_xlim(left=0)
        panel.set_xlabel("distance that the donor's embedding moves")
        texts = ["without the group", "without as many random cells"]
    marks = zip(texts, (_GROUP, _RANDOM), strict=False)
    handles = [fig.mark(text, color, sign, mfc=face) for text, (color, sign, face) in marks]
    fig.legend_below(panel, handles, columns=2, drop=0.5)
    return fig.finish(panel, ax, show=show, save=save)


def _draw_row(ax: Axes, values: np.ndarray, y: float, color: str, marker: str, face: str) -> None:
    """Draw the donors of one group, and their median."""
    values = values[np.isfinite(values)]
    if not len(values):
        return
    # spread evenly, so that no two dots of a group hide each other
    place = y + 0.18 * ((np.arange(len(values)) * 0.618) % 1.0 - 0.5)
    look = fig.Look(marker=marker, facecolors=face, edgecolors=color)
    ax.scatter(values, place, s=9, alpha=0.6, **look)  # type: ignore[arg-type]
    ax.scatter([np.median(values)], [y], s=60, linewidths=1.6, zorder=3, **look)  # type: ignore[arg-type]
