"""Embeddings of cells: structure, and independence of batches, order and labels."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest

import cfm
from cfm.models import LingshuCell
from tests._lingshu import SIZES, toy_counts, toy_lingshu


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
    with pytest.warns(UserWarning, match="Only 12%"):
        model.get_latent_representation(cells[:, :5].copy())
    other = ad.AnnData(np.ones((2, 2)))
    other.var_names = ["X1", "X2"]
    with pytest.raises(ValueError, match="Found 0 of the model's 42 genes"):
        model.get_latent_representation(other)


def test_conditions_are_used_if_asked_for() -> None:
    model, cells = toy_lingshu(), toy_counts(seed=3, n=40)
    plain = model.get_latent_representation(cells)
    told = model.get_latent_representation(cells, use_conditions=True)
    assert not np.allclose(plain, told, atol=1e-2)
    with pytest.raises(KeyError, match="no layer 'nothing'"):
        model.get_latent_representation(cells, layer="nothing")
    bare = cells.copy()
    del bare.obs["drug"]
    with pytest.raises(KeyError, match=r"no columns \['drug'\]"):
        model.get_latent_representation(bare, use_conditions=True)


def test_what_is_no_count_is_refused() -> None:
    cells = toy_counts(n=40)
    cells.X = np.log1p(cells.X.toarray())
    with pytest.raises(ValueError, match=r"not whole.*layer="):
        toy_lingshu().get_latent_representation(cells)
    with pytest.raises(ValueError, match="batch_size="):
        toy_lingshu().get_latent_representation(toy_counts(n=40), batch_size=0)
    with pytest.raises(ValueError, match="no data of its own"):
        LingshuCell(vocabulary=["A", "B"], **SIZES).get_latent_representation()


def test_the_tool_stores_embeddings() -> None:
    cells = toy_counts(seed=3, n=40)
    cfm.tl.embed(cells, toy_lingshu())
    np.testing.assert_array_equal(
        cells.obsm["X_lingshucell"], toy_lingshu().get_latent_representation(cells)
    )
    params = cells.uns["X_lingshucell"]["params"]
    assert params["model"] == "LingshuCell"
    assert params["vocabulary_share"] == 1.0
    cfm.tl.embed(cells, toy_lingshu(), key_added="labelled", use_conditions=True)
    assert cells.obsm["labelled"].shape == (cells.n_obs, 32)
