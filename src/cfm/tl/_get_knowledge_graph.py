"""The stored knowledge graph, as an object to ask."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pandas as pd

from cfm._fields import GRAPH_EDGES, GRAPH_NODES, KNOWLEDGE_GRAPH_KEY
from cfm.data import KnowledgeGraph
from cfm.data._takes_anndata import takes_anndata

if TYPE_CHECKING:
    from anndata import AnnData


@takes_anndata()
def get_knowledge_graph(adata: AnnData, *, key: str = KNOWLEDGE_GRAPH_KEY) -> KnowledgeGraph:
    """Return the graph that :func:`cfm.tl.knowledge_graph` stored.

    Parameters
    ----------
    adata
        The data, also read from a file.
    key
        ``key_added`` of that call.

    Returns
    -------
    cfm.data.KnowledgeGraph
        With ``nodes`` and ``edges`` (copies), ``query``, ``shortest_path``, ``to_networkx`` and
        ``write_graphml``.

    Raises
    ------
    TypeError
        If ``adata`` is no AnnData.
    KeyError
        If there is no graph under this key.

    Examples
    --------
    >>> import cfm
    >>> cells = cfm.datasets.toy_communication()
    >>> cfm.tl.knowledge_graph(cells, model=None, codes="cell_type")
    >>> graph = cfm.tl.get_knowledge_graph(cells)
    >>> graph.query("code:Monocyte", k=3, kind="gene")["edge"].tolist()
    ['importance', 'importance', 'importance']
    """
    stored = adata.uns.get(key)
    tables = [
        _table(stored.get(name)) if hasattr(stored, "get") else None
        for name in (GRAPH_NODES, GRAPH_EDGES)
    ]
    nodes, edges = tables
    if not isinstance(nodes, pd.DataFrame) or not isinstance(edges, pd.DataFrame):
        raise KeyError(
            f"uns[{key!r}] holds no knowledge graph; run "
            f"cfm.tl.knowledge_graph(adata, key_added={key!r}) first, or pass the key it was "
            "stored under."
        )
    return KnowledgeGraph(nodes, edges)


def _table(stored: Any) -> Any:
    """Return a table in memory, also one of :func:`anndata.experimental.read_lazy`."""
    return stored.to_memory() if hasattr(stored, "to_memory") else stored
