"""Essentiality: planted genes are found by the representation that has them."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd

from benchmarks.essentiality import EMBEDDING, SIMPLE, score_all, simple_features


def test_the_best_representation_is_found_and_compared() -> None:
    rng = np.random.default_rng(0)
    positive = np.arange(300) < 60
    features = {
        SIMPLE[0]: rng.normal(size=(300, 1)) + 0.8 * positive[:, None],
        SIMPLE[1]: rng.normal(size=(300, 1)),
        EMBEDDING: rng.normal(size=(300, 5)) + 1.5 * positive[:, None],
    }
    table = score_all(features, positive, 0).set_index("method")
    assert table["AUROC"].idxmax() == EMBEDDING
    assert 0.3 < table.loc[SIMPLE[1], "AUROC"] < 0.7
    assert table.loc[SIMPLE[0], "less the best simple one"] == 0.0
    assert table.loc[EMBEDDING, "low of difference"] > 0.0
    assert ((table["low"] < table["AUROC"]) & (table["AUROC"] < table["high"])).all()


def test_variance_is_within_tissues() -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 60))
    x[60:, 0] += 50.0  # another tissue has more
    x[:, 1] *= 5.0
    adata = ad.AnnData(x, obs=pd.DataFrame({"table": np.repeat(["a", "b"], 60)}))
    adata.obs_names = [f"s{i}" for i in range(120)]
    found = simple_features(adata, pd.Series({"3": 7}))
    assert found[SIMPLE[1]].argmax() == 1
    assert found[SIMPLE[1]][0] < 2.0
    assert found[SIMPLE[2]].ravel().tolist() == [0, 0, 0, 7] + [0] * 56
    assert found["all three"].shape == (60, 3)
