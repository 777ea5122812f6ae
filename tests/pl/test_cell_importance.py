"""``cfm.pl.cell_importance``: medians and donors of the stored table."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pytest

import cfm
from tests.pl._stored import make_importance


@pytest.fixture
def adata() -> ad.AnnData:
    return make_importance()


def medians(ax) -> list[np.ndarray]:
    return [np.asarray(c.get_offsets()) for c in ax.collections if len(c.get_offsets()) == 1]


def test_groups_are_ordered_by_their_median(adata: ad.AnnData, tmp_path: Path) -> None:
    ax = cfm.pl.cell_importance(adata, show=False, save=tmp_path / "x.pdf")
    assert [t.get_text() for t in ax.get_yticklabels()] == ["B (5)", "NK (5)", "T (5)"]
    table = adata.uns["cell_importance"]["groups"]
    expected = table.groupby("group")["enrichment"].median()
    found = {int(p[0, 1]): p[0, 0] for p in medians(ax)}
    assert found == {0: expected["B"], 1: expected["NK"], 2: expected["T"]}
    assert ax.get_xscale() == "log"
    ax.figure.draw_without_rendering()
    assert "1" in [t.get_text() for t in ax.get_xticklabels()]
    assert ax.get_xlabel() == "attention over share of cells"
    dots = [c for c in ax.collections if len(c.get_offsets()) == 5]
    assert len(dots) == 3
    assert (tmp_path / "x.pdf").stat().st_size > 1000


def test_removal_is_drawn_beside_random_cells(adata: ad.AnnData) -> None:
    ax = cfm.pl.cell_importance(adata, kind="removal", groups=["NK", "T"], show=False)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["NK (5)", "T (5)"]
    values = sorted(round(float(p[0, 0]), 2) for p in medians(ax))
    assert values == [0.32, 0.32, 0.52, 1.02]
    shapes = {c.get_paths()[0].vertices.tobytes() for c in ax.collections}
    assert len(shapes) == 2  # told apart by more than colour
    assert len(ax.get_legend().get_texts()) == 2
