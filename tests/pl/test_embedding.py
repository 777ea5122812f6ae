"""``cfm.pl.embedding`` shows the stored coordinates and tells categories apart twice."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import PathCollection
from matplotlib.text import Text

import cfm


def offsets(ax) -> np.ndarray:
    """Positions of all drawn points."""
    found = [c.get_offsets() for c in ax.collections if isinstance(c, PathCollection)]
    return np.vstack([np.asarray(f) for f in found if len(f)])


def test_two_dimensions_are_shown_as_they_are(predicted):
    adata = predicted(30)
    adata.obsm["X_umap"] = np.random.default_rng(0).normal(size=(30, 2))
    ax = cfm.pl.embedding(adata, basis="umap", show=False)
    np.testing.assert_allclose(offsets(ax), adata.obsm["X_umap"])
    assert ax.get_xlabel() == "umap 1"


def test_more_dimensions_go_through_pca_and_the_axes_say_so(predicted):
    adata = predicted(30)
    adata.obsm["X_cellpulse"][:, 3] *= 50  # nearly all variance lies along one axis
    ax = cfm.pl.embedding(adata, show=False)
    assert ax.get_xlabel() == "PC1 of X_cellpulse (100 % of variance)"
    spread = np.corrcoef(offsets(ax)[:, 0], adata.obsm["X_cellpulse"][:, 3])[0, 1]
    assert abs(spread) > 0.999


def test_categories_differ_in_colour_and_marker(predicted):
    adata = predicted(80, 20)
    ax = cfm.pl.embedding(adata, color="virus", show=False)
    drawn = [c for c in ax.collections if len(c.get_offsets())]
    looks = {(c.get_facecolor()[0].tobytes(), c.get_paths()[0].vertices.tobytes()) for c in drawn}
    assert len(drawn) == len(looks) == 20
    assert len(offsets(ax)) == 80
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert "SARS-CoV-2 (4)" in legend


def test_missing_labels_are_a_category_of_their_own(predicted):
    adata = predicted(20)
    adata.obs["virus"] = adata.obs["virus"].where(np.arange(20) > 4)
    ax = cfm.pl.embedding(adata, color="virus", show=False)
    assert "not given (5)" in [text.get_text() for text in ax.get_legend().get_texts()]
    assert len(offsets(ax)) == 20


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_points_are_named(predicted, n):
    adata = predicted(n)
    ax = cfm.pl.embedding(adata, color="predicted_virus", show=False)
    written = {text.get_text() for text in ax.findobj(Text)}
    assert len(offsets(ax)) == n
    assert any(name[-12:] in text for name in adata.obs_names for text in written)


def test_names_never_cover_points_or_each_other(predicted):
    adata = predicted(15, name="placental macrophages|donor {i:03d}|{virus}_vs_mock")
    ax = cfm.pl.embedding(adata, show=False, label=True)
    boxes = [text.get_window_extent() for text in ax.texts]
    pixels = ax.transData.transform(offsets(ax))
    assert boxes
    for i, box in enumerate(boxes):
        assert not any(box.overlaps(other) for other in boxes[i + 1 :])
        assert not any(box.contains(x, y) for x, y in pixels)


def test_embedding_stored_as_a_frame(predicted):
    adata = predicted(4)
    values = adata.obsm["X_cellpulse"]
    adata.obsm["X_cellpulse"] = pd.DataFrame(values, index=adata.obs_names).add_prefix("d")
    assert len(offsets(cfm.pl.embedding(adata, show=False))) == 4
