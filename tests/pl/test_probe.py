"""``cfm.pl.probe`` draws stored scores, and nothing else."""

from __future__ import annotations

import numpy as np

import cfm
from tests.pl._stored import make_probed


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def test_scores_intervals_and_baselines_are_drawn():
    ax = cfm.pl.probe(make_probed(), show=False)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["X_model0", "expression PCA"]
    assert texts(ax) == [
        "0.80 (0.70 to 0.90)",
        "0.82 (0.72 to 0.92)",
        "0.70 (0.60 to 0.80)",
        "0.72 (0.62 to 0.82)",
    ]
    dashed = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert [line.get_xdata()[0] for line in dashed] == [0.5]
    spans = [segment[:, 0].tolist() for part in ax.collections for segment in part.get_segments()]
    np.testing.assert_allclose(spans[0], [0.7, 0.9])
    low, high = ax.get_xlim()
    assert low < 0.5 < 0.92 < high
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    assert labels == ["logistic", "random forest", "majority"]
    assert ax.get_xlabel() == "balanced accuracy\ndisease; 60 observations, 20 groups"


def test_heads_differ_in_marker_and_representations_in_colour():
    ax = cfm.pl.probe(make_probed(n_reps=2), show=False)
    points = [line for line in ax.get_lines() if line.get_marker() not in ("None", ".")]
    assert [line.get_marker() for line in points] == ["o", "s"] * 3
    assert len({line.get_color() for line in points}) == 3


def test_several_targets_show_their_mean_and_each():
    adata = make_probed(n_targets=7)
    ax = cfm.pl.probe(adata, show=False)
    dots = [line for line in ax.get_lines() if line.get_marker() == "."]
    assert [len(line.get_xdata()) for line in dots] == [7] * 4
    assert texts(ax)[0] == "0.80 (0.70 to 0.90)"
    one = cfm.pl.probe(adata, target="drug3", show=False)
    assert not [line for line in one.get_lines() if line.get_marker() == "."]
    assert "drug3" in one.get_xlabel()


def test_what_is_not_defined_is_said():
    adata = make_probed()
    table = adata.uns["probe"]["results"]
    table.loc[table["representation"] == "none", ["score", "low", "high"]] = np.nan
    table.loc[table["representation"] == "expression PCA", ["score", "low", "high"]] = np.nan
    ax = cfm.pl.probe(adata, show=False)
    assert texts(ax)[2:] == ["not defined", "not defined"]
    assert not [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    assert "majority" not in [text.get_text() for text in ax.get_legend().get_texts()]
