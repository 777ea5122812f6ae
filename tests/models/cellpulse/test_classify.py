"""The classifier of responses and viruses: what it recovers, what it supports, what it refuses."""

from __future__ import annotations

from copy import copy, deepcopy
from functools import cache
from typing import Any

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm.models import CellPulse
from cfm.models.cellpulse import VirusPrediction
from cfm.models.cellpulse._classifier import call_response
from tests._toy import SIZES, toy_contrasts

VIRUSES = ["virus_A", "virus_B", "virus_C", "virus_D"]
KINDS = ["none", "viral", "stimulus"]


def taught(adata: ad.AnnData, **arguments) -> tuple[CellPulse, pd.DataFrame]:
    """A model whose classifier alone is fitted: pretraining changes little on toy data."""
    CellPulse.setup_anndata(adata, labels_key="label", study_key="study")
    model = CellPulse(adata, **SIZES)
    return model, model.train_classifier(**arguments)


def with_responses(seed: int = 0) -> ad.AnnData:
    """Toy contrasts of viruses and a stimulus, and differences between controls: weak noise."""
    adata = toy_contrasts(seed)
    adata.obs["response"] = np.where(adata.obs["label"] == "uninfected", "stimulus", "viral")
    rng = np.random.default_rng(seed)
    quiet = adata[::3].copy()
    quiet.obs_names = [f"control {i}" for i in range(quiet.n_obs)]
    quiet.obs = quiet.obs.astype({"label": str})
    quiet.obs["label"], quiet.obs["response"] = "uninfected", "none"
    quiet.X = rng.normal(0, 0.1, quiet.shape).astype(np.float32)
    return ad.concat([adata, quiet])


@cache
def out_of_fold() -> pd.DataFrame:
    return taught(toy_contrasts())[1]


@cache
def of_responses() -> tuple[CellPulse, pd.DataFrame]:
    return taught(with_responses(), responses="response")


@cache
def without(study: str) -> CellPulse:
    """A model that never saw a study."""
    adata = toy_contrasts()
    return taught(adata[adata.obs["study"] != study].copy())[0]


def left_out(study: str) -> tuple[VirusPrediction, pd.DataFrame]:
    """Its predictions for that study, and their truth."""
    adata = toy_contrasts()
    rest = adata[adata.obs["study"] == study].copy()
    return without(study).predict(rest), rest.obs


STUDIES = ["study1", "study2", "study3", "study4"]


def test_viruses_are_recovered_in_studies_that_were_left_out() -> None:
    correct, infected, truth = [], [], []
    for study in STUDIES:
        prediction, obs = left_out(study)
        virus = prediction.virus_proba.idxmax(axis=1).to_numpy()
        is_virus = (obs["label"] != "uninfected").to_numpy()
        correct += (virus == obs["label"])[is_virus].tolist()
        infected += prediction.infected.tolist()
        truth += is_virus.tolist()
    assert np.mean(correct) > 0.8
    infected, truth = np.array(infected), np.array(truth)
    ranked = infected[truth][:, None] > infected[~truth][None, :]
    assert ranked.mean() > 0.85  # AUROC of infected against stimulated


def test_out_of_fold_predictions_come_from_other_studies() -> None:
    table = out_of_fold()
    assert table.columns.tolist() == [*VIRUSES, "none", "viral", "label", "study", "response"]
    virus = table["label"] != "uninfected"
    log_p = table.loc[virus, VIRUSES].astype(float)
    right = log_p.idxmax(axis=1) == table.loc[virus, "label"]
    assert right.mean() > 0.8
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1.0, rtol=1e-5)
    kinds = np.exp(table[["none", "viral"]].astype(float))
    np.testing.assert_allclose(kinds.sum(axis=1), 1.0, rtol=1e-5)


def test_kinds_of_response_are_told_in_studies_that_were_left_out() -> None:
    model, table = of_responses()
    assert model.classifier.responses == ["viral", "stimulus"]
    log_p = table[KINDS].astype(float)
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1.0, rtol=1e-5)
    call = np.array(KINDS)[call_response(log_p.to_numpy())]
    for kind in KINDS:
        assert (call == table["response"])[table["response"] == kind].mean() > 0.8


