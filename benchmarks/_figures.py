"""Figures of the benchmarks, drawn from the numbers that they wrote."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullFormatter, ScalarFormatter

#: Colour-blind safe: what is ours, all else, and further lines (Okabe and Ito 2008).
OURS, OTHER = "#D55E00", "#0072B2"
LINES = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00")
MARKERS = ("o", "s", "^", "D", "v", "p")
#: Beginnings of the names of what this package does.
_NAMES = (
    "cfm",
    "CellPulse",
    "BulkFormer",
    "Lingshu",
    "Count model",
    "lingshu",
    "PULSAR",
    "pulsar",
    "codes",
    "type of the code",
    "model:",
    "attention",
    "interaction",
    "combined",
    "X_",
    "draw",
)
_ROW, _MOST_ROWS = 0.26, 24


@dataclass(frozen=True)
class Dots:
    """A value for each method, best first, with its interval where there is one.

    Attributes
    ----------
    table, value
        Table of the results, and column of the values.
    labels
        Columns that name a row.
    facet
        Column whose values are drawn apart, as further dots of a row.
    where
        Values of columns that rows must have.
    title
        Of the panel.
    lower_is_better, log
        Direction of good, and kind of axis.
    """

    table: str
    value: str
    labels: tuple[str, ...]
    facet: str | None = None
    where: dict[str, Any] = field(default_factory=dict)
    title: str = ""
    lower_is_better: bool = False
    log: bool = False


@dataclass(frozen=True)
class Lines:
    """A value against a number, a line for each value of ``by``; else as :class:`Dots`."""

    table: str
    x: str
    value: str
    by: str
    title: str = ""
    log: bool = False
    log_x: bool = True


def draw(path: Path, panels: tuple[Dots | Lines, ...], target: Path) -> str | None:
    """Draw the figure of a benchmark.

    Parameters
    ----------
    path
        Its results.
    panels
        What to show; those whose table or column the results lack are left out.
    target
        PNG to write.

    Returns
    -------
    What it shows, for those who cannot see it; ``None`` if there is nothing to draw.
    """
    results = json.loads(path.read_text())
    found = [(p, t) for p in panels if (t := _table(results, p)) is not None]
    if not found:
        return None
    rows = [min(_MOST_ROWS, len(_by_method(p, t))) for p, t in found if isinstance(p, Dots)]
    height = max(2.6, 1.1 + _ROW * max(rows, default=0))
    figure, axes = plt.subplots(
        1, len(found), figsize=(4.6 * len(found), height), squeeze=False, layout="constrained"
    )
    said = []
    for ax, (panel, table) in zip(axes[0], found, strict=True):
        said.append(
            _dots(ax, panel, table) if isinstance(panel, Dots) else _lines(ax, panel, table)
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110, metadata={"Software": None})
    plt.close(figure)
    return "; ".join(said)


def _table(results: dict[str, Any], panel: Dots | Lines) -> pd.DataFrame | None:
    if not isinstance(results.get(panel.table), list):
        return None
    table = pd.DataFrame(results[panel.table])
    if panel.value not in table:
        return None
    table[panel.value] = pd.to_numeric(table[panel.value], errors="coerce")
    if isinstance(panel, Dots):
        for column, wanted in panel.where.items():
            table = table[table[column] == wanted]
    table = table[table[panel.value].notna()]
    return table if len(table) else None


def _by_method(panel: Dots, table: pd.DataFrame) -> pd.Series:
    """Return the mean value of each row of the panel, worst first."""
    names = table[list(panel.labels)].astype(str).agg(", ".join, axis=1)
    means = table[panel.value].groupby(names).mean()
    return means.sort_values(ascending=not panel.lower_is_better).iloc[-_MOST_ROWS:]


def _dots(ax: Axes, panel: Dots, table: pd.DataFrame) -> str:
    order = _by_method(panel, table)
    place = {name: i for i, name in enumerate(order.index)}
    names = table[list(panel.labels)].astype(str).agg(", ".join, axis=1)
    facets = [None] if panel.facet is None else list(dict.fromkeys(table[panel.facet]))
    for i, facet in enumerate(facets):
        chosen = table if facet is None else table[table[panel.facet] == facet]
        for row, name in zip(chosen.to_dict("records"), names[chosen.index], strict=True):
            if name not in place:
                continue
            color = OURS if name.startswith(_NAMES) else OTHER
            y = place[name]
            if pd.notna(row.get("low")) and pd.notna(row.get("high")):
                ax.plot([row["low"], row["high"]], [y, y], color=color, alpha=0.5, lw=1.5)
            marker = MARKERS[i % len(MARKERS)]
            ax.plot(row[panel.value], y, marker, color=color, ms=5, alpha=0.85)
    if panel.facet is not None:
        for i, facet in enumerate(facets[: len(MARKERS)]):
            ax.plot([], [], MARKERS[i], color="#444444", ms=5, ls="", label=str(facet)[:28])
        ax.legend(fontsize=6, loc="upper left", bbox_to_anchor=(0, -0.14), frameon=False)
    ax.set_yticks(range(len(order)), [_short(n) for n in order.index], fontsize=7)
    ax.grid(axis="x", color="#DDDDDD", lw=0.5)
    if panel.log:
        ax.set_xscale("log")
    arrow = "← better" if panel.lower_is_better else "better →"
    ax.set_xlabel(f"{panel.value} ({arrow})", fontsize=8)
    _finish(ax, panel.title)
    return f"{panel.title}: best {panel.value} {order.iloc[-1]:.3g} by {order.index[-1]}"


def _lines(ax: Axes, panel: Lines, table: pd.DataFrame) -> str:
    said = []
    for i, (name, part) in enumerate(table.groupby(panel.by, sort=False)):
        part = part.groupby(panel.x)[panel.value].mean().sort_index()
        label = f"{name} {panel.by}" if pd.api.types.is_number(name) else str(name)
        style = {"color": LINES[i % len(LINES)], "marker": MARKERS[i % len(MARKERS)], "ms": 4}
        ax.plot(part.index, part.to_numpy(), label=label, lw=1.2, **style)
        said.append(f"{label} {part.iloc[0]:.3g} to {part.iloc[-1]:.3g}")
    if panel.log or panel.log_x:
        ax.set_xscale("log")
        ticks = sorted(table[panel.x].unique())
        ax.xaxis.set_major_locator(FixedLocator(ticks[:: 1 + len(ticks) // 7]))
        ax.xaxis.set_major_formatter(ScalarFormatter() if max(ticks) < 1e5 else _powers)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_minor_formatter(NullFormatter())
    if panel.log:
        ax.set_yscale("log")
    else:
        ax.set_ylim(0, 1.08 * float(table[panel.value].max()))
    ax.set_xlabel(panel.x, fontsize=8)
    ax.set_ylabel(panel.value, fontsize=8)
    ax.grid(color="#DDDDDD", lw=0.5)
    ax.legend(fontsize=6, frameon=False)
    _finish(ax, panel.title)
    return f"{panel.title}, {panel.value} by {panel.x}: " + ", ".join(said)


def _powers(value: float, _: int) -> str:
    return f"$10^{{{math.log10(value):.3g}}}$"


def _finish(ax: Axes, title: str) -> None:
    ax.set_title(title, fontsize=9)
    ax.tick_params(axis="x", labelsize=7)
    ax.tick_params(axis="y", labelsize=7)
    ax.spines[["top", "right"]].set_visible(False)


def _short(name: str, most: int = 40) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
