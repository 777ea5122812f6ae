"""Retrieval of mechanisms and AUROC against chance, on a handful of invented compounds."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from benchmarks._drug_data import Compounds, _near
from benchmarks._drug_scores import against_chance, rank_auroc
from benchmarks.drugs import combined, retrieval
from cfm.tl._signatures import read_signatures
from training.build_cmap_signatures import consensus, strongest


@pytest.fixture
def compounds() -> Compounds:
    names = [f"c{i}" for i in range(8)]
    rows = [(n, g, d) for n in names for g, d in (("A", 1), ("B", -1))]
    sets = read_signatures(pd.DataFrame(rows, columns=["compound", "gene", "direction"]), n_genes=5)
    return Compounds(
        pd.DataFrame(np.zeros((8, 2)), index=names, columns=sets.genes),
        sets,
        {"X": np.array([0, 1, 2]), "Y": np.array([3, 4, 5])},
        np.array([True] * 7 + [False]),
        np.zeros((8, 8), dtype=bool),
    )


def test_rank_auroc_is_that_of_scikit_learn(rng: np.random.Generator) -> None:
    scores = np.round(rng.normal(size=(4, 30)), 1)
    members = np.arange(30) < 7
    expected = [roc_auc_score(members, row) for row in scores]
    np.testing.assert_allclose(rank_auroc(scores, members), expected)


def test_chance(rng: np.random.Generator) -> None:
    members = np.arange(60) < 10
    scores = rng.normal(size=(3, 60))
    found = against_chance(scores, members, 200)
    assert found["chance low"] < 0.5 < found["chance high"]
    strong = against_chance(scores + 3 * members, members, 200)
    assert strong["AUROC"] > strong["chance high"]
    assert strong["p"] == pytest.approx(1 / 201)
    weak = against_chance(scores - 3 * members, members, 200)
    assert weak["AUROC"] < weak["chance low"] and weak["p"] < 0.05


def test_a_drug_is_never_its_own_answer(compounds: Compounds) -> None:
    scores = np.eye(8) * 100
    found = retrieval(compounds, scores)
    assert len(found) == 6
    assert (found["auroc"] == 0.5).all()  # all others are tied
    same = np.zeros((8, 8))
    same[np.ix_([0, 1, 2], [0, 1, 2])] = 1
    perfect = retrieval(compounds, same).groupby("class")["auroc"].mean()
    assert perfect["X"] == 1.0 and perfect["Y"] == 0.5
    # c7 has no known mechanism, and is no candidate.
    same[:, 7] = 10
    assert retrieval(compounds, same).groupby("class")["auroc"].mean()["X"] == 1.0
    compounds.near[0, 1] = compounds.near[0, 2] = True
    assert len(retrieval(compounds, same, far=True)) == 5


def test_the_weight_of_a_class_is_chosen_on_the_others(compounds: Compounds) -> None:
    first, second = np.zeros((8, 8)), np.zeros((8, 8))
    first[np.ix_([0, 1, 2], [0, 1, 2])] = 1
    second[np.ix_([3, 4, 5], [3, 4, 5])] = 1
    first[np.ix_([3, 4, 5], [0, 6])] = 1
    second[np.ix_([0, 1, 2], [3, 6])] = 1
    weight = combined(compounds, first, second).groupby("class")["weight"].first()
    # Y is found by the second score, so X is left with it, and the other way round.
    assert weight["X"] > 0.5 > weight["Y"]


def test_consensus_signatures_and_plates(tmp_path) -> None:
    folder = tmp_path / "signed_sets"
    folder.mkdir()
    rows = []
    for instance, genes in {1: "ABC", 2: "BAD", 90: "XYZ"}.items():
        rows += [(instance, 1, g) for g in genes] + [(instance, -1, g + "-") for g in genes]
    table = pd.DataFrame(rows, columns=["instance", "direction", "gene"])
    table.to_csv(folder / "cmap_up_down.csv.gz", index=False)
    instances = pd.DataFrame(
        {"instance": [1, 2, 90], "drug": ["d", "e", "d"], "cell": "MCF7", "array": "HT"}
    )
    instances.to_csv(folder / "cmap_instances.csv.gz", index=False)
    weights = consensus(folder)
    assert weights.loc["d", "A"] == pytest.approx(np.log(101) / 2)  # one of two instances
    assert weights.loc["e", "A"] == pytest.approx(np.log(101 / 2))
    assert weights.loc["d", "A-"] == -weights.loc["d", "A"]
    assert strongest(weights, 2)["d"] == (["A", "X"], ["A-", "X-"])
    assert consensus(folder, pd.Index([90])).index.tolist() == ["d"]
    near = _near(tmp_path, weights.index)
    assert near.all()  # instances 1 and 2 lie side by side
    far = instances.assign(instance=[1, 60, 140])
    far.to_csv(folder / "cmap_instances.csv.gz", index=False)
    assert not _near(tmp_path, weights.index)[0, 1]
