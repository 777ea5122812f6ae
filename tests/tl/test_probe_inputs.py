"""What a probe refuses or points out, and that it then leaves the AnnData alone."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm.tl import probe
from tests._same import assert_unchanged
from tests.tl.test_probe import cohort

QUICK = {"groups": "patient", "use_rep": "X_emb", "n_folds": 3, "heads": "logistic"}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("cfm.tl._probe._probe._N_BOOT", 10)


@pytest.mark.parametrize(
    ("target", "task", "arguments", "error", "message"),
    [
        ("nothing", "classification", {}, KeyError, r"no \['nothing'\] in obs"),
        (["dose", "nothing"], "regression", {}, KeyError, r"no \['nothing'\] in obs"),
        (3, "regression", {}, TypeError, "target=3; expected the name"),
        (["dose", "dose"], "regression", {}, ValueError, "names a column twice"),
        ("disease", "regression", {}, TypeError, "'disease' holds (object|str) values; numbers"),
        ("one", "classification", {}, ValueError, "has one class, 'a'"),
        ("rare", "classification", {}, ValueError, r"1 of 3 classes .* fewer members .* 'r' \(2\)"),
        ("dose", "classification", {}, ValueError, "task='regression'"),
        ("lonely", "classification", {}, ValueError, r"\['x'\] occur in one group each"),
        ("five", "regression", {}, ValueError, "'five' is 5 in all observations"),
        ("short", "regression", {}, ValueError, "'short' has 4 values, too few for 3 folds"),
        ("empty", "regression", {}, ValueError, "no observation has a value"),
        ("infinite", "regression", {}, ValueError, "target holds infinite values"),
        (["dose", "other"], "classification", {}, ValueError, "one target at a time"),
        ("disease", "classification", {"groups": "site"}, ValueError, "3 groups .* but 4 folds"),
        ("disease", "classification", {"groups": "one"}, ValueError, "has one level, 'a'"),
        ("disease", "classification", {"groups": None, "test_on": "a"}, ValueError, "pass that"),
        ("disease", "classification", {"test_on": "p99"}, ValueError, r"test_on= names \['p99'\]"),
        ("disease", "classification", {"test_on": []}, ValueError, "test_on= names no level"),
        ("disease", "classification", {"groups": "half", "test_on": ["half0", "half1"]},
         ValueError, "leaves none to train on"),
        ("disease", "classification", {"groups": "gap"}, ValueError, "1 observations .* no group"),
        ("disease", "classification", {"n_folds": 200}, ValueError, "than the 200 folds"),
        ("disease", "classification", {"n_folds": 1}, ValueError, "n_folds=1; expected"),
        ("disease", "classification", {"seed": []}, ValueError, "seed= is empty"),
        ("disease", "classification", {"seed": [0, -1]}, ValueError, "seed=-1; expected"),
        ("disease", "classification", {"use_rep": 3}, TypeError, "use_rep is a int; expected"),
        ("disease", "classification", {"heads": "svm"}, ValueError, "choose some of \\['logistic'"),
        ("disease", "classification", {"heads": []}, ValueError, "heads=\\[\\] is not known"),
        ("disease", "classification", {"use_rep": []}, ValueError, "use_rep is an empty list"),
        ("disease", "classification", {"use_rep": "X_inf"}, ValueError, "1 infinite values"),
        ("disease", "classification", {"use_rep": "text"}, TypeError, "hold no numbers: \\['a'\\]"),
    ],
)  # fmt: skip
def test_bad_input(target, task, arguments, error, message):
    adata = cohort()
    obs = adata.obs
    n = adata.n_obs
    obs["one"] = "a"
    obs["rare"] = ["r"] * 2 + ["a", "b"] * ((n - 2) // 2)
    obs["lonely"] = ["x"] * 3 + ["y"] * (n - 3)
    obs["five"], obs["empty"] = 5.0, np.nan
    obs["short"] = [1.0, 2.0, 3.0, 4.0] + [np.nan] * (n - 4)
    obs["infinite"] = [np.inf] + [1.0] * (n - 1)
    obs["site"] = [f"site{i % 3}" for i in range(n)]
    obs["half"] = [f"half{i % 2}" for i in range(n)]
    obs["gap"] = pd.Categorical([np.nan, *obs["patient"][1:]])
    adata.obsm["X_inf"] = np.where(np.arange(n) == 3, np.inf, 0.0)[:, None]
    adata.obsm["text"] = pd.DataFrame({"a": ["b"] * n}, index=adata.obs_names)
    if arguments.get("groups") == "site":
        arguments = arguments | {"n_folds": 4}
    before = adata.copy()
    with pytest.raises(error, match=message):
        probe(adata, target, task, **(QUICK | arguments))
    assert_unchanged(adata, before)


def test_missing_features_are_filled_and_pointed_out():
    adata = cohort()
    adata.obsm["X_emb"][::9, 0] = np.nan
    adata.obsm["X_emb"] = np.hstack([adata.obsm["X_emb"], np.full((adata.n_obs, 1), np.nan)])
    with pytest.warns(UserWarning, match=r"19 % of representation 'X_emb' is missing"):
        probe(adata, "disease", **QUICK)
    table = adata.uns["probe"]["results"]
    assert table.query("metric == 'auroc'")["score"].iloc[0] > 0.8


def test_counts_are_scaled_and_logged():
    """Depth differs a hundredfold: raw counts would be a baseline that hardly knows anything."""
    rng = np.random.default_rng(0)
    adata = cohort()
    case = (adata.obs["disease"] == "case").to_numpy()[:, None]
    rate = np.exp(np.asarray(adata.X) + case * np.tile([1.0, -1.0], 20))
    counts = rng.poisson(rate * rng.choice([1, 100], size=(adata.n_obs, 1))).astype(np.float32)
    adata.X = counts
    probe(adata, "disease", **QUICK)
    found = adata.uns["probe"]["results"]
    logged = adata.copy()
    total = counts.sum(axis=1, keepdims=True)
    logged.X = np.log1p(counts * (np.median(total) / total))
    probe(logged, "disease", **QUICK)
    expected = logged.uns["probe"]["results"]
    np.testing.assert_allclose(found["score"], expected["score"], atol=1e-6)


@pytest.mark.parametrize("x", [None, "X_emb"])
def test_without_expression_only_embeddings_are_probed(x):
    full = cohort()
    adata = ad.AnnData(None if x is None else full.obsm[x].copy(), obs=full.obs, obsm=full.obsm)
    with pytest.warns(UserWarning, match="plain expression is not compared with"):
        probe(adata, "disease", **QUICK)
    assert adata.uns["probe"]["results"]["representation"].unique().tolist() == ["X_emb", "none"]
    assert set(adata.uns["probe"]["comparisons"]["baseline"]) == {"none"}
    if x is None:
        with pytest.raises(ValueError, match=r"adata\.X is empty; name a representation"):
            probe(adata, "disease", **(QUICK | {"use_rep": None}))


def test_expression_is_of_the_layer_that_was_embedded():
    adata = cohort()
    adata.layers["log"] = adata.X + 3.0 * (adata.obs["disease"] == "case").to_numpy()[:, None]
    adata.uns["X_emb"] = {"params": {"layer": "log"}}
    probe(adata, "disease", **QUICK)
    assert adata.uns["probe"]["params"]["layer"] == "log"
    found = adata.uns["probe"]["results"].set_index(["representation", "metric"])["score"]
    assert found["expression PCA", "auroc"] > 0.95
    adata.layers["other"] = adata.X
    probe(adata, "disease", layer="other", **QUICK)
    found = adata.uns["probe"]["results"].set_index(["representation", "metric"])["score"]
    assert found["expression PCA", "auroc"] < 0.8
    adata.uns["X_emb"]["params"]["layer"] = "gone"
    probe(adata, "disease", **QUICK)
    assert adata.uns["probe"]["params"]["layer"] == ""


@pytest.mark.parametrize("kind", [bool, int, "category"])
def test_classes_of_any_kind(kind):
    adata = cohort()
    adata.obs["label"] = (adata.obs["disease"] == "case").astype(kind)
    probe(adata, "label", **QUICK)
    assert adata.uns["probe"]["results"]["score"].iloc[0] > 0.8
    classes = adata.uns["probe"]["params"]["classes"]
    assert list(classes) == (["0", "1"] if kind is int else ["False", "True"])


def test_a_new_probe_leaves_nothing_of_the_former():
    adata = cohort()
    probe(adata, "disease", **QUICK)
    probe(adata, ["dose", "other"], "regression", **(QUICK | {"heads": "ridge"}))
    assert "probe" not in adata.obs
    assert "probe_proba" not in adata.obsm
    assert adata.obsm["probe_predictions"].columns.tolist() == ["dose", "other"]
