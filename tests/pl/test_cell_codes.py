"""``cfm.pl.cell_codes`` shows codes, their levels and genes as stored, and readably."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PatchCollection, PathCollection
from matplotlib.patches import Rectangle

import cfm
from tests.pl._drawn import legend_texts, row_names
from tests.pl._stored import with_cell_codes

KINDS = ["composition", "markers", "map"]
MANY = [f"type {i}" for i in range(34)]


# --- composition ----------------------------------------------------------------------------


def test_bars_are_the_shares_of_the_levels():
    adata = with_cell_codes(5)
    ax = cfm.pl.cell_codes(adata, show=False)
    table = pd.crosstab(adata.obs["cell_code"].astype(str), adata.obs["cell_type"])
    share = table.div(table.sum(axis=1), axis=0)
    levels = table.sum().sort_values(ascending=False, kind="stable").index
    for bars, level in zip(ax.containers, levels, strict=True):
        drawn = [bar.get_width() for bar in bars]
        np.testing.assert_allclose(drawn, share.loc[row_names(ax), level])
    ends = [bar.get_x() + bar.get_width() for bar in ax.containers[-1]]
    np.testing.assert_allclose(ends, 1.0)
    (beside,) = ax.child_axes
    sizes = [bar.get_width() for bar in beside.containers[0]]
    assert sizes == table.sum(axis=1).loc[row_names(ax)].tolist()
    assert ax.get_title() == "5 codes, 400 cells"
    assert legend_texts(ax)[0].startswith(f"A  {levels[0]} (")
    assert {text.get_text() for text in ax.texts} >= {"A", "B", "C", "D", "E"}


def test_codes_of_one_majority_stand_together():
    adata = with_cell_codes(20, 2000)
    ax = cfm.pl.cell_codes(adata, show=False)
    table = pd.crosstab(adata.obs["cell_code"].astype(str), adata.obs["cell_type"])
    majority = table.idxmax(axis=1).loc[row_names(ax)]
    runs = (majority != majority.shift()).sum()
    assert runs == majority.nunique()


def test_the_smallest_of_many_codes_are_taken_together():
    adata = with_cell_codes(300, 3000)
    ax = cfm.pl.cell_codes(adata, show=False)
    assert row_names(ax)[-1] == "270 others"
    assert len(row_names(ax)) == 31
    share = adata.obs["cell_code"].value_counts().iloc[:30].sum() / adata.n_obs
    assert ax.get_title() == f"30 of 300 codes, with {share:.0%} of 3,000 cells"
    ax = cfm.pl.cell_codes(adata, n_codes=4, show=False)
    assert len(row_names(ax)) == 5
    one = adata.obs["cell_code"].cat.categories[-1]
    ax = cfm.pl.cell_codes(adata, codes=[one], show=False)
    assert row_names(ax) == [one, "299 others"]


def test_rare_levels_are_one_and_cells_without_a_level_are_said():
    adata = with_cell_codes(40, 3000, MANY)
    values = adata.obs["cell_type"].astype(object)
    adata.obs["cell_type"] = values.where(np.arange(adata.n_obs) % 10 > 0)
    ax = cfm.pl.cell_codes(adata, show=False)
    texts = legend_texts(ax)
    assert len(texts) == 21
    assert texts[-2].startswith("+  other levels (")
    assert texts[-1] == "–  not given (300)"
    letters = [text.split()[0] for text in texts]
    assert len(set(letters)) == len(letters)


def test_without_an_annotation_sizes_are_drawn():
    adata = with_cell_codes(5)
    adata.uns["cell_code"]["params"] = {}
    ax = cfm.pl.cell_codes(adata, show=False)
    assert [t.get_text() for t in ax.texts] == [
        str(n) for n in adata.obs["cell_code"].value_counts().loc[row_names(ax)]
    ]
    assert ax.get_legend() is None
    for kind in KINDS[1:]:
        assert cfm.pl.cell_codes(adata, kind=kind, show=False).get_title() == "5 codes, 400 cells"


def test_another_annotation_and_cells_without_a_code():
    adata = with_cell_codes(5)
    adata.obs.loc[adata.obs_names[:40], "cell_code"] = np.nan
    ax = cfm.pl.cell_codes(adata, groupby="donor", show=False)
    assert ax.get_title() == "5 codes, 360 cells"
    assert [text[3:5] for text in legend_texts(ax)] in (["d1", "d2"], ["d2", "d1"])


# --- markers --------------------------------------------------------------------------------


def dots(ax) -> PathCollection:
    (found,) = [c for c in ax.collections if isinstance(c, PathCollection)]
    return found


@pytest.mark.parametrize("units", ["counts", "log1p_cp10k"])
def test_dots_are_shares_and_means(units):
    adata = with_cell_codes(5)
    counts = adata.X.toarray()
    logged = np.log1p(counts / counts.sum(axis=1, keepdims=True) * 1e4)
    if units == "log1p_cp10k":
        adata.layers["log"] = logged
        adata.uns["cell_code"]["params"] |= {"units": units, "layer": "log"}
    ax = cfm.pl.cell_codes(adata, kind="markers", n_genes=2, show=False)
    genes = [text.get_text() for text in ax.get_xticklabels()]
    codes = [name.split()[-2] for name in row_names(ax)]
    drawn = dots(ax)
    place = {(int(x), int(y)): i for i, (x, y) in enumerate(drawn.get_offsets())}
    mean = np.array([logged[(adata.obs["cell_code"] == c).to_numpy()].mean(axis=0) for c in codes])[
        :, [adata.var_names.get_loc(g) for g in genes]
    ]
    for (x, y), i in place.items():
        np.testing.assert_allclose(drawn.get_array()[i], mean[y, x] / mean[:, x].max(), rtol=1e-5)
    own = (adata.obs["cell_code"] == codes[0]).to_numpy()
    share = (counts[own][:, [adata.var_names.get_loc(g) for g in genes]] > 0).mean(axis=0)
    areas = [drawn.get_sizes()[place[x, 0]] for x in range(len(genes))]
    np.testing.assert_allclose(np.array(areas) / areas[0], share / share[0], rtol=1e-5)
    frames = [p for p in ax.patches if isinstance(p, Rectangle)]
    assert len(frames) == 2 * len(codes)
    framed = {(round(p.get_x() + 0.47), round(p.get_y() + 0.47)) for p in frames}
    markers = adata.uns["cell_code"]["markers"]
    for x, y in framed:
        own = markers[(markers["code"] == codes[y]) & (markers["gene"] == genes[x])]
        assert own["rank"].tolist() in ([1], [2])


def test_codes_without_markers_cannot_be_drawn():
    adata = with_cell_codes(60, 200)
    markers = adata.uns["cell_code"]["markers"]
    without = next(
        c for c in adata.obs["cell_code"].cat.categories if c not in set(markers["code"])
    )
    with pytest.raises(KeyError, match="not in uns"):
        cfm.pl.cell_codes(adata, kind="markers", codes=[without])
    adata.uns["cell_code"]["markers"] = markers.iloc[:0]
    with pytest.raises(ValueError, match="has markers: all have fewer cells than its min_cells"):
        cfm.pl.cell_codes(adata, kind="markers")


# --- map -----------------------------------------------------------------------------------


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


# --- transitions ----------------------------------------------------------------------------


def test_transitions_are_the_shares_of_planted_moves():
    adata = with_cell_codes(3, 90)
    before = np.repeat(["0", "1", "2"], 30)
    after = np.where(np.arange(90) % 30 < 6, "2", before)  # a fifth of the cells moves to code 2
    adata.obs["cell_code_before"], adata.obs["cell_code_after"] = before, after
    adata.obs.loc[adata.obs_names[-1], "cell_code_after"] = None
    ax = cfm.pl.code_transitions(adata, show=False)
    (image,) = ax.get_images()
    np.testing.assert_allclose(image.get_array(), [[0.8, 0, 0.2], [0, 0.8, 0.2], [0, 0, 1]])
    assert row_names(ax) == ["0 (30)", "1 (30)", "2 (29)"]
    assert ax.get_xlabel() == "code after"


def test_conditions_are_rows_and_rare_codes_one_column():
    adata = with_cell_codes(6)
    adata.obs["condition"] = np.where(np.arange(adata.n_obs) % 2, "control", "perturbed")
    ax = cfm.pl.code_transitions(adata, groupby="condition", n_codes=2, show=False)
    assert row_names(ax) == ["control (200)", "perturbed (200)"]
    names = [text.get_text() for text in ax.get_xticklabels()]
    top = adata.obs["cell_code"].value_counts().nlargest(2)
    assert names == [*sorted(top.index, key=int), "other"]
    (image,) = ax.get_images()
    np.testing.assert_allclose(200 * image.get_array()[:, :2].sum(), top.sum())


def test_transitions_without_codes_are_refused():
    adata = with_cell_codes(3)
    with pytest.raises(KeyError, match="cell_code_before"):
        cfm.pl.code_transitions(adata, show=False)
    adata.obs["cell_code_before"] = adata.obs["cell_code_after"] = ""
    with pytest.raises(ValueError, match="nothing to draw"):
        cfm.pl.code_transitions(adata, show=False)
