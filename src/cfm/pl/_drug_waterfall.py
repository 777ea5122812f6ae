"""Scores of all compounds of a screen, highest first."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from matplotlib.patches import Patch

from cfm.pl._figure import figure_of, legend_below
from cfm.pl._labels import room_for_tips, shorten
from cfm.pl._palette import COLORS, GREY, SIGNIFICANT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

MARKED, PLAIN = COLORS[0], "#B4B9C1"
#: Longer names of rows lose their middle.
LONGEST = 28
_LETTERS = "S: from signatures, T: from targets"
#: Where the list of names stands in a waterfall, as a share of the width.
_LIST_AT = 0.42


def draw_bars(ax: Axes, table: pd.DataFrame) -> None:
    """Draw few compounds as named bars; ``table`` is sorted by rank."""
    score = table["score"].to_numpy(dtype=np.float64)
    marked = (table["fdr"] <= SIGNIFICANT).to_numpy()
    rows = np.arange(len(table))
    ax.barh(
        rows,
        score,
        height=0.72,
        color=np.where(marked, MARKED, "white"),
        edgecolor=np.where(marked, MARKED, GREY),
        linewidth=1.2,
    )
    ax.axvline(0, color="#777777", linewidth=0.8)
    tips = [
        ax.annotate(
            text,
            (value, y),
            xytext=(-4 if value < 0 else 4, 0),
            textcoords="offset points",
            va="center",
            ha="right" if value < 0 else "left",
            fontsize=7,
        )
        for y, value, text in zip(rows, score, _evidence(table), strict=True)
    ]
    ax.set_yticks(rows, [shorten(name, LONGEST) for name in table["compound"]], fontsize=8)
    ax.tick_params(axis="y", length=0)
    ax.spines["left"].set_visible(False)
    ax.set_ylim(max(len(table), 3) - 0.4, -0.6)
    ax.set_xlabel("combined score", fontsize=8)
    legend_below(ax, _key(table, hollow=True), columns=2)
    room_for_tips(ax, score, tips)


def draw_waterfall(ax: Axes, table: pd.DataFrame, n_named: int) -> None:
    """Draw many compounds as thin bars, with a list of the first; ``table`` is sorted by rank."""
    score = table["score"].to_numpy(dtype=np.float64)
    rank = table["rank"].to_numpy(dtype=np.float64)
    marked = (table["fdr"] <= SIGNIFICANT).to_numpy()
    ax.fill_between(rank, 0, score, step="mid", color=PLAIN, linewidth=0)
    ax.vlines(rank[marked], 0, score[marked], color=MARKED, linewidth=1.0)
    ax.plot(rank[marked], score[marked], "D", color=MARKED, markersize=3)
    ax.axhline(0, color="#777777", linewidth=0.8)
    last = rank.max()
    ax.set_xlim(1 - 0.01 * last, last * 1.01)
    ax.set_xlabel("rank", fontsize=8)
    ax.set_ylabel("combined score", fontsize=8)
    legend_below(ax, _key(table, hollow=False), columns=2)
    _list_names(ax, table.head(n_named), score)


def _list_names(ax: Axes, table: pd.DataFrame, score: np.ndarray) -> None:
    """Write the names below each other above the bars, each with a line to its bar."""
    low, high = min(score.min(), 0), max(score.max(), 0)
    span = high - low or 1.0
    bottom, top = low - 0.03 * span, high + 0.05 * span
    ax.set_ylim(bottom, top)
    figure = figure_of(ax)
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()  # sizes are only final once the layout was made
    height = ax.get_window_extent().height / figure.dpi * 72  # points
    font = float(np.clip(0.6 * height / max(len(table), 1) / 1.45, 4.0, 8.0))
    step = 1.45 * font / height
    # the last name has to stand above the bars below it
    taken = min(step * len(table) + 0.02, 0.9)
    under = max(float(score[int(_LIST_AT * 0.95 * len(score)) :].max()), 0.0)
    ax.set_ylim(bottom, max(top, (under - taken * bottom) / (1 - taken)))
    texts = zip(table["compound"], table["rank"], table["score"], _evidence(table), strict=True)
    for i, (name, rank, value, evidence) in enumerate(texts):
        ax.annotate(
            f"{rank} {shorten(name, 26)} {evidence}",
            (rank, value),
            xytext=(_LIST_AT, 1 - step * (i + 0.5)),
            textcoords="axes fraction",
            fontsize=font,
            va="center",
            arrowprops={
                "arrowstyle": "-",
                "color": "#9AA1AC",
                "linewidth": 0.5,
                "relpos": (0, 0.5),
                "shrinkA": 1,
                "shrinkB": 0,
            },
        )


def _evidence(table: pd.DataFrame) -> list[str]:
    found = []
    for signatures, targets, fdr in zip(
        table["n_signatures"], table["n_targets"], table["fdr"], strict=True
    ):
        letters = "+".join(letter for letter, n in (("S", signatures), ("T", targets)) if n > 0)
        found.append(f"{letters}{' *' if fdr <= SIGNIFICANT else ''}")
    return found


def _key(table: pd.DataFrame, *, hollow: bool) -> list[Patch]:
    fdr = table["fdr"].to_numpy(dtype=np.float64)
    marked = fdr <= SIGNIFICANT
    rest = "no FDR possible" if np.isnan(fdr).all() else f"FDR > {SIGNIFICANT:g}"
    handles = []
    if marked.any():
        handles.append(Patch(color=MARKED, label=f"FDR ≤ {SIGNIFICANT:g} (*)"))
    if not marked.all():
        face, edge = ("white", GREY) if hollow else (PLAIN, PLAIN)
        handles.append(Patch(label=rest, facecolor=face, edgecolor=edge))
    return [*handles, Patch(alpha=0, label=_LETTERS)]
