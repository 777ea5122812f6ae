"""Points, lines and names of a knowledge graph."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
from matplotlib.collections import LineCollection
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch

from cfm.pl._figure import figure_of, legend_below, new_figure
from cfm.pl._labels import label_points, shorten
from cfm.pl._palette import Style, category_styles

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes

#: Kinds that look the same in every graph.
_STYLES = {
    "code": Style("#222222", "o"),
    "gene": Style("#0072B2", "s"),
    "drug": Style("#CC79A7", "*"),
}
_LINES: dict[str, tuple[str, Any]] = {
    "importance": ("#8D95A1", "-"),
    "relation": ("#0072B2", (0, (1, 1.5))),
    "communication": ("#D55E00", "-"),
    "enrichment": ("#009E73", (0, (4, 2))),
    "target": ("#CC79A7", (0, (5, 1.5, 1, 1.5))),
}
_OTHER_LINE: tuple[str, Any] = ("#8A8A8A", "-")
#: Up to so many nodes all are named; of more, so many.
_ALL_NAMED, _HUBS = 60, 40
#: Arrows of a node that are drawn: all of them between all codes are a thicket.
_ARROWS = 3
#: Area in square points of a node with one edge and of one with the most.
_SMALL, _LARGE = 26.0, 210.0


def draw_graph(
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    *,
    centre: str | None,
    title: str,
    ax: Axes | None,
) -> Axes:
    """Draw the graph of :func:`cfm.pl.knowledge_graph`."""
    edges = edges.sort_values("strength", ascending=False, kind="stable")
    edges = edges.drop_duplicates(["source", "target", "kind"])
    graph: nx.Graph = nx.Graph()
    graph.add_nodes_from(nodes.index)
    for a, b, strength in edges[["source", "target", "strength"]].itertuples(
        index=False, name=None
    ):
        if a != b and not graph.has_edge(a, b):
            graph.add_edge(a, b, weight=0.3 + strength)
    places = _layout(graph, centre)
    points = np.array([places[name] for name in nodes.index])

    if ax is None:
        side = float(np.clip(4.2 + 0.34 * np.sqrt(len(nodes)), 5.0, 11.0))
        ax = new_figure(1.25 * side, side + 0.9).add_subplot()
    ax.set_title(title, fontsize=9)
    ax.set(xlim=(-1.12, 1.12), ylim=(-1.12, 1.12), xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    degree = np.array([graph.degree(name) for name in nodes.index], dtype=np.float64)
    scale = _scale(ax, len(nodes))
    area = _SMALL + (_LARGE - _SMALL) * np.sqrt(
        np.maximum(degree - 1, 0) / max(degree.max() - 1, 1)
    )
    area *= scale
    drawn = _fewer_arrows(edges)
    _draw_edges(ax, drawn, places, dict(zip(nodes.index, area, strict=True)), len(nodes))
    styles = _styles(nodes["kind"].drop_duplicates().tolist())
    for kind, style in styles.items():
        own = (nodes["kind"] == kind).to_numpy()
        x, y = points[own].T
        ax.scatter(
            x,
            y,
            s=area[own] * (1.8 if style.marker == "*" else 1.0),
            c=style.color,
            marker=style.marker,
            edgecolors="white",
            linewidths=0.7,
            zorder=3,
        )
    _key(ax, nodes, edges, drawn, styles)
    figure_of(ax).draw_without_rendering()  # places of names need the final layout
    _write_names(ax, nodes, points, area, _by_importance(nodes, degree, centre), scale)
    return ax


def _write_names(
    ax: Axes,
    nodes: pd.DataFrame,
    points: np.ndarray,
    area: np.ndarray,
    order: np.ndarray,
    scale: float,
) -> None:
    """Write the names of nodes beside them, those of large nodes first and farther off."""
    named = order[: len(order) if len(order) <= _ALL_NAMED else _HUBS]
    radius = np.sqrt(area) / 2.0
    large = radius[named] > 1.5 * np.median(radius)
    for group in (named[large], named[~large]):
        if not len(group):
            continue
        others = np.setdiff1d(np.arange(len(nodes)), group)
        labels = [shorten(str(nodes["label"].iloc[i]), 24) for i in group]
        label_points(
            ax,
            points[np.concatenate([group, others])],
            [*labels, *[""] * len(others)],
            fontsize=float(np.clip(7.5 * np.sqrt(scale), 5.0, 7.5)),
            radius=max(float(np.median(radius[group])), 2.5),
            avoid=[text.get_window_extent() for text in ax.texts],
            halo="white",
        )


def _fewer_arrows(edges: pd.DataFrame) -> pd.DataFrame:
    """Keep an arrow between nodes of a kind if it is among the strongest of either end."""
    counts: dict[tuple[str, str], int] = {}
    kept = []
    for kind, a, b, directed in edges[["kind", "source", "target", "directed"]].itertuples(
        index=False, name=None
    ):
        ends = [(kind, a), (kind, b)]
        stays = not directed or min(counts.get(end, 0) for end in ends) < _ARROWS
        kept.append(stays)
        for end in ends if stays else []:
            counts[end] = counts.get(end, 0) + 1
    return edges[kept]


def _scale(ax: Axes, n: int) -> float:
    """Return how large nodes are, from 1 where there is much room for each."""
    box = ax.get_position()
    width, height = figure_of(ax).get_size_inches()
    room = box.width * width * box.height * height / n  # square inches of a node
    return float(np.clip(room / 0.55, 0.18, 1.0))


def _by_importance(nodes: pd.DataFrame, degree: np.ndarray, centre: str | None) -> np.ndarray:
    """Return node numbers in the order in which they are named: codes, then most edges."""
    first = np.where(nodes.index == centre, 0, np.where(nodes["kind"] == "code", 1, 2))
    return np.lexsort((nodes.index.to_numpy(), -degree, first))


def _styles(kinds: list[str]) -> dict[str, Style]:
    """Give each kind its shape and colour, those of annotations in turn."""
    taken = {(s.color, s.marker) for s in _STYLES.values()}
    shapes = {s.marker for s in _STYLES.values()}
    others = [kind for kind in kinds if kind not in _STYLES]
    spare = [
        style
        for style in category_styles([str(i) for i in range(len(others) + 40)]).values()
        if (style.color, style.marker) not in taken and style.marker not in shapes
    ]
    return {k: _STYLES[k] for k in kinds if k in _STYLES} | dict(zip(others, spare, strict=False))


def _layout(graph: nx.Graph, centre: str | None) -> dict[str, np.ndarray]:
    """Place nodes in the square from -1 to 1, joined ones near each other."""
    n = len(graph)
    held = graph.copy()
    hubs = [
        max(part, key=lambda name: (graph.degree(name), name))
        for part in sorted(nx.connected_components(graph), key=lambda p: (-len(p), min(p)))
    ]
    for hub in hubs[1:]:  # else the parts fly apart
        held.add_edge(hubs[0], hub, weight=0.15)
    # Circle by name to start with: the same graph is always drawn the same way.
    start = nx.circular_layout(held)
    fixed = None if centre is None else [centre]
    if centre is not None:
        start[centre] = np.zeros(2)
    found = nx.spring_layout(
        held,
        pos=start,
        fixed=fixed,
        k=2.2 / np.sqrt(n),
        iterations=200 if n <= 150 else 100,
        seed=0,
        method="force",
    )
    names = list(graph)
    xy = np.array([found[name] for name in names], dtype=np.float64)
    if centre is None:
        xy -= (xy.max(axis=0) + xy.min(axis=0)) / 2
    xy /= np.maximum(np.abs(xy).max(axis=0), 1e-9)
    if centre is None and n > 3:
        xy = 0.5 * xy + 0.5 * _evened(xy)
    xy = _pushed_apart(xy, 1.35 / np.sqrt(n))
    return dict(zip(names, xy, strict=True))


def _evened(xy: np.ndarray) -> np.ndarray:
    """Return places by rank along each axis: springs crowd some corners and leave others empty."""
    ranks = np.argsort(np.argsort(xy, axis=0, kind="stable"), axis=0, kind="stable")
    return 2.0 * ranks / (len(xy) - 1) - 1.0


def _pushed_apart(xy: np.ndarray, apart: float) -> np.ndarray:
    """Move points that are closer than ``apart`` away from each other, inside the square."""
    for _ in range(60):
        step = xy[:, None] - xy[None]
        distance = np.hypot(step[..., 0], step[..., 1])
        np.fill_diagonal(distance, np.inf)
        short = np.clip(apart - distance, 0, None)
        if not short.any():
            break
        unit = step / np.maximum(distance, 1e-9)[..., None]
        xy = xy + 0.4 * (unit * np.where(np.isfinite(distance), short, 0)[..., None]).sum(axis=1)
        xy = np.clip(xy, -1.0, 1.0)
    return xy


def _draw_edges(
    ax: Axes,
    edges: pd.DataFrame,
    places: dict[str, np.ndarray],
    area: dict[str, float],
    n_nodes: int,
) -> None:
    thin = float(np.clip(60.0 / n_nodes, 0.35, 1.0))
    for kind, part in edges.groupby("kind", sort=False):
        color, line = _LINES.get(str(kind), _OTHER_LINE)
        widths = (0.4 + 1.3 * part["strength"].to_numpy(dtype=np.float64)) * thin
        ends = list(zip(part["source"], part["target"], strict=True))
        if not part["directed"].any():
            ax.add_collection(
                LineCollection(
                    [np.array([places[a], places[b]]) for a, b in ends],
                    linewidths=widths,
                    colors=color,
                    linestyles=[line],
                    alpha=0.75,
                    zorder=1,
                ),
                autolim=False,
            )
            continue
        for (a, b), width in zip(ends, widths, strict=True):
            _draw_arrow(ax, places, area, a, b, color=color, line=line, width=width, thin=thin)


def _draw_arrow(
    ax: Axes,
    places: dict[str, np.ndarray],
    area: dict[str, float],
    a: str,
    b: str,
    *,
    color: str,
    line: Any,
    width: float,
    thin: float,
) -> None:
    """Draw an arrow that bends, so that there and back are two; a loop above a node to itself."""
    radius = np.sqrt(area[b]) / 2.0 + 1.0
    start, end, bend = places[a], places[b], "arc3,rad=0.18"
    if a == b:
        shift = np.array([0.035, 0.0]) * np.sqrt(thin)
        start, end, bend = places[a] - shift, places[a] + shift, "arc3,rad=-1.6"
        radius = 1.0
    ax.add_patch(
        FancyArrowPatch(
            tuple(start),
            tuple(end),
            connectionstyle=bend,
            arrowstyle="-|>",
            mutation_scale=4.0 + 4.0 * thin,
            shrinkA=np.sqrt(area[a]) / 2.0 if a != b else 0.0,
            shrinkB=radius,
            linewidth=width,
            linestyle=line,
            color=color,
            alpha=0.8,
            zorder=2,
            joinstyle="miter",
        )
    )


def _key(
    ax: Axes,
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    drawn: pd.DataFrame,
    styles: dict[str, Style],
) -> None:
    """Say what shapes and lines are; of lines that are not all drawn, how many."""
    n_lines, n_drawn = edges["kind"].value_counts(), drawn["kind"].value_counts()
    counts = nodes["kind"].value_counts()
    handles: list[Line2D] = [
        Line2D(
            [], [], ls="", marker=style.marker, color=style.color, label=f"{kind} ({counts[kind]})"
        )
        for kind, style in styles.items()
    ]
    directed = set(edges.loc[edges["directed"].astype(bool), "kind"])
    for kind in edges["kind"].drop_duplicates():
        color, line = _LINES.get(kind, _OTHER_LINE)
        handles.append(
            Line2D(
                [],
                [],
                color=color,
                ls=line,
                marker=">" if kind in directed else "",
                markersize=4,
                label=f"{kind} ({n_drawn[kind]} of {n_lines[kind]})"
                if n_drawn[kind] < n_lines[kind]
                else kind,
            )
        )
    legend_below(ax, handles, drop=0.08, columns=5, handle=2.4)
