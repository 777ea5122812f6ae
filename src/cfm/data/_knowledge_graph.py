"""A graph of two tables, nodes and edges, and queries of it."""

from __future__ import annotations

import difflib
import itertools
import os
import re
from typing import TYPE_CHECKING, Any

import networkx as nx
import numpy as np
import pandas as pd

from cfm._arguments import checks_arguments

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

#: What a table of nodes and one of edges has at least.
NODE_COLUMNS = ("kind", "label")
EDGE_COLUMNS = ("source", "target", "kind", "weight", "strength", "directed")
#: Characters that XML cannot hold.
_NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


class KnowledgeGraph:
    """Nodes of several kinds and the edges between them.

    Parameters
    ----------
    nodes
        Index: unique ids such as ``"code:7"``, ``"gene:STAT1"`` or ``"cell_type:B cells"``; at
        least the columns ``kind`` and ``label``.
    edges
        A row per edge: ``source``, ``target`` (ids), ``kind``, ``weight`` (in the units of its
        kind), ``strength`` (above 0, at most 1, comparable between kinds) and ``directed``
        (bool). Several edges may join the same two nodes.

    Attributes
    ----------
    nodes
        DataFrame of the nodes.
    edges
        DataFrame of the edges.

    Raises
    ------
    ValueError
        If a column is missing, ids are not unique, an edge ends at an unknown node, or a strength
        is out of range.

    See Also
    --------
    cfm.get.knowledge_graph : reads one out of an AnnData.

    Examples
    --------
    >>> import pandas as pd
    >>> from cfm.data import KnowledgeGraph
    >>> nodes = pd.DataFrame(
    ...     {"kind": ["code", "gene", "code"], "label": ["1", "MX1", "2"]},
    ...     index=["code:1", "gene:MX1", "code:2"],
    ... )
    >>> edges = pd.DataFrame(
    ...     {
    ...         "source": ["code:1", "code:2"],
    ...         "target": ["gene:MX1", "gene:MX1"],
    ...         "kind": "importance",
    ...         "weight": [3.0, 1.0],
    ...         "strength": [1.0, 0.5],
    ...         "directed": False,
    ...     }
    ... )
    >>> graph = KnowledgeGraph(nodes, edges)
    >>> graph.query("MX1").index.tolist()
    ['code:1', 'code:2']
    >>> graph.shortest_path("code:1", "code:2")["length"].tolist()
    [1.0, 2.0]
    """

    def __init__(self, nodes: pd.DataFrame, edges: pd.DataFrame) -> None:
        for what, table, needed in (
            ("nodes", nodes, NODE_COLUMNS),
            ("edges", edges, EDGE_COLUMNS),
        ):
            missing = [name for name in needed if name not in table]
            if missing:
                raise ValueError(
                    f"The table of {what} has no column {', '.join(missing)}; it has "
                    f"{table.columns.tolist()}."
                )
        self.nodes = _plain(nodes)
        self.nodes.index = self.nodes.index.astype(str)
        self.edges = _plain(edges)
        if not self.nodes.index.is_unique:
            twice = self.nodes.index[self.nodes.index.duplicated()].unique()[:5].tolist()
            raise ValueError(f"Nodes need unique ids; found twice: {twice}.")
        ends = pd.Index(pd.unique(self.edges[["source", "target"]].to_numpy().ravel()))
        unknown = ends[~ends.isin(self.nodes.index)]
        if len(unknown):
            raise ValueError(f"Edges end at {unknown[:5].tolist()}, which are no nodes.")
        strength = self.edges["strength"].to_numpy(dtype=np.float64)
        if not ((strength > 0) & (strength <= 1)).all():
            raise ValueError("Every edge needs a strength above 0 and of at most 1.")

    def __repr__(self) -> str:
        what = []
        for name, table in (("nodes", self.nodes), ("edges", self.edges)):
            kinds = ", ".join(f"{n} {kind}" for kind, n in table["kind"].value_counts().items())
            what.append(f"{len(table)} {name}" + (f" ({kinds})" if kinds else ""))
        return f"KnowledgeGraph with {' and '.join(what)}"

    def to_networkx(self) -> nx.MultiDiGraph:
        """Return the graph for networkx.

        Returns
        -------
        networkx.MultiDiGraph
            With the columns of the tables as attributes of nodes and edges, plain text, numbers
            and booleans. What is missing (``NaN`` or ``""``) is left out. An edge without a
            direction is there once, from ``source`` to ``target``, with ``directed`` false. Its
            key is its row in the table.
        """
        graph = nx.MultiDiGraph()
        for name, row in zip(self.nodes.index, _rows(self.nodes), strict=True):
            graph.add_node(_NOT_XML.sub("?", name), **row)
        for key, row in enumerate(_rows(self.edges)):
            graph.add_edge(row.pop("source"), row.pop("target"), key=key, **row)
        return graph

    def write_graphml(self, path: str | Path) -> None:
        """Write the graph as GraphML, for Cytoscape, Gephi or :func:`networkx.read_graphml`.

        Parameters
        ----------
        path
            File to write. Characters that XML does not allow become ``?``.

        Raises
        ------
        TypeError
            If it is no file name.
        """
        if not isinstance(path, str | os.PathLike):
            raise TypeError(f"path={path!r} is no file name; pass one, such as 'graph.graphml'.")
        nx.write_graphml(self.to_networkx(), os.fspath(path), named_key_ids=True)

    @checks_arguments()
    def query(
        self, node: str, k: int = 10, *, kind: str | None = None, edge_kind: str | None = None
    ) -> pd.DataFrame:
        """Return the strongest neighbours of a node.

        Parameters
        ----------
        node
            Id of a node, or its label where only one node has that.
        k
            Number of neighbours at most.
        kind
            Only neighbours of this kind, such as ``"gene"``.
        edge_kind
            Only edges of this kind, such as ``"communication"``.

        Returns
        -------
        pandas.DataFrame
            A row per neighbour, strongest first, ties by id; index: its id. ``kind`` (of the
            neighbour), and of the strongest edge to it ``edge`` (its kind), ``direction``
            (``"out"``, ``"in"`` or ``"both"``), ``weight``, ``strength`` and ``evidence``;
            ``n_edges`` (int64) that join them.

        Raises
        ------
        KeyError
            If there is no such node or kind.
        ValueError
            If ``k`` is below 1, or several nodes have the label.
        """
        name = self._find(node)
        self._check_kinds(self.nodes, None if kind is None else [kind], "nodes")
        self._check_kinds(self.edges, None if edge_kind is None else [edge_kind], "edges")
        edges = self.edges[(self.edges["source"] == name) | (self.edges["target"] == name)]
        if edge_kind is not None:
            edges = edges[edges["kind"] == edge_kind]
        out = (edges["source"] == name).to_numpy()
        table = self._described(edges, out)
        table.index = pd.Index(np.where(out, edges["target"], edges["source"]), name="neighbour")
        table.insert(0, "kind", self.nodes["kind"].reindex(table.index))
        if kind is not None:
            table = table[table["kind"] == kind]
        table["n_edges"] = table.groupby("neighbour")["edge"].transform("size").astype(np.int64)
        table = table.sort_values(
            ["strength", "weight", "neighbour"], ascending=[False, False, True], kind="stable"
        )
        evidence = table.pop("evidence")
        return table.assign(evidence=evidence)[~table.index.duplicated()].head(k)

    def shortest_path(
        self, start: str, end: str, *, edge_kinds: Iterable[str] | None = None
    ) -> pd.DataFrame:
        """Return the path between two nodes that explains their relation best.

        An edge is as long as 1 / ``strength``: the strongest of its kind has length 1. Edges may be
        walked against their direction.

        Parameters
        ----------
        start, end
            Ids of nodes, or labels that only one node has.
        edge_kinds
            Kinds of edges to walk along; all by default.

        Returns
        -------
        pandas.DataFrame
            A row per step: ``source``, ``target`` (in the order of the path), ``edge`` (its kind),
            ``direction`` (``"out"``: as stored, ``"in"``: against it, or ``"both"``), ``weight``,
            ``strength``, ``length`` and ``evidence``. Without rows if no path leads there.

        Raises
        ------
        KeyError
            If there is no such node or kind.
        ValueError
            If several nodes have the label.
        """
        first, last = self._find(start), self._find(end)
        kinds = None if edge_kinds is None else list(edge_kinds)
        self._check_kinds(self.edges, kinds, "edges")
        edges = self.edges if kinds is None else self.edges[self.edges["kind"].isin(kinds)]
        # The strongest edge of two nodes is the one to walk along; ties by the names.
        edges = edges.sort_values(
            ["strength", "weight", "source", "target"],
            ascending=[False, False, True, True],
            kind="stable",
        )
        graph = nx.Graph()
        graph.add_nodes_from(self.nodes.index)
        ends = edges[["source", "target", "strength"]].itertuples(index=False, name=None)
        for row, (a, b, strength) in enumerate(ends):
            if not graph.has_edge(a, b):
                graph.add_edge(a, b, length=1.0 / strength, row=row)
        steps: list[str] = []
        if nx.has_path(graph, first, last):
            steps = nx.dijkstra_path(graph, first, last, weight="length")
        walked = edges.iloc[[graph.edges[pair]["row"] for pair in itertools.pairwise(steps)]]
        table = self._described(walked, walked["source"].to_numpy() == np.array(steps[:-1], object))
        table.insert(0, "source", np.array(steps[:-1], dtype=object))
        table.insert(1, "target", np.array(steps[1:], dtype=object))
        table.insert(6, "length", 1.0 / table["strength"])
        return table.astype({"source": object, "target": object}).reset_index(drop=True)

    @staticmethod
    def _described(edges: pd.DataFrame, ahead: np.ndarray) -> pd.DataFrame:
        """Return what is reported of edges, those of ``ahead`` as they are stored."""
        direction = np.where(~edges["directed"], "both", np.where(ahead, "out", "in"))
        return pd.DataFrame(
            {
                "edge": edges["kind"].astype(object),
                "direction": direction.astype(object),
                "weight": edges["weight"].astype(np.float64),
                "strength": edges["strength"].astype(np.float64),
                "evidence": edges.get("evidence", ""),
            },
            index=edges.index,
        ).astype({"edge": object, "direction": object, "evidence": object})

    def _find(self, node: str) -> str:
        """Return the id of a node that was named by its id or label."""
        name = str(node)
        if name in self.nodes.index:
            return name
        named = self.nodes.index[self.nodes["label"] == name]
        if len(named) == 1:
            return str(named[0])
        if len(named) > 1:
            raise ValueError(f"{name!r} is the label of {named.tolist()}; pass one of these ids.")
        raise KeyError(f"The graph has no node {name!r}; {self._near(name)}")

    def _near(self, name: str) -> str:
        """Name the nodes that are called something like it, in any case and by id or label."""
        ids = self.nodes.index.tolist()
        spelled: dict[str, list[str]] = {}
        for node, label in zip(ids, self.nodes["label"], strict=True):
            for text in (node, str(label)):
                spelled.setdefault(text.casefold(), []).append(node)
        close = difflib.get_close_matches(name.casefold(), list(spelled), n=5, cutoff=0.6)
        near = list(dict.fromkeys(node for text in close for node in spelled[text]))[:5]
        if near:
            return f"near matches are {near}."
        kinds = self.nodes["kind"].drop_duplicates().tolist()
        return f"nothing is called like it; it has {len(ids)} nodes of the kinds {kinds}."

    @staticmethod
    def _check_kinds(table: pd.DataFrame, kinds: list[str] | None, what: str) -> None:
        known = table["kind"].drop_duplicates().tolist()
        for kind in kinds or []:
            if kind not in known:
                raise KeyError(f"The graph has no {what} of kind {kind!r}; it has {known}.")


def _plain(table: pd.DataFrame) -> pd.DataFrame:
    """Return a copy whose texts are plain: a file gives them back as categories."""
    plain = table.copy()
    for name in plain:
        if not pd.api.types.is_numeric_dtype(plain[name]):
            plain[name] = plain[name].astype(str).astype(object)
    return plain


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Return rows as plain Python values, without those that are missing."""
    columns = {str(name): table[name].tolist() for name in table}
    return [
        {
            name: _NOT_XML.sub("?", values[i]) if isinstance(values[i], str) else values[i]
            for name, values in columns.items()
            if values[i] != "" and values[i] == values[i]  # NaN is not itself
        }
        for i in range(len(table))
    ]