def test_held_out_kinds_never_saw_their_study() -> None:
    """Whatever the labels of a study are, what the others say of it is the same."""
    adata = with_responses()
    first = taught(adata.copy(), responses="response")[1]
    own = (adata.obs["study"] == "study2") & (adata.obs["response"] == "stimulus")
    adata.obs.loc[own, "response"] = "none"
    second = taught(adata, responses="response")[1]
    test = (adata.obs["study"] == "study2").to_numpy()
    # given a response: the odds of a response are scaled by two numbers, fitted over all studies
    odds = [
        table["viral"].astype(float) - table["stimulus"].astype(float) for table in (first, second)
    ]
    np.testing.assert_allclose(odds[0][test], odds[1][test], atol=1e-6)
    assert (odds[0] - odds[1])[~test].abs().max() > 0.01


def test_answers_and_probabilities_agree() -> None:
    model, _ = of_responses()
    adata = with_responses(5)
    found = model.predict(adata, names="always")
    proba = found.response_proba
    assert proba.columns.tolist() == KINDS
    assert found.virus_proba.columns.tolist() == VIRUSES
    for table in (proba, found.virus_proba):
        assert table.index.equals(adata.obs_names)
        assert (table.to_numpy() >= 0).all()
        np.testing.assert_allclose(table.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(proba["viral"], found.infected, rtol=1e-5, atol=1e-6)
    assert found.infected.dtype == found.support.dtype == np.float32
    for i, (kind, call) in enumerate(zip(found.response, found.call, strict=True)):
        row = proba.iloc[i]
        assert kind == ("none" if row["none"] >= 0.5 else row[["viral", "stimulus"]].idxmax())
        expected = {
            "none": "uninfected",
            "stimulus": "not viral",
            "viral": found.virus_proba.iloc[i].idxmax(),
        }
        assert call == expected[kind]
    assert (found.response == adata.obs["response"]).mean() > 0.9
    viral = (adata.obs["response"] == "viral").to_numpy()
    assert (found.call == adata.obs["label"])[viral].mean() > 0.85


def test_support_is_the_share_that_was_right_in_studies_left_out() -> None:
    """Counted again from the out-of-fold table: means over studies, not over contrasts."""
    model, table = of_responses()
    support = pd.DataFrame(model.classifier.support).set_index(["level", "answer"])
    call = np.array(KINDS)[call_response(table[KINDS].to_numpy(float))]
    for kind in KINDS:
        rows = table[call == kind]
        right = (rows["response"] == kind).groupby(rows["study"]).mean()
        assert support.loc[("response", kind), "share"] == pytest.approx(right.mean())
        assert support.loc[("response", kind), "n_studies"] == len(right)
        assert support.loc[("response", kind), "n_contrasts"] == len(rows)
    # of responses that are not viral, that there was such a one
    assert support.loc[("not viral", "stimulus")].equals(support.loc[("response", "stimulus")])
    viral = table[call == "viral"]
    named = viral[VIRUSES].astype(float).idxmax(axis=1)
    for virus in VIRUSES:
        rows = viral[named == virus]
        right = (rows["label"] == virus).groupby(rows["study"]).mean()
        assert support.loc[("virus", virus), "n_studies"] == len(right)
        assert support.loc[("virus", virus), "share"] == pytest.approx(right.mean())


def test_an_atlas_of_many_studies_gets_names() -> None:
    """Twelve studies with six of each virus: names are right in those left out, and given."""
    parts = []
    for seed in (0, 5, 6):
        parts.append(toy_contrasts(seed))
        parts[-1].obs["study"] = [f"{name} of {seed}" for name in parts[-1].obs["study"]]
    atlas = ad.concat(parts, index_unique="-")
    model, _ = taught(atlas)
    support = pd.DataFrame(model.classifier.support).set_index(["level", "answer"])
    assert (support.loc["virus"].loc[VIRUSES, ["share", "n_studies"]] >= [0.8, 6]).all(axis=None)
    new = toy_contrasts(7)
    found = model.predict(new)
    viral = found.response == "viral"
    assert set(found.call[viral]) == set(VIRUSES)
    assert (found.call == new.obs["label"])[viral].mean() > 0.8


def with_support(share: float, n_studies: int) -> CellPulse:
    """The model, all of whose records say the same."""
    model = copy(of_responses()[0])
    model.classifier = deepcopy(model.classifier)
    for record in model.classifier.support:
        record |= {"share": share, "n_studies": n_studies}
    return model


@pytest.mark.parametrize(
    ("share", "n_studies", "named"),
    [(0.8, 3, True), (0.79, 9, False), (1.0, 2, False), (float("nan"), 9, False)],
)
def test_names_are_given_where_studies_support_them(
    share: float, n_studies: int, named: bool
) -> None:
    model = with_support(share, n_studies)
    found = model.predict(with_responses(5))
    answers = {*VIRUSES, "not viral", "uninfected"} if named else {"unresolved", "uninfected"}
    assert set(found.call) == answers
    always = model.predict(with_responses(5), names="always")
    assert set(always.call) == {*VIRUSES, "not viral", "uninfected"}
    assert set(always.response) == set(KINDS)


@pytest.mark.parametrize(
    ("share", "n_studies", "given"), [(0.5, 3, True), (0.49, 9, False), (1.0, 2, False)]
)
def test_kinds_are_given_where_they_are_mostly_right(
    share: float, n_studies: int, given: bool
) -> None:
    found = with_support(share, n_studies).predict(with_responses(5))
    assert set(found.response) == (set(KINDS) if given else {"none", "unresolved"})
    unresolved = found.response == "unresolved"
    assert np.isnan(found.support[unresolved]).all()
    np.testing.assert_allclose(found.support[~unresolved], share)
    assert (found.call[found.response == "none"] == "uninfected").all()


def test_the_support_of_an_unresolved_answer_is_that_of_its_response() -> None:
    model = with_support(0.9, 9)
    for record in model.classifier.support:
        if record["level"] == "virus":
            record["share"] = 0.3
    found = model.predict(with_responses(5))
    np.testing.assert_allclose(found.support, 0.9, rtol=1e-6)
    assert "unresolved" in found.call
    always = model.predict(with_responses(5), names="always")
    viral = always.response == "viral"
    np.testing.assert_allclose(always.support[viral], 0.3, rtol=1e-6)


def test_a_virus_without_a_record_has_no_support() -> None:
    model = with_support(0.9, 9)
    model.classifier.support = []
    found = model.predict(with_responses(5), names="always")
    assert np.isnan(found.support).all()
    assert "unresolved" in model.predict(with_responses(5)).call


def test_signed_sets_teach_the_kinds_of_response() -> None:
    """Two stimuli that no measured contrast shows; rows of −1, 0, 1 teach them."""
    adata = with_responses()
    rng = np.random.default_rng(3)
    programme = rng.choice(adata.n_vars, (2, 60), replace=False)
    x = np.zeros((40, adata.n_vars), dtype=np.float32)
    for i in range(40):
        genes = rng.permutation(programme[i % 2])[:40]
        x[i, genes[:20]], x[i, genes[20:]] = 1.0, 1.0
        x[i, rng.choice(adata.n_vars, 20)] = -1.0
    obs = pd.DataFrame(
        {
            "label": "uninfected",
            "study": [f"set{i // 4}" for i in range(40)],
            "response": [("first", "second")[i % 2] for i in range(40)],
        },
        index=[f"set {i}" for i in range(40)],
    )
    sets = ad.AnnData(x, obs=obs, var=adata.var)
    both = ad.concat([adata, sets])
    model, table = taught(both, responses="response")
    assert model.classifier.responses == ["viral", "first", "second", "stimulus"]
    assert table["none"].notna().to_numpy().tolist() == [True] * adata.n_obs + [False] * 40
    new = np.zeros((2, adata.n_vars), dtype=np.float32)
    new[[[0], [1]], programme] = rng.gamma(4.0, 0.8, (2, 60))
    new += rng.normal(0, 0.1, new.shape).astype(np.float32)
    found = model.predict(ad.AnnData(new, var=adata.var))
    assert found.response_proba[["viral", "first", "second", "stimulus"]].idxmax(
        axis=1
    ).tolist() == ["first", "second"]


def test_silent_missing_and_single_contrasts_have_an_answer(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    one = contrasts[:1].copy()
    assert len(model.predict(one).call) == 1
    contrasts.X[0] = 0.0
    contrasts.X[1] = np.nan
    with pytest.warns(UserWarning, match=r"1 of \d+ contrasts measure fewer than"):
        found = model.predict(contrasts)
    assert np.isfinite(found.response_proba).all(axis=None)
    assert np.isfinite(found.virus_proba).all(axis=None)


def test_a_model_without_classifier_says_how_to_get_one(contrasts: ad.AnnData) -> None:
    CellPulse.setup_anndata(contrasts, study_key="study")
    model = CellPulse(contrasts, **SIZES)
    with pytest.raises(ValueError, match=r"no virus classifier: call train_classifier\(\)"):
        model.predict()


REFUSED: list[tuple[dict[str, Any], dict[str, Any], type[Exception], str]] = [
    ({"label": "virus_A"}, {}, ValueError, r"Found 1 virus label\(s\) \['virus_A'\]"),
    ({"label": "uninfected"}, {}, ValueError, "Found 0 virus label"),
    ({"study": "one"}, {}, ValueError, "All contrasts are from one study"),
    *(
        ({"label": ["virus_A", "virus_B", answer] * 16}, {}, ValueError, f"'{answer}' is an answer")
        for answer in ("unresolved", "not viral")
    ),
    ({}, {"responses": "x"}, KeyError, "responses='x' is no column of obs"),
    ({"kind": "stimulus"}, {"responses": "kind"}, ValueError, "such as 'virus_.' and 'stimulus'"),
    ({"kind": "viral"}, {"responses": "kind"}, ValueError, "such as 'uninfected' and 'viral'"),
    ({}, {"teaches_virus": np.ones(3, dtype=bool)}, ValueError, r"shape \(3,\); expected one"),
]


@pytest.mark.parametrize(("obs", "arguments", "error", "message"), REFUSED)
def test_labels_that_teach_nothing_are_refused(
    contrasts: ad.AnnData,
    obs: dict[str, Any],
    arguments: dict[str, Any],
    error: type[Exception],
    message: str,
) -> None:
    for key, value in obs.items():
        contrasts.obs[key] = value
    with pytest.raises(error, match=message):
        taught(contrasts, **arguments)


def test_data_without_labels_are_refused(contrasts: ad.AnnData) -> None:
    CellPulse.setup_anndata(contrasts, study_key="study")
    with pytest.raises(ValueError, match="registered without labels"):
        CellPulse(contrasts, **SIZES).train_classifier()


def test_rows_that_do_not_teach_their_virus_still_teach_infection() -> None:
    adata = toy_contrasts()
    teaches = (adata.obs["label"] != "virus_D").to_numpy()
    model, table = taught(adata, teaches_virus=teaches)
    assert model.classifier.classes == VIRUSES[:3]
    found = model.predict(toy_contrasts(seed=5))
    hidden = (toy_contrasts(seed=5).obs["label"] == "virus_D").to_numpy()
    assert found.infected[hidden].mean() > 0.7
    assert "virus_D" not in table


def test_without_uninfected_contrasts_everything_is_an_infection() -> None:
    adata = toy_contrasts()
    model, _ = taught(adata[adata.obs["label"] != "uninfected"].copy())
    found = model.predict(adata)
    assert (found.infected > 0.99).all()
    assert "uninfected" not in found.call


def test_uninfected_contrasts_of_one_study_only_warn() -> None:
    adata = toy_contrasts()
    keep = (adata.obs["label"] != "uninfected") | (adata.obs["study"] == "study1")
    with pytest.warns(UserWarning, match="All uninfected contrasts are of one study"):
        model, _ = taught(adata[keep.to_numpy()].copy())
    assert np.isfinite(model.predict(adata).response_proba).all(axis=None)


def test_viruses_of_one_study_each_cannot_be_calibrated_but_are_learned() -> None:
    adata = toy_contrasts()
    pairs = {"study1": "virus_A", "study2": "virus_B", "study3": "virus_C"}
    keep = adata.obs["study"].astype(str).map(pairs) == adata.obs["label"]
    model, table = taught(adata[keep.to_numpy()].copy())
    for label, row in table.set_index("label")[["virus_A", "virus_B", "virus_C"]].iterrows():
        assert row.index[row.isna()].tolist() == [label]
    found = model.predict(adata[keep.to_numpy()].copy())
    assert np.isfinite(found.virus_proba).all(axis=None)


def test_the_same_data_teach_the_same() -> None:
    first, second = (taught(toy_contrasts())[0] for _ in range(2))
    adata = toy_contrasts(seed=5)
    first, second = first.predict(adata), second.predict(adata)
    assert first.virus_proba.equals(second.virus_proba)
    assert first.response_proba.equals(second.response_proba)


def test_a_pretrained_encoder_is_taught_on_other_data(fresh: CellPulse) -> None:
    """And stays as it is."""
    adata = toy_contrasts(seed=3)
    adata.obs["label"] = adata.obs["label"].astype(str).replace("virus_", "type ", regex=True)
    before = fresh.get_latent_representation(adata)
    CellPulse.setup_anndata(adata, labels_key="label", study_key="study")
    fresh.train_classifier(adata)
    assert fresh.classifier.classes == ["type A", "type B", "type C", "type D"]
    np.testing.assert_array_equal(fresh.get_latent_representation(adata), before)
    assert (fresh.predict(adata, names="always").call == adata.obs["label"]).mean() > 0.8
