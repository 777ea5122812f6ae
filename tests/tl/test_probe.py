"""Probes find a planted signal, only where it is, and never see what they are scored on."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.metrics import accuracy_score, balanced_accuracy_score, mean_absolute_error

from cfm.tl import probe

N = 90
QUICK = {"n_folds": 3, "heads": ["logistic"]}


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr("cfm.tl._probe._probe._N_BOOT", 40)
    monkeypatch.setattr("cfm.tl._probe._cross_validation._N_TREES", 20)


def cohort(seed: int = 0) -> ad.AnnData:
    """30 patients with 3 samples each; the embedding knows what the expression hardly shows."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(N, 2))
    x = rng.normal(size=(N, 40))
    time = rng.exponential(np.exp(-1.5 * hidden[:, 0]))
    end = rng.exponential(2.0, size=N)
    obs = pd.DataFrame(
        {
            "disease": np.where(hidden[:, 0] > 0, "case", "healthy"),
            "grade": pd.cut(hidden[:, 1], [-9, -0.6, 0.6, 9], labels=["I", "II", "III"]),
            "dose": 10 + 2 * hidden[:, 0],
            "other": hidden[:, 1],
            "days": np.minimum(time, end),
            "died": time <= end,
            "patient": [f"p{i // 3}" for i in range(N)],
        },
        index=[f"s{i:02d}" for i in range(N)],
    )
    adata = ad.AnnData(x.astype(np.float32), obs=obs)
    adata.obsm["X_emb"] = np.hstack([hidden, rng.normal(size=(N, 3))]).astype(np.float32)
    return adata


def scores(adata: ad.AnnData, metric: str, key: str = "probe") -> pd.Series:
    table = adata.uns[key]["results"]
    table = table[table["metric"] == metric]
    return table.set_index(["representation", "head", "target"])["score"]


def test_signal_is_found_where_it_is_and_beside_it_the_baselines():
    adata = cohort()
    probe(adata, "disease", groups="patient", use_rep="X_emb", **QUICK)
    found = scores(adata, "balanced_accuracy").droplevel("target")
    assert found["X_emb", "logistic"] > 0.85
    assert abs(found["expression PCA", "logistic"] - 0.5) < 0.2
    assert found["none", "majority"] == 0.5
    table = adata.uns["probe"]["results"]
    known = table.dropna()
    assert ((known["low"] <= known["score"]) & (known["score"] <= known["high"])).all()
    assert set(table["n_groups"]) == {30}
    better = adata.uns["probe"]["comparisons"].set_index(["representation", "baseline", "metric"])
    row = better.loc["X_emb", "expression PCA", "balanced_accuracy"]
    expected = found["X_emb", "logistic"] - found["expression PCA", "logistic"]
    assert row["difference"] == pytest.approx(expected)
    assert 0 < row["low"] <= row["difference"] <= row["high"] < 0.8
    folds = adata.obs.groupby("patient", observed=True)["probe_fold"]
    assert (folds.nunique() == 1).all()
    assert set(adata.obs["probe_fold"]) == {0, 1, 2}


def test_a_representation_is_compared_under_the_same_head_only():
    adata = cohort()
    heads = ["logistic", "random_forest"]
    probe(adata, "disease", use_rep="X_emb", groups="patient", n_folds=3, heads=heads)
    table = adata.uns["probe"]["comparisons"]
    table = table[(table["metric"] == "accuracy") & (table["baseline"] == "expression PCA")]
    assert table["head"].tolist() == heads
    found = scores(adata, "accuracy").droplevel("target")
    expected = found["X_emb"] - found["expression PCA"]
    np.testing.assert_allclose(table["difference"], expected[heads])


def test_representations_are_compared_with_those_after_them():
    adata = cohort()
    adata.obsm["X_noise"] = np.random.default_rng(3).normal(size=(adata.n_obs, 4))
    probe(adata, "disease", groups="patient", use_rep=["X_emb", "X_noise"], **QUICK)
    table = adata.uns["probe"]["comparisons"]
    table = table[table["metric"] == "auroc"].set_index(["representation", "baseline"])
    assert table.index.tolist() == [
        ("X_emb", "X_noise"),
        ("X_emb", "expression PCA"),
        ("X_emb", "none"),
        ("X_noise", "expression PCA"),
        ("X_noise", "none"),
        ("expression PCA", "none"),
    ]
    assert table.loc[("X_emb", "X_noise"), "low"] > 0


