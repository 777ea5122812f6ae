"""A knowledge graph as points and lines."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import pandas as pd

from cfm._arguments import checks_arguments
from cfm._fields import GRAPH_EDGES, GRAPH_NODES, KNOWLEDGE_GRAPH_KEY
from cfm.pl import _figure as fig

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from anndata import AnnData
    from matplotlib.axes import Axes

_NODE_COLUMNS = ("kind", "label", "size")
_EDGE_COLUMNS = ("source", "target", "kind", "strength", "directed")
#: Kind of the nodes that stay longest where not all fit.
_CODE = "code"


@checks_arguments(max_nodes=2)
@fig.documented
def knowledge_graph(
    adata: AnnData,
    *,
    key: str = KNOWLEDGE_GRAPH_KEY,
    node: str | None = None,
    kinds: Sequence[str] | None = None,
    edge_kinds: Sequence[str] | None = None,
    max_nodes: int = 60,
    ax: Axes | None = None,
    show: bool | None = None,
    save: str | Path | None = None,
) -> Axes:
    """Draw codes, genes and annotations, and what joins them.

    Nodes that are joined lie near each other; shape and colour show their kind, and size the number
    of edges drawn. The style of a line shows the kind of its edge, and the width its strength;
    arrows go from sender to receiver and from drug to gene. Several edges of a kind between two
    nodes are one line, and of arrows the strongest three of each node are drawn. Up to 60 nodes all
    are named where there is room; of more the 40 with the most edges, codes first. Nodes without
    an edge are left out, also those whose neighbours do not fit.

    Parameters
    ----------
    adata
        Cells with the fields written by :func:`cfm.tl.knowledge_graph`.
    %(key)s
    node
        Draw only this node and its neighbours, strongest first: an id such as ``"code:7"``, or a
        label that one node has.
    kinds
        Kinds of nodes to draw, such as ``["code", "gene"]``; all by default.
    edge_kinds
        Kinds of edges to draw, such as ``["communication"]``; all by default.
    max_nodes
        At most so many nodes: codes, then those with the strongest edges. The title gives how many
        there are.
    %(ax)s

    Returns
    -------
    %(axes)s

    Raises
    ------
    KeyError
        If :func:`cfm.tl.knowledge_graph` was not run, or a node or kind is not there.
    ValueError
        If ``max_nodes`` is below 2, a list is empty, several nodes have the label, or nothing is
        left to draw.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_communication()
    >>> cfm.tl.knowledge_graph(cells, model=None, codes="cell_type", annotations=["batch"])
    >>> ax = cfm.pl.knowledge_graph(cells, show=False)
    >>> ax.get_title()
    '55 nodes'
    """
    fig.require_anndata(adata)
    tool, where = "knowledge_graph", f"uns[{key!r}]"
    nodes = fig.stored_table(adata, key, GRAPH_NODES, _NODE_COLUMNS, tool=tool)
    nodes.index = nodes.index.astype(str)
    edges = fig.stored_table(adata, key, GRAPH_EDGES, _EDGE_COLUMNS, tool=tool)
    centre = None if node is None else _find(nodes, str(node))
    kept = fig.pick("kinds", kinds, nodes["kind"].unique(), where)
    nodes = nodes[nodes["kind"].isin(kept) | (nodes.index == centre)]
    kept = fig.pick("edge_kinds", edge_kinds, edges["kind"].unique(), where)
    edges = _between(nodes, edges[edges["kind"].isin(kept)])
    strength = _strength(nodes, edges, centre)
    candidates = nodes[(strength > 0) | (nodes.index == centre)]
    if len(candidates) < 2:
        what = "edge between these kinds" if centre is None else f"edge at {centre}"
        raise ValueError(f"{where} has no {what}: there is nothing to draw.")
    later = (candidates["kind"] != _CODE) if centre is None else (candidates.index != centre)
    order = np.lexsort((candidates.index, -strength[candidates.index], later))
    shown = _that_meet(candidates.iloc[order], edges, max_nodes)
    of = f"{len(shown)} of {len(candidates)}" if len(shown) < len(candidates) else f"{len(shown)}"
    title = f"{of} nodes" if centre is None else f"{centre} and its neighbours: {of} nodes"
    panel = _draw(shown, _between(shown, edges), centre, title, ax)
    return fig.finish(panel, ax, show=show, save=save)


def _between(nodes: pd.DataFrame, edges: pd.DataFrame) -> pd.DataFrame:
    return edges[edges["source"].isin(nodes.index) & edges["target"].isin(nodes.index)]


def _that_meet(candidates: pd.DataFrame, edges: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the first ``n`` nodes that have an edge among each other."""
    while True:
        shown = candidates.iloc[:n]
        met = shown.index.isin(_between(shown, edges)[["source", "target"]].to_numpy().ravel())
        if met.all() or not met.any():
            return shown
        candidates = candidates.drop(index=shown.index[~met])


