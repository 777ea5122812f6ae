"""What carries a call: attributions that add up, reversal that is an experiment, attention."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfm.models import CellPulse
from cfm.models.cellpulse._attribution import INFECTED_BASELINE, GatedOdds
from tests._toy import SIZES, toy_contrasts


@pytest.fixture
def effects(model: CellPulse) -> np.ndarray:
    """Six profiles on the model's genes, some not measured."""
    x = np.asarray(toy_contrasts().X[:6], dtype=np.float32).copy()
    x[1, ::7] = np.nan
    x[2, ::5] = 0.0
    return x


def test_log_odds_are_those_of_the_prediction(model: CellPulse, effects: np.ndarray) -> None:
    adata = toy_contrasts()[:6].copy()
    adata.X = effects
    prediction = model.predict(adata)
    for target, expected in (
        ("response", 1 - prediction.response_proba["none"]),
        ("virus_B", prediction.virus_proba["virus_B"]),
    ):
        odds = model.target_log_odds(effects, target)
        np.testing.assert_allclose(1 / (1 + np.exp(-odds)), expected, rtol=1e-4)


@pytest.mark.parametrize("target", ["virus_A", "response"])
@pytest.mark.parametrize("mode", ["neutral", "flip"])
def test_reversal_is_the_classifier_asked_again(
    model: CellPulse, target: str, mode: str, effects: np.ndarray
) -> None:
    found = model.reversal(effects[:3], target, mode=mode)
    np.testing.assert_array_equal(np.isnan(found), np.isnan(effects[:3]))
    for i, row in enumerate(effects[:3]):
        genes = np.flatnonzero(~np.isnan(row))
        genes = genes[np.argsort(-np.abs(row[genes]), kind="stable")][[0, 1, 5, 40, 95, 96, 97, -1]]
        changed = np.tile(row, (len(genes), 1))
        changed[np.arange(len(genes)), genes] = -row[genes] if mode == "flip" else 0.0
        before = model.target_log_odds(row[None], target)
        expected = before - model.target_log_odds(changed, target)
        np.testing.assert_allclose(found[i, genes], expected, atol=2e-5)


def test_integrated_gradients_add_up_to_the_log_odds(model: CellPulse, effects: np.ndarray) -> None:
    shares = model.integrated_gradients(effects, "virus_C")
    bias = model.classifier.bias.detach()[None] / model.classifier.temperature
    nothing = bias[:, 2] - torch.logsumexp(torch.cat([bias[:, :2], bias[:, 3:]], 1), 1)
    expected = model.target_log_odds(effects, "virus_C") - nothing.numpy()
    np.testing.assert_allclose(np.nansum(shares, axis=1), expected, atol=1e-4)


def test_response_attributions_add_up_but_for_statistics_that_count(
    fresh: CellPulse, effects: np.ndarray
) -> None:
    with torch.no_grad():
        fresh.classifier.infected_statistics[[1, 3, 6]] = 0.0
    shares = fresh.integrated_gradients(effects, "response", n_steps=64)
    score = GatedOdds(fresh.classifier, torch.from_numpy(effects), None)
    with torch.no_grad():
        full = score(torch.ones(effects.shape))
        start = score(torch.full(effects.shape, INFECTED_BASELINE))
    np.testing.assert_allclose(full, fresh.target_log_odds(effects, "response"), atol=1e-4)
    np.testing.assert_allclose(np.nansum(shares, axis=1), (full - start).numpy(), atol=1e-3)


def test_rollout_multiplies_layers(effects: np.ndarray) -> None:
    adata = toy_contrasts()
    CellPulse.setup_anndata(adata, study_key="study")
    model = CellPulse(adata, **(SIZES | {"n_layers": 3}), seed=1)
    (genes, weights), *_ = model.get_attention(adata[:1].copy())
    rolled = np.eye(len(genes))
    for layer in weights:
        rolled = 0.5 * (layer.mean(axis=0) + np.eye(len(genes))) @ rolled
    row = rolled[0, 1:]
    found = model.summary_attention(np.asarray(adata.X[:1]))
    columns = model.vocabulary.genes.get_indexer(genes[1:])
    np.testing.assert_allclose(found[0, columns], row / row.mean(), rtol=1e-3)
    assert not np.nan_to_num(np.delete(found[0], columns)).any()


def test_a_gene_that_the_model_does_not_weigh_carries_nothing(
    fresh: CellPulse, effects: np.ndarray
) -> None:
    with torch.no_grad():
        fresh.classifier.wide_all[:, 3] = 0
        fresh.classifier.wide_common[:, 3] = 0
    shares = fresh.integrated_gradients(effects, "virus_A")
    assert (shares[:, 3] == 0).all()


def test_unknown_targets_are_refused(model: CellPulse, effects: np.ndarray) -> None:
    with pytest.raises(ValueError, match="no virus of this classifier; expected 'response'"):
        model.reversal(effects, "Marburg")
    with pytest.raises(ValueError, match="with the sign turned"):
        model.integrated_gradients(effects, "uninfected")


def test_a_model_without_classifier_explains_no_call(effects: np.ndarray) -> None:
    adata = toy_contrasts()
    CellPulse.setup_anndata(adata)
    model = CellPulse(adata, **SIZES)
    with pytest.raises(ValueError, match="train_classifier"):
        model.reversal(effects, "response")
    assert np.isfinite(model.summary_attention(effects[:1])).all()
