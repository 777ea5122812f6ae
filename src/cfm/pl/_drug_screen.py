"""Compounds in the order of a drug screen, or one kind of evidence against another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cfm._arguments import checks_arguments
from cfm._fields import DRUG_SCREEN_KEY, RESULTS
from cfm.pl._checks import require_anndata
from cfm.pl._drug_scatter import draw_scatter
from cfm.pl._drug_waterfall import LONGEST, draw_bars, draw_waterfall
from cfm.pl._figure import figure_of, finish
from cfm.pl._labels import shorten
from cfm.pl._panels import chosen_groups, group_axes, one_or_all
from cfm.pl._stored import stored_table

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

_COLUMNS = (
    "group", "compound", "rank", "score", "fdr", "target_score",
    "n_signatures", "n_targets",
)  # fmt: skip
#: Up to this many compounds each one is a bar with its name.
_BARS = 30


@checks_arguments(n_compounds=0)
def drug_screen(
    adata: AnnData,
    *,
    key: str = DRUG_SCREEN_KEY,
    kind: Literal["waterfall", "scatter"] = "waterfall",
    group: str | Sequence[str] | None = None,
    n_compounds: int = 12,
    x: str = "cosine_reversal",
    y: str = "target_score",
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes | dict[str, Axes]:
    """Draw all compounds of a screen by rank, or two kinds of evidence against each other.

    ``"waterfall"`` has one bar for each compound, in the order of its rank, as high as its
    combined score; the first ones are named, with the evidence they rest on (S: signatures,
    T: targets). Up to 30 compounds, the bars lie on their side and all are named.

    ``"scatter"`` has one point for each compound: to the right, its signatures reverse those of
    the group; up, its targets are among the host factors. A compound without one kind of evidence
    stands in the grey lane at that side.

    Dark blue with a star or a diamond marks a false discovery rate of at most 0.05; the rest is
    grey.

    Parameters
    ----------
    adata
        Profiles with the fields written by :func:`cfm.tl.screen_drugs`.
    key
        Where they are stored (``key_added`` of that call).
    kind
        Which of the two.
    group
        Group or groups to draw; ``None`` draws all, one panel each.
    n_compounds
        At most this many names.
    x, y
        For ``"scatter"``: columns of the result to compare, such as ``"reversal"``.
    ax
        Draw here instead of into a new figure (one group).
    show
        Show the figure. ``False`` closes it; the returned Axes can still be saved.
    save
        File to write the figure to.

    Returns
    -------
    The Axes drawn on; with several groups, or a list of them, a dict from group to Axes.

    Raises
    ------
    KeyError
        If :func:`cfm.tl.screen_drugs` was not run, or a group or column is not in its result.
    ValueError
        If ``kind`` is unknown, ``n_compounds`` is below 0, ``group`` is empty, ``ax`` is given
        with several groups, or no compound of a group has a value of ``x`` or ``y``.

    Examples
    --------
    >>> import cfm
    >>> contrasts = cfm.pp.contrasts(cfm.datasets.toy_infection(), "virus", "none", by="study")
    >>> signatures = cfm.datasets.cmap_signatures()
    >>> cfm.tl.screen_drugs(contrasts, signatures, model=None)
    >>> ax = cfm.pl.drug_screen(contrasts, group="virus_A", n_compounds=5, show=False)
    >>> ax.get_ylabel()
    'combined score'
    """
    require_anndata(adata)
    table = stored_table(adata, key, RESULTS, tool="screen_drugs", columns=_COLUMNS)
    if kind == "scatter":
        for name in (x, y):
            if name not in table or table[name].dtype.kind not in "fiu":
                numbers = table.select_dtypes("number").columns
                raise KeyError(
                    f"uns[{key!r}]['results'] has no column {name!r} of numbers; expected one of "
                    f"{', '.join(numbers)}."
                )
    groups = chosen_groups(table, group, key)
    parts = {
        name: table[table["group"] == name].sort_values("rank", kind="stable") for name in groups
    }
    if kind == "scatter":
        for name, part in parts.items():
            if part[[x, y]].isna().all(axis=None):
                raise ValueError(f"no compound of group {name!r} has a value of {x} or {y}.")
    most = max(map(len, parts.values()))
    bars = kind == "waterfall" and most <= _BARS
    height = 1.2 + 0.19 * max(most, 3) if bars else 4.4
    longest = min(LONGEST, max(len(name) for part in parts.values() for name in part["compound"]))
    panels = group_axes(groups, ax, 3.6 + 0.08 * longest if bars else 5.0, height)
    title_pad = 15 if kind == "scatter" else 6  # above the name of a lane
    for name, panel in panels.items():
        part = parts[name]
        one = "" if len(part) == 1 else "s"
        panel.set_title(
            f"{shorten(name, 32)} ({len(part):,} compound{one})", fontsize=9, pad=title_pad
        )
        panel.tick_params(labelsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    for name, panel in panels.items():
        if bars:
            draw_bars(panel, parts[name])
        elif kind == "waterfall":
            draw_waterfall(panel, parts[name], n_compounds)
        else:
            draw_scatter(panel, parts[name], n_compounds, x, y)
    first = next(iter(panels.values()))
    finish(figure_of(first), owned=ax is None, show=show, save=save)
    return one_or_all(panels, group)
