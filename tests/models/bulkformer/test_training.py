"""Training recovers a planted signal, repeats with its seed, and survives an interruption."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from scvi import REGISTRY_KEYS

from cfm.models import BulkFormer
from cfm.models._streams import Drawn
from cfm.models._training import held_out_rows
from cfm.models.bulkformer._training import SampleStream, hide
from tests._bulk import TRAINING, toy_bulkformer, toy_log_tpm, untrained


def weights(model: BulkFormer) -> torch.Tensor:
    return torch.cat([p.detach().float().ravel() for p in model.module.state_dict().values()])


def test_hidden_expression_of_new_samples_is_recovered() -> None:
    new = toy_log_tpm(seed=7)
    mask = np.random.default_rng(0).random(new.shape) < 0.2
    found = toy_bulkformer().impute(new, mask=mask)
    mean = np.broadcast_to(toy_log_tpm().X.mean(0), new.shape)

    def error(values: np.ndarray) -> float:
        return float(np.square(values - new.X)[mask].mean())

    assert error(found) < 0.5 * error(mean)


def test_history_has_training_and_validation_curves() -> None:
    history = toy_bulkformer().history
    for name in ("train_loss", "validation_loss"):
        curve = history[name][name].to_numpy(dtype=float)
        assert np.isfinite(curve).all()
        assert curve[-1] < 0.7 * curve[0], name


def test_training_leaves_a_model_that_answers() -> None:
    model = toy_bulkformer()
    assert model.is_trained_
    assert not model.module.training
    assert not model.module.recompute
    assert not model.module.expression_embedding.frequencies.requires_grad
    assert model.provenance["training_studies"] == ["s1", "s2", "s3", "s4"]


def test_the_same_seed_repeats_exactly_and_another_does_not() -> None:
    made = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(made))  # what went on before does not matter
        np.random.seed(len(made))  # noqa: NPY002
        model = untrained(ff_dropout=0.2)
        model.train(max_steps=6, seed=seed, redraw_interval=2, **TRAINING)
        made.append(weights(model))
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_the_seed_of_a_model_is_that_of_its_weights() -> None:
    first, second, other = (weights(untrained(seed=s)) for s in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_features_are_redrawn_when_it_is_time() -> None:
    for interval, changed in ((2, True), (0, False), (100, False)):
        model = untrained()
        features = model.module.blocks[0].layers[0].attention.features.clone()
        model.train(max_steps=5, redraw_interval=interval, **TRAINING)
        found = model.module.blocks[0].layers[0].attention.features
        assert torch.equal(found, features) is not changed, interval


def test_training_leaves_the_global_random_state_and_the_folder_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = untrained()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    model.train(max_steps=2, **TRAINING)
    assert torch.equal(torch.rand(3), expected)
    assert list(tmp_path.rglob("*")) == []


def test_whole_studies_are_held_out() -> None:
    model = untrained()
    studies = model.registered_categories(REGISTRY_KEYS.BATCH_KEY)
    held_out = held_out_rows(studies, 0.1, 0)
    assert len(set(studies[held_out])) == 1
    assert not set(studies[held_out]) & set(studies[~held_out])
    assert held_out_rows(np.full(96, "", dtype=object), 0.1, 0).sum() == 10
    model.train(max_steps=2, validation_share=0.0, **TRAINING)
    assert "validation_loss" not in model.history


@pytest.mark.parametrize("storage", ["csr", "backed", "layer"])
def test_data_of_any_storage_train_the_same(storage: str, tmp_path: Path) -> None:
    expected = untrained()
    expected.train(max_steps=3, **TRAINING)
    adata, layer = toy_log_tpm(), None
    if storage == "layer":
        adata.layers["log_tpm"], adata.X, layer = adata.X, np.zeros(adata.shape), "log_tpm"
    else:
        adata.X = sp.csr_matrix(adata.X)
    if storage == "backed":
        adata.write_h5ad(tmp_path / "x.h5ad")
        adata = ad.read_h5ad(tmp_path / "x.h5ad", backed="r")
    BulkFormer.setup_anndata(adata, layer=layer, study_key="study")
    model = BulkFormer(adata, dim=16, n_layers=1, n_heads=2, attention_dropout=0.0, ff_dropout=0.0)
    model.train(max_steps=3, **TRAINING)
    assert torch.equal(weights(model), weights(expected))


def test_steps_and_epochs() -> None:
    steps: list[int] = []

    class Count(pl.Callback):
        def on_train_end(self, trainer, *arguments) -> None:
            steps.append(trainer.global_step)

    arguments = TRAINING | {"callbacks": [Count()]}  # 72 samples train: 5 batches an epoch
    untrained().train(2, **arguments)
    untrained().train(max_steps=7, **arguments)
    untrained().train(2, max_steps=7, **arguments)
    untrained().train(2, accumulate_grad_batches=2, **arguments)
    assert steps == [10, 7, 7, 6]


def test_an_interrupted_training_leaves_a_usable_model() -> None:
    class Interrupt(pl.Callback):
        def on_train_batch_end(self, trainer, *arguments) -> None:
            if trainer.global_step == 3:
                raise KeyboardInterrupt

    model = untrained()
    with pytest.raises(KeyboardInterrupt, match="after step 3 of 10; the model keeps"):
        model.train(2, callbacks=[Interrupt()], **TRAINING)
    assert np.isfinite(model.get_latent_representation()).all()
    model.train(max_steps=2, **TRAINING)
    assert model.module.recompute is False


def test_trained_models_train_on_without_starting_over(tmp_path: Path) -> None:
    adata = toy_log_tpm()
    BulkFormer.setup_anndata(adata, study_key="study")
    model = BulkFormer.load(toy_bulkformer().save(tmp_path / "x"), adata)
    before = model.predict_expression()
    model.train(max_steps=1, **(TRAINING | {"lr": 1e-6}))
    np.testing.assert_allclose(model.predict_expression(), before, atol=0.01)
    assert len(model.history["train_loss"]) == 1


def test_a_stream_shows_each_sample_once_an_epoch() -> None:
    x = torch.arange(40.0).view(20, 2)
    stream = SampleStream(
        lambda rows: x[rows], np.arange(3, 20), batch_size=5, mask_share=0.5, seed=0
    )
    epochs = [torch.cat([b.expression[:, 0] for b in stream]) for _ in range(2)]
    assert not torch.equal(*epochs)
    for seen in epochs:
        assert sorted(seen.tolist()) == x[3:, 0].tolist()
    fixed = SampleStream(
        lambda rows: x[rows], np.arange(20), batch_size=5, mask_share=0.5, seed=0, fixed=True
    )
    first, second = ([b.hidden for b in fixed] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_only_observed_entries_are_hidden() -> None:
    x = torch.where(torch.rand(50, 200) < 0.3, -10.0, 1.0)
    drawn = Drawn(np.arange(50), slice(0, 50))
    hidden = hide(drawn, x, 0.15, torch.Generator().manual_seed(5))
    assert not hidden[x == -10].any()
    assert 0.13 < hidden[x != -10].float().mean() < 0.17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"max_epochs": 0}, "max_epochs="),
        ({"max_steps": 0}, "max_steps="),
        ({"batch_size": 0}, "batch_size="),
        ({"accumulate_grad_batches": 0}, "accumulate_grad_batches="),
        ({"redraw_interval": -1}, "redraw_interval="),
        ({"mask_share": 0.0}, "mask_share="),
        ({"mask_share": 1.0}, "mask_share="),
        ({"validation_share": 1.0}, "validation_share="),
    ],
)
def test_numbers_out_of_range_are_refused(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        untrained().train(**(TRAINING | arguments))


def test_a_model_without_data_cannot_train(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="has no data"):
        BulkFormer.load(toy_bulkformer().save(tmp_path / "x")).train(1)
