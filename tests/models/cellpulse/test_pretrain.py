"""Pretraining recovers a planted signal, repeats with its seed, and survives an interruption."""

from __future__ import annotations

import os
import signal
from functools import cache
from pathlib import Path

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from scipy import sparse
from scipy.stats import spearmanr

import cfm
from cfm.metrics import GeneMean, MajoritySign
from cfm.models import CellPulse
from cfm.models._training import held_out_studies
from tests._toy import SIZES, TRAINING, hide_half, toy_contrasts

TEST_STUDY = "study3"


def untrained(adata: ad.AnnData | None = None, *, seed: int = 0, **arguments) -> CellPulse:
    adata = toy_contrasts() if adata is None else adata
    CellPulse.setup_anndata(adata, study_key="study", sample_key="sample")
    return CellPulse(adata, seed=seed, **SIZES, **arguments)


def weights(model: CellPulse) -> torch.Tensor:
    return torch.cat([p.detach().ravel() for p in model.module.state_dict().values()])


@cache
def split() -> tuple[ad.AnnData, ad.AnnData]:
    adata = toy_contrasts()
    test = (adata.obs["study"] == TEST_STUDY).to_numpy()
    return adata[~test].copy(), adata[test & (adata.obs["time_h"] == 24.0).to_numpy()].copy()


@cache
def trained_without_test_study() -> CellPulse:
    model = untrained(split()[0].copy())
    model.train(max_steps=150, n_linear_steps=40, **TRAINING)
    return model


def right(score: np.ndarray, effects: np.ndarray, hidden: np.ndarray) -> float:
    """Share of hidden directions that a score has right."""
    return float(((score > 0) == (effects > 0))[hidden].mean())


def test_hidden_effects_of_a_study_never_seen_are_recovered() -> None:
    train, test = split()
    effects = test.X
    hidden = hide_half(effects, SIZES["n_tokens"])
    odds, size = trained_without_test_study().predict_hidden(effects, hidden)
    accuracy = right(odds, effects, hidden)
    assert accuracy > 0.8

    def rank_correlation(found: np.ndarray) -> float:
        return float(spearmanr(found[hidden], np.abs(effects)[hidden]).statistic)

    observed = np.where(hidden, np.nan, effects)
    for baseline in (GeneMean(), MajoritySign()):
        fitted = baseline.fit(train.X, np.ones(train.n_obs))
        score, usual = fitted.predict(observed, hidden)
        assert accuracy > right(score, effects, hidden) + 0.01, type(baseline).__name__
        assert rank_correlation(size) > rank_correlation(usual) + 0.05


def test_history_has_training_and_validation_curves() -> None:
    assert trained_without_test_study().module.gene_factors.shape[1] == SIZES["n_factors"]
    history = trained_without_test_study().history
    for name in ("train_loss", "train_linear_loss", "validation_loss", "validation_direction_loss"):
        curve = history[name][name].dropna()
        assert len(curve) >= 1, name
        assert np.isfinite(curve.to_numpy(dtype=float)).all()
    linear = history["train_linear_loss"]["train_linear_loss"].dropna()
    accuracy = history["validation_direction_accuracy"]["validation_direction_accuracy"].dropna()
    assert linear.iloc[-1] < np.log(2)
    assert accuracy.iloc[-1] > 0.55
    assert len(history["validation_loss"]) == 6  # 150 steps, a point every 25


def test_using_a_model_before_training_changes_nothing() -> None:
    """Dropout is on in training, also after the model was switched to answering."""
    models = [untrained(dropout=0.5) for _ in range(2)]
    models[1].get_latent_representation()
    for model in models:
        model.train(max_steps=8, n_linear_steps=0, **TRAINING)
    assert torch.equal(weights(models[0]), weights(models[1]))


def toy_pairs() -> cfm.data.ContrastPairs:
    counts = cfm.datasets.toy_infection(seed=5, n_studies=1)
    pairs = cfm.pp.contrasts(counts, "virus", "none", by=["study", "donor"], mode="pairs")
    pairs.controls_per_case = 2
    return pairs


def test_pairs_drawn_on_the_fly_train_too() -> None:
    model = untrained()
    model.train(
        max_steps=12, sources={"new": toy_pairs()}, source_share=0.9, n_linear_steps=2, **TRAINING
    )
    assert torch.isfinite(weights(model)).all()
    without = untrained()
    without.train(max_steps=12, n_linear_steps=2, **TRAINING)
    assert not torch.equal(weights(model), weights(without))


def test_sources_of_held_out_studies_are_left_out() -> None:
    """Else the study that judges the training would have been trained on."""
    held_out = held_out_studies(toy_contrasts().obs["study"].to_numpy(dtype=object), 0.15, 0)
    assert len(held_out) == 1

    class Forbidden:
        var_names = toy_contrasts().var_names

        def __len__(self) -> int:
            return 1

        def draw(self, n: int, rng: np.random.Generator) -> None:
            raise AssertionError("drawn from a held-out study")

    sources = {held_out[0]: Forbidden()}
    untrained().train(max_steps=6, sources=sources, source_share=0.9, n_linear_steps=2, **TRAINING)


