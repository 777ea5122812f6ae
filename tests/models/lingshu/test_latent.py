"""Embeddings of cells: structure, and independence of batches, order and labels."""

from __future__ import annotations

import numpy as np
import pytest

from tests._lingshu import toy_counts, toy_lingshu


def test_cells_of_a_type_lie_together() -> None:
    cells = toy_counts(seed=3, n=300)
    latent = toy_lingshu().get_latent_representation(cells)
    assert latent.shape == (cells.n_obs, 32)
    assert latent.dtype == np.float32
    from sklearn.linear_model import LogisticRegression

    half = cells.n_obs // 2
    scaled = (latent - latent.mean(axis=0)) / latent.std(axis=0)
    y = cells.obs["cell_type"].to_numpy()
    found = LogisticRegression(max_iter=500).fit(scaled[:half], y[:half])
    assert found.score(scaled[half:], y[half:]) > 0.95


def test_genes_that_are_not_measured_are_missing_and_not_zero() -> None:
    model, cells = toy_lingshu(), toy_counts(seed=3, n=40)
    latent = model.get_latent_representation(cells)
    fewer = model.get_latent_representation(cells[:, 5:].copy())
    zero = cells.copy()
    zero.X = zero.X.toarray()
    zero.X[:, :5] = 0
    silent = model.get_latent_representation(zero)
    assert np.linalg.norm(fewer - latent) < np.linalg.norm(silent - latent)


def test_conditions_are_used_if_asked_for() -> None:
    model, cells = toy_lingshu(), toy_counts(seed=3, n=40)
    plain = model.get_latent_representation(cells)
    told = model.get_latent_representation(cells, use_conditions=True)
    assert not np.allclose(plain, told, atol=1e-2)
    bare = cells.copy()
    del bare.obs["drug"]
    with pytest.raises(KeyError, match=r"no columns \['drug'\]"):
        model.get_latent_representation(bare, use_conditions=True)
