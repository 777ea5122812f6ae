from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.signature_search import CHOSEN, JACCARD, all_similarities, score_drugs, with_choice


def test_every_similarity_finds_the_same_drug_in_another_line():
    rng = np.random.default_rng(0)
    drug = rng.standard_normal((30, 500))
    effects = np.vstack([drug + rng.standard_normal(drug.shape) for _ in range(2)])
    names = np.array([f"d{i}" for i in range(30)] * 2)
    table = score_drugs("x", effects.astype(np.float32), np.repeat(["a", "b"], 30), names)
    assert (table.groupby("method")["AUROC"].mean() > 0.9).all()
    assert table["method"].nunique() == 7


def test_jaccard_is_of_signed_genes():
    x = np.random.default_rng(0).standard_normal((3, 600)).astype(np.float32)
    found = all_similarities(np.vstack([x, -x]), x, np.array(["a", "b", "c"]), ())[JACCARD]
    assert np.allclose(np.diag(found), 1)
    assert np.allclose(np.diag(found[3:]), 0)


def test_nothing_is_chosen_on_the_unit_that_is_scored():
    table = pd.DataFrame(
        [("a", "cosine", 0.0), ("a", "leading", 1.0), ("b", "cosine", 1.0), ("b", "leading", 0.0)],
        columns=["unit", "method", "score"],
    )
    chosen = with_choice(table, "score")
    assert (chosen[chosen["method"] == CHOSEN]["score"] == 0).all()
