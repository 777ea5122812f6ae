"""``cfm.pl.drug_screen`` shows every compound, names the first and says what is missing."""

from __future__ import annotations

import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex

import cfm
from cfm.pl._figure import COLORS
from tests.pl._drawn import legend_texts, row_names
from tests.pl._stored import with_drug_screen

MARKED = COLORS[0].lower()


def result(adata):
    return adata.uns["drug_screen"]["results"]


def points(ax) -> np.ndarray:
    return np.vstack(
        [np.asarray(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection)]
    )


# --- waterfall ------------------------------------------------------------------------------


def test_few_compounds_are_bars_with_their_names():
    adata = with_drug_screen(20)
    table = result(adata)
    adata.uns["drug_screen"]["results"] = table.iloc[::-1]
    ax = cfm.pl.drug_screen(adata, show=False)
    assert row_names(ax) == list(table["compound"])
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(list(table["score"]))
    marked = [to_hex(bar.get_facecolor()) == MARKED for bar in ax.patches]
    stars = [text.get_text().endswith("*") for text in ax.texts]
    assert marked == stars == [True, True] + [False] * 18


def test_evidence_is_named():
    ax = cfm.pl.drug_screen(with_drug_screen(5), show=False)
    assert [text.get_text() for text in ax.texts] == ["S+T *", "S+T *", "S", "T", "S+T"]
    assert "S: from signatures, T: from targets" in legend_texts(ax)


def test_waterfall_has_all_scores_and_names_the_first():
    adata = with_drug_screen(1300)
    table = result(adata)
    ax = cfm.pl.drug_screen(adata, n_compounds=9, show=False)
    heights = ax.collections[0].get_paths()[0].vertices
    assert heights[:, 0].max() >= 1300
    assert heights[:, 1].max() == pytest.approx(table["score"].max())
    assert heights[:, 1].min() == pytest.approx(table["score"].min())
    named = [text.get_text() for text in ax.texts]
    assert [name.split()[:2] for name in named] == [[str(i + 1), f"compound-{i}"] for i in range(9)]
    (stems,) = [c for c in ax.collections if isinstance(c, LineCollection)]
    assert [segment[0][0] for segment in stems.get_segments()] == [1, 2]


def test_names_stand_above_the_bars():
    adata = with_drug_screen(200)
    result(adata)["score"] = np.linspace(5, 4, 200)  # high bars all along
    ax = cfm.pl.drug_screen(adata, show=False)
    ax.figure.draw_without_rendering()
    bars = ax.transData.transform([[1, 5]])[0, 1]
    for text in ax.texts:
        start, end = text.get_window_extent().x0, text.get_window_extent().x1
        assert start < end
        place = ax.transAxes.transform(text.xyann)
        height = np.interp(ax.transData.inverted().transform(place)[0], [1, 200], [5, 4])
        assert place[1] > ax.transData.transform([[1, height]])[0, 1] - 1
        assert place[1] < ax.get_window_extent().y1
    assert bars < ax.get_window_extent().y1


# --- scatter --------------------------------------------------------------------------------


def test_scatter_has_each_compound_at_its_values():
    adata = with_drug_screen(40)
    table = result(adata)
    ax = cfm.pl.drug_screen(adata, kind="scatter", show=False)
    drawn = points(ax)
    assert len(drawn) == 40
    both = table.dropna(subset=["cosine_reversal", "target_score"])
    for x, y in both[["cosine_reversal", "target_score"]].to_numpy():
        assert np.isclose(drawn, [x, y]).all(axis=1).any()
    other = cfm.pl.drug_screen(adata, kind="scatter", x="embedding_reversal", show=False)
    assert "embedding" in other.get_xlabel()


def test_missing_evidence_has_a_lane_of_its_own():
    adata = with_drug_screen(40)
    ax = cfm.pl.drug_screen(adata, kind="scatter", show=False)
    table = result(adata)
    drawn = points(ax)
    reversal = table["cosine_reversal"]
    assert (drawn[:, 0] < reversal.min()).sum() == reversal.isna().sum()
    assert (drawn[:, 1] < table["target_score"].min()).sum() == table["target_score"].isna().sum()
    said = {text.get_text() for text in ax.texts}
    assert {"no signature (8)", "no target\n(8)"} <= said


def test_compounds_with_neither_are_counted():
    adata = with_drug_screen(10)
    result(adata).loc[["8", "9"], ["cosine_reversal", "target_score"]] = np.nan
    ax = cfm.pl.drug_screen(adata, kind="scatter", show=False)
    assert len(points(ax)) == 8
    assert "2 with neither are not shown" in legend_texts(ax)
    result(adata)["cosine_reversal"] = np.nan
    result(adata).loc["0", "target_score"] = 1.0
    assert len(points(cfm.pl.drug_screen(adata, kind="scatter", show=False))) >= 1


def test_marked_points_differ_in_colour_and_shape():
    ax = cfm.pl.drug_screen(with_drug_screen(40), kind="scatter", show=False)
    drawn = [c for c in ax.collections if isinstance(c, PathCollection) and len(c.get_offsets())]
    looks = {c.get_paths()[0].vertices.tobytes(): to_hex(c.get_edgecolor()[0]) for c in drawn}
    marked = [c for c in drawn if to_hex(c.get_edgecolor()[0]) == MARKED]
    assert len(marked) == 1
    assert len(marked[0].get_offsets()) == 2
    assert len(looks) == 2
