"""``cfm.pl.perturbation_metrics(kind="metrics")`` draws scores beside baselines and the ceiling."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import cfm
from tests.pl._drawn import row_names
from tests.pl._stored import METRICS, make_scores


def widths(ax) -> list[float]:
    return [bar.get_width() for bar in ax.patches]


def bold(ax) -> list[str]:
    return [text.get_text() for text in ax.texts if text.get_fontweight() == "bold"]


def ceiling(ax) -> list[float]:
    lines = [line for line in ax.get_lines() if line.get_linestyle() == "--"]
    return [line.get_xdata()[0] for line in lines]


def test_bars_are_means_over_cases_and_dots_the_cases():
    axes = cfm.pl.perturbation_metrics(make_scores(), show=False)
    assert list(axes) == list(METRICS)
    first = axes["delta_pearson"]
    assert row_names(first) == ["LingshuCell", "control", "mean_shift", "ceiling"]
    np.testing.assert_allclose(widths(first), [0.805, 0.0, 0.905, 0.975])
    assert [text.get_text() for text in first.texts] == ["0.805", "not defined", "0.905", "0.975"]
    assert ceiling(first) == pytest.approx([0.975])
    assert "higher is better" in first.get_title(loc="left")
    assert "lower is better" in axes["mmd"].get_title(loc="left")
    dots = [line.get_xdata() for line in first.get_lines() if line.get_marker() == "."]
    np.testing.assert_allclose(dots[0], [0.8, 0.81])
    assert plt.get_fignums() == []


FOUR = ["B cell", "T cell", "NK cell", "monocyte"]


def test_the_best_is_bold_also_where_it_is_a_baseline():
    axes = cfm.pl.perturbation_metrics(make_scores(FOUR), show=False)
    assert bold(axes["delta_pearson"]) == ["0.915"]  # the ceiling is higher, but no method
    assert bold(axes["e_distance"]) == ["1.02"]
    assert bold(axes["mmd"]) == ["0.0250"]


def test_nothing_is_bold_inside_its_interval_or_of_two_cases():
    axes = cfm.pl.perturbation_metrics(make_scores(), show=False)
    assert not any(bold(ax) for ax in axes.values())
    table = make_scores(FOUR)
    own = (table["metric"] == "mmd") & (table["method"] == "LingshuCell")
    table.loc[own, "value"] += [0.0, 0.3, 0.0, 0.0]  # in the mean still the best, by one case
    table.loc[own, "value"] -= 0.05
    ax = cfm.pl.perturbation_metrics(table, metric="mmd", show=False)
    means = table[table["metric"] == "mmd"].groupby("method")["value"].mean()
    assert means.drop("ceiling").idxmin() == "LingshuCell"
    assert bold(ax) == []


def test_a_method_scored_in_fewer_cases_says_so_and_is_not_the_best():
    table = make_scores(FOUR)
    own = (table["metric"] == "e_distance") & (table["method"] == "control")
    table.loc[own, "value"] = [0.01, np.nan, 0.01, 0.01]
    ax = cfm.pl.perturbation_metrics(table, metric="e_distance", show=False)
    assert ax.texts[1].get_text() == "0.0100 (3 of 4)"
    assert bold(ax) == ["1.02"]


def test_metrics_groups_and_perturbations_are_chosen():
    table = make_scores()
    ax = cfm.pl.perturbation_metrics(table, metric="mmd", group="T cell", show=False)
    np.testing.assert_allclose(widths(ax), [0.02, 0.21, 0.11, 0.012])
    assert not [line for line in ax.get_lines() if line.get_marker() == "."]
    axes = cfm.pl.perturbation_metrics(table, metric=["mmd"], perturbation="IFN", show=False)
    assert list(axes) == ["mmd"]


def test_metrics_of_cell_eval_are_drawn_when_asked_for():
    table = make_scores()
    extra = table[table["metric"] == "mmd"].assign(metric="cell_eval:de_sig_genes_recall")
    table = pd.concat([table, extra])
    assert list(cfm.pl.perturbation_metrics(table, show=False)) == list(METRICS)
    ax = cfm.pl.perturbation_metrics(table, metric="cell_eval:de_sig_genes_recall", show=False)
    assert ax.get_title(loc="left").startswith("de sig genes recall")
    alone = cfm.pl.perturbation_metrics(extra, show=False)
    assert alone.get_title(loc="left") == ax.get_title(loc="left")


def test_a_metric_that_is_not_defined_is_drawn_only_when_asked_for():
    table = make_scores()
    table.loc[table["metric"] == "mmd", "value"] = np.nan
    assert list(cfm.pl.perturbation_metrics(table, show=False)) == ["delta_pearson", "e_distance"]
    ax = cfm.pl.perturbation_metrics(table, metric="mmd", show=False)
    assert {text.get_text() for text in ax.texts} == {"not defined"}


def test_the_table_of_the_tool_is_drawn():
    toy = cfm.datasets.toy_perturbation()
    asked = {"key": "perturbation", "control": "control", "groupby": "cell_type"}
    made = cfm.tl.simulate_perturbation(toy, "TNF", model="mean_shift", **asked)
    scores = cfm.tl.evaluate_perturbation(toy, {"mine": made}, **asked)
    axes = cfm.pl.perturbation_metrics(scores, show=False)
    assert list(axes) == ["delta_pearson", "e_distance", "mmd", "direction_accuracy"]
    names = ["mine", "control", "mean_shift", "additive", "nearest", "linear", "ceiling"]
    assert row_names(axes["delta_pearson"]) == names
    first = scores.query("metric == 'mmd' and method == 'mine'")["value"].mean()
    assert widths(axes["mmd"])[0] == pytest.approx(first)


def test_several_models_and_negative_scores():
    table = make_scores()
    second = table[table["method"] == "LingshuCell"].assign(method="scVI " + "long " * 10)
    second["value"] = -0.2
    table = pd.concat([second, table])
    ax = cfm.pl.perturbation_metrics(table, metric="delta_pearson", show=False)
    assert row_names(ax)[1:] == ["LingshuCell", "control", "mean_shift", "ceiling"]
    assert "…" in row_names(ax)[0]
    assert ax.texts[0].get_text() == "−0.200"
    assert ax.get_xlim()[0] <= -0.2
    model, other, baseline = (ax.patches[i].get_facecolor() for i in (0, 1, 2))
    assert model == other != baseline
