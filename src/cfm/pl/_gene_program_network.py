"""Gene programs as discs of connected genes."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import networkx as nx
import numpy as np
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.patches import Circle
from matplotlib.transforms import Bbox

from cfm.pl import _figure as fig

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
_CROSSING_STYLE, _INSIDE_STYLE = ("#C4C9D1", (0, (2, 2))), ("#8D95A1", "-")


def draw_network(
    programs: pd.DataFrame,
    genes: pd.DataFrame,
    edges: pd.DataFrame,
    title: str,
    ax: Axes | None,
) -> Axes:
    """Draw the network of :func:`cfm.pl.gene_programs`; ``genes`` are in their final order."""
    members = {name: genes[genes["program"] == name] for name in programs.index}
    radii = [max(_SMALLEST, _RADIUS * np.sqrt(len(part))) for part in members.values()]
    heads = [_head(name, row) for name, row in programs.iterrows()]
    centers, width, height = _packed(radii, [_CHAR * len(text) for text in heads])
    places: dict[tuple[str, str], np.ndarray] = {}
    for (name, part), center, radius in zip(members.items(), centers, radii, strict=True):
        inside = edges[(edges["program_a"] == name) & (edges["program_b"] == name)]
        own = center + _disc_layout(part["gene"].tolist(), inside) * (radius - 0.14)
        places |= {(name, gene): xy for gene, xy in zip(part["gene"], own, strict=True)}

    if ax is None:
        ax = fig.new_figure(max(width + 0.2, 3.6), height + 0.85).add_subplot()
    ax.set(xlim=(-0.05, width + 0.05), ylim=(height + 0.05, -0.05), aspect="equal")
    ax.set_title(title, fontsize=9)
    fig.bare(ax)
    discs = [Circle(tuple(xy), radius) for xy, radius in zip(centers, radii, strict=True)]
    look = fig.Look(facecolor=_DISC, edgecolor="#C9CED6", linewidth=0.8, zorder=0)
    ax.add_collection(PatchCollection(discs, **look))
    _draw_edges(ax, edges, places)
    _draw_nodes(ax, genes, np.array(list(places.values())))
    _explain(ax, genes, edges, width)
    fig.settle(ax)  # places of names need the final layout
    inch = ax.transData.transform([[1, 0]])[0, 0] - ax.transData.transform([[0, 0]])[0, 0]
    scale = min(1.0, inch / fig.figure_of(ax).dpi)  # smaller than drawn for: in somebody's own Axes
    size = max(4.0, 7.5 * scale)
    style = fig.Look(ha="center", va="bottom", fontsize=size, fontweight="bold")
    texts = [
        ax.text(x, y - radius - 0.03, text, **style)
        for (x, y), radius, text in zip(centers, radii, heads, strict=True)
    ]
    for text, center, radius, part in zip(texts, centers, radii, members.values(), strict=True):
        reach = radius + _BETWEEN / 2
        corners = ax.transData.transform([center - reach, center + reach])
        fig.label_points(
            ax,
            np.array([places[key] for key in part[["program", "gene"]].itertuples(index=False)]),
            [fig.shorten(gene, 20) if i < _NAMED else "" for i, gene in enumerate(part["gene"])],
            fontsize=max(4.0, 6.5 * scale),
            radius=np.sqrt(_HEAVY) / 2.2 * scale,
            avoid=[text.get_window_extent()],
            frame=Bbox([corners.min(axis=0), corners.max(axis=0)]),
            halo=_DISC,
        )
    return ax


def _head(name: object, row: pd.Series) -> str:
    star = " *" if float(row["fdr"]) <= fig.SIGNIFICANT else ""
    return (
        f"{fig.ARROWS.get(str(row['direction']), '')} {fig.shorten(name, 20)} ({row['size']}){star}"
    )


def _packed(radii: list[float], widths: list[float]) -> tuple[np.ndarray, float, float]:
    """Put discs and their names into rows, about one and a half times as wide as high.

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
    weighted = known[["gene_a", "gene_b", "weight"]].itertuples(index=False, name=None)
    graph.add_weighted_edges_from(weighted)
    found = nx.spring_layout(graph, k=1.8 / np.sqrt(n), iterations=150, seed=0)
    xy = np.array([found[gene] for gene in genes])
    xy -= xy.mean(axis=0)
    # springs crowd the middle: even out the distances from it, keep the angles
    order = np.argsort(np.argsort(np.hypot(*xy.T), kind="stable"), kind="stable")
    angle = np.arctan2(xy[:, 1], xy[:, 0])
    distance = np.sqrt((order + 0.5) / n) if n > 3 else np.full(n, 0.6)
    xy = distance[:, None] * np.column_stack([np.cos(angle), np.sin(angle)])
    return fig.push_apart(
        xy, 1.5 / np.sqrt(n), lambda xy: xy / np.maximum(1, np.hypot(*xy.T))[:, None]
    )


def _draw_edges(ax: Axes, edges: pd.DataFrame, places: dict[tuple[str, str], np.ndarray]) -> None:
    edges = edges.sort_values("weight", ascending=False, kind="stable")
    between: list[tuple[float, list[np.ndarray]]] = []
    inside: list[tuple[float, list[np.ndarray]]] = []
    drawn: Counter[tuple[str, str]] = Counter()
    columns = edges[["program_a", "gene_a", "program_b", "gene_b", "weight"]]
    for p, a, q, b, weight in columns.itertuples(index=False, name=None):
        ends = [(p, a), (q, b)]
        if not all(end in places for end in ends):
            continue
        line = (weight, [places[end] for end in ends])
        if p != q:
            between.append(line)
        elif min(drawn[end] for end in ends) < _PER_GENE:
            drawn.update(ends)
            inside.append(line)
    kinds = ((between[:_CROSSING], _CROSSING_STYLE), (inside, _INSIDE_STYLE))
    for lines, (color, style) in kinds:
        if lines:
            relative = np.array([weight for weight, _ in lines]) / max(lines[0][0], 1e-12)
            look = fig.Look(linewidths=0.4 + 1.2 * relative, colors=color, linestyles=[style])
            drawn_ = LineCollection([np.array(ends) for _, ends in lines], zorder=1, **look)
            ax.add_collection(drawn_, autolim=False)


def _draw_nodes(ax: Axes, genes: pd.DataFrame, points: np.ndarray) -> None:
    heaviest = genes.groupby("program")["weight"].transform("max").clip(lower=1e-12)
    area = (_LIGHT + (_HEAVY - _LIGHT) * genes["weight"] / heaviest).to_numpy()
    for direction, sign in (("up", 1), ("down", -1)):
        own = genes["sign"].to_numpy() == sign
        color, marker = fig.DIRECTION_STYLES[direction]
        look = fig.Look(marker=marker, edgecolors="white", linewidths=0.6, zorder=2)
        fig.scatter(ax, points[own], s=area[own], c=color, **look)


def _explain(ax: Axes, genes: pd.DataFrame, edges: pd.DataFrame, width: float) -> None:
    signs = {"up": 1, "down": -1}
    handles = [
        fig.mark(name, *fig.DIRECTION_STYLES[name])
        for name, sign in signs.items()
        if (genes["sign"] == sign).any()
    ]
    handles[-1].set_label(f"{handles[-1].get_label()} (size: weight in its program)")
    if (edges["program_a"] != edges["program_b"]).any():
        handles.append(fig.mark("between programs", "#9AA1AC", line=(0, (2, 2))))
    handles.append(fig.mark(f"(n): genes, *: {fig.UP_TO}"))
    fig.legend_below(ax, handles, drop=0.12, columns=4 if width > 6 else 2)
