"""Training repeats with its seed, survives an interruption, and takes data of any storage."""

from __future__ import annotations

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from cfm.models import LingshuCell
from cfm.models.count_model._module import UNKNOWN
from cfm.models.lingshu._training import DiffusionPlan, withhold
from tests._lingshu import KEYS, SIZES, TRAINING, toy_counts, toy_lingshu, untrained
from tests._small import saved

PLAIN = TRAINING | {"count_term": False}


def test_history_has_training_and_validation_curves() -> None:
    model = toy_lingshu()
    for name in ("train_loss", "validation_loss"):
        curve = model.history[name][name].to_numpy(dtype=float)
        assert np.isfinite(curve).all()
        assert curve[-1] < 0.6 * curve[0], name
    assert model.is_trained_
    assert not model.module.training
    assert model.provenance["max_steps"] == 350


def test_the_loss_approaches_the_entropy_of_the_counts() -> None:
    # Poisson counts of known means, of which half of the cells' programme is all there is to learn.
    from scipy.stats import poisson

    means = np.random.default_rng(5).uniform(2.0, 6.0, 42)
    found = toy_lingshu().history["validation_loss"]["validation_loss"].iloc[-1]
    assert found > np.mean([poisson(m).entropy() for m in means])
    assert found < 2.8


def test_genes_that_are_not_measured_are_not_learned_from() -> None:
    adata = toy_counts(n=260)[:, :30].copy()
    LingshuCell.setup_anndata(adata, **KEYS)
    model = LingshuCell(adata, vocabulary=[f"GENE{i}" for i in range(42)], **SIZES)
    model.train(max_steps=3, **PLAIN)
    assert (model.module.largest[30:] == 280).all()
    assert (model.module.largest[:30] < 280).all()
    assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()
    assert model.generate(2, n_steps=2).n_vars == 42


def test_an_interrupted_training_keeps_the_average_and_not_the_last_step() -> None:
    model, last = (untrained(toy_counts(n=260)) for _ in range(2))
    for one, width in ((model, 0.1), (last, None)):
        with pytest.raises(KeyboardInterrupt):
            one.train(2, callbacks=[_StopAfter(3)], average_width=width, **PLAIN)
    assert not torch.equal(model.module.head.weight, last.module.head.weight)
    model.train(max_steps=2, recompute=True, **PLAIN)
    assert model.module.trunk.recompute is False


def test_an_interruption_during_validation_keeps_the_average_too() -> None:
    class Interrupt(pl.Callback):
        def on_validation_batch_end(self, trainer, *arguments) -> None:
            raise KeyboardInterrupt

    model, expected = (untrained(toy_counts(n=260)) for _ in range(2))
    with pytest.raises(KeyboardInterrupt):
        model.train(2, callbacks=[Interrupt()], **PLAIN)
    # The first epoch has 4 steps; callbacks run before a step is taken into the average.
    with pytest.raises(KeyboardInterrupt):
        expected.train(2, callbacks=[_StopAfter(5)], **PLAIN)
    torch.testing.assert_close(
        model.module.head.weight, expected.module.head.weight, rtol=0, atol=1e-5
    )


class _StopAfter(pl.Callback):
    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer, *arguments) -> None:
        if trainer.global_step == self.steps:
            raise KeyboardInterrupt


def test_conditions_that_a_model_does_not_have_are_refused() -> None:
    other = toy_counts(n=50)
    other.obs["cell_type"] = other.obs["cell_type"].cat.rename_categories({"B": "NK"})
    LingshuCell.setup_anndata(other, **KEYS)
    model = LingshuCell.load(saved("LingshuCell"), other)
    with pytest.raises(KeyError, match="'NK'"):
        model.train(max_steps=1, **PLAIN)


def test_conditions_are_withheld_together_and_alone() -> None:
    levels = untrained().levels
    n = 4000
    told = levels.conditions(
        n, source=["B"] * n, perturbation=["x+y"] * n, depth=np.ones(n, dtype=np.float32)
    )
    draw = torch.rand(n, 4, generator=torch.Generator().manual_seed(0))
    found = withhold(told, draw < 0.2)
    dropped = torch.stack(
        [found.source == UNKNOWN, found.parts[:, 0] == UNKNOWN, found.depth.isnan()], dim=1
    ).float()
    assert dropped.mean(0).tolist() == pytest.approx([0.36] * 3, abs=0.03)  # 1 - 0.8 * 0.8
    assert float(dropped.all(1).float().mean()) == pytest.approx(0.2 + 0.8 * 0.2**3, abs=0.03)
    assert (found.parts[found.parts[:, 0] == UNKNOWN][:, 1] == -1).all()


def test_the_learning_rate_warms_up_and_follows_a_cosine_to_its_end() -> None:
    plan = DiffusionPlan(
        untrained().module,
        lr=1e-3,
        last_lr=2e-5,
        weight_decay=0.1,
        warm_up=10,
        n_steps=110,
        average_width=None,
    )
    rates = np.array([plan.rate(step) * 1e-3 for step in range(111)])
    np.testing.assert_allclose(rates[:10], 1e-4 * np.arange(1, 11))
    assert rates[60] == pytest.approx(0.5 * (1e-3 + 2e-5), rel=0.01)
    assert rates[110] == pytest.approx(2e-5)
    assert (np.diff(rates[10:]) <= 0).all()


def test_training_in_bfloat16_follows_float32() -> None:
    losses = []
    for precision in ("32-true", "bf16-mixed"):
        model = untrained(toy_counts(n=260))
        model.train(max_steps=12, precision=precision, **PLAIN)
        losses.append(float(model.history["train_loss"]["train_loss"].iloc[-1]))
        assert model.module.head.weight.dtype == torch.float32
    assert losses[0] != losses[1]
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
