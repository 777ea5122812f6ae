"""``cfm.pl.probe`` draws stored scores, and nothing else."""

from __future__ import annotations

import itertools

import anndata as ad
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

import cfm

METRICS = ("balanced_accuracy", "auroc")


def make_probed(n_targets: int = 1, task: str = "classification", n_reps: int = 1) -> ad.AnnData:
    """The table that the tool stores, made up: embeddings at 0.8, expression at 0.7."""
    rng = np.random.default_rng(0)
    rows = []
    targets = ["disease"] if n_targets == 1 else ["mean over targets"]
    targets += [f"drug{i}" for i in range(n_targets if n_targets > 1 else 0)]
    methods = [(f"X_model{i}", 0.8) for i in range(n_reps)] + [("expression PCA", 0.7)]
    heads = ["logistic", "random_forest"]
    for (rep, level), head, target, metric in itertools.product(methods, heads, targets, METRICS):
        score = level + 0.02 * heads.index(head) + (target[:4] == "drug") * rng.normal() / 10
        rows.append((rep, head, target, metric, score, score - 0.1, score + 0.1, 60, 20))
    for target, metric in itertools.product(targets, METRICS):
        rows.append(("none", "majority", target, metric, 0.5, 0.5, 0.5, 60, 20))
    names = ["representation", "head", "target", "metric"]
    names += ["score", "low", "high", "n_obs", "n_groups"]
    table = pd.DataFrame(rows, columns=names)
    table.index = table.index.astype(str)
    adata = ad.AnnData(np.zeros((4, 2)))
    adata.uns["probe"] = {"params": {"task": task, "target": ["disease"]}, "results": table}
    return adata


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


def test_several_metrics_and_own_axes():
    axes = cfm.pl.probe(make_probed(), metric=["auroc", "balanced_accuracy"], show=False)
    assert list(axes) == ["auroc", "balanced_accuracy"]
    assert axes["auroc"].get_xlabel().startswith("AUROC")
    assert plt.get_fignums() == []
    figure, ax = plt.subplots()
    assert cfm.pl.probe(make_probed(), ax=ax, show=False) is ax
    assert plt.fignum_exists(figure.number)


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


def test_saved_and_long_names(tmp_path):
    adata = make_probed(n_reps=8)
    table = adata.uns["probe"]["results"]
    table["representation"] = table["representation"].replace("X_model3", "X_" + "long" * 20)
    cfm.pl.probe(adata, save=tmp_path / "a.png", show=False)
    assert (tmp_path / "a.png").stat().st_size > 5000


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"key": "other"}, KeyError, r"uns\['other'\] holds no probe; run cfm.tl.probe"),
        ({"metric": "c_index"}, KeyError, r"no score \['c_index'\] stored"),
        ({"metric": []}, ValueError, "metric is an empty list"),
        ({"target": "drug"}, KeyError, "no target 'drug' stored"),
        ({"metric": ["auroc", "balanced_accuracy"], "ax": True}, ValueError, "takes one panel"),
    ],
)
def test_bad_arguments(arguments, error, message):
    if arguments.get("ax"):
        arguments = arguments | {"ax": plt.figure().add_subplot()}
    with pytest.raises(error, match=message):
        cfm.pl.probe(make_probed(), show=False, **arguments)
