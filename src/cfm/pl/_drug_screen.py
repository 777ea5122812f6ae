"""Compounds in the order of a drug screen, or one kind of evidence against another."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
from matplotlib.patches import Patch

from cfm._arguments import checks_arguments
from cfm._fields import DRUG_SCREEN_KEY, RESULTS
from cfm.pl import _figure as fig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    import pandas as pd
    from anndata import AnnData
    from matplotlib.axes import Axes

_COLUMNS = (
    "group", "compound", "rank", "score", "fdr", "target_score",
    "n_signatures", "n_targets",
)  # fmt: skip
#: Up to this many compounds each one is a bar with its name.
_BARS = 30
#: Longer names of rows lose their middle.
_LONGEST = 28


@checks_arguments(n_compounds=0)
@fig.documented
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
    %(key)s
    kind
        Which of the two.
    %(group)s
    n_compounds
        At most this many names.
    x, y
        For ``"scatter"``: columns of the result to compare, such as ``"reversal"``.
    %(panel)s

    Returns
    -------
    %(group_axes)s

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
    >>> cfm.tl.screen_drugs(contrasts, signatures)
    >>> ax = cfm.pl.drug_screen(contrasts, group="virus_A", n_compounds=5, show=False)
    >>> ax.get_ylabel()
    'combined score'
    """
    fig.require_anndata(adata)
    table = fig.stored_table(adata, key, RESULTS, _COLUMNS, tool="screen_drugs")
    groups = fig.pick("group", group, table["group"].unique(), f"uns[{key!r}]")
    table = table.sort_values("rank", kind="stable")
    parts = {name: table[table["group"] == name] for name in groups}
    if kind == "scatter":
        numbers = table.select_dtypes("number").columns
        fig.pick("column of numbers", [x, y], numbers, f"uns[{key!r}]['results']")
        for name, part in parts.items():
            if part[[x, y]].isna().all(axis=None):
                raise ValueError(f"no compound of group {name!r} has a value of {x} or {y}.")
    most = max(map(len, parts.values()))
    bars = kind == "waterfall" and most <= _BARS
    longest = min(_LONGEST, max(len(name) for part in parts.values() for name in part["compound"]))
    size = (3.6 + 0.08 * longest, 1.2 + 0.19 * max(most, 3)) if bars else (5.0, 4.4)
    panels = fig.open_panels(groups, ax, *size, argument="group")
    for name, panel in panels.items():
        title = f"{fig.shorten(name, 32)} ({fig.plural(len(parts[name]), 'compound')})"
        panel.set_title(title, fontsize=9, pad=15 if kind == "scatter" else 6)  # above lanes
        fig.tidy(panel)
    for name, panel in panels.items():
        if bars:
            _draw_bars(panel, parts[name])
        elif kind == "waterfall":
            _draw_waterfall(panel, parts[name], n_compounds)
        else:
            _draw_scatter(panel, parts[name], n_compounds, x, y)
    return fig.one_or_all(fig.finish(panels, ax, show=show, save=save), group)


def _is_marked(table: pd.DataFrame) -> np.ndarray:
    return (table["fdr"] <= fig.SIGNIFICANT).to_numpy()


def _rest(table: pd.DataFrame) -> str:
    """Return what the compounds that are not marked are."""
    return "no FDR possible" if table["fdr"].isna().all() else fig.ABOVE


# --- Waterfall -------------------------------------------------------------------------------

_MARKED, _PLAIN = fig.COLORS[0], "#B4B9C1"
_LETTERS = "S: from signatures, T: from targets"
#: Where the list of names stands in a waterfall, as a share of the width.
_LIST_AT = 0.42


