"""What the benchmark of the knowledge graph computes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import cfm
from benchmarks._communication import (
    UniformAttention,
    all_edges,
    coexpressed,
    gene_scores,
    interval,
    known_pairs,
    link_precision,
    majority,
    marker_precision,
    own_links,
    share_known,
)
from benchmarks.code_relations import attention, by_groups
from cfm.models import AttentionModel

TRUTH = pd.DataFrame({"sender": ["a", "b"], "receiver": ["b", "c"], "ligand": "L", "receptor": "R"})


def test_precision_of_links_by_hand() -> None:
    links = pd.DataFrame(
        {"source": ["a", "a", "b"], "target": ["b", "c", "c"], "ligand": "L", "receptor": "R"}
    )
    assert link_precision(TRUTH, 3, 1, links, np.array([3.0, 1.0, 2.0])) == 1.0
    # second of three: (1/1 + 2/3) / 2
    assert link_precision(TRUTH, 3, 1, links, np.array([3.0, 2.0, 1.0])) == pytest.approx(5 / 6)
    # one link is not ranked: it shares the last place with all others
    found = link_precision(TRUTH, 3, 2, links.iloc[:2], np.array([3.0, 2.0]))
    assert found == pytest.approx((1 + 2 / 18) / 2)
    # two codes of a type: the better one counts
    twice = pd.concat([links, links.iloc[:1]])
    assert link_precision(TRUTH, 3, 1, twice, np.array([-1.0, 1.0, 2.0, 3.0])) == 1.0


def test_rankings_of_simulated_cells() -> None:
    cells = cfm.datasets.toy_communication(20, n_cells=300)
    edges = all_edges(cells, "cell_type")
    links = own_links(edges)
    assert not links.duplicated(["source", "target", "ligand", "receptor"]).any()
    truth = cells.uns["truth"]["links"]
    good = link_precision(truth, 5, 36, links, links["weight"].to_numpy())
    assert good > 0.7
    assert link_precision(truth, 5, 36, links, -links["weight"].to_numpy()) < 0.1
    assert marker_precision(cells, edges, "log2_fold_change") > 0.8
    attended = gene_scores(cells, UniformAttention(), "cell_type")
    assert marker_precision(cells, attended, "attention_lift") > 0.6
    assert marker_precision(cells, attended, "weight") > 0.8
    assert isinstance(UniformAttention(), AttentionModel)
    assert "knowledge_graph" not in cells.uns


def test_majority_and_interval() -> None:
    assert majority(pd.Series(list("1122")), pd.Series(list("aaab"))) == {"1": "a", "2": "a"}
    mean, low, high = interval(np.array([1.0, 2.0, 3.0]))
    assert mean == 2.0
    assert high - mean == pytest.approx(mean - low) == pytest.approx(4.303 / np.sqrt(3), rel=1e-3)
    assert np.isnan(interval(np.array([1.0, 2.0]))[1])


def test_pairs_and_networks() -> None:
    network = pd.DataFrame({"source": ["A", "C"], "target": ["B", "D"]})
    known = known_pairs(network, ("source", "target"))
    pairs = pd.DataFrame({"a": ["B", "B", "A", "X"], "b": ["A", "A", "C", "Y"]})
    assert share_known(pairs, known) == pytest.approx(1 / 3)


def test_coexpression_finds_what_moves_together() -> None:
    cells = cfm.datasets.toy_communication(n_cells=200)
    x = cells.X.toarray()
    x[:, 1] = x[:, 0] = np.random.default_rng(0).poisson(5.0, 200)
    cells.X = x
    first = coexpressed(cells, "batch", {"one": 2, "two": 1}, min_share=0.1)
    assert first["code"].tolist() == ["one", "one", "two"]
    best = set(first.loc[[0, 2], ["a", "b"]].to_numpy().ravel())
    assert best == set(cells.var_names[:2])


def test_attention_to_other_cells_is_summed_by_groups() -> None:
    partners = np.array([[1, 2], [0, 2], [0, 1]])
    weight = np.array([[0.9, 0.1], [0.5, 0.5], [0.2, 0.8]])
    table = by_groups(weight, partners, np.array(["a", "a", "b"]))
    assert table.loc["a", "a"] == pytest.approx(2 * (0.9 + 0.5) / 2)
    assert table.loc["b", "a"] == pytest.approx(2 * (0.1 + 0.5) / 2)
    assert table.loc["a", "b"] == pytest.approx(1.0)


def test_attention_is_learned_from_planted_partners() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 20))
    copies = x + 0.05 * rng.normal(size=x.shape)  # each cell has one partner that is like it
    cells = np.concatenate([x, copies])
    own = (np.arange(400) + 200) % 400
    partners = np.column_stack([own, (own + 7) % 400, (own + 31) % 400])
    trained, random = (attention(cells, partners, seed=0, n_steps=n)[:, 0].mean() for n in (150, 0))
    assert trained > 0.8
    assert random < 0.6
