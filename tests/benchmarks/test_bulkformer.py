"""The benchmark counts the operations that there are, and writes what both implementations read."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from benchmarks.bulkformer import check_reference, operations, samples, write_published
from cfm.models import BulkFormer
from cfm.models.bulkformer import SIZES, BulkFormerSize


def test_the_largest_size_needs_about_three_teraflops_a_sample() -> None:
    assert 2.8e12 < operations(SIZES["147M"], 20_010) < 3.2e12


def test_samples_look_like_log_tpm() -> None:
    x = samples(3, 2000)
    assert 0.05 < (x == -10).float().mean() < 0.15
    assert (x[x != -10] >= 0).all()
    assert torch.equal(x, samples(3, 2000))


def test_both_implementations_read_the_same_files(tmp_path) -> None:
    pytest.importorskip("performer_pytorch")
    pytest.importorskip("torch_geometric")
    from benchmarks.bulkformer import load_reference

    assert check_reference() < 1e-5
    write_published(tmp_path, BulkFormerSize(dim=32, n_layers=2, n_heads=4), 90)
    x = samples(2, 90)
    with torch.no_grad():
        expected = load_reference(tmp_path)(x).numpy()
        found = BulkFormer.from_pretrained(tmp_path).module.encode(x, 0.0).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