def test_scores_are_those_of_the_stored_predictions():
    adata = cohort()
    probe(adata, "grade", groups="patient", use_rep="X_emb", **QUICK)
    obs = adata.obs
    found = adata.uns["probe"]["results"].set_index(["representation", "metric"])["score"]
    assert found["X_emb", "accuracy"] == accuracy_score(obs["grade"], obs["probe"])
    expected = balanced_accuracy_score(obs["grade"], obs["probe"])
    assert found["X_emb", "balanced_accuracy"] == pytest.approx(expected)
    proba = adata.obsm["probe_proba"]
    assert list(proba.columns) == ["I", "II", "III"]
    np.testing.assert_allclose(proba.sum(axis=1), 1)
    assert (proba.idxmax(axis=1) == obs["probe"].astype(str)).all()
    assert adata.obsm["probe_predictions"].columns.tolist() == [
        "X_emb|logistic",
        "expression PCA|logistic",
    ]


def test_samples_of_a_patient_teach_nothing_about_that_patient():
    # a label drawn for each patient, and samples that tell patients apart: only a split patient
    # can be recognised
    rng = np.random.default_rng(1)
    patient = np.repeat(np.arange(40), 4)
    adata = ad.AnnData(
        rng.normal(size=(160, 5)),
        obs=pd.DataFrame(
            {
                "patient": patient.astype(str),
                "label": rng.integers(2, size=40)[patient].astype(str),
            },
            index=[f"s{i:03d}" for i in range(160)],
        ),
    )
    adata.obsm["X_emb"] = rng.normal(size=(40, 80))[patient] + 0.1 * rng.normal(size=(160, 80))
    arguments = {"use_rep": "X_emb", "heads": "logistic", "n_folds": 4}
    probe(adata, "label", groups="patient", **arguments)
    assert scores(adata, "accuracy").iloc[0] < 0.7
    with pytest.warns(UserWarning, match=r"obs\['patient'\] has repeated values.*groups='patient'"):
        probe(adata, "label", **arguments)
    assert scores(adata, "accuracy").iloc[0] > 0.95


def test_groups_are_advised_only_where_they_could_be_passed():
    for study in (["one"] * N, [f"of {d}" for d in cohort().obs["disease"]]):
        adata = cohort()
        adata.obs["patient"] = adata.obs_names
        adata.obs["study"] = study
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            probe(adata, "disease", use_rep="X_emb", **QUICK)
    adata.obs["study"] = [f"study{i % 4}" for i in range(N)]
    with pytest.warns(UserWarning, match="groups='study'"):
        probe(adata, "disease", use_rep="X_emb", **QUICK)
    probe(adata, "disease", groups="study", use_rep="X_emb", **QUICK)


def two_cohorts() -> ad.AnnData:
    """The second cohort is shifted, so that what it is, is easily read."""
    adata = cohort()
    adata.obs["study"] = np.where(np.arange(N) < 60, "first", "second")
    adata.obsm["X_emb"][60:, 2] += 5
    return adata


@pytest.mark.parametrize(
    ("target", "task", "metric", "least"),
    [
        ("disease", "classification", "auroc", 0.9),
        ("grade", "classification", "balanced_accuracy", 0.7),
        ("dose", "regression", "pearson", 0.9),
    ],
)
def test_each_of_two_cohorts_is_predicted_by_the_other(target, task, metric, least):
    adata = two_cohorts()
    heads = ["ridge"] if task == "regression" else ["logistic"]
    probe(adata, target, task, groups="study", use_rep="X_emb", heads=heads)
    table = adata.uns["probe"]["results"]
    assert scores(adata, metric).iloc[0] > least
    assert set(table["n_groups"]) == {2}
    # folds are the cohorts
    assert adata.obs.groupby("study")["probe_fold"].nunique().tolist() == [1, 1]
    assert set(adata.obs["probe_fold"]) == {0, 1}
    own = table[(table["representation"] == "X_emb") & (table["metric"] == metric)]
    assert (own["low"] < own["score"]).all()
    assert (own["score"] < own["high"]).all()


