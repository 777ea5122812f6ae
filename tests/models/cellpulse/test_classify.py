"""The virus classifier: what it recovers, what it says of strangers, and what it refuses."""

from __future__ import annotations

from functools import cache

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cfm.models import CellPulse
from cfm.models.cellpulse import VirusPrediction
from cfm.models.cellpulse._classifier import Scores
from cfm.models.cellpulse._classify import prediction_sets
from tests._toy import SIZES, toy_contrasts

VIRUSES = ["virus_A", "virus_B", "virus_C", "virus_D"]


def taught(adata: ad.AnnData, **arguments) -> tuple[CellPulse, pd.DataFrame]:
    """A model whose classifier alone is fitted: pretraining changes little on toy data."""
    CellPulse.setup_anndata(adata, labels_key="label", study_key="study")
    model = CellPulse(adata, **SIZES)
    return model, model.train_classifier(**arguments)


@cache
def out_of_fold() -> pd.DataFrame:
    return taught(toy_contrasts())[1]


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
        virus = prediction.proba[VIRUSES].idxmax(axis=1).to_numpy()
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
    assert table.columns.tolist() == [*VIRUSES, "label", "study"]
    virus = table["label"] != "uninfected"
    assert table.loc[~virus, VIRUSES].isna().all(axis=None)
    log_p = table.loc[virus, VIRUSES].astype(float)
    right = log_p.idxmax(axis=1) == table.loc[virus, "label"]
    assert right.mean() > 0.8
    np.testing.assert_allclose(np.exp(log_p).sum(axis=1), 1.0, rtol=1e-5)