def signed_sets() -> ad.AnnData:
    adata = toy_contrasts(seed=9)
    sets = ad.AnnData(np.sign(adata.X) * (np.abs(adata.X) > 1), var=adata.var[[]])
    sets.X[:, :5] = 0
    return sets


@pytest.mark.parametrize("storage", ["dense", "csr", "backed"])
def test_signed_sets_widen_the_factors(storage: str, tmp_path: Path) -> None:
    sets = signed_sets()
    if storage != "dense":
        sets.X = sparse.csr_matrix(sets.X)
    if storage == "backed":
        sets.write_h5ad(tmp_path / "sets.h5ad")
        sets = ad.read_h5ad(tmp_path / "sets.h5ad", backed="r")
    model = untrained(signed_sets=sets)
    assert model.module.gene_factors.shape[1] > untrained().module.gene_factors.shape[1]
    model.train(max_steps=6, n_linear_steps=2, **TRAINING)
    assert torch.isfinite(weights(model)).all()


def test_contrasts_of_one_sample_are_made_to_agree() -> None:
    """The agreement loss knows which contrasts share their infected sample."""
    adata = toy_contrasts()
    adata.obs["sample"] = [f"s{i // 2}" for i in range(adata.n_obs)]
    seen: list[torch.Tensor] = []

    class Watch(pl.Callback):
        def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
            seen.append(batch.groups)

    model = untrained(adata)
    model.train(
        max_steps=4, n_linear_steps=0, validation_share=0.0, callbacks=[Watch()], **TRAINING
    )
    groups = torch.cat(seen)
    assert groups.max() < adata.n_obs // 2
    agreement = model.history["train_agreement_loss"]["train_agreement_loss"]
    assert agreement.iloc[-1] > 0


def test_a_real_signal_is_heard() -> None:
    class Signal(pl.Callback):
        def on_train_batch_end(self, trainer, *arguments) -> None:
            os.kill(os.getpid(), signal.SIGINT)

    model = untrained()
    # A job that a shell put in the background starts with the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt, match="Training was interrupted"):
            model.train(max_steps=60, n_linear_steps=2, callbacks=[Signal()], **TRAINING)
    finally:
        signal.signal(signal.SIGINT, before)


def test_an_error_in_training_is_passed_on_and_nothing_stays_frozen() -> None:
    class Broken(pl.Callback):
        def on_train_batch_end(self, trainer, *arguments) -> None:
            if trainer.global_step == 4:
                raise RuntimeError("disk full")

    model = untrained()
    with pytest.raises(RuntimeError, match="disk full"):
        model.train(max_steps=60, n_linear_steps=2, callbacks=[Broken()], **TRAINING)
    assert all(p.requires_grad for p in model.module.parameters())


def test_without_studies_a_warning_says_what_is_lost() -> None:
    adata = toy_contrasts()
    CellPulse.setup_anndata(adata)
    model = CellPulse(adata, **SIZES)
    with pytest.warns(UserWarning, match="registered without study_key"):
        model.train(max_steps=2, n_linear_steps=1, **TRAINING)
    assert "validation_loss" not in model.history


def test_the_published_size_trains_and_reads_its_whole_context() -> None:
    """2,048 tokens, at a reduced width and depth; its parameters: ``test_all_published.py``."""
    counts = cfm.datasets.toy_infection()
    adata = cfm.pp.contrasts(counts, "virus", "none", by=["study", "donor", "time_h"])
    CellPulse.setup_anndata(adata, study_key="study")
    model = CellPulse(adata, size="published", n_layers=1, dim=192, n_factors=12)
    before = model.module.blocks[-1].feed_forward[1].weight.clone()
    steps = {"max_steps": 2, "n_linear_steps": 0, "validation_share": 0.0}  # the first warms up
    model.train(**steps, **TRAINING | {"batch_size": 1})
    assert np.isfinite(model.history["train_loss"]["train_loss"].iloc[-1])
    assert not torch.equal(model.module.blocks[-1].feed_forward[1].weight, before)
    one = adata[:1].copy()
    *_, tokens = next(model.encode_blocks(one))
    assert tokens.gene.shape == (1, 2048)
    assert model.get_latent_representation(one).shape == (1, 192)


def test_few_steps_train_the_transformer_too() -> None:
    model = untrained()
    before = {name: p.detach().clone() for name, p in model.module.named_parameters()}
    model.train(max_steps=10, **TRAINING)
    after = dict(model.module.named_parameters())
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert any(name.startswith("blocks") for name in moved)