def _strength(nodes: pd.DataFrame, edges: pd.DataFrame, centre: str | None) -> pd.Series:
    """Return the strength of the edges of each node, or of that to the centre."""
    if centre is not None:
        edges = edges[(edges["source"] == centre) | (edges["target"] == centre)]
    ends = pd.concat([edges.set_index(side)["strength"] for side in ("source", "target")])
    by_node = ends.groupby(level=0)
    found = by_node.sum() if centre is None else by_node.max()
    return found.reindex(nodes.index).fillna(0.0).astype(np.float64)


def _find(nodes: pd.DataFrame, node: str) -> str:
    """Return the id of a node that was named by its id or label."""
    if node in nodes.index:
        return node
    named = nodes.index[nodes["label"] == node].tolist()
    if len(named) == 1:
        return str(named[0])
    if named:
        raise ValueError(f"{node!r} is the label of {named}; pass one of these ids.")
    near = difflib.get_close_matches(node, [*nodes.index, *nodes["label"]], n=5)
    hint = f"near matches are {near}" if near else f"it has {len(nodes)} others"
    raise KeyError(f"The graph has no node {node!r}; {hint}.")


# --- Drawing ---------------------------------------------------------------------------------

#: Kinds that look the same in every graph.
_STYLES = {
    "code": fig.Style(fig.INK, "o"),
    "gene": fig.Style("#0072B2", "s"),
    "drug": fig.Style("#CC79A7", "*"),
}
_LINES = {
    "importance": ("#8D95A1", "-"),
    "relation": ("#0072B2", ":"),
    "communication": ("#D55E00", "-"),
    "enrichment": ("#009E73", "--"),
    "target": ("#CC79A7", "-."),
}
_OTHER_LINE = (fig.GREY, "-")
#: Up to so many nodes all are named; of more, so many.
_ALL_NAMED, _HUBS = 60, 40
#: Arrows of a node that are drawn: all of them between all codes are a thicket.
_ARROWS = 3
#: Area in square points of a node with one edge and of one with the most.
_SMALL, _LARGE = 26.0, 210.0


def _draw(
    nodes: pd.DataFrame, edges: pd.DataFrame, centre: str | None, title: str, ax: Axes | None
) -> Axes:
    edges = edges.sort_values("strength", ascending=False, kind="stable")
    edges = edges.drop_duplicates(["source", "target", "kind"])
    graph: nx.Graph = nx.Graph()
    graph.add_nodes_from(nodes.index)
    for a, b, strength in edges[["source", "target", "strength"]].itertuples(False, None):
        if a != b and not graph.has_edge(a, b):
            graph.add_edge(a, b, weight=0.3 + strength)
    places = _layout(graph, centre)
    points = np.array([places[name] for name in nodes.index])
    n = len(nodes)
    if ax is None:
        side = float(np.clip(4.2 + 0.34 * np.sqrt(n), 5.0, 11.0))
        ax = fig.new_figure(1.25 * side, side + 0.9).add_subplot()
    ax.set_title(title, fontsize=9)
    ax.set(xlim=(-1.12, 1.12), ylim=(-1.12, 1.12))
    fig.bare(ax)
    degree = np.array([graph.degree(name) for name in nodes.index], dtype=np.float64)
    # smaller where there are less than 0.55 square inches for each
    scale = float(np.clip(np.prod(fig.width_and_height(ax)) / n / 0.55, 0.18, 1.0))
    more = np.sqrt(np.maximum(degree - 1, 0) / max(degree.max() - 1, 1))
    area = scale * (_SMALL + (_LARGE - _SMALL) * more)
    drawn = _fewer_arrows(edges)
    _draw_edges(ax, drawn, places, dict(zip(nodes.index, area, strict=True)))
    styles = _styles(nodes["kind"].drop_duplicates().tolist())
    for kind, (color, marker) in styles.items():
        own = (nodes["kind"] == kind).to_numpy()
        size = area[own] * (1.8 if marker == "*" else 1.0)
        look = fig.Look(marker=marker, edgecolors="white", linewidths=0.7, zorder=3)
        fig.scatter(ax, points[own], s=size, c=color, **look)
    _explain(ax, nodes, edges, drawn, styles)
    fig.settle(ax)  # places of names need the final layout
    # the centre first, then codes, then most edges
    rank = np.where(nodes.index == centre, 0, np.where(nodes["kind"] == _CODE, 1, 2))
    order = np.lexsort((nodes.index, -degree, rank))
    _write_names(ax, nodes["label"].astype(str).tolist(), points, area, order, scale)
    return ax


