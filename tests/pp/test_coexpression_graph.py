"""Neighbours by absolute correlation, the same however the work is cut."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfm.pp import coexpression_graph


def modules(n_obs: int = 80, n_modules: int = 4, size: int = 6, seed: int = 0) -> ad.AnnData:
    """Genes that follow the hidden level of their module, half of them in the opposite sense."""
    rng = np.random.default_rng(seed)
    level = rng.normal(size=(n_obs, n_modules)).repeat(size, axis=1)
    sign = np.tile([1.0, -1.0], n_modules * size // 2)
    x = 8 + sign * level + 0.5 * rng.normal(size=level.shape)
    return ad.AnnData(x.astype(np.float32))


def graph(adata: ad.AnnData, **arguments) -> np.ndarray:
    return coexpression_graph(adata, copy=True, **arguments).varp["coexpression"].toarray()


def test_planted_modules_are_found_and_nothing_else():
    adata = modules()
    found = graph(adata) > 0
    module = np.arange(24) // 6
    same = (module[:, None] == module) & ~np.eye(24, dtype=bool)
    np.testing.assert_array_equal(found, same)


def test_weights_are_absolute_correlations_of_the_largest_first():
    adata = modules(seed=1)
    correlation = np.abs(np.corrcoef(adata.X.astype(float).T))
    np.fill_diagonal(correlation, 0)
    found = graph(adata, n_neighbors=3, min_correlation=0)
    assert (np.count_nonzero(found, axis=1) == 3).all()
    for i, row in enumerate(found):
        best = np.sort(np.argsort(-correlation[i])[:3])
        np.testing.assert_array_equal(np.flatnonzero(row), best)
        np.testing.assert_allclose(row[best], correlation[i, best], atol=1e-6)


@given(st.integers(1, 40), st.integers(0, 10))
def test_same_graph_whatever_block_size_and_row_order(block_size, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(30, 24)).round(1)
    x[:, 12:] = -3 * x[:, :12]  # every gene has an equal: ties everywhere
    adata = ad.AnnData(x.astype(np.float32))
    whole = coexpression_graph(adata, n_neighbors=4, min_correlation=0, copy=True)
    shuffled = adata[rng.permutation(30)].copy()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cfm.pp._coexpression_graph._BLOCK", block_size)
        cut = coexpression_graph(shuffled, n_neighbors=4, min_correlation=0, copy=True)
    a, b = whole.varp["coexpression"], cut.varp["coexpression"]
    np.testing.assert_array_equal(a.indices, b.indices)
    np.testing.assert_array_equal(a.indptr, b.indptr)
    np.testing.assert_allclose(a.data, b.data, atol=1.01e-6)


def test_among_ties_the_first_gene_is_kept():
    rng = np.random.default_rng(0)
    x = np.tile(rng.normal(size=(50, 1)), 5)
    found = graph(ad.AnnData(x), n_neighbors=2)
    assert [np.flatnonzero(row).tolist() for row in found] == [
        [1, 2],
        [0, 2],
        [0, 1],
        [0, 1],
        [0, 1],
    ]


def test_constant_genes_have_no_neighbours():
    adata = modules()
    # the same number but for the last bit of float32
    adata.X[:, 3] = np.float32(7.1)
    adata.X[::2, 3] = np.nextafter(np.float32(7.1), np.float32(8))
    adata.X[:, 4] = 0
    coexpression_graph(adata)
    found = adata.varp["coexpression"].toarray()
    assert not found[[3, 4]].any()
    assert not found[:, [3, 4]].any()
    assert adata.uns["coexpression"]["n_constant"] == 2
    assert adata.uns["coexpression"]["n_isolated"] == 2
    assert (np.count_nonzero(found, axis=1)[:3] == 3).all()


def test_symmetric():
    adata = modules(seed=2)
    one_way = graph(adata, n_neighbors=2)
    both = graph(adata, n_neighbors=2, symmetric=True)
    np.testing.assert_array_equal(both, np.maximum(one_way, one_way.T))
    assert np.count_nonzero(both) > np.count_nonzero(one_way)


def test_counts_and_few_samples_are_pointed_out():
    counts = ad.AnnData(np.random.default_rng(0).poisson(200, size=(60, 5)))
    with pytest.warns(UserWarning, match="looks like counts"):
        coexpression_graph(counts)
    with pytest.warns(UserWarning, match="with 10 observations, 25 % of unrelated gene pairs"):
        coexpression_graph(modules(n_obs=10))


def test_bad_values():
    adata = modules()
    with pytest.raises(ValueError, match="n_neighbors=0"):
        coexpression_graph(adata, n_neighbors=0)
    with pytest.raises(ValueError, match="of at least 0 and at most 1"):
        coexpression_graph(adata, min_correlation=1.5)
    with pytest.raises(ValueError, match="2 observations"):
        coexpression_graph(adata[:2].copy())
    with pytest.raises(ValueError, match=r"no gene of .* varies"):
        coexpression_graph(ad.AnnData(np.ones((30, 4))))
    adata.X[3, 2] = np.nan
    with pytest.raises(ValueError, match="1 NaN or infinite"):
        coexpression_graph(adata)
    assert "coexpression" not in adata.varp