def _draw_bars(ax: Axes, table: pd.DataFrame) -> None:
    """Draw few compounds as named bars; ``table`` is sorted by rank."""
    score = table["score"].to_numpy(dtype=np.float64)
    face, edge = (np.where(_is_marked(table), _MARKED, rest) for rest in ("white", fig.GREY))
    ax.barh(range(len(score)), score, height=0.72, color=face, edgecolor=edge, linewidth=1.2)
    ax.axvline(0, color=fig.AXIS, linewidth=0.8)
    tips = [fig.write_tip(ax, text, score[y], y) for y, text in enumerate(_evidence(table))]
    fig.name_rows(ax, [fig.shorten(name, _LONGEST) for name in table["compound"]], least=3)
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("combined score")
    fig.legend_below(ax, _key(table, "white", fig.GREY), columns=2)
    fig.room_for_tips(ax, score, tips)


def _draw_waterfall(ax: Axes, table: pd.DataFrame, n_named: int) -> None:
    """Draw many compounds as thin bars, with a list of the first; ``table`` is sorted by rank."""
    score = table["score"].to_numpy(dtype=np.float64)
    rank = table["rank"].to_numpy(dtype=np.float64)
    marked = _is_marked(table)
    ax.fill_between(rank, 0, score, step="mid", color=_PLAIN, linewidth=0)
    ax.vlines(rank[marked], 0, score[marked], color=_MARKED, linewidth=1.0)
    ax.plot(rank[marked], score[marked], "D", color=_MARKED, markersize=3)
    ax.axhline(0, color=fig.AXIS, linewidth=0.8)
    last = rank.max()
    ax.set_xlim(1 - 0.01 * last, last * 1.01)
    ax.set(xlabel="rank", ylabel="combined score")
    fig.legend_below(ax, _key(table, _PLAIN, _PLAIN), columns=2)
    _list_names(ax, table.head(n_named), score)


def _list_names(ax: Axes, table: pd.DataFrame, score: np.ndarray) -> None:
    """Write the names below each other above the bars, each with a line to its bar."""
    low, high = min(score.min(), 0), max(score.max(), 0)
    span = high - low or 1.0
    bottom, top = low - 0.03 * span, high + 0.05 * span
    ax.set_ylim(bottom, top)
    height = 72 * fig.width_and_height(ax)[1]  # points
    font = float(np.clip(0.6 * height / max(len(table), 1) / 1.45, 4.0, 8.0))
    step = 1.45 * font / height
    # the last name has to stand above the bars below it
    taken = min(step * len(table) + 0.02, 0.9)
    under = max(float(score[int(_LIST_AT * 0.95 * len(score)) :].max()), 0.0)
    ax.set_ylim(bottom, max(top, (under - taken * bottom) / (1 - taken)))
    line = {"arrowstyle": "-", "color": "#9AA1AC", "linewidth": 0.5, "relpos": (0, 0.5)}
    texts = zip(table["compound"], table["rank"], table["score"], _evidence(table), strict=True)
    for i, (name, rank, value, evidence) in enumerate(texts):
        ax.annotate(
            f"{rank} {fig.shorten(name, 26)} {evidence}",
            (rank, value),
            xytext=(_LIST_AT, 1 - step * (i + 0.5)),
            textcoords="axes fraction",
            fontsize=font,
            va="center",
            arrowprops=line | {"shrinkA": 1, "shrinkB": 0},
        )


def _evidence(table: pd.DataFrame) -> list[str]:
    """Return the letters of the evidence of each compound, with a star where it is marked."""
    counts = zip(table["n_signatures"], table["n_targets"], _is_marked(table), strict=True)
    return [
        "+".join(letter for letter, n in (("S", signatures), ("T", targets)) if n > 0)
        + (" *" if star else "")
        for signatures, targets, star in counts
    ]


def _key(table: pd.DataFrame, face: str, edge: str) -> list[Patch]:
    marked = _is_marked(table)
    handles = [Patch(color=_MARKED, label=f"{fig.UP_TO} (*)")] if marked.any() else []
    if not marked.all():
        handles.append(Patch(label=_rest(table), facecolor=face, edgecolor=edge))
    return [*handles, Patch(alpha=0, label=_LETTERS)]


# --- Scatter ---------------------------------------------------------------------------------

