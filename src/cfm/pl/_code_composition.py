"""How large codes are, and of which levels."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm.pl._code_levels import PLAIN, Levels, cells, text_color
from cfm.pl._figure import figure_of, new_figure
from cfm.pl._labels import shorten

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.container import BarContainer

#: Inches: a row, a character, the bars of shares, those of numbers alone.
_ROW, _CHAR, _WIDTH, _PLAIN = 0.21, 0.075, 4.6, 3.2
_LONGEST = 30


def draw_composition(levels: Levels, chosen: list[str], *, title: str, ax: Axes | None) -> Axes:
    """Draw the composition plot of :func:`cfm.pl.cell_codes`; ``chosen`` in their final order."""
    table = levels.table.loc[chosen]
    left_out = levels.table.drop(index=chosen)
    names = [shorten(code, _LONGEST) for code in chosen]
    if len(left_out):
        rest = left_out.sum().to_frame().T.set_axis(["rest"], axis=0)
        table = pd.concat([table, rest])
        names.append(f"{len(left_out)} other{'' if len(left_out) == 1 else 's'}")
    n_cells = table.sum(axis=1).to_numpy(dtype=np.int64)
    if ax is None:
        height = 1.0 + _ROW * len(table) + (_legend_height(levels) if levels.name else 0.0)
        width = (_WIDTH + 1.6 if levels.name else _PLAIN) + _CHAR * max(map(len, names))
        ax = new_figure(width, height).add_subplot()
    ax.set_ylim(len(table) - 0.5, -0.5)
    ax.set_yticks(range(len(table)), names, fontsize=8)
    ax.set_ylabel("code")
    ax.tick_params(axis="y", length=0)
    ax.tick_params(axis="x", labelsize=8)
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.set_title(title, fontsize=9)
    if not levels.name:
        _sizes(ax, n_cells)
        return ax
    _stacked(ax, levels, table)
    beside = ax.inset_axes((1.03, 0, 0.22, 1), sharey=ax)
    beside.tick_params(axis="y", length=0, labelleft=False)
    beside.tick_params(axis="x", labelsize=8)
    beside.spines[["top", "right"]].set_visible(False)
    _sizes(beside, n_cells)
    levels.legend(ax, width=_WIDTH + 1.6, drop=0.5)
    return ax


def _legend_height(levels: Levels) -> float:
    """Room in inches for the legend, as many entries as there are levels."""
    return 0.25 + 0.16 * len(levels.letters)


def _sizes(ax: Axes, n_cells: np.ndarray) -> None:
    """Draw a bar for the cells of each code, and write their number."""
    ax.barh(range(len(n_cells)), n_cells, height=0.78, color=PLAIN)
    top = max(1, int(n_cells.max()))
    ax.set_xlim(0, 1.6 * top)
    ax.set_xticks([])
    ax.spines["bottom"].set_visible(False)
    ax.set_xlabel("cells", fontsize=9)
    for y, n in enumerate(n_cells):
        ax.annotate(
            f"{n:,}",
            (n, y),
            xytext=(3, 0),
            textcoords="offset points",
            va="center",
            fontsize=7.5,
        )


def _stacked(ax: Axes, levels: Levels, table: pd.DataFrame) -> None:
    """Draw the shares of the levels in each code, with their letters where there is room."""
    share = table.div(table.sum(axis=1).clip(lower=1), axis=0)
    start = np.zeros(len(table))
    ax.set_xlim(0, 1)
    figure = figure_of(ax)
    if figure.get_layout_engine() is not None:
        figure.draw_without_rendering()  # sizes are only final once the layout was made
    inches = ax.get_window_extent().width / figure.dpi
    for level in table.columns:
        width = share[level].to_numpy(dtype=np.float64)
        color = levels.colors[level]
        bars: BarContainer = ax.barh(
            range(len(table)), width, left=start, height=0.78, color=color, edgecolor="white",
            linewidth=0.5,
        )  # fmt: skip
        for bar, part in zip(bars, width, strict=True):
            if part * inches > 0.13:
                ax.text(
                    bar.get_x() + part / 2,
                    bar.get_y() + bar.get_height() / 2,
                    levels.letters[level],
                    ha="center",
                    va="center_baseline",
                    fontsize=7,
                    color=text_color(color),
                )
        start = start + width
    ax.set_xlabel(f"share of the code's cells, by {levels.name}", fontsize=9)


def order_codes(levels: Levels, chosen: list[str]) -> list[str]:
    """Put codes of one majority beside each other, the most frequent level and code first."""
    majority, size = levels.majority(), levels.size
    rank = {level: i for i, level in enumerate(levels.table.columns)}
    place = {code: i for i, code in enumerate(levels.table.index)}
    return sorted(chosen, key=lambda c: (rank.get(majority[c], len(rank)), -size[c], place[c]))


def head(levels: Levels, chosen: list[str]) -> str:
    """Say how many codes and cells are shown, of how many."""
    size = levels.size
    total, n = int(size.sum()), len(size)
    codes = f"{n} code{'' if n == 1 else 's'}"
    if len(chosen) == n:
        return f"{codes}, {cells(total)}"
    share = float(size[chosen].sum()) / total
    return f"{len(chosen)} of {codes}, with {share:.0%} of {cells(total)}"
