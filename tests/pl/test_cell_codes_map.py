"""The map of ``cfm.pl.cell_codes``: discs, letters, numbers and lines."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PatchCollection

import cfm
from tests.pl._coded import with_cell_codes


def discs(ax) -> PatchCollection:
    (found,) = [c for c in ax.collections if isinstance(c, PatchCollection)]
    return found


@pytest.mark.parametrize(("n", "cells"), [(1, 30), (2, 30), (9, 300), (12, 300), (120, 2000)])
def test_discs_do_not_cover_each_other(n, cells):
    ax = cfm.pl.cell_codes(with_cell_codes(n, cells), kind="map", show=False)
    boxes = [path.get_extents() for path in discs(ax).get_paths()]
    assert len(boxes) == n
    centers = np.array([[(b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2] for b in boxes])
    radii = np.array([b.width / 2 for b in boxes])
    distance = np.hypot(*(centers[:, None] - centers[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    assert (distance > radii[:, None] + radii - 1e-2).all()
    assert (np.diff(radii) <= 1e-9).all()  # the largest are drawn first


def test_letters_and_numbers_name_codes_and_lines_link_neighbours():
    adata = with_cell_codes(8, 400)
    ax = cfm.pl.cell_codes(adata, kind="map", show=False)
    texts = [text.get_text() for text in ax.texts]
    assert set(adata.obs["cell_code"].cat.categories) <= set(texts)
    assert sum(text in "ABCDE" for text in texts) == 8
    (lines,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    table = adata.uns["cell_code"]["neighbours"]
    pairs = {frozenset(pair) for pair in zip(table["code"], table["neighbour"], strict=True)}
    assert len(lines.get_segments()) == len(pairs)
    assert "line to the nearest code" in ax.get_xlabel()


def test_like_codes_lie_near_each_other():
    adata = with_cell_codes(50, 6000)
    ax = cfm.pl.cell_codes(adata, kind="map", show=False)
    letters = [t for t in ax.texts if t.get_text() in set("ABCDE")]
    xy = np.array([t.get_position() for t in letters])
    kind = np.array([t.get_text() for t in letters])
    distance = np.hypot(*(xy[:, None] - xy[None]).transpose(2, 0, 1))
    np.fill_diagonal(distance, np.inf)
    assert (kind[distance.argmin(axis=1)] == kind).mean() > 0.7
