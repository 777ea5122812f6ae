"""Scores of the benchmark of drugs in other libraries, on planted tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks import drug_libraries as bench


def test_the_same_drug_and_its_mechanism_are_told_apart() -> None:
    names = pd.Index(["propranolol", "atenolol", "salbutamol", "imatinib"])
    similar = pd.DataFrame(np.eye(4), names, names)
    same = bench._found(similar, "same drug")
    assert same["queries"] == 4
    assert same["AUROC"] == 1
    # a drug is no hit and no miss of its own mechanism; two beta-blockers find each other
    similar.loc["propranolol", "atenolol"] = similar.loc["atenolol", "propranolol"] = 0.5
    mechanism = bench._found(similar, "mechanism")
    assert mechanism["queries"] == 2
    assert mechanism["AUROC"] == 1
    assert bench._found(-similar, "mechanism")["AUROC"] == 0


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_drug_is_found_in_other_cells() -> None:
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(12, 300))
    x = np.concatenate([effects + rng.normal(0, 0.5, effects.shape) for _ in range(2)])
    genes = pd.Index([f"GENE{i}" for i in range(300)])
    names = [f"Drug{i} (salt)" for i in range(12)] * 2
    library = bench._library(x.astype(np.float32), genes, names, np.repeat(["a", "b"], 12))
    assert library.obs["compound"].tolist()[:2] == ["drug0", "drug1"]
    first = (library.obs["cell"] == "a").to_numpy()
    queries = bench.mean_of_compounds(library[first])
    made = bench.scores(queries, library[~first].copy())
    for table in made.values():
        assert bench._found(table, "same drug")["AUROC"] > 0.95
        assert bench._found(-table, "same drug")["AUROC"] < 0.05