def test_probabilities_sum_to_one_and_agree_with_the_call(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    found = model.predict(contrasts)
    proba = found.proba
    assert proba.columns.tolist() == [*VIRUSES, "uninfected"]
    assert proba.index.equals(contrasts.obs_names)
    assert (proba.to_numpy() >= 0).all()
    np.testing.assert_allclose(proba.sum(axis=1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(1 - proba["uninfected"], found.infected, rtol=1e-5, atol=1e-6)
    for i, call in enumerate(found.call):
        if call == "uninfected":
            assert proba["uninfected"].iloc[i] >= 0.5
            expected = proba["uninfected"].iloc[i]
        else:
            assert proba["uninfected"].iloc[i] < 0.5
            expected = proba[VIRUSES].iloc[i].max()
            assert call in ("unknown", proba[VIRUSES].iloc[i].idxmax())
        assert found.confidence[i] == pytest.approx(expected, rel=1e-5)
    assert model.predict_proba(contrasts).equals(proba)
    for values in (found.confidence, found.infected, found.novelty):
        assert values.dtype == np.float32
        assert ((values >= 0) & (values <= 1)).all()


def test_the_confidence_is_that_of_the_call_even_if_another_answer_has_more(
    model: CellPulse, contrasts: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Infected for sure enough, but by one of four: no single virus reaches "uninfected"."""
    scores = Scores(
        torch.tensor([[0.4, 0.2, 0.2, 0.2]]).log().expand(2, -1),
        torch.tensor([0.6, 0.6]).logit(),
        torch.tensor([0.0, 1.0]),
    )
    monkeypatch.setattr(model, "predict_scores", lambda *a, **k: scores)
    found = model.predict(contrasts[:2])
    assert found.call.tolist() == ["virus_A", "unknown"]
    np.testing.assert_allclose(found.confidence, 0.24, rtol=1e-5)
    assert found.prediction_set[0][0] == "uninfected"


def test_calls_of_contrasts_like_those_it_learned(model: CellPulse) -> None:
    """Another draw of the same studies: nearly all are named right."""
    adata = toy_contrasts(seed=5)
    found = model.predict(adata)
    assert (found.call == adata.obs["label"]).mean() > 0.85


def test_what_matches_no_virus_is_novel(model: CellPulse, contrasts: ad.AnnData) -> None:
    """Strong effects in genes that no virus moves."""
    truth = contrasts.varm["truth"]
    quiet = (truth == 0).all(axis=1).to_numpy()
    strange = contrasts[contrasts.obs["label"] != "uninfected"].copy()
    rng = np.random.default_rng(0)
    strange.X = np.where(quiet, rng.normal(0, 3, strange.shape), 0.1 * strange.X).astype(np.float32)
    usual = model.predict(contrasts[contrasts.obs["label"] != "uninfected"].copy()).novelty
    assert model.predict(strange).novelty.mean() > usual.mean() + 0.2


@pytest.mark.parametrize("batch_size", [1, 5])
def test_a_prediction_does_not_see_its_batch(
    model: CellPulse, contrasts: ad.AnnData, batch_size: int
) -> None:
    expected = model.predict(contrasts)
    found = model.predict(contrasts, batch_size=batch_size)
    np.testing.assert_allclose(found.proba, expected.proba, rtol=1e-3, atol=1e-5)
    alone = model.predict(contrasts[4:5].copy())
    np.testing.assert_allclose(alone.proba, expected.proba.iloc[4:5], rtol=1e-3, atol=1e-5)
    assert alone.call[0] == expected.call[4]


@pytest.mark.parametrize("alpha", [0.1, 0.3])
def test_conformal_sets_hold_the_truth_as_often_as_promised(alpha: float) -> None:
    """In studies that were left out, and without naming everything."""
    held, size = [], []
    for study in STUDIES:
        adata = toy_contrasts()
        test = adata[adata.obs["study"] == study].copy()
        sets = without(study).predict(test, alpha=alpha).prediction_set
        held += [t in s for t, s in zip(test.obs["label"], sets, strict=True)]
        size += [len(s) for s in sets]
    assert np.mean(held) >= 1 - alpha - 0.05
    assert np.mean(size) < 2


def test_sets_grow_as_more_certainty_is_asked(model: CellPulse, contrasts: ad.AnnData) -> None:
    small = model.predict(contrasts, alpha=0.5).prediction_set
    large = model.predict(contrasts, alpha=0.02).prediction_set
    proba = model.predict_proba(contrasts)
    for i, (few, many) in enumerate(zip(small, large, strict=True)):
        assert many[: len(few)] == few
        assert few[0] == proba.iloc[i].idxmax()
        assert proba.iloc[i][many].is_monotonic_decreasing


tables = hnp.arrays(np.float64, (4, 5), elements=st.floats(0.01, 1.0)).map(
    lambda t: t / t.sum(axis=1, keepdims=True)
)


@given(table=tables, reach=st.floats(0.0, 1.0))
def test_a_set_is_what_little_probability_comes_before(table: np.ndarray, reach: float) -> None:
    names = np.array(list("abcde"), dtype=object)
    for row, found in zip(table, prediction_sets(table, names, reach), strict=True):
        order = np.argsort(-row, kind="stable")
        before = [row[order[:rank]].sum() for rank in range(len(order))]
        expected = [names[j] for j, b in zip(order, before, strict=True) if b <= reach + 1e-6]
        assert found == expected


@pytest.mark.parametrize("alpha", [0.0, 1.0, -1.0])
def test_alpha_is_a_share(model: CellPulse, contrasts: ad.AnnData, alpha: float) -> None:
    with pytest.raises(ValueError, match="alpha="):
        model.predict(contrasts, alpha=alpha)


def test_silent_missing_and_single_contrasts_have_an_answer(
    model: CellPulse, contrasts: ad.AnnData
) -> None:
    one = contrasts[:1].copy()
    assert len(model.predict(one).call) == 1
    contrasts.X[0] = 0.0
    contrasts.X[1] = np.nan
    with pytest.warns(UserWarning, match=r"1 of \d+ contrasts measure fewer than"):
        found = model.predict(contrasts)
    assert np.isfinite(found.proba).all(axis=None)
    assert np.isfinite(found.novelty).all()


def test_a_model_without_classifier_says_how_to_get_one(contrasts: ad.AnnData) -> None:
    CellPulse.setup_anndata(contrasts, study_key="study")
    model = CellPulse(contrasts, **SIZES)
    with pytest.raises(ValueError, match=r"no virus classifier: call train_classifier\(\)"):
        model.predict()


def labelled(**obs) -> ad.AnnData:
    adata = toy_contrasts()
    for key, value in obs.items():
        adata.obs[key] = value
    return adata


def test_one_virus_is_too_few() -> None:
    adata = toy_contrasts()
    adata = adata[adata.obs["label"].isin(["virus_A", "uninfected"])].copy()
    with pytest.raises(ValueError, match=r"Found 1 virus label\(s\) \['virus_A'\]"):
        taught(adata)


def test_no_virus_is_too_few() -> None:
    with pytest.raises(ValueError, match=r"Found 0 virus label"):
        taught(labelled(label="uninfected"))


def test_one_study_is_too_few() -> None:
    with pytest.raises(ValueError, match="All contrasts are from one study"):
        taught(labelled(study="one"))


def test_unknown_is_no_label() -> None:
    adata = labelled(label=lambda: None)
    adata.obs["label"] = ["unknown", *["virus_A", "virus_B"] * 23, "virus_A"]
    with pytest.raises(ValueError, match="'unknown' is an answer, not a label"):
        taught(adata)


def test_data_without_labels_are_refused(contrasts: ad.AnnData) -> None:
    CellPulse.setup_anndata(contrasts, study_key="study")
    with pytest.raises(ValueError, match="registered without labels"):
        CellPulse(contrasts, **SIZES).train_classifier()


def test_which_rows_teach_has_one_value_per_row() -> None:
    with pytest.raises(ValueError, match=r"teaches_virus has shape \(3,\); expected one value"):
        taught(toy_contrasts(), teaches_virus=np.ones(3, dtype=bool))


def test_rows_that_do_not_teach_their_virus_still_teach_infection() -> None:
    adata = toy_contrasts()
    teaches = (adata.obs["label"] != "virus_D").to_numpy()
    model, table = taught(adata, teaches_virus=teaches)
    assert model.classifier.classes == VIRUSES[:3]
    found = model.predict(toy_contrasts(seed=5))
    hidden = (toy_contrasts(seed=5).obs["label"] == "virus_D").to_numpy()
    assert found.infected[hidden].mean() > 0.7
    assert table.loc[~teaches, VIRUSES[:3]].isna().all(axis=None)


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
    assert np.isfinite(model.predict(adata).proba).all(axis=None)


def test_viruses_of_one_study_each_cannot_be_calibrated_but_are_learned() -> None:
    adata = toy_contrasts()
    pairs = {"study1": "virus_A", "study2": "virus_B", "study3": "virus_C"}
    keep = adata.obs["study"].astype(str).map(pairs) == adata.obs["label"]
    model, table = taught(adata[keep.to_numpy()].copy())
    assert table[["virus_A", "virus_B", "virus_C"]].isna().all(axis=None)
    found = model.predict(adata[keep.to_numpy()].copy())
    assert np.isfinite(found.proba).all(axis=None)


def test_the_same_data_teach_the_same() -> None:
    first, second = (taught(toy_contrasts())[0] for _ in range(2))
    adata = toy_contrasts(seed=5)
    assert first.predict_proba(adata).equals(second.predict_proba(adata))


def test_a_pretrained_encoder_is_taught_on_other_data(fresh: CellPulse) -> None:
    """And stays as it is."""
    adata = toy_contrasts(seed=3)
    adata.obs["label"] = adata.obs["label"].astype(str).replace("virus_", "type ", regex=True)
    before = fresh.get_latent_representation(adata)
    CellPulse.setup_anndata(adata, labels_key="label", study_key="study")
    fresh.train_classifier(adata)
    assert fresh.classifier.classes == ["type A", "type B", "type C", "type D"]
    np.testing.assert_array_equal(fresh.get_latent_representation(adata), before)
    assert (fresh.predict(adata).call == adata.obs["label"]).mean() > 0.8
