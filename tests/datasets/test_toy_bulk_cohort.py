import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import cfm
from cfm.datasets import toy_bulk_cohort

DISEASES = ["disease_A", "disease_B", "disease_C"]


def log_cpm(adata):
    """Log2 CPM less the mean of the study."""
    log = np.log2((adata.X + 1) / adata.X.sum(axis=1, keepdims=True) * 1e6)
    frame = pd.DataFrame(log, index=adata.obs_names)
    return (frame - frame.groupby(adata.obs["study"].to_numpy()).transform("mean")).to_numpy()


def programme_score(adata, name):
    """Mean of a programme's genes in each patient, in the planted direction."""
    truth = adata.uns["truth"]
    sign = np.where(truth["programme"] == name, np.sign(truth["log2_fc"]), 0.0)
    return log_cpm(adata) @ sign / 80


def test_shape_and_design():
    adata = toy_bulk_cohort()
    assert adata.shape == (84, 3000)
    assert adata.X.dtype == np.float32
    assert (adata.X >= 0).all()
    assert (np.round(adata.X) == adata.X).all()
    assert adata.obs_names.is_unique
    assert adata.var_names.is_unique
    assert (adata.obs["study"].value_counts() == 28).all()
    assert adata.obs["disease"].cat.categories.tolist() == DISEASES
    assert adata.obs["event"].dtype == bool
    assert 0.3 < adata.obs["event"].mean() < 0.8
    assert adata.obs["time_days"].between(1, 2000).all()
    truth = adata.uns["truth"]
    assert truth["programme"].value_counts().drop("").to_dict() == dict.fromkeys(
        [*DISEASES, "risk"], 80
    )
    assert ((truth["log2_fc"] != 0) == (truth["programme"] != "")).all()


@pytest.mark.parametrize("seed", [0, 1])
def test_a_disease_raises_its_programme(seed):
    adata = toy_bulk_cohort(seed, n_patients=150)
    log, truth = log_cpm(adata), adata.uns["truth"]
    for name in DISEASES:
        ill = (adata.obs["disease"] == name).to_numpy()
        own = (truth["programme"] == name).to_numpy()
        found = (log[ill].mean(axis=0) - log[~ill].mean(axis=0))[own]
        assert np.corrcoef(found, truth["log2_fc"][own])[0, 1] > 0.8
        score = programme_score(adata, name)
        assert stats.mannwhitneyu(score[ill], score[~ill]).pvalue < 1e-4


@pytest.mark.parametrize("seed", [0, 1])
def test_risk_shows_in_expression_and_in_the_outcome(seed):
    adata = toy_bulk_cohort(seed, n_patients=300)
    risk = adata.obs["risk"].to_numpy()
    assert np.corrcoef(programme_score(adata, "risk"), risk)[0, 1] > 0.7
    high = risk > np.median(risk)
    seen = stats.CensoredData.right_censored
    obs = adata.obs
    outcome = [seen(obs["time_days"][part], ~obs["event"][part]) for part in (high, ~high)]
    test = stats.logrank(*outcome)
    assert test.pvalue < 1e-6
    assert stats.ecdf(outcome[0]).sf.evaluate(500) < stats.ecdf(outcome[1]).sf.evaluate(500)
    assert abs(np.median(obs["time_days"][np.abs(risk) < 0.3]) - 600) < 250  # 700, less censored


def test_studies_differ_and_prefer_a_disease():
    adata = toy_bulk_cohort(n_patients=300)
    table = pd.crosstab(adata.obs["study"], adata.obs["disease"], normalize="index").to_numpy()
    assert (table.argmax(axis=1) == [0, 1, 2]).all()
    assert (table > 0.05).all()  # no study has one disease only
    log = np.log2((adata.X + 1) / adata.X.sum(axis=1, keepdims=True) * 1e6)
    idle = (adata.uns["truth"]["programme"] == "").to_numpy()
    means = pd.DataFrame(log[:, idle]).groupby(adata.obs["study"].to_numpy()).mean()
    assert np.std(means.iloc[0] - means.iloc[1]) > 0.4


def test_every_gene_has_a_length():
    adata = toy_bulk_cohort(n_patients=6, n_studies=1)
    cfm.pp.tpm(adata, missing_length="error")
    assert np.allclose(np.expm1(adata.layers["log_tpm"]).sum(axis=1), 1e6, rtol=1e-3)


@settings(max_examples=8)
@given(n_studies=st.integers(1, 6), more=st.integers(0, 20))
def test_size_follows_the_arguments(n_studies, more):
    adata = toy_bulk_cohort(n_patients=3 * n_studies + more, n_studies=n_studies)
    assert adata.n_obs == 3 * n_studies + more
    assert adata.obs["study"].nunique() == n_studies
    assert np.ptp(adata.obs["study"].value_counts()) <= 1
