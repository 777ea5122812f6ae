"""Pairs of samples that stay on disk are the pairs of the same samples in memory."""

from __future__ import annotations

import gc
from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from scipy import sparse

from cfm.data import ContrastPairs, ProfileSource
from cfm.pp import contrasts

#: Far too little for all samples, so that rows come and go: 3 of 60 genes.
FEW = 3 * 60 * 4 / 2**20


def make(adata: ad.AnnData, memory_mib: float = FEW, **keywords) -> ContrastPairs:
    keywords = {"by": "study"} | keywords
    found = contrasts(adata, "virus", "none", mode="pairs", memory_mib=memory_mib, **keywords)
    assert isinstance(found, ContrastPairs)
    return found


def dense(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    adata.write_h5ad(folder / "dense.h5ad")
    return ad.read_h5ad(folder / "dense.h5ad", backed="r")


def csr(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    ad.AnnData(sparse.csr_matrix(adata.X), adata.obs, adata.var).write_h5ad(folder / "csr.h5ad")
    return ad.read_h5ad(folder / "csr.h5ad", backed="r")


def zarr(adata: ad.AnnData, folder: Path) -> ad.AnnData:
    pytest.importorskip("zarr")
    adata.write_zarr(folder / "x.zarr")
    pytest.importorskip("xarray")
    return ad.experimental.read_lazy(folder / "x.zarr")


@pytest.mark.parametrize("store", [dense, csr, zarr])
def test_pairs_on_disk_are_those_in_memory(counts, store, tmp_path) -> None:
    counts.X[6:] *= 20  # each stratum has a prior of its own
    expected = make(counts)
    found = make(store(counts, tmp_path))
    gc.collect()  # whatever else held the file
    assert found.on_disk
    assert not expected.on_disk
    assert isinstance(found, ProfileSource)
    assert "samples on disk" in repr(found)
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found[:], expected[:])
    np.testing.assert_array_equal(found[[17, 3, 3, 0]], expected[[17, 3, 3, 0]])
    assert found.obs(slice(None)).equals(expected.obs(slice(None)))
    for balanced, repeats in ((False, 1), (True, 2)):
        for pairs in (found, expected):
            pairs.balanced, pairs.controls_per_case = balanced, repeats
        ours, theirs = (p.draw(30, np.random.default_rng(4)) for p in (found, expected))
        np.testing.assert_array_equal(ours.effects, theirs.effects)
        np.testing.assert_array_equal(ours.group, theirs.group)


def test_log_values_stay_on_disk_too(counts, tmp_path) -> None:
    counts.X = np.log2(counts.X + 1)
    expected = make(counts, units="log")
    found = make(dense(counts, tmp_path), units="log")
    assert found.on_disk
    np.testing.assert_array_equal(found[:], expected[:])


def test_what_fits_is_held(counts, tmp_path) -> None:
    found = make(dense(counts, tmp_path), memory_mib=1)
    assert not found.on_disk
    np.testing.assert_array_equal(found[:], make(counts)[:])


def test_only_samples_of_pairs_are_read(counts, tmp_path) -> None:
    """Rows of the file are not those of the pairs when samples are left out."""
    counts.obs["study"] = ["study0"] * 3 + ["study1"] * 9  # study0 has controls only
    with pytest.warns(UserWarning, match="left out 1 strata"):
        expected = make(counts)
    with pytest.warns(UserWarning, match="left out 1 strata"):
        found = make(dense(counts, tmp_path))
    assert len(found.sample_names) < counts.n_obs
    np.testing.assert_array_equal(found[:], expected[:])


def test_a_part_of_a_draw(counts, tmp_path) -> None:
    """Two processes draw the same numbers, and together make the draw of one."""
    for pairs in (make(counts), make(dense(counts, tmp_path))):
        whole = pairs.draw(9, np.random.default_rng(1))
        mine, yours = np.random.default_rng(1), np.random.default_rng(1)
        parts = [pairs.draw(9, mine, part=slice(4)), pairs.draw(9, yours, part=slice(4, 9))]
        np.testing.assert_array_equal(np.concatenate([p.effects for p in parts]), whole.effects)
        np.testing.assert_array_equal(np.concatenate([p.group for p in parts]), whole.group)
        assert mine.random() == yours.random()


def test_samples_are_read_when_they_are_needed_only(counts, tmp_path, monkeypatch) -> None:
    import cfm.pp._contrasts as module

    asked: list[int] = []
    original = module.read_rows

    def read_rows(matrix, rows):
        asked.extend(rows)
        return original(matrix, rows)

    monkeypatch.setattr(module, "read_rows", read_rows)
    found = make(dense(counts, tmp_path), by=None)
    assert not asked
    found[0]
    assert len(asked) == 2
    found[0]
    assert len(asked) == 2
