"""``cfm.pl.knowledge_graph``: few nodes, many, and none."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.patches import FancyArrowPatch

import cfm
from tests.pl._drawn import legend_texts, outside, overlapping
from tests.pl._stored import make_graph


def n_points(ax: plt.Axes) -> int:
    points = [c for c in ax.collections if c.get_offsets().shape[0] and c.get_zorder() == 3]
    return sum(len(c.get_offsets()) for c in points)


def names(ax: plt.Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_thirty_nodes_are_all_named() -> None:
    ax = cfm.pl.knowledge_graph(make_graph(), show=False)
    assert ax.get_title() == "30 nodes"
    assert n_points(ax) == 30
    assert len(names(ax)) >= 28
    assert not overlapping(ax.texts)
    assert not outside(ax.texts, ax.get_window_extent())
    assert "lonely" not in names(ax)
    assert legend_texts(ax)[:3] == ["code (4)", "gene (24)", "tissue (2)"]
    assert any(text.startswith("communication (") for text in legend_texts(ax))
    shapes = {line.get_marker() for line in ax.get_legend().get_lines()[:3]}
    assert len(shapes) == 3  # not by colour alone
    styles = {str(line._unscaled_dash_pattern) for line in ax.get_legend().get_lines()[3:]}
    assert len(styles) >= 3
    assert any(isinstance(patch, FancyArrowPatch) for patch in ax.patches)


def test_of_three_hundred_nodes_the_hubs_are_named() -> None:
    ax = cfm.pl.knowledge_graph(make_graph(20, 270, 10), max_nodes=300, show=False)
    assert n_points(ax) == 300
    written = names(ax)
    assert {str(i) for i in range(20)} <= set(written)
    assert 20 < len(written) <= 40
    assert not overlapping(ax.texts)
    arrows = [patch for patch in ax.patches if isinstance(patch, FancyArrowPatch)]
    assert len(arrows) < 20 * 20 / 2  # of 400
    xy = np.concatenate([c.get_offsets() for c in ax.collections if c.get_zorder() == 3])
    apart = np.hypot(*(xy[:, None] - xy[None]).T)
    np.fill_diagonal(apart, np.inf)
    assert np.median(apart.min(axis=1)) > 0.04  # of a square of two by two


def test_too_many_nodes_leave_the_strongest() -> None:
    adata = make_graph(5, 60, 5)
    ax = cfm.pl.knowledge_graph(adata, max_nodes=20, show=False)
    assert ax.get_title() == "20 of 70 nodes"
    assert legend_texts(ax)[0] == "code (5)"
    strong = adata.uns["knowledge_graph"]["edges"]
    ends = pd.concat([strong.set_index(side)["strength"] for side in ("source", "target")])
    total = ends.groupby(level=0).sum()
    genes = total[total.index.str.startswith(("gene", "tissue"))].sort_values(ascending=False)
    labels = genes.index[:15].str.replace("gene:", "GENE").str.replace("tissue:", "")
    assert set(names(ax)) - {str(i) for i in range(5)} <= set(labels)


def test_every_node_that_is_drawn_keeps_an_edge() -> None:
    adata = make_graph(3, 30, 0)
    nodes, edges = (adata.uns["knowledge_graph"][name] for name in ("nodes", "edges"))
    # a strong pair of genes, one of which does not fit
    extra = edges.iloc[:1].assign(source="gene:x", target="gene:y", strength=1.0, weight=1.0)
    more = nodes.loc[["gene:0", "gene:1"]].set_axis(["gene:x", "gene:y"])
    more["label"] = ["x", "y"]
    extra = pd.concat([extra] * 9)
    extra["target"] = ["gene:y", *["gene:z"] * 8]
    more = pd.concat([more, more.iloc[:1].set_axis(["gene:z"]).assign(label="z")])
    adata.uns["knowledge_graph"]["nodes"] = pd.concat([nodes, more])
    table = pd.concat([edges, extra], ignore_index=True)
    adata.uns["knowledge_graph"]["edges"] = table.set_axis(table.index.astype(str))
    ax = cfm.pl.knowledge_graph(adata, max_nodes=4, show=False)
    assert ax.get_title() == "4 of 36 nodes"
    assert not {"x", "y", "z"} & set(names(ax))  # x alone would fit, without z
    ax = cfm.pl.knowledge_graph(adata, max_nodes=5, show=False)
    assert {"x", "z"} <= set(names(ax))


def test_one_node_and_its_neighbours() -> None:
    adata = make_graph()
    edges = adata.uns["knowledge_graph"]["edges"]
    own = edges[(edges["source"] == "gene:0") | (edges["target"] == "gene:0")]
    near = set(own["source"]) | set(own["target"])
    ax = cfm.pl.knowledge_graph(adata, node="GENE0", show=False)  # by its label
    assert ax.get_title() == f"gene:0 and its neighbours: {len(near)} nodes"
    assert n_points(ax) == len(near)
    few = cfm.pl.knowledge_graph(adata, node="code:1", max_nodes=4, show=False)
    assert n_points(few) == 4
    assert "1" in names(few)


def test_kinds() -> None:
    ax = cfm.pl.knowledge_graph(make_graph(), kinds=["code", "tissue"], show=False)
    assert legend_texts(ax)[:2] == ["code (4)", "tissue (2)"]
    assert not any("importance" in text for text in legend_texts(ax))
    ax = cfm.pl.knowledge_graph(make_graph(), edge_kinds=["relation"], show=False)
    assert legend_texts(ax) == ["gene (12)", "relation"]


def test_two_nodes_and_own_axes(tmp_path: Path) -> None:
    _, mine = plt.subplots(figsize=(3, 3))
    ax = cfm.pl.knowledge_graph(make_graph(1, 1, 0), ax=mine, save=tmp_path / "x.png")
    assert ax is mine
    assert n_points(ax) == 2
    assert (tmp_path / "x.png").stat().st_size > 1000


def test_what_the_tool_stores_is_drawn() -> None:
    cells = cfm.datasets.toy_communication(n_cells=200)
    cfm.tl.knowledge_graph(cells, None, codes="cell_type")
    ax = cfm.pl.knowledge_graph(cells, show=False)
    assert "Monocyte" in names(ax)
