"""Survival probes: risk, horizons, censoring, and storage in files."""

from __future__ import annotations

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm.tl import probe
from tests.tl.test_probe import cohort, scores

pytest.importorskip("sksurv")

TARGET = ("days", "died")
QUICK = {"groups": "patient", "use_rep": "X_emb", "n_folds": 3}


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setattr("cfm.tl._probe._cross_validation._N_TREES", 30)
    monkeypatch.setattr("cfm.tl._probe._probe._N_BOOT", 40)


def test_risk_is_found_by_every_head():
    adata = cohort()
    heads = ["cox", "random_survival_forest", "cox_elastic_net"]
    probe(adata, TARGET, "survival", heads=heads, **QUICK)
    found = scores(adata, "c_index").droplevel("target")
    for head in heads:
        assert found["X_emb", head] > 0.7
        assert abs(found["expression PCA", head] - 0.5) < 0.2
    assert found["none", "Kaplan-Meier"] == 0.5
    brier = scores(adata, "brier_t").droplevel("target")
    assert brier["X_emb", "cox"] < brier["none", "Kaplan-Meier"] < 0.3
    areas = scores(adata, "auroc_t").droplevel("target")
    assert areas["X_emb", "cox"] > 0.75
    assert areas["none", "Kaplan-Meier"] == 0.5


def test_predictions_and_risk_groups():
    adata = cohort()
    probe(adata, TARGET, "survival", heads="cox", **QUICK)
    risk = adata.obs["probe"]
    assert risk.between(0, 1).all()
    assert ((risk > 0.5) == (adata.obs["probe_risk_group"] == "high")).all()
    assert adata.obs["probe_risk_group"].cat.categories.tolist() == ["low", "high"]
    died = adata.obs.groupby("probe_risk_group", observed=True)["died"].mean()
    assert died["high"] > died["low"] + 0.2
    # the hidden risk factor, not its opposite
    assert np.corrcoef(risk, adata.obsm["X_emb"][:, 0])[0, 1] > 0.7
    params = adata.uns["probe"]["params"]
    days = adata.obs["days"][adata.obs["died"]]
    np.testing.assert_allclose(params["horizons"], np.quantile(days, [0.25, 0.5, 0.75]))
    assert params["n_events"] == adata.obs["died"].sum()


def test_events_are_bools_or_numbers():
    adata = cohort()
    adata.obs["event"] = adata.obs["died"].astype(float)
    found = [
        probe(adata, ["days", event], "survival", heads="cox", copy=True, **QUICK)
        for event in ("died", "event")
    ]
    pd.testing.assert_series_equal(found[0].obs["probe"], found[1].obs["probe"])
    with pytest.raises(ValueError, match=r"target=\('time', 'event'\)"):
        probe(adata, "days", "survival", **QUICK)


@pytest.mark.parametrize("task", ["classification", "survival", "regression"])
def test_files_and_copy(tmp_path, task):
    adata = cohort()
    target = {"classification": "grade", "survival": TARGET, "regression": ["dose", "other"]}[task]
    head = {"classification": "logistic", "survival": "cox", "regression": "ridge"}[task]
    result = probe(adata, target, task, heads=head, copy=True, **QUICK)
    assert "probe" not in adata.uns
    assert "probe_predictions" not in adata.obsm
    result.write_h5ad(tmp_path / "a.h5ad")
    result.write_zarr(tmp_path / "a.zarr")
    for again in (ad.read_h5ad(tmp_path / "a.h5ad"), ad.read_zarr(tmp_path / "a.zarr")):
        for table in ("results", "comparisons"):
            pd.testing.assert_frame_equal(again.uns["probe"][table], result.uns["probe"][table])
        pd.testing.assert_frame_equal(
            again.obsm["probe_predictions"], result.obsm["probe_predictions"]
        )
        assert again.uns["probe"]["params"]["task"] == task


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"days": -1.0}, "1 times in 'days' are negative"),
        ({"died": 2.0}, "'died' holds 2; expected 1"),
        ({"died": None}, "'died' holds no events in 90 observations"),
    ],
)
def test_bad_times_and_events(change, message):
    adata = cohort()
    ((column, value),) = change.items()
    adata.obs["died"] = adata.obs["died"].astype(float)
    if value is None:
        adata.obs[column] = 0.0
    else:
        adata.obs.iloc[4, adata.obs.columns.get_loc(column)] = value
    with pytest.raises(ValueError, match=message):
        probe(adata, TARGET, "survival", **QUICK)
    assert "probe" not in adata.uns


