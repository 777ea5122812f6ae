"""tl.annotate_drugs: proximity, direction of action and amphiphilicity of planted compounds."""

from __future__ import annotations

from typing import Any

import anndata as ad
import networkx as nx
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.tl._drug_screen._annotate import _closest, _largest_component
from tests.tl import _drugs

pytestmark = pytest.mark.filterwarnings("ignore:p_value and fdr are NaN:UserWarning")

N_GENES = 400


def network(seed: int = 0) -> pd.DataFrame:
    """A ring of genes with random chords: neighbours in number are neighbours in the network."""
    rng = np.random.default_rng(seed)
    ring = [(f"GENE{i}", f"GENE{(i + step) % N_GENES}") for i in range(N_GENES) for step in (1, 2)]
    chords = [tuple(f"GENE{g}" for g in pair) for pair in rng.integers(0, N_GENES, (40, 2))]
    island = [("ISLE1", "ISLE2")]
    return pd.DataFrame(ring + chords + island, columns=["gene1", "gene2"])


def targets() -> pd.DataFrame:
    rows = [
        ("blocker", "GENE1", "inhibitor"),  # up in virus A
        ("blocker", "GENE40", ""),
        ("booster", "GENE31", "agonist"),  # down in virus A
        ("wrong", "GENE2", "Agonist|positive allosteric modulator"),
        ("mixed", "GENE3", "antagonist"),
        ("mixed", "GENE4", "partial agonist"),
        ("far", "GENE250", "inverse agonist"),
        ("near", "GENE111", "substrate"),
        ("isle", "ISLE1", "blocker"),
    ]
    return pd.DataFrame(rows, columns=["drug", "gene", "action"])


def screened() -> ad.AnnData:
    adata = _drugs.profiles()
    given = pd.concat([targets()[["drug", "gene"]], _drugs.targets()])
    cfm.tl.screen_drugs(
        adata, _drugs.signatures(), given, model=None, host_factors=_drugs.host_factors(),
        n_permutations=20,
    )  # fmt: skip
    return adata


def annotated(adata: ad.AnnData | None = None, group: str = "A", **given: Any) -> pd.DataFrame:
    adata = screened() if adata is None else adata
    proximity = {"host_factors": _drugs.host_factors(), "n_host_factors": 10}
    given = (proximity if "network" in given else {}) | {"targets": targets()} | given
    cfm.tl.annotate_drugs(adata, **given)
    return _drugs.results(adata, group)


def test_action_is_the_mean_direction_of_the_stated_targets() -> None:
    found = annotated()
    expected = {"blocker": -1, "booster": 1, "wrong": 1, "mixed": 0, "far": -1}
    actions = found["action"].dropna()
    assert actions.to_dict() == expected
    assert found.loc["blocker", "action_reversal"] > 0.7
    assert found.loc["booster", "action_reversal"] > 0.7
    assert found.loc["wrong", "action_reversal"] < -0.7


def test_drugcentral_states_actions_in_known_words() -> None:
    table = cfm.datasets.drug_targets()
    rows = table[table["compound"].isin(["propranolol", "salbutamol", "imatinib", "dexamethasone"])]
    adata = _drugs.profiles()
    factors = pd.Series(range(len(rows)), index=rows["gene"]).groupby(level=0).max()
    cfm.tl.screen_drugs(adata, targets=rows, host_factors=factors, n_permutations=5)
    found = annotated(adata, targets=rows)["action"].to_dict()
    signs = {name: np.sign(value) for name, value in found.items()}
    assert signs == {"propranolol": -1, "salbutamol": 1, "imatinib": -1, "dexamethasone": 1}


def test_closest_distances_are_those_of_networkx() -> None:
    graph, nodes = _largest_component(network())
    edges = network().query("gene1 != gene2")
    assert len(nodes) == N_GENES  # without the island
    plain = nx.Graph(edges.to_numpy().tolist())
    sources = ["GENE5", "GENE200"]
    starts = np.zeros((len(nodes), 2), dtype=np.float32)
    starts[nodes.get_indexer(sources), 0] = 1
    starts[nodes.get_indexer(["GENE7"]), 1] = 1
    found = _closest(graph, starts)
    for column, own in ((0, sources), (1, ["GENE7"])):
        each = [nx.single_source_shortest_path_length(plain, source) for source in own]
        assert found[:, column].tolist() == [min(one[g] for one in each) for g in nodes]


