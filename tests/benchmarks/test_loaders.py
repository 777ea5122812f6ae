"""The comparison of loaders measures what it says."""

import importlib.util

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from benchmarks import _loaders


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_every_loader_gives_each_row_once(suffix, tmp_path):
    x = np.random.default_rng(0).poisson(0.5, size=(150, 8)).astype(np.float32)
    x[:, 0] = np.arange(150)
    adata = ad.AnnData(sparse.csr_matrix(x))
    path = tmp_path / f"cells{suffix}"
    adata.write_h5ad(path) if suffix == ".h5ad" else adata.write_zarr(path)
    for name, make in _loaders.loaders(path).items():
        batches = [b["X"] if isinstance(b, dict) else b for b in make(path, 32, 0)]
        assert [len(b) for b in batches] == [32, 32, 32, 32, 22], name
        rows = np.concatenate([b[:, 0].numpy() for b in batches]).astype(int)
        assert sorted(rows) == list(range(150)) and list(rows) != list(range(150)), name
        assert np.array_equal(np.concatenate([b.numpy() for b in batches]), x[rows]), name
    table = _loaders.compare(path, n_batches=3, batch_size=32)
    n_loaders = 4 if importlib.util.find_spec("scdataset") else 2
    n_loaders += bool(importlib.util.find_spec("annbatch")) and suffix == ".zarr"
    assert len(table) == n_loaders and (table["slowest"] <= table["fastest"]).all()
    assert table["times_anndataloader"][1] == 1.0