_LABELS = {
    "cosine_reversal": "signature reversal, cosine (right: reverses the group's profile)",
    "reversal": "signature reversal, connectivity (right: reverses the group's profile)",
    "embedding_reversal": "reversal in the model's embedding",
    "target_score": "target evidence (up: targets are host factors)",
    "score": "combined score",
}
_NONE = {
    "cosine_reversal": "no signature",
    "reversal": "no signature",
    "target_score": "no target",
}
#: Width of the lane for compounds without a value, and its distance, as shares of the range.
_LANE, _APART = 0.07, 0.06
#: So many points leave room between them.
_SPARSE = 100
_NAMED_COLOR, _LANE_COLOR = "#3C3C3C", "#EFF1F4"


def _draw_scatter(ax: Axes, table: pd.DataFrame, n_named: int, x: str, y: str) -> None:
    """Draw one point for each compound; ``table`` is sorted by rank."""
    points = np.column_stack([_placed(ax, table, x, "x"), _placed(ax, table, y, "y")])
    some = table[[x, y]].notna().any(axis=1).to_numpy()  # no evidence of either kind: no place
    marked = _is_marked(table)
    named = np.arange(len(table)) < n_named
    kinds = (
        (marked, fig.UP_TO, "D", 26, fig.COLORS[0], fig.COLORS[0]),
        (~marked & ~named, _rest(table), "o", 14, fig.GREY, "none"),
        (~marked & named, f"among the first {n_named}", "o", 18, _NAMED_COLOR, _NAMED_COLOR),
    )
    shown = []
    for part, text, marker, size, edge, face in kinds:
        own = points[some & part]
        look = fig.Look(marker=marker, facecolors=face, edgecolors=edge, linewidths=0.8)
        fig.scatter(ax, own, s=size, zorder=1 + size / 100, **look)
        if len(own):
            shown.append(fig.mark(text, edge, marker, mfc=face, ms=5 if marker == "D" else 4))
    if (~some).any():
        shown.append(fig.mark(f"{(~some).sum():,} with neither are not shown"))
    ax.set_xlabel(_LABELS.get(x, x.replace("_", " ")))
    ax.set_ylabel(_LABELS.get(y, y.replace("_", " ")))
    fig.legend_below(ax, shown, columns=3)
    fig.settle(ax)  # places of names need the final layout
    # in a dense cloud no name would find room: there it may cover the points that are not marked
    clear = some & (marked | named | (some.sum() <= _SPARSE))
    names = [fig.shorten(name, 26) for name in table["compound"]]
    fig.label_points(
        ax,
        points[clear],
        [names[i] if named[i] else "" for i in np.flatnonzero(clear)],
        radius=3.5,
        halo="white",
    )


def _placed(ax: Axes, table: pd.DataFrame, column: str, axis: str) -> np.ndarray:
    """Set the limits of an axis; return positions, those without a value in a lane before it."""
    places = table[column].to_numpy(dtype=np.float64, copy=True)
    missing = np.isnan(places)
    low, high = (places[~missing].min(), places[~missing].max()) if not missing.all() else (0, 0)
    low, high = min(low, 0.0), max(high, 0.0)
    span = high - low or 1.0
    start, end = low - _APART * span, high + _APART * span
    across = axis == "x"
    line, band = (ax.axvline, ax.axvspan) if across else (ax.axhline, ax.axhspan)
    line(0, color=fig.AXIS, linewidth=0.8, zorder=1)
    if missing.any():
        gap = " " if across else "\n"
        middle, start = start - _LANE / 2 * span, start - _LANE * span
        band(start, start + _LANE * span, color=_LANE_COLOR, linewidth=0, zorder=0)
        places[missing] = middle
        # the name of the lane stands outside, where no point can cover it
        ax.annotate(
            _NONE.get(column, "no value") + f"{gap}({missing.sum():,})",
            (middle, 1) if across else (1, middle),
            xycoords=ax.get_xaxis_transform() if across else ax.get_yaxis_transform(),
            xytext=(0, 3) if across else (3, 0),
            textcoords="offset points",
            fontsize=7,
            color="#555555",
            ha="center" if across else "left",
            va="bottom" if across else "center",
        )
    (ax.set_xlim if across else ax.set_ylim)(start, end)
    return places
