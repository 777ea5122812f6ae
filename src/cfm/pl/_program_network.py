"""Gene programs as discs of connected genes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.lines import Line2D
from matplotlib.patches import Circle
from matplotlib.transforms import Bbox

from cfm.pl._figure import figure_of, legend_below, new_figure
from cfm.pl._labels import label_points, shorten
from cfm.pl._palette import ARROWS, DIRECTION_STYLES, SIGNIFICANT

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Radius in inches of a disc with one gene per unit area, and of the smallest.
_RADIUS, _SMALLEST = 0.21, 0.62
#: Inches between discs, and above each for its name.
_BETWEEN, _HEAD = 0.5, 0.12
#: Inches of a bold character of a disc's name.
_CHAR = 0.085
#: Area of the lightest and heaviest node in square points.
_LIGHT, _HEAVY = 22.0, 130.0
#: Genes of a program that are named, if there is room.
_NAMED = 15
_DISC = "#F3F4F6"
#: Lines between programs beyond this many are a grey fog: the heaviest are drawn.
_CROSSING = 60
#: Lines of a gene that are drawn inside a program: all would fill its disc.
_PER_GENE = 3


def draw_network(
    programs: pd.DataFrame, genes: pd.DataFrame, edges: pd.DataFrame, *, title: str, ax: Axes | None
) -> Axes:
    """Draw the network of :func:`cfm.pl.gene_programs`; ``genes`` are in their final order."""
    members = {name: genes[genes["program"] == name] for name in programs.index}
    radii = [max(_SMALLEST, _RADIUS * np.sqrt(len(part))) for part in members.values()]
    titles = [_head(name, row) for name, row in programs.iterrows()]
    centers, width, height = _packed(radii, [_CHAR * len(text) for text in titles])
    places: dict[tuple[str, str], np.ndarray] = {}
    for (name, part), center, radius in zip(members.items(), centers, radii, strict=True):
        inside = edges[(edges["program_a"] == name) & (edges["program_b"] == name)]
        own = center + _disc_layout(part["gene"].tolist(), inside) * (radius - 0.14)
        places |= {(name, gene): xy for gene, xy in zip(part["gene"], own, strict=True)}

    if ax is None:
        ax = new_figure(max(width + 0.2, 3.6), height + 0.85).add_subplot()
    ax.set(xlim=(-0.05, width + 0.05), ylim=(height + 0.05, -0.05), aspect="equal", title=title)
    ax.title.set_fontsize(9)
    ax.set_xticks([])
    ax.set_yticks([])
    ax.spines[:].set_visible(False)
    discs = [Circle(tuple(xy), radius) for xy, radius in zip(centers, radii, strict=True)]
    ax.add_collection(
        PatchCollection(discs, facecolor=_DISC, edgecolor="#C9CED6", linewidth=0.8, zorder=0)
    )
    _draw_edges(ax, edges, places)
    points = np.array(list(places.values()))
    _draw_nodes(ax, genes, points)
    _key(ax, genes, edges, width)

    figure = figure_of(ax)
    figure.draw_without_rendering()  # places need the final layout
    inch = ax.transData.transform([[1, 0]])[0, 0] - ax.transData.transform([[0, 0]])[0, 0]
    scale = min(1.0, inch / figure.dpi)  # smaller than drawn for: in somebody's own Axes
    heads = [
        ax.text(
            x,
            y - radius - 0.03,
            text,
            ha="center",
            va="bottom",
            fontsize=max(4.0, 7.5 * scale),
            fontweight="bold",
        )
        for (x, y), radius, text in zip(centers, radii, titles, strict=True)
    ]
    for head, center, radius, part in zip(heads, centers, radii, members.values(), strict=True):
        reach = radius + _BETWEEN / 2
        corners = ax.transData.transform([center - reach, center + reach])
        label_points(
            ax,
            np.array([places[key] for key in part[["program", "gene"]].itertuples(index=False)]),
            [shorten(gene, 20) if i < _NAMED else "" for i, gene in enumerate(part["gene"])],
            fontsize=max(4.0, 6.5 * scale),
            radius=np.sqrt(_HEAVY) / 2.2 * scale,
            avoid=[head.get_window_extent()],
            frame=Bbox([corners.min(axis=0), corners.max(axis=0)]),
            halo=_DISC,
        )
    return ax


def _head(name: object, row: pd.Series) -> str:
    star = " *" if float(row["fdr"]) <= SIGNIFICANT else ""
    return f"{ARROWS.get(str(row['direction']), '')} {shorten(str(name), 20)} ({row['size']}){star}"


def _packed(radii: list[float], widths: list[float]) -> tuple[np.ndarray, float, float]:
    """Put discs and their names into rows, about one and a half times as wide as high.

    Parameters
    ----------
    radii, widths
        Of each disc and of its name, in inches.

    Returns
    -------
    Centres ``(n, 2)``, and the width and height taken, all in inches.
    """
    sides = [
        max(2 * radius + _BETWEEN, width + 0.1) for radius, width in zip(radii, widths, strict=True)
    ]
    room = max(5.6, np.sqrt(1.5 * sum(side * (side + _HEAD) for side in sides)), *sides)
    rows: list[list[int]] = [[]]
    for i, side in enumerate(sides):
        if rows[-1] and sum(sides[j] for j in rows[-1]) + side > room + 1e-9:
            rows.append([])
        rows[-1].append(i)
    width = max(sum(sides[j] for j in row) for row in rows)
    centers = np.zeros((len(radii), 2))
    top = 0.0
    for row in rows:
        left = (width - sum(sides[j] for j in row)) / 2 if len(rows) == 1 else 0.0
        tallest = max(sides[j] for j in row)
        for j in row:
            centers[j] = left + sides[j] / 2, top + _HEAD + tallest / 2
            left += sides[j]
        top += tallest + _HEAD
    return centers, width, top


def _disc_layout(genes: list[str], edges: pd.DataFrame) -> np.ndarray:
    """Place the genes of a program in the unit disc, connected ones near each other."""
    n = len(genes)
    if n == 1:
        return np.zeros((1, 2))
    graph: nx.Graph = nx.Graph()
    graph.add_nodes_from(genes)
    known = edges[edges["gene_a"].isin(graph) & edges["gene_b"].isin(graph)]
    graph.add_weighted_edges_from(
        known[["gene_a", "gene_b", "weight"]].itertuples(index=False, name=None)
    )
    found = nx.spring_layout(graph, k=1.8 / np.sqrt(n), iterations=150, seed=0)
    xy = np.array([found[gene] for gene in genes])
    xy -= xy.mean(axis=0)
    # springs crowd the middle: even out the distances from it, keep the angles
    order = np.argsort(np.argsort(np.hypot(*xy.T), kind="stable"), kind="stable")
    angle = np.arctan2(xy[:, 1], xy[:, 0])
    distance = np.sqrt((order + 0.5) / n) if n > 3 else np.full(n, 0.6)
    xy = distance[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return _pushed_apart(xy, 1.5 / np.sqrt(n))


def _pushed_apart(xy: np.ndarray, apart: float) -> np.ndarray:
    """Move points that are closer than ``apart`` away from each other, inside the unit disc."""
    for _ in range(80):
        step = xy[:, None] - xy[None]
        distance = np.hypot(step[..., 0], step[..., 1])
        np.fill_diagonal(distance, np.inf)
        short = np.clip(apart - distance, 0, None)
        if not short.any():
            break
        unit = step / np.maximum(distance, 1e-9)[..., None]
        xy = xy + 0.4 * (unit * np.where(np.isfinite(distance), short, 0)[..., None]).sum(axis=1)
        xy = xy / np.maximum(1, np.hypot(*xy.T))[:, None]
    return xy


def _draw_edges(ax: Axes, edges: pd.DataFrame, places: dict[tuple[str, str], np.ndarray]) -> None:
    columns = ("program_a", "gene_a", "program_b", "gene_b")
    names = [edges[name].astype(str).tolist() for name in columns]
    ends = [(places.get((p, a)), places.get((q, b))) for p, a, q, b in zip(*names, strict=True)]
    drawn = np.array([a is not None and b is not None for a, b in ends], dtype=bool)
    weight = edges["weight"].to_numpy(dtype=np.float64)
    crossing = (edges["program_a"] != edges["program_b"]).to_numpy(dtype=bool)
    heaviest = np.argsort(-weight, kind="stable")
    between = [i for i in heaviest if drawn[i] and crossing[i]][:_CROSSING]
    kept: Counter[tuple[str, str]] = Counter()
    inside = []
    for i in (i for i in heaviest if drawn[i] and not crossing[i]):
        pair = [(names[0][i], names[1][i]), (names[2][i], names[3][i])]
        if min(kept[end] for end in pair) < _PER_GENE:
            kept.update(pair)
            inside.append(i)
    for chosen, color, style in ((between, "#C4C9D1", (0, (2, 2))), (inside, "#8D95A1", "-")):
        if len(chosen) == 0:
            continue
        relative = weight[chosen] / max(float(weight[chosen].max()), 1e-12)
        ax.add_collection(
            LineCollection(
                [np.array(ends[i], dtype=np.float64) for i in chosen],
                linewidths=0.4 + 1.2 * relative,
                colors=color,
                linestyles=[style],
                zorder=1,
            ),
            autolim=False,
        )


def _draw_nodes(ax: Axes, genes: pd.DataFrame, points: np.ndarray) -> None:
    weight = genes["weight"].to_numpy(dtype=np.float64)
    heaviest = genes.groupby("program")["weight"].transform("max").to_numpy(dtype=np.float64)
    area = _LIGHT + (_HEAVY - _LIGHT) * weight / np.maximum(heaviest, 1e-12)
    for direction, sign in (("up", 1), ("down", -1)):
        own = genes["sign"].to_numpy() == sign
        style = DIRECTION_STYLES[direction]
        x, y = points[own].T
        ax.scatter(
            x,
            y,
            s=area[own],
            c=style.color,
            marker=style.marker,
            edgecolors="white",
            linewidths=0.6,
            zorder=2,
        )


def _key(ax: Axes, genes: pd.DataFrame, edges: pd.DataFrame, width: float) -> None:
    handles = [
        Line2D([], [], ls="", marker=style.marker, color=style.color, label=name)
        for name, style in DIRECTION_STYLES.items()
        if name != "unchanged" and (genes["sign"] == (1 if name == "up" else -1)).any()
    ]
    handles[-1].set_label(f"{handles[-1].get_label()} (size: weight in its program)")
    if (edges["program_a"] != edges["program_b"]).any():
        handles.append(Line2D([], [], ls=(0, (2, 2)), color="#9AA1AC", label="between programs"))
    handles.append(Line2D([], [], ls="", label=f"(n): genes, *: FDR ≤ {SIGNIFICANT:g}"))
    legend_below(ax, handles, drop=0.12, columns=4 if width > 6 else 2)
