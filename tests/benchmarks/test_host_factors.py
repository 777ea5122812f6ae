"""Scores of rankings of genes against screens."""

from __future__ import annotations

import numpy as np
import pandas as pd

from benchmarks.host_factors import shared_or_own


def test_shared_and_own_hits_are_scored_apart() -> None:
    genes = [f"g{i}" for i in range(6)]
    hit = pd.Series([1.0, 1.0, 0.0, 0.0, 0.0, 0.0], genes)
    shared = np.array([True, False, True, False, False, False])
    ranking = pd.Series([5.0, -1.0, 1.0, 2.0, 3.0, 4.0], genes)
    (row,) = shared_or_own({"mine": ranking}, hit, shared).to_dict("records")
    assert row == {"ranking": "mine", "shared hits": 1.0, "own hits": 0.0}
    (row,) = shared_or_own({"mine": ranking}, hit, np.zeros(6, dtype=bool)).to_dict("records")
    assert np.isnan(row["shared hits"])
    assert row["own hits"] == 0.5
