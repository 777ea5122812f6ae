"""Figures of predictions against the truth: their lines, matrices and numbers."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import average_precision_score, confusion_matrix, roc_auc_score

import cfm
from tests.pl._stored import make_predicted
from tests.tl.test_probe import cohort

QUICK = {"n_folds": 3, "heads": "logistic", "groups": "patient", "use_rep": "X_emb"}


@pytest.fixture(scope="module")
def probed() -> ad.AnnData:
    adata = cohort()
    adata.obs["dose"] += np.random.default_rng(1).normal(size=adata.n_obs)
    cfm.tl.probe(adata, "disease", **QUICK)
    cfm.tl.probe(adata, "grade", key_added="grades", **QUICK)
    cfm.tl.probe(adata, "dose", "regression", key_added="doses", **QUICK | {"heads": "ridge"})
    both = QUICK | {"heads": "ridge"}
    cfm.tl.probe(adata, ["dose", "other"], "regression", key_added="two", **both)
    return adata


def area(line) -> float:
    x, y = line.get_data()
    return float(np.trapezoid(y, x))


def score(adata: ad.AnnData, key: str, metric: str, representation: str) -> pd.Series:
    table = cfm.get.probe_scores(adata, key=key)
    chosen = (table["metric"] == metric) & (table["representation"] == representation)
    return table[chosen].iloc[0]


@pytest.mark.parametrize("key", ["probe", "grades"])
def test_area_below_a_roc_curve_is_the_score(probed: ad.AnnData, key: str) -> None:
    ax = cfm.pl.probe(probed, kind="roc", key=key, show=False)
    *curves, chance = ax.get_lines()
    names = ["X_emb", "expression PCA"]
    labels = [text.get_text() for text in ax.get_legend().get_texts()]
    for name, line, label in zip(names, curves, labels, strict=False):
        expected = score(probed, key, "auroc", name)["score"]
        assert area(line) == pytest.approx(expected, abs=1e-9)
        assert label == f"{name}: {expected:.2f}"
        assert (np.diff(line.get_ydata()) >= -1e-12).all()
    assert np.array_equal(chance.get_xydata(), [[0, 0], [1, 1]])
    assert len({line.get_linestyle() for line in curves}) == 1 or len(curves) > 1
    assert len({line.get_color() for line in ax.get_lines()}) == 3


@pytest.mark.parametrize("label", [None, "case"])
def test_area_below_a_precision_recall_curve_is_the_average_precision(
    probed: ad.AnnData, label: str | None
) -> None:
    ax = cfm.pl.probe(probed, kind="precision_recall", label=label, use_rep="X_emb", show=False)
    curve, chance = ax.get_lines()
    positive = label or "healthy"
    values, weights, shares = [], [], []
    table = cfm.get.probe_predictions(probed)
    for _, part in table[table["representation"] == "X_emb"].groupby("fold"):
        case = part["true"] == positive
        values.append(average_precision_score(case, part[f"probability_{positive}"]))
        weights.append(part["group"].nunique())
        shares.append(case.mean())
    assert area(curve) == pytest.approx(np.average(values, weights=weights), abs=1e-9)
    assert chance.get_ydata()[0] == pytest.approx(np.average(shares, weights=weights))
    assert positive in ax.get_title()


def test_rows_of_a_confusion_matrix_add_up_to_one(probed: ad.AnnData) -> None:
    ax = cfm.pl.probe(probed, kind="confusion", key="grades", show=False)
    counts = confusion_matrix(probed.obs["grade"].astype(str), probed.obs["grades"].astype(str))
    expected = counts / counts.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(ax.images[0].get_array(), expected)
    written = {tuple(map(int, text.get_position())): text.get_text() for text in ax.texts}
    for i, j in np.argwhere(counts):
        assert written[j, i] == f"{expected[i, j]:.2f}\n{counts[i, j]}"
    assert [t.get_text() for t in ax.get_yticklabels()] == [
        f"{name} ({n})" for name, n in zip(["I", "II", "III"], counts.sum(axis=1), strict=True)
    ]


def test_calibration_has_the_observations_of_each_bin(probed: ad.AnnData) -> None:
    ax = cfm.pl.probe(probed, kind="calibration", show=False)
    p = probed.obsm["probe_proba"]["healthy"].to_numpy()
    edges = np.linspace(0, 1, 11)
    n, _ = np.histogram(p, edges)
    right, _ = np.histogram(p[(probed.obs["disease"] == "healthy").to_numpy()], edges)
    line = ax.containers[0].lines[0]
    assert [int(text.get_text()) for text in ax.texts] == n[n > 0].tolist()
    np.testing.assert_allclose(line.get_ydata(), (right / np.maximum(n, 1))[n > 0])


def test_most_probable_class_is_calibrated_where_no_class_is_named(probed: ad.AnnData) -> None:
    ax = cfm.pl.probe(probed, kind="calibration", key="grades", show=False)
    n = np.array([int(text.get_text()) for text in ax.texts])
    share = ax.containers[0].lines[0].get_ydata()
    right = probed.obs["grades"].astype(str) == probed.obs["grade"].astype(str)
    assert (n * share).sum() == pytest.approx(right.sum())


def test_predicted_values_stand_beside_their_correlation(probed: ad.AnnData) -> None:
    reps = ["X_emb", "expression PCA"]
    panels = cfm.pl.probe(probed, kind="predicted", key="doses", use_rep=reps, show=False)
    for name, ax in panels.items():
        found = score(probed, "doses", "pearson", name)
        words = f"r = {found['score']:.2f} ({found['low']:.2f} to {found['high']:.2f})"
        assert words in ax.get_title().replace("\N{MINUS SIGN}", "-")
    points = np.asarray(panels["X_emb"].collections[0].get_offsets())
    np.testing.assert_allclose(points, probed.obs[["dose", "doses"]])


def test_one_of_several_targets_has_to_be_named(probed: ad.AnnData) -> None:
    with pytest.raises(ValueError, match="target= has to name one of 2: dose, other"):
        cfm.pl.probe(probed, kind="predicted", key="two", show=False)
    ax = cfm.pl.probe(probed, kind="predicted", key="two", target="other", show=False)
    points = np.asarray(ax.collections[0].get_offsets())
    expected = [probed.obs["other"], probed.obsm["two_predictions"]["other"]]
    np.testing.assert_allclose(points, np.column_stack(expected))


def test_calls_of_viruses_against_the_truth() -> None:
    adata = make_predicted(24)
    adata.obs.loc[adata.obs_names[:3], "virus"] = np.nan
    known = adata.obs["virus"].notna()
    ax = cfm.pl.classification(adata, "virus", show=False)
    labels = [[t.get_text() for t in axis] for axis in (ax.get_yticklabels(), ax.get_xticklabels())]
    rows = [label.rsplit(" ", 1)[0] for label in labels[0]]
    table = pd.crosstab(
        adata.obs["virus"][known].astype(str), adata.obs["predicted_virus"][known].astype(str)
    )
    counts = table.reindex(index=rows, columns=labels[1], fill_value=0).to_numpy()
    np.testing.assert_allclose(ax.images[0].get_array(), counts / counts.sum(axis=1)[:, None])

    ax = cfm.pl.classification(adata, "virus", kind="roc", label="IAV", show=False)
    p = adata.obsm["predicted_virus_proba"]["IAV"][known]
    expected = roc_auc_score(adata.obs["virus"][known] == "IAV", p)
    assert area(ax.get_lines()[0]) == pytest.approx(expected)


def test_classes_that_a_model_lacks_are_counted() -> None:
    adata = make_predicted(24)
    names = adata.obs["virus"].astype(str).to_numpy(dtype=object)
    names[:5] = "measles"
    adata.obs["virus"] = names
    ax = cfm.pl.classification(adata, "virus", kind="calibration", show=False)
    assert "5 observations of other classes left out" in ax.get_title()
    assert sum(int(text.get_text()) for text in ax.texts) == 19


def test_names_with_a_slash_are_those_of_the_truth() -> None:
    adata = make_predicted(24)
    adata.obs["kind"] = adata.obs["predicted_virus_response"].astype(str)
    key = "predicted_virus_response"
    assert "interferon I/III" in set(adata.obs["kind"])
    ax = cfm.pl.classification(
        adata, "kind", key=key, kind="roc", label="interferon I/III", show=False
    )
    case = adata.obs["kind"] == "interferon I/III"
    expected = roc_auc_score(case, adata.obsm[f"{key}_proba"]["interferon I|III"])
    assert area(ax.get_lines()[0]) == pytest.approx(expected)
