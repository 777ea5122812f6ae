"""A knowledge graph as points and lines."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from cfm._arguments import checks_arguments
from cfm._fields import GRAPH_EDGES, GRAPH_NODES, KNOWLEDGE_GRAPH_KEY
from cfm.pl._checks import require_anndata
from cfm.pl._figure import figure_of, finish
from cfm.pl._knowledge_graph_drawing import draw_graph
from cfm.pl._stored import stored_table

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

    Nodes that are joined lie near each other; shape and colour say their kind, and size the number
    of edges drawn. Lines say the kind of an edge by their style, and its strength by their width;
    arrows go from sender to receiver and from drug to gene. Several edges of a kind between two
    nodes are one line, and of arrows the strongest three of each node are drawn. Up to 60 nodes all
    are named where there is room; of more the 40 with the most edges, codes first. Nodes without
    an edge are left out, also those whose neighbours do not fit.

    Parameters
    ----------
    adata
        Cells with the fields written by :func:`cfm.tl.knowledge_graph`.
    key
        Where they are stored (``key_added`` of that call).
    node
        Draw only this node and its neighbours, strongest first: an id such as ``"code:7"``, or a
        label that one node has.
    kinds
        Kinds of nodes to draw, such as ``["code", "gene"]``; all by default.
    edge_kinds
        Kinds of edges to draw, such as ``["communication"]``; all by default.
    max_nodes
        At most so many nodes: codes, then those with the strongest edges. The title says how many
        there are.
    ax
        Draw here instead of into a new figure.
    show
        Show the figure. ``False`` closes it; the returned Axes can still be saved.
    save
        File to write the figure to.

    Returns
    -------
    The Axes drawn on.

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
    require_anndata(adata)
    tool = "knowledge_graph"
    nodes = stored_table(adata, key, GRAPH_NODES, tool=tool, columns=_NODE_COLUMNS)
    nodes.index = nodes.index.astype(str)
    edges = stored_table(adata, key, GRAPH_EDGES, tool=tool, columns=_EDGE_COLUMNS)
    centre = None if node is None else _find(nodes, str(node))
    nodes = nodes[_chosen(nodes["kind"], kinds, "kinds") | (nodes.index == centre)]
    edges = edges[_chosen(edges["kind"], edge_kinds, "edge_kinds")]
    edges = edges[edges["source"].isin(nodes.index) & edges["target"].isin(nodes.index)]
    strength = _strength(nodes, edges, centre)
    candidates = nodes[(strength > 0) | (nodes.index == centre)]
    if len(candidates) < 2:
        what = "edge between the kinds asked for" if centre is None else f"edge at {centre}"
        raise ValueError(f"uns[{key!r}] has no {what}: there is nothing to draw.")
    first = (candidates["kind"] == _CODE) if centre is None else (candidates.index == centre)
    order = np.lexsort(
        (candidates.index.to_numpy(), -strength[candidates.index].to_numpy(), ~np.asarray(first))
    )
    shown = _that_meet(candidates.iloc[order], edges, max_nodes)
    edges = edges[edges["source"].isin(shown.index) & edges["target"].isin(shown.index)]
    of = f"{len(shown)} of {len(candidates)}" if len(shown) < len(candidates) else f"{len(shown)}"
    title = f"{of} nodes" if centre is None else f"{centre} and its neighbours: {of} nodes"
    owned = ax is None
    ax = draw_graph(shown, edges, centre=centre, title=title, ax=ax)
    finish(figure_of(ax), owned=owned, show=show, save=save)
    return ax


def _that_meet(candidates: pd.DataFrame, edges: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return the first ``n`` nodes that have an edge among each other."""
    while True:
        shown = candidates.iloc[:n]
        inside = edges[edges["source"].isin(shown.index) & edges["target"].isin(shown.index)]
        met = shown.index.isin(inside["source"]) | shown.index.isin(inside["target"])
        if met.all() or not met.any():
            return shown
        candidates = candidates.drop(index=shown.index[~met])


def _chosen(column: pd.Series, wanted: Sequence[str] | None, name: str) -> np.ndarray:
    """Say which rows are of the kinds that are asked for."""
    if wanted is None:
        return np.ones(len(column), dtype=bool)
    kinds = [wanted] if isinstance(wanted, str) else [str(kind) for kind in wanted]
    if not kinds:
        raise ValueError(f"{name} is an empty list; pass None for all kinds or name at least one.")
    known = column.drop_duplicates().tolist()
    for kind in kinds:
        if kind not in known:
            raise KeyError(f"{name}: there is no {kind!r} in the graph; it has {known}.")
    return column.isin(kinds).to_numpy()


def _strength(nodes: pd.DataFrame, edges: pd.DataFrame, centre: str | None) -> pd.Series:
    """Return what speaks for each node: the strength of its edges, or of that to the centre."""
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