def test_fewer_events_than_folds_and_equal_times():
    adata = cohort()
    few = np.zeros(N := adata.n_obs, dtype=bool)
    few[:2] = True
    adata.obs["died"] = few
    with pytest.raises(ValueError, match="2 events in 90 observations; at least one for each of"):
        probe(adata, TARGET, "survival", **QUICK)
    adata.obs["died"], adata.obs["days"] = np.ones(N, dtype=bool), 5.0
    with pytest.raises(ValueError, match="all times in 'days' are 5"):
        probe(adata, TARGET, "survival", **QUICK)


def test_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr("cfm.tl._probe._cross_validation.find_spec", lambda _: None)
    with pytest.raises(ImportError, match=r"cfm-tools\[survival\]"):
        probe(cohort(), TARGET, "survival", **QUICK)


def test_settings_are_chosen_by_the_partial_likelihood_of_cox():
    from sksurv.linear_model import CoxPHSurvivalAnalysis
    from sksurv.util import Surv

    from cfm.metrics._fold_scores import partial_likelihood

    rng = np.random.default_rng(0)
    x = rng.normal(size=(50, 2))
    time = rng.exponential(np.exp(-x[:, 0])).round(1)  # with ties
    outcome = Surv.from_arrays(rng.random(50) < 0.7, time)
    fitted = CoxPHSurvivalAnalysis().fit(x, outcome).coef_
    best = partial_likelihood(outcome, x @ fitted)
    for step in ([0.05, 0], [-0.05, 0], [0, 0.05], [0, -0.05]):
        assert partial_likelihood(outcome, x @ (fitted + step)) < best
    # by hand: three subjects, the first two with events
    outcome = Surv.from_arrays([True, True, False], [1.0, 2.0, 3.0])
    hazard = np.array([2.0, 3.0, 5.0])
    expected = np.log(2 / 10) + np.log(3 / 8)
    assert partial_likelihood(outcome, np.log(hazard)) == pytest.approx(expected)


def test_an_event_at_a_horizon_has_happened_by_then():
    from sksurv.linear_model import CoxPHSurvivalAnalysis
    from sksurv.util import Surv

    from cfm.tl._probe._cross_validation import _survival_at

    x = np.random.default_rng(0).normal(size=(6, 1))
    time = np.arange(1.0, 7.0)
    model = CoxPHSurvivalAnalysis(alpha=1.0).fit(x, Surv.from_arrays(np.ones(6, bool), time))
    horizons = np.array([0.5, 2.0, 2.5, 9.0])
    found = _survival_at(model, x, horizons)
    curves = model.predict_survival_function(x)
    expected = [[1.0, curve(2.0), curve(2.5), curve(6.0)] for curve in curves]
    np.testing.assert_allclose(found, expected)


def test_one_cohort_is_predicted_by_the_other():
    adata = cohort()
    adata.obs["study"] = np.where(np.arange(adata.n_obs) < 60, "first", "second")
    arguments = {"use_rep": "X_emb", "heads": "cox", "groups": "study"}
    probe(adata, TARGET, "survival", **arguments)
    assert scores(adata, "c_index").iloc[0] > 0.7
    probe(adata, TARGET, "survival", **arguments, test_on="second")
    assert scores(adata, "c_index").iloc[0] > 0.65
    assert adata.obs["probe"].notna().tolist() == [False] * 60 + [True] * 30
    assert adata.obs["probe_risk_group"].notna().sum() == 30
