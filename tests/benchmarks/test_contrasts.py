"""Simulated samples on disk are counts that pairs can be made of."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from benchmarks._contrast_samples import open_pairs, train, write_profiles, write_samples
from cfm.data import ProfileMatrix


def test_samples_and_pairs_on_disk(tmp_path: Path) -> None:
    samples = tmp_path / "samples.h5ad"
    write_samples(samples, 450, 300)
    pairs, _ = open_pairs(samples, 0.1)
    assert pairs.on_disk
    assert len(pairs) == 161 * 289
    held, _ = open_pairs(samples, 100)
    assert not held.on_disk
    np.testing.assert_array_equal(
        pairs.draw(50, np.random.default_rng(0)).effects,
        held.draw(50, np.random.default_rng(0)).effects,
    )
    write_profiles(pairs, tmp_path / "profiles.h5", 250)
    import h5py

    with h5py.File(tmp_path / "profiles.h5") as file:
        source = ProfileMatrix(file["X"], pairs.var_names)
        assert len(source) == 250
        assert np.isfinite(source.draw(9, np.random.default_rng(0)).effects).all()
    assert train(pairs, 3) > 0