def test_the_groups_to_test_on_can_be_named():
    adata = two_cohorts()
    arguments = {"groups": "study", "use_rep": "X_emb", "heads": ["logistic"]}
    probe(adata, "disease", **arguments, test_on="second")
    fold = adata.obs["probe_fold"]
    assert fold.tolist() == [-1] * 60 + [0] * 30
    assert adata.obs["probe"].isna().tolist() == [True] * 60 + [False] * 30
    assert set(adata.uns["probe"]["results"]["n_obs"]) == {30}
    params = adata.uns["probe"]["params"]
    assert (params["n_train"], params["n_left_out"], params["test_on"]) == (60, 0, ["second"])
    # as a model of all training rows, whose labels alone it has seen
    other = adata.copy()
    other.obs.loc[fold == 0, "disease"] = other.obs.loc[fold == 0, "disease"].map(
        {"case": "healthy", "healthy": "case"}
    )
    probe(other, "disease", **arguments, test_on=["second"])
    pd.testing.assert_series_equal(other.obs["probe"], adata.obs["probe"])
    assert scores(other, "auroc").iloc[0] == pytest.approx(1 - scores(adata, "auroc").iloc[0])


def test_inner_folds_keep_groups_whole_too(monkeypatch):
    seen = []

    class Spy(Ridge):
        def fit(self, x, y):
            self.train_ = set(x[:, 0].round(6))
            return super().fit(x, y)

        def predict(self, z):
            seen.append((self.train_, set(z[:, 0].round(6))))
            return super().predict(z)

    monkeypatch.setattr("cfm.tl._probe._cross_validation.Ridge", Spy)
    adata = cohort()
    adata.X = None
    adata.obsm["X_patient"] = pd.factorize(adata.obs["patient"])[0][:, None]
    with pytest.warns(UserWarning, match=r"adata.X is empty"):
        probe(
            adata, "dose", "regression", groups="patient", use_rep="X_patient", heads="ridge",
            n_folds=3,
        )  # fmt: skip
    assert len(seen) == 3 * (3 * 5 + 1)  # outer folds × (inner folds × penalties + 1)
    for train, test in seen:
        assert not train & test


def test_no_prediction_depends_on_the_rows_it_is_scored_with():
    # scaling and principal components come from the training folds: a wild test row changes
    # nothing for the other rows of its fold
    adata = cohort()
    arguments = {"groups": "patient", "use_rep": "X_emb", "heads": "ridge"}
    probe(adata, "dose", "regression", **arguments)
    fold = adata.obs["probe_fold"].to_numpy()
    before = adata.obsm["probe_predictions"].copy()
    adata.X[0] *= 1e4
    adata.obsm["X_emb"][0] *= 1e4
    probe(adata, "dose", "regression", **arguments)
    after = adata.obsm["probe_predictions"]
    others = np.flatnonzero((fold == fold[0]) & (np.arange(N) > 0))
    np.testing.assert_array_equal(after.iloc[others], before.iloc[others])
    assert (after.iloc[0] != before.iloc[0]).all()


def test_same_result_in_any_order_of_rows(rng):
    adata = cohort()
    order = rng.permutation(N)
    shuffled = adata[order].copy()
    arguments = {"groups": "patient", "use_rep": "X_emb", "n_folds": 3}
    for a in (adata, shuffled):
        probe(a, "disease", heads=["logistic", "random_forest"], **arguments)
    pd.testing.assert_frame_equal(
        adata.uns["probe"]["results"], shuffled.uns["probe"]["results"], atol=1e-7
    )
    assert (adata.obs["probe"].iloc[order] == shuffled.obs["probe"]).all()


def test_regression_and_its_baseline():
    adata = cohort()
    probe(adata, "dose", "regression", groups="patient", use_rep="X_emb", heads="ridge")
    r2 = scores(adata, "r2").droplevel("target")
    assert r2["X_emb", "ridge"] > 0.8
    assert r2["none", "mean"] < 0
    assert np.isnan(scores(adata, "pearson").droplevel("target")["none", "mean"])
    found = scores(adata, "mae").iloc[0]
    assert found == pytest.approx(mean_absolute_error(adata.obs["dose"], adata.obs["probe"]))


