"""``cfm.data.KnowledgeGraph``: questions, paths, networkx and GraphML."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import networkx as nx
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfm.data import KnowledgeGraph

NODES = pd.DataFrame(
    {
        "kind": ["code", "code", "code", "gene", "gene", "cell_type", "tissue"],
        "label": ["1", "2", "3", "STAT1", "MX1", "B cells", "B cells"],
        "size": [10, 20, 30, 1, 2, 3, 4],
    },
    index=[
        "code:1",
        "code:2",
        "code:3",
        "gene:STAT1",
        "gene:MX1",
        "cell_type:B cells",
        "t:B cells",
    ],
)
#: Source, target, kind, weight, strength, directed, ligand, fdr.
_ROWS = [
    ("code:1", "gene:STAT1", "importance", 4.0, 1.0, False, "", np.nan),
    ("code:2", "gene:STAT1", "importance", 2.0, 0.5, False, "", 0.01),
    ("code:1", "code:2", "communication", 1.0, 0.2, True, "CXCL10", 0.02),
    ("code:1", "code:2", "communication", 3.0, 0.9, True, "CCL2", 0.001),
    ("code:2", "code:1", "communication", 0.5, 0.1, True, "IL2", 0.03),
    ("code:2", "cell_type:B cells", "enrichment", 2.5, 1.0, False, "", 0.0),
]
EDGES = pd.DataFrame(
    _ROWS,
    columns=["source", "target", "kind", "weight", "strength", "directed", "ligand", "fdr"],
)
EDGES["evidence"] = [f"evidence {i}" for i in range(len(EDGES))]


@pytest.fixture
def graph() -> KnowledgeGraph:
    return KnowledgeGraph(NODES, EDGES)


def test_it_says_what_it_is(graph: KnowledgeGraph) -> None:
    assert repr(graph) == (
        "KnowledgeGraph with 7 nodes (3 code, 2 gene, 1 cell_type, 1 tissue) and 6 edges "
        "(3 communication, 2 importance, 1 enrichment)"
    )


def test_neighbours(graph: KnowledgeGraph) -> None:
    found = graph.query("code:2")
    assert found.index.tolist() == ["cell_type:B cells", "code:1", "gene:STAT1"]
    other = found.loc["code:1"]
    assert (other["edge"], other["direction"], other["weight"]) == ("communication", "in", 3.0)
    assert other["evidence"] == "evidence 3"
    assert found["n_edges"].tolist() == [1, 3, 1]
    assert found.loc["gene:STAT1", "direction"] == "both"
    assert graph.query("code:1").loc["code:2", "direction"] == "out"
    assert graph.query("code:2", 2).index.tolist() == ["cell_type:B cells", "code:1"]
    assert graph.query("code:2", kind="gene").index.tolist() == ["gene:STAT1"]
    assert graph.query("code:2", edge_kind="communication").index.tolist() == ["code:1"]
    assert graph.query("code:2", kind="gene", edge_kind="enrichment").empty
    alone = graph.query("code:3")
    assert alone.empty
    assert alone.dtypes.equals(found.dtypes)


def test_a_label_is_enough_where_it_is_of_one_node(graph: KnowledgeGraph) -> None:
    pd.testing.assert_frame_equal(graph.query("STAT1"), graph.query("gene:STAT1"))
    with pytest.raises(ValueError, match=r"label of \['cell_type:B cells', 't:B cells'\]"):
        graph.query("B cells")


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("gene:STAT2", "gene:STAT1"),
        ("stat1", "gene:STAT1"),
        ("Code:2", "code:2"),
        ("b cell", "cell_type:B cells"),
        ("gene:MX", "gene:MX1"),
    ],
)
def test_near_matches_of_a_mistyped_node(graph: KnowledgeGraph, name: str, near: str) -> None:
    for ask in (graph.query, lambda n: graph.shortest_path("code:1", n)):
        with pytest.raises(KeyError, match=f"no node '{name}'; near matches are .*{near}"):
            ask(name)


@pytest.mark.parametrize(
    ("error", "words", "ask"),
    [
        (KeyError, "nothing is called like it; it has 7 nodes", lambda g: g.query("zzzzzzzzzzzz")),
        (KeyError, "no nodes of kind 'drug'; it has", lambda g: g.query("code:1", kind="drug")),
        (KeyError, "no edges of kind 'a'", lambda g: g.query("code:1", edge_kind="a")),
        (KeyError, "no edges of kind 'a'", lambda g: g.shortest_path("1", "2", edge_kinds=["a"])),
        (ValueError, "k=0; expected", lambda g: g.query("code:1", 0)),
        (TypeError, "no file name", lambda g: g.write_graphml(None)),
    ],
)
def test_errors(graph: KnowledgeGraph, error: type, words: str, ask: Any) -> None:
    with pytest.raises(error, match=words):
        ask(graph)


@pytest.mark.parametrize(
    ("nodes", "edges", "words"),
    [
        (NODES.drop(columns="label"), EDGES, "nodes has no column label"),
        (NODES, EDGES.drop(columns="strength"), "edges has no column strength"),
        (pd.concat([NODES, NODES.iloc[:1]]), EDGES, r"found twice: \['code:1'\]"),
        (NODES.iloc[1:], EDGES, r"end at \['code:1'\]"),
        (NODES, EDGES.assign(strength=0.0), "above 0"),
        (NODES, EDGES.assign(strength=np.nan), "above 0"),
    ],
)
def test_tables_that_are_no_graph(nodes: pd.DataFrame, edges: pd.DataFrame, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        KnowledgeGraph(nodes, edges)


def test_tables_are_copies(graph: KnowledgeGraph) -> None:
    graph.nodes.loc["code:1", "label"] = "changed"
    assert NODES.loc["code:1", "label"] == "1"


def test_the_shortest_path_takes_strong_edges(graph: KnowledgeGraph) -> None:
    path = graph.shortest_path("STAT1", "cell_type:B cells")
    # over code:1 (1 + 1/.9 + 1) it is longer than straight (2 + 1)
    assert path["target"].tolist() == ["code:2", "cell_type:B cells"]
    assert path["length"].tolist() == [2.0, 1.0]
    assert path["evidence"].tolist() == ["evidence 1", "evidence 5"]
    straight = graph.shortest_path("code:1", "code:2")
    assert straight["weight"].tolist() == [3.0]  # the strongest of three edges
    assert straight["direction"].tolist() == ["out"]
    assert graph.shortest_path("code:2", "code:1")["direction"].tolist() == ["in"]
    around = graph.shortest_path("code:1", "code:2", edge_kinds=["importance"])
    assert around["target"].tolist() == ["gene:STAT1", "code:2"]
    assert around["direction"].tolist() == ["both", "both"]
    nowhere = graph.shortest_path("code:1", "code:3")
    assert nowhere.empty
    assert nowhere.dtypes.equals(path.dtypes)
    assert graph.shortest_path("code:1", "code:1").empty


def test_networkx_and_graphml(graph: KnowledgeGraph, tmp_path: Path) -> None:
    made = graph.to_networkx()
    assert made.number_of_nodes() == 7
    assert made.number_of_edges() == 6
    assert made.nodes["gene:MX1"] == {"kind": "gene", "label": "MX1", "size": 2}
    first = made.edges["code:1", "gene:STAT1", 0]
    assert "fdr" not in first  # NaN
    assert "ligand" not in first  # ""
    assert first["directed"] is False
    path = tmp_path / "graph.graphml"
    graph.write_graphml(path)
    back = nx.read_graphml(path, force_multigraph=True)
    assert back.is_directed()
    assert dict(back.nodes(data=True)) == dict(made.nodes(data=True))
    for table in (made, back):
        data = table.get_edge_data("code:1", "code:2")
        assert sorted(d["ligand"] for d in data.values()) == ["CCL2", "CXCL10"]
    assert nx.read_graphml(path).number_of_nodes() == 7
    assert "None" not in path.read_text()
    assert "nan" not in path.read_text().lower()


def test_names_that_xml_cannot_hold(tmp_path: Path) -> None:
    names = {"code:1": "gene:a\x01<b>&'\"", "code:2": "gene:µ→β\n2"}
    edges = EDGES.replace({"source": names, "target": names})
    KnowledgeGraph(NODES.rename(index=names), edges).write_graphml(tmp_path / "x.graphml")
    back = nx.read_graphml(tmp_path / "x.graphml")
    assert back.number_of_nodes() == 7
    assert "gene:a?<b>&'\"" in back


def test_no_edges(tmp_path: Path) -> None:
    empty = KnowledgeGraph(NODES, EDGES.iloc[:0])
    assert repr(empty).endswith("and 0 edges")
    assert empty.query("code:1").empty
    assert empty.shortest_path("code:1", "code:2").empty
    empty.write_graphml(tmp_path / "x.graphml")
    assert nx.read_graphml(tmp_path / "x.graphml").number_of_nodes() == 7


@given(
    st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 5), st.floats(0.01, 1.0)),
        min_size=1,
        max_size=12,
    )
)
def test_no_path_is_shorter(links: list[tuple[int, int, float]]) -> None:
    names = [f"gene:{i}" for i in range(6)]
    nodes = pd.DataFrame({"kind": "gene", "label": [str(i) for i in range(6)]}, index=names)
    edges = pd.DataFrame(
        [(names[a], names[b], "relation", s, s, False) for a, b, s in links],
        columns=["source", "target", "kind", "weight", "strength", "directed"],
    )
    found = KnowledgeGraph(nodes, edges).shortest_path(names[0], names[5])
    length = {}
    for a, b, s in links:
        for pair in ((a, b), (b, a)):
            length[pair] = min(length.get(pair, np.inf), 1 / s)
    best = np.inf
    for n in range(5):
        for middle in itertools.permutations(range(1, 5), n):
            way = [0, *middle, 5]
            best = min(best, sum(length.get(p, np.inf) for p in itertools.pairwise(way)))
    if np.isinf(best):
        assert found.empty
    else:
        assert found["length"].sum() == pytest.approx(best)
        assert found["source"].tolist()[1:] == found["target"].tolist()[:-1]
