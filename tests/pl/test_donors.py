"""``cfm.pl.donors``: donors where their embedding is, rings as wide as their spread."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest
from matplotlib.collections import EllipseCollection, PathCollection

import cfm
from tests.pl._stored import make_donors


@pytest.fixture
def adata() -> ad.AnnData:
    return make_donors()


def rings(ax) -> EllipseCollection:
    (found,) = [c for c in ax.collections if isinstance(c, EllipseCollection)]
    return found


def test_points_and_rings(adata: ad.AnnData) -> None:
    ax = cfm.pl.donors(adata, color="disease", show=False)
    drawn = [c for c in ax.collections if isinstance(c, PathCollection) and len(c.get_offsets())]
    points = np.vstack([c.get_offsets() for c in drawn])
    assert {tuple(p) for p in np.round(points, 5)} == {
        tuple(p) for p in np.round(adata.obsm["X_pulsar"].astype(float), 5)
    }
    ellipses = rings(ax)
    np.testing.assert_allclose(ellipses.get_widths(), 2 * np.r_[0, 0, np.full(10, 0.5)])
    np.testing.assert_allclose(ellipses.get_offsets(), adata.obsm["X_pulsar"], atol=1e-6)
    assert ax.get_aspect() == 1.0
    low, high = ax.get_xlim()
    assert low < (adata.obsm["X_pulsar"][2:, 0] - 0.5).min()
    assert high > (adata.obsm["X_pulsar"][2:, 0] + 0.5).max()
    assert "lupus (6)" in [t.get_text() for t in ax.get_legend().get_texts()]
    assert ax.get_title() == "disease"


def test_wide_embeddings_numbers_and_no_rings(adata: ad.AnnData, tmp_path: Path) -> None:
    adata.obsm["X_wide"] = np.random.default_rng(1).normal(size=(12, 9))
    ax = cfm.pl.donors(adata, basis="wide", color="age", show=False, save=tmp_path / "x.png")
    assert ax.get_xlabel().startswith("PC1 of X_wide")
    assert (tmp_path / "x.png").stat().st_size > 1000
    assert not [c for c in ax.collections if isinstance(c, EllipseCollection)]
    ax = cfm.pl.donors(adata, spread=False, label=False, show=False)
    assert not [c for c in ax.collections if isinstance(c, EllipseCollection)]
