"""Files are opened without loading, and read as the data that were written."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from scipy import sparse

from cfm.data import open_files
from tests._same import assert_same
from tests._storages import STORAGES, stored

OPENED = [kind for kind in STORAGES if kind.startswith("opened")]


def toy(n: int = 23, d: int = 11, seed: int = 0) -> ad.AnnData:
    rng = np.random.default_rng(seed)
    x = sparse.csr_matrix(rng.poisson(0.7, size=(n, d)).astype(np.float32))
    obs = pd.DataFrame(
        {"kind": pd.Categorical(rng.choice(["a", "b"], n)), "size": rng.random(n)},
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame({"length": rng.integers(1, 9, d)}, index=[f"G{i}" for i in range(d)])
    adata = ad.AnnData(x, obs=obs, var=var, uns={"made": {"by": "test"}})
    adata.layers["two"] = 2 * x
    adata.obsm["X_pca"] = rng.random((n, 3), dtype=np.float32)
    return adata


def dense(x):
    return x.toarray() if sparse.issparse(x) else np.asarray(x)


@pytest.mark.parametrize("kind", STORAGES)
def test_every_storage_holds_the_same(kind, tmp_path):
    adata = toy()
    other = stored(adata, kind, tmp_path)
    assert other.shape == adata.shape
    assert list(other.obs_names) == list(adata.obs_names)
    found = other[3:9].to_memory()
    assert np.array_equal(dense(found.X), dense(adata.X[3:9]))
    assert np.array_equal(dense(found.layers["two"]), dense(adata.layers["two"][3:9]))
    assert np.array_equal(dense(found.obsm["X_pca"]), adata.obsm["X_pca"][3:9])


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
@pytest.mark.parametrize("kind", OPENED)
def test_loaded_and_written(kind, suffix, tmp_path):
    adata = toy()
    opened = stored(adata, kind, tmp_path)
    path = tmp_path / f"again{suffix}"
    write(opened, path)
    for found in (opened.to_memory(), opened.copy().to_memory(), open_files(path).to_memory()):
        assert np.array_equal(dense(found.X), adata.X.toarray())
        assert np.array_equal(dense(found.layers["two"]), adata.layers["two"].toarray())
        assert_same(found.obsm["X_pca"], adata.obsm["X_pca"])
        assert_same(dict(found.uns), dict(adata.uns))
        assert_same(found.obs[list(adata.obs)], adata.obs)
        assert_same(found.var, adata.var)
    read = ad.read_h5ad(path) if suffix == ".h5ad" else ad.read_zarr(path)
    assert type(read.X) is type(opened.X[:])
    assert np.array_equal(dense(read.X), adata.X.toarray())


def write(adata, path):
    if path.suffix == ".zarr":
        adata.write_zarr(path)
    else:
        adata.write_h5ad(path)
