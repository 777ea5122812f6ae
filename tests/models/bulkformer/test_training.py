"""Training recovers a planted signal, repeats with its seed, and survives an interruption."""

from __future__ import annotations

import numpy as np
import torch

from cfm.models._streams import Drawn
from cfm.models.bulkformer._training import SampleStream, hide
from tests._bulk import TRAINING, toy_bulkformer, toy_log_tpm, untrained


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


def test_features_are_redrawn_when_it_is_time() -> None:
    for interval, changed in ((2, True), (0, False), (100, False)):
        model = untrained()
        features = model.module.blocks[0].layers[0].attention.features.clone()
        model.train(max_steps=5, redraw_interval=interval, **TRAINING)
        found = model.module.blocks[0].layers[0].attention.features
        assert torch.equal(found, features) is not changed, interval


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
