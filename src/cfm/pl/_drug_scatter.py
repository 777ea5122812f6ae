"""One kind of evidence for a compound against another."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.lines import Line2D

from cfm.pl._figure import figure_of, legend_below
from cfm.pl._labels import label_points, shorten
from cfm.pl._palette import COLORS, GREY, SIGNIFICANT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

_SAID = {
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
_NAMED_COLOR = "#3C3C3C"
_LANE_COLOR = "#EFF1F4"


def draw_scatter(ax: Axes, table: pd.DataFrame, n_named: int, x: str, y: str) -> None:
    """Draw one point for each compound; ``table`` is sorted by rank."""
    points = np.column_stack([_placed(ax, table, x, "x"), _placed(ax, table, y, "y")])
    some = table[[x, y]].notna().any(axis=1).to_numpy()  # no evidence of either kind: no place
    marked = (table["fdr"] <= SIGNIFICANT).to_numpy()
    named = np.arange(len(table)) < n_named
    for part, marker, size, face, edge in (
        (~marked & ~named, "o", 14, "none", GREY),
        (~marked & named, "o", 18, _NAMED_COLOR, _NAMED_COLOR),
        (marked, "D", 26, COLORS[0], COLORS[0]),
    ):
        x_, y_ = points[some & part].T
        ax.scatter(x_, y_, s=size, marker=marker, facecolors=face, edgecolors=edge, linewidths=0.8)
    ax.set_xlabel(_SAID.get(x, x.replace("_", " ")), fontsize=8)
    ax.set_ylabel(_SAID.get(y, y.replace("_", " ")), fontsize=8)
    fdr = table["fdr"].to_numpy(dtype=np.float64)
    rest = "no FDR possible" if np.isnan(fdr).all() else f"FDR > {SIGNIFICANT:g}"
    first = f"among the first {n_named}"
    handles = [
        Line2D([], [], ls="", marker="D", color=COLORS[0], ms=5, label=f"FDR ≤ {SIGNIFICANT:g}"),
        Line2D([], [], ls="", marker="o", color=GREY, mfc="none", ms=4, label=rest),
        Line2D([], [], ls="", marker="o", color=_NAMED_COLOR, ms=4, label=first),
    ]
    keep = [(some & part).any() for part in (marked, ~marked, ~marked & named)]
    shown = [handle for handle, kept in zip(handles, keep, strict=True) if kept]
    if (~some).any():
        shown.append(Line2D([], [], ls="", label=f"{(~some).sum():,} with neither are not shown"))
    legend_below(ax, shown, columns=3)
    figure_of(ax).draw_without_rendering()  # places need the final layout
    names = [
        shorten(name, 26) if kept else ""
        for name, kept in zip(table["compound"], named, strict=True)
    ]
    # in a dense cloud no name would find room: there it may cover the points that are not marked
    clear = some & (marked | named | (some.sum() <= _SPARSE))
    label_points(
        ax,
        points[clear],
        [name for name, kept in zip(names, clear, strict=True) if kept],
        radius=3.5,
        halo="white",
    )


def _placed(ax: Axes, table: pd.DataFrame, column: str, axis: str) -> np.ndarray:
    """Set the limits of an axis; return positions, those without a value in a lane before it."""
    values = table[column].to_numpy(dtype=np.float64)
    missing = np.isnan(values)
    low, high = (values[~missing].min(), values[~missing].max()) if not missing.all() else (0, 0)
    low, high = min(low, 0.0), max(high, 0.0)
    span = high - low or 1.0
    start, end = low - _APART * span, high + _APART * span
    line, band = (ax.axvline, ax.axvspan) if axis == "x" else (ax.axhline, ax.axhspan)
    line(0, color="#777777", linewidth=0.8, zorder=1)
    places = values.copy()
    if missing.any():
        lane = start - _LANE * span
        band(lane, start, color=_LANE_COLOR, linewidth=0, zorder=0)
        places[missing] = (lane + start) / 2
        start = lane
        none = _NONE.get(column, "no value")
        middle = lane + _LANE / 2 * span
        # outside, where no point can cover it
        ax.annotate(
            f"{none} ({missing.sum():,})" if axis == "x" else f"{none}\n({missing.sum():,})",
            (middle, 1) if axis == "x" else (1, middle),
            xycoords=ax.get_xaxis_transform() if axis == "x" else ax.get_yaxis_transform(),
            xytext=(0, 3) if axis == "x" else (3, 0),
            textcoords="offset points",
            fontsize=7,
            color="#555555",
            ha="center" if axis == "x" else "left",
            va="bottom" if axis == "x" else "center",
        )
    (ax.set_xlim if axis == "x" else ax.set_ylim)(start, end)
    return places