def test_targets_beside_host_factors_are_closer_than_chance() -> None:
    found = annotated(network=network(), n_permutations=200)
    # host factors are genes 100 to 109; 111 is one edge away
    assert found.loc["near", "proximity"] == 1
    assert found.loc["near", "proximity_z"] < -1
    assert found.loc["far", "proximity"] >= 3
    assert found.loc["far", "proximity_z"] > found.loc["near", "proximity_z"] + 0.5
    without = found.index[found["proximity"].isna()]
    assert "random0" in without  # a signature, and no target
    assert found["proximity"].notna().equals(found["proximity_z"].notna())


def test_random_targets_are_as_close_as_the_null() -> None:
    rng = np.random.default_rng(3)
    rows = [(f"drug{i}", f"GENE{g}") for i in range(60) for g in rng.integers(0, N_GENES, 3)]
    table = pd.DataFrame(rows, columns=["drug", "gene"])
    adata = _drugs.profiles()
    factors = pd.Series(1.0, index=[f"GENE{g}" for g in rng.integers(0, N_GENES, 12)])
    everything = pd.Series(np.arange(N_GENES), index=[f"GENE{g}" for g in range(N_GENES)])
    cfm.tl.screen_drugs(adata, targets=table, host_factors=everything, n_permutations=5)
    z = annotated(adata, targets=table, network=network(), host_factors=factors, n_permutations=200)
    assert abs(z["proximity_z"].mean()) < 0.4
    assert 0.7 < z["proximity_z"].std() < 1.3


def test_cationic_amphiphilic_compounds_by_the_rule_of_ploemen() -> None:
    table = pd.DataFrame(
        {
            "compound": ["BLOCKER ", "near", "far", "wrong", "booster", "booster"],
            "pka": [8.5, 7.9, 9.0, 9.5, 10.0, 3.0],
            "logp": [7.6, 9.0, 2.9, 0.5, 1.0, 1.0],  # 90.1 squared; acid; 89.4; hydrophilic; any
        }
    )
    flag = annotated(targets=None, properties=table)["cationic_amphiphilic"]
    known = {name: bool(value) for name, value in flag.dropna().items()}
    expected = {"blocker": True, "near": False, "far": False, "wrong": False, "booster": True}
    assert known == expected
    assert flag.isna().sum() == len(flag) - 5


def test_score_and_ranks_stay_and_files_take_the_columns(tmp_path) -> None:
    adata = screened()
    before = adata.uns["drug_screen"]["results"]
    given = {"compound": ["far"], "pka": [9.5], "logp": [4.0]}
    made = cfm.tl.annotate_drugs(
        adata, targets(), network(), pd.DataFrame(given), host_factors=_drugs.host_factors(),
        n_permutations=10, copy=True,
    )  # fmt: skip
    pd.testing.assert_frame_equal(adata.uns["drug_screen"]["results"], before)
    results = made.uns["drug_screen"]["results"]
    pd.testing.assert_frame_equal(results[before.columns], before)
    made.write_h5ad(tmp_path / "a.h5ad")
    read = ad.read_h5ad(tmp_path / "a.h5ad").uns["drug_screen"]["results"]
    new = ["action", "action_reversal", "proximity", "proximity_z", "cationic_amphiphilic"]
    assert results.columns[-5:].tolist() == new
    pd.testing.assert_frame_equal(read[new], results[new])


def test_each_group_has_its_own_host_factors() -> None:
    factors = _drugs.host_factors()
    b = (factors["group"] == "B").to_numpy()
    factors.loc[b, "score"] = factors.loc[b, "score"].to_numpy()[::-1]
    adata = screened()
    given = {"network": network(), "host_factors": factors, "n_permutations": 20}
    a = annotated(adata, **given)["proximity"]
    assert a["near"] != _drugs.results(adata, "B")["proximity"]["near"]


@pytest.mark.parametrize(
    ("error", "message", "given"),
    [
        (ValueError, r"network= needs targets=", {"targets": None, "network": network()}),
        (ValueError, r"Give targets= with an action", {"targets": _drugs.targets()}),
        (KeyError, r"network= lacks \['gene2'\]", {"network": network()[["gene1"]]}),
        (TypeError, r"network= is a list", {"network": [("A", "B")]}),
        (ValueError, "No host factor is in the network",
         {"network": network(), "host_factors": pd.Series(1.0, index=["NONE"])}),
        (KeyError, r"properties= lacks \['pka', 'logp'\]", {"properties": targets()}),
        (TypeError, "properties= is a dict", {"properties": {"pka": 8}}),
        (KeyError, "holds no drug screen", {"key": "other"}),
    ],
)  # fmt: skip
def test_input_is_refused_in_one_sentence(error: Any, message: str, given: dict[str, Any]) -> None:
    adata = screened()
    before = adata.uns["drug_screen"]["results"].copy()
    with pytest.raises(error, match=message):
        annotated(adata, **given)
    pd.testing.assert_frame_equal(adata.uns["drug_screen"]["results"], before)