def _write_names(
    ax: Axes,
    names: list[str],
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
        others = np.setdiff1d(np.arange(len(names)), group)
        fig.label_points(
            ax,
            points[np.concatenate([group, others])],
            [*(fig.shorten(names[i], 24) for i in group), *[""] * len(others)],
            fontsize=float(np.clip(7.5 * np.sqrt(scale), 5.0, 7.5)),
            radius=max(float(np.median(radius[group])), 2.5),
            avoid=[text.get_window_extent() for text in ax.texts],
            halo="white",
        )


def _fewer_arrows(edges: pd.DataFrame) -> pd.DataFrame:
    """Keep an arrow between nodes of a kind if it is among the strongest of either end."""
    counts: dict[tuple[str, str], int] = {}
    kept = []
    columns = edges[["kind", "source", "target", "directed"]]
    for kind, a, b, directed in columns.itertuples(index=False, name=None):
        ends = [(kind, a), (kind, b)]
        kept.append(not directed or min(counts.get(end, 0) for end in ends) < _ARROWS)
        for end in ends if kept[-1] else []:
            counts[end] = counts.get(end, 0) + 1
    return edges[kept]


def _styles(kinds: list[str]) -> dict[str, fig.Style]:
    """Give each kind its shape and colour, those of annotations in turn."""
    shapes = {style.marker for style in _STYLES.values()}
    others = [kind for kind in kinds if kind not in _STYLES]
    spare = fig.category_styles([str(i) for i in range(len(others) + 40)]).values()
    free = [style for style in spare if style.marker not in shapes]
    return {k: _STYLES[k] for k in kinds if k in _STYLES} | dict(zip(others, free, strict=False))


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
    if centre is not None:
        start[centre] = np.zeros(2)
    found = nx.spring_layout(
        held,
        pos=start,
        fixed=None if centre is None else [centre],
        k=2.2 / np.sqrt(n),
        iterations=200 if n <= 150 else 100,
        seed=0,
        method="force",
    )
    xy = np.array([found[name] for name in graph], dtype=np.float64)
    if centre is None:
        xy -= (xy.max(axis=0) + xy.min(axis=0)) / 2
    xy /= np.maximum(np.abs(xy).max(axis=0), 1e-9)
    if centre is None and n > 3:
        # half by rank along each axis: springs crowd some corners and leave others empty
        ranks = np.argsort(np.argsort(xy, axis=0, kind="stable"), axis=0, kind="stable")
        xy = 0.5 * xy + 0.5 * (2.0 * ranks / (n - 1) - 1.0)
    xy = fig.push_apart(xy, 1.35 / np.sqrt(n), lambda xy: np.clip(xy, -1.0, 1.0))
    return dict(zip(graph, xy, strict=True))


def _draw_edges(
    ax: Axes, edges: pd.DataFrame, places: dict[str, np.ndarray], area: dict[str, float]
) -> None:
    """Draw lines, and arrows that bend, so that there and back are two."""
    thin = float(np.clip(60.0 / len(places), 0.35, 1.0))
    for kind, part in edges.groupby("kind", sort=False):
        color, line = _LINES.get(str(kind), _OTHER_LINE)
        directed = bool(part["directed"].any())
        graph: nx.Graph = nx.DiGraph() if directed else nx.Graph()
        graph.add_nodes_from(places)
        pairs = list(zip(part["source"], part["target"], strict=True))
        graph.add_edges_from(pairs)
        look: dict[str, Any] = {"edge_color": color, "style": line, "alpha": 0.8}
        if directed:
            sizes = [area[name] for name in places]
            look |= {"arrowstyle": "-|>", "arrowsize": 4.0 + 4.0 * thin, "node_size": sizes}
            look |= {"connectionstyle": "arc3,rad=0.18"}
        width = ((0.4 + 1.3 * part["strength"].to_numpy(dtype=np.float64)) * thin).tolist()
        lines = nx.draw_networkx_edges(
            graph, places, pairs, width, ax=ax, arrows=directed, hide_ticks=False, **look
        )
        for drawn in lines if directed else [lines]:
            drawn.set_zorder(2 if directed else 1)


def _explain(
    ax: Axes,
    nodes: pd.DataFrame,
    edges: pd.DataFrame,
    drawn: pd.DataFrame,
    styles: dict[str, fig.Style],
) -> None:
    """Draw the legend of shapes and lines; of lines that are not all drawn, with how many."""
    n_lines, n_drawn = edges["kind"].value_counts(), drawn["kind"].value_counts()
    counts = nodes["kind"].value_counts()
    handles = [fig.mark(f"{kind} ({counts[kind]})", *style) for kind, style in styles.items()]
    directed = set(edges.loc[edges["directed"].astype(bool), "kind"])
    for kind in edges["kind"].drop_duplicates():
        color, line = _LINES.get(kind, _OTHER_LINE)
        all_drawn = n_drawn[kind] == n_lines[kind]
        text = kind if all_drawn else f"{kind} ({n_drawn[kind]} of {n_lines[kind]})"
        handles.append(fig.mark(text, color, ">" if kind in directed else "", line, markersize=4))
    fig.legend_below(ax, handles, drop=0.08, columns=5, handle=2.4)
