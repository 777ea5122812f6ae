"""Heads: what they learn, which layers stay frozen, and what they refuse."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata as ad
import numpy as np
import pytest
import torch

from cfm.models import Pulsar
from cfm.models._training import TrainingRun
from cfm.models.pulsar._head import head_loss
from tests._pulsar import GOLDEN, donors

QUIET = {"enable_progress_bar": False, "accelerator": "cpu"}
SMALL = {"dim": 32, "encoder_layers": 2, "encoder_ff": 64, "decoder_ff": 64}


@pytest.fixture
def adata() -> ad.AnnData:
    adata = donors((40, 30, 50, 45, 35, 42, 38, 47, 33, 44, 36, 41), width=10)
    Pulsar.setup_anndata(adata, use_rep="X_uce")
    return adata


def state(model: Pulsar) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in model.module.state_dict().items()}


def changed(model: Pulsar, before: dict[str, torch.Tensor]) -> set[str]:
    after = model.module.state_dict()
    return {".".join(k.split(".")[:2]) for k, v in before.items() if not torch.equal(v, after[k])}


def test_classes_are_learned_with_the_encoder_frozen(adata: ad.AnnData, tmp_path: Path) -> None:
    model = Pulsar(adata, **SMALL)
    before = state(model)
    model.train_head("disease", max_epochs=25, validation_share=0, n_cells=20, **QUIET)
    assert not changed(model, before)
    assert all(p.requires_grad for p in model.module.parameters())
    assert model.head == {"task": "classification", "outputs": ["lupus", "normal"]}
    fresh = donors((40,) * 10, width=10, seed=0)
    found = model.predict(fresh)
    truth = fresh.obs.groupby("donor_id", observed=True)["disease"].first().loc[found.index]
    assert (found.idxmax(axis=1) == truth).mean() >= 0.9
    loaded = Pulsar.load(model.save(tmp_path / "ours"))
    np.testing.assert_allclose(loaded.predict(fresh), found, atol=1e-6)
    assert loaded.provenance["target"] == "disease"


def test_values_are_learned_in_their_units(adata: ad.AnnData) -> None:
    model = Pulsar(adata, **SMALL)
    model.train_head("age", "regression", max_epochs=25, n_cells=20, **QUIET)
    found = model.predict(adata)
    assert found.columns.tolist() == ["age"]
    truth = adata.obs.groupby("donor_id", observed=True)["age"].first().loc[found.index]
    assert np.abs(found["age"] - truth).mean() < 10
    assert "validation_loss" in model.history


def test_classes_weigh_the_same_however_many_donors_they_have() -> None:
    answers = torch.tensor([[0.0], [0], [0], [1]])
    made = torch.tensor([[1.0, 0], [2, 0], [0, 1], [0, 3]])
    each = torch.nn.functional.cross_entropy(made, answers[:, 0].long(), reduction="none")
    found = head_loss("classification", answers.numpy(), 2)(made, answers)
    torch.testing.assert_close(found, (each[:3].mean() + each[3]) / 2)


def test_several_values_are_learned_at_once(adata: ad.AnnData) -> None:
    adata.obs["height"] = np.where(adata.obs["age"] > 50, 1.6, 1.8)
    adata.obs.loc[adata.obs["donor_id"] == "donor3", "age"] = np.nan
    model = Pulsar(adata, **SMALL)
    model.train_head(["age", "height"], "regression", max_epochs=25, n_cells=20, **QUIET)
    assert model.provenance["n_donors"] == 11  # the twelfth is held out; donor3 has a height
    found = model.predict(adata)
    truth = adata.obs.groupby("donor_id", observed=True)[["age", "height"]].first().loc[found.index]
    error = np.abs(found - truth).mean()
    assert error["age"] < 10
    assert error["height"] < 0.07


def test_an_interrupted_head_answers_in_the_units_of_the_target(
    adata: ad.AnnData, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TrainingRun.fit

    def interrupted(run: TrainingRun, *args) -> None:
        whole(run, *args)
        raise KeyboardInterrupt

    monkeypatch.setattr(TrainingRun, "fit", interrupted)
    model = Pulsar(adata, **SMALL)
    with pytest.raises(KeyboardInterrupt):
        model.train_head("age", "regression", max_epochs=25, n_cells=20, **QUIET)
    truth = adata.obs.groupby("donor_id", observed=True)["age"].first()
    assert np.abs(model.predict(adata)["age"] - truth).mean() < 10


@pytest.mark.parametrize(
    ("frozen_layers", "expected"),
    [
        (0, {"encoder.0", "encoder.1", "in_proj.proj_1", "in_proj.proj_2", "cls_embedding"}),
        (1, {"encoder.1"}),
        (2, set()),
    ],
)
def test_only_what_is_not_frozen_learns(adata: ad.AnnData, frozen_layers, expected) -> None:
    model = Pulsar(adata, **SMALL)
    before = state(model)
    model.train_head("disease", frozen_layers=frozen_layers, max_epochs=1, n_cells=10, **QUIET)
    assert changed(model, before) == expected


def test_donors_without_a_value_are_left_out(adata: ad.AnnData) -> None:
    adata.obs["age"] = adata.obs["age"].where(adata.obs["donor_id"] != "donor3")
    model = Pulsar(adata, **SMALL)
    model.train_head("age", "regression", max_epochs=1, validation_share=0, **QUIET)
    assert model.provenance["n_donors"] == 11


def test_published_weights_get_a_new_head() -> None:
    adata = donors()
    Pulsar.setup_anndata(adata, use_rep="X_uce")
    model = Pulsar.from_pretrained(GOLDEN / "PULSAR-classifier", adata)
    model.train_head("disease", max_epochs=1, **QUIET)
    assert model.predict(adata).columns.tolist() == ["lupus", "normal"]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"target": "sex"}, KeyError, "no column 'sex'"),
        ({"target": "disease", "task": "regression"}, ValueError, "holds text"),
        ({"target": "disease", "frozen_layers": 3}, ValueError, "whole number from 0 to 2"),
        ({"target": "disease", "frozen_layers": "none"}, ValueError, "frozen_layers='none'"),
        ({"target": ["disease", "same"]}, ValueError, "a classification takes one"),
        ({"target": "cell_type"}, ValueError, "several values within"),
        ({"target": "same"}, ValueError, r"the class \['same'\] only"),
        ({"target": "height", "task": "regression"}, ValueError, "1 different finite values"),
        ({"target": "rare"}, ValueError, "'other' in one donor only"),
    ],
)
def test_what_cannot_be_learned_is_refused(
    adata: ad.AnnData, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    adata.obs["same"], adata.obs["height"] = "same", 170.0
    adata.obs["rare"] = np.where(adata.obs["donor_id"] == "donor0", "other", "same")
    model = Pulsar(adata, **SMALL)
    with pytest.raises(error, match=message):
        model.train_head(**arguments)
    assert model.head is None


def test_a_head_does_not_outlive_the_encoder_it_was_trained_on() -> None:
    cohort = donors((30, 20, 25, 22, 35, 27), width=10)
    Pulsar.setup_anndata(cohort, use_rep="X_uce")
    model = Pulsar(cohort, dim=32, encoder_layers=1, encoder_ff=64, decoder_ff=64)
    model.train_head("disease", max_epochs=1, n_cells=10, **QUIET)
    with pytest.warns(UserWarning, match="encoder has new weights, so its head is removed"):
        model.train(max_steps=1, n_cells=10, **QUIET)
    assert model.head is None
    with pytest.raises(ValueError, match="no head"):
        model.predict(cohort)