def test_several_targets_are_scored_one_by_one():
    adata = cohort()
    rng = np.random.default_rng(2)
    drugs = pd.DataFrame(
        {
            "A": 100 + adata.obs["dose"],
            "B": -100 + adata.obs["other"],
            "C": rng.normal(size=N),
        }
    )
    drugs.iloc[::5, 1] = np.nan
    adata.obsm["response"] = drugs
    arguments = {"groups": "patient", "use_rep": "X_emb", "heads": "ridge"}
    probe(adata, "response", "regression", **arguments)
    found = scores(adata, "pearson")["X_emb", "ridge"]
    assert found.index.tolist() == ["mean over targets", "A", "B", "C"]
    assert found["mean over targets"] == pytest.approx(found[["A", "B", "C"]].mean())
    assert min(found["A"], found["B"]) > 0.85
    assert abs(found["C"]) < 0.35
    table = adata.uns["probe"]["results"]
    assert set(table.loc[table["target"] == "B", "n_obs"]) == {72}
    assert adata.obsm["probe_predictions"].columns.tolist() == ["A", "B", "C"]
    assert "probe" not in adata.obs
    # a target does as well alone as among others
    adata.obs["A"] = drugs["A"]
    alone = probe(adata, ["A"], "regression", copy=True, **arguments)
    assert scores(alone, "r2").iloc[0] == pytest.approx(scores(adata, "r2").iloc[1])
    np.testing.assert_allclose(alone.obs["probe"], adata.obsm["probe_predictions"]["A"])


def test_unlabelled_observations_are_left_out():
    adata = cohort()
    adata.obs.loc[adata.obs_names[:6], "disease"] = np.nan
    with pytest.warns(UserWarning, match=r"6 of 90 observations have no value of 'disease'"):
        probe(adata, "disease", groups="patient", use_rep="X_emb", **QUICK)
    assert adata.obs["probe"].isna().tolist() == [True] * 6 + [False] * 84
    assert (adata.obs["probe_fold"].to_numpy()[:6] == -1).all()
    assert adata.obsm["probe_proba"].iloc[:6].isna().all(axis=None)
    assert adata.uns["probe"]["params"]["n_obs"] == 84


def test_several_seeds_use_other_folds_and_average():
    one, two = cohort(), cohort()
    arguments = {"groups": "patient", "use_rep": "X_emb", "heads": "ridge"}
    single = [probe(one, "dose", "regression", copy=True, **arguments, seed=s) for s in range(3)]
    probe(two, "dose", "regression", seed=range(3), **arguments)
    assert (single[0].obs["probe_fold"] == two.obs["probe_fold"]).all()
    assert (single[0].obs["probe_fold"] != single[1].obs["probe_fold"]).any()
    np.testing.assert_allclose(two.obs["probe"], np.mean([a.obs["probe"] for a in single], axis=0))
    assert two.uns["probe"]["params"]["seed"] == [0, 1, 2]


def test_all_genes_and_several_representations():
    adata = cohort()
    adata.obsm["X_noise"] = np.random.default_rng(5).normal(size=(N, 4))
    adata.X[:, :5] += 3 * (adata.obs["disease"] == "case").to_numpy()[:, None]
    probe(adata, "disease", groups="patient", use_rep=["X_noise", "X_emb"], **QUICK)
    found = scores(adata, "auroc").droplevel("target")
    assert found["X_emb", "logistic"] > 0.9 > found["X_noise", "logistic"]
    assert adata.uns["probe"]["params"]["use_rep"] == ["X_noise", "X_emb"]
    probe(adata, "disease", groups="patient", **QUICK)
    found = scores(adata, "auroc").droplevel("target")
    assert min(found["expression", "logistic"], found["expression PCA", "logistic"]) > 0.95


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_wide_tables_are_rotated_without_changing_ridge_heads(task):
    from cfm.tl._probe._cross_validation import UnitEnergy, preprocessing

    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 300))
    y = (x[:, 0] > 0).astype(int) if task == "classification" else x[:, 0]
    make = LogisticRegression if task == "classification" else Ridge
    head = "logistic" if task == "classification" else "ridge"
    z = preprocessing(head, x.shape, False, 0).fit_transform(x)
    assert z.shape == (40, 40)
    plain = UnitEnergy().fit_transform((x - x.mean(axis=0)) / x.std(axis=0))
    a, b = (make().fit(table, y).predict(table) for table in (z, plain))
    np.testing.assert_allclose(a, b, atol=1e-6)
