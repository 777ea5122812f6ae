"""What the train methods have in common: steps, processes, strategies, and what is refused."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from cfm import models
from cfm.models._run import TrainingRun, count_processes
from cfm.models._streams import SeededStream
from tests import _bulk
from tests._trainings import CASES

TRAIN_METHODS = [
    models.BulkFormer.train,
    models.CellPulse.train,
    models.CellVQ.train,
    models.LingshuCell.train,
    models.Pulsar.train,
    models.Pulsar.train_head,
    models.VirtualInstrument.train,
]


def run_of(**changes: Any) -> TrainingRun:
    given: dict[str, Any] = {
        "self": _bulk.untrained(),
        **{"max_epochs": None, "max_steps": None, "batch_size": 4, "accumulate_grad_batches": 1},
        **{"accelerator": "cpu", "devices": 1, "num_nodes": 1, "strategy": "auto"},
        **{"precision": "auto", "block_size": 64, "checkpoint_dir": None, "checkpoint_every": 5},
        **{"enable_progress_bar": False, "seed": 0, "trainer_kwargs": {}},
    }
    return TrainingRun(given | changes)


@pytest.mark.parametrize("method", TRAIN_METHODS, ids=lambda m: m.__qualname__)
def test_all_models_take_the_same_arguments_and_say_the_same_of_them(method: Any) -> None:
    expected = inspect.signature(models.Pulsar.train).parameters
    found = inspect.signature(method).parameters
    shared = ["accelerator", "devices", "num_nodes", "strategy", "precision", "checkpoint_dir"]
    shared += ["checkpoint_every", "enable_progress_bar", "seed"]
    for name in shared:
        assert found[name].default == expected[name].default, name
        assert found[name].annotation == expected[name].annotation, name
        assert found[name].kind is inspect.Parameter.KEYWORD_ONLY, name
    text = inspect.getdoc(method) or ""
    assert "Optimiser steps between two states." in text
    assert "goes on where\n    it was after a kill" in text


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, (3, 15)),  # both defaults: the smaller one
        ({"max_epochs": 2}, (2, 10)),
        ({"max_steps": 7}, (2, 7)),
        ({"max_epochs": 2, "max_steps": 7}, (2, 7)),
        ({"max_epochs": 2, "max_steps": 70}, (2, 10)),
        ({"max_epochs": 2, "accumulate_grad_batches": 2}, (2, 6)),
        ({"max_steps": 7, "accumulate_grad_batches": 5}, (7, 7)),
        ({"max_epochs": 2, "accumulate_grad_batches": None}, (2, 10)),
    ],
)
def test_steps_follow_from_epochs_and_batches(given: dict[str, Any], expected: Any) -> None:
    run = run_of(**given)
    assert run.count_steps(5, default_epochs=3) == expected[1]
    assert (run.n_epochs, run.n_steps) == expected


def test_default_steps_bound_default_epochs() -> None:
    assert run_of().count_steps(5, default_epochs=3, default_steps=8) == 8
    run = run_of()
    assert run.count_steps(5, default_epochs=3, default_steps=80) == 15
    assert run.n_epochs == 3


def test_steps_of_several_batches_can_be_asked_of_lightning() -> None:
    run = run_of(accumulate_grad_batches=None, trainer_kwargs={"accumulate_grad_batches": 5})
    assert run.count_steps(5, default_epochs=3) == 3


def test_processes_are_counted_before_they_start() -> None:
    assert count_processes("cpu", 1, 1) == 1
    assert count_processes("cpu", 2, 1) == 2
    assert count_processes("cpu", "3", 2) == 6
    assert count_processes("cpu", "auto", 2) == 2
    assert count_processes("auto", 1, 4) == 4
    assert run_of(devices=2, num_nodes=3).layout == {"block_size": 64, "n_processes": 6}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "ddp_spawn"}, "'ddp_spawn' starts copies of this process"),
        ({"strategy": "ddp_notebook"}, "put the call into a script, and use strategy='ddp'"),
    ],
)
def test_what_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run_of(**change)


def test_fewer_rows_than_processes_are_refused() -> None:
    run = run_of(devices=2)
    with pytest.raises(ValueError, match="no batch for 2 processes: fewer rows than processes"):
        run.count_steps(0, default_epochs=3)


@pytest.mark.parametrize("name", CASES)
def test_every_epoch_draws_anew_and_is_judged_alike(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What each epoch of a training really sees, and each of its validations."""
    seen: dict[SeededStream, list[list[str]]] = {}
    whole = SeededStream.__iter__

    def spied(stream: SeededStream) -> Iterator[Any]:
        batches: list[str] = []
        seen.setdefault(stream, []).append(batches)
        for batch in whole(stream):
            leaves = torch.utils._pytree.tree_leaves(batch)
            parts = (t.numpy().tobytes() for t in leaves if isinstance(t, torch.Tensor))
            batches.append(hashlib.sha256(b"".join(parts)).hexdigest())
            yield batch

    monkeypatch.setattr(SeededStream, "__iter__", spied)
    CASES[name].train(CASES[name].make())
    (training,) = (s for s in seen if not s.fixed and len(seen[s]) > 1)
    drawn = [batch for batches in seen[training] for batch in batches]
    assert len(drawn) > CASES[name].n_batches
    assert len(set(drawn)) == len(drawn)
    for stream in set(seen) - {training}:
        assert all(batches == seen[stream][0] for batches in seen[stream] if batches)


class Look(pl.Callback):
    """Notes how a training was set up."""

    def __init__(self) -> None:
        self.seen: dict[str, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, plan: pl.LightningModule) -> None:
        self.seen = {
            "clip": trainer.gradient_clip_val,
            "log": trainer.log_every_n_steps,
            "precision": trainer.precision,
            "strategy": type(trainer.strategy).__name__,
        }


def test_arguments_of_the_trainer_can_be_given(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    plain, changed = Look(), Look()
    CASES["bulkformer"].train(CASES["bulkformer"].make(), callbacks=[plain])
    CASES["bulkformer"].train(
        CASES["bulkformer"].make(),
        callbacks=[changed],
        gradient_clip_val=0.5,
        log_every_n_steps=3,
        precision="bf16-mixed",
    )
    assert plain.seen["clip"] == 1.0
    assert plain.seen["precision"] == "32-true"
    assert plain.seen["strategy"] == "SingleDeviceStrategy"
    assert changed.seen | {"strategy": 0} == {
        **{"clip": 0.5, "log": 3, "precision": "bf16-mixed", "strategy": 0}
    }
    assert list(tmp_path.iterdir()) == []


def test_strategies_are_those_that_the_model_needs() -> None:
    """Plans of which not every step uses every weight must say so to DDP."""
    from cfm.models.bulkformer._training import MaskedExpressionPlan
    from cfm.models.pulsar._training import StepPlan

    for cls, expected in (
        (MaskedExpressionPlan, "ddp"),
        (StepPlan, "ddp_find_unused_parameters_true"),
    ):
        plan = cls.__new__(cls)
        assert run_of()._strategy(plan) == "auto"
        assert run_of(strategy="ddp")._strategy(plan) == expected
        assert run_of(devices=2)._strategy(plan) == expected
        assert run_of(strategy="deepspeed")._strategy(plan) == "deepspeed"


def test_small_whole_numbers_stay_out_of_the_exchange() -> None:
    from cfm.models.pulsar._training import StepPlan

    module = torch.nn.BatchNorm1d(2)
    module.register_buffer("largest", torch.zeros(2, dtype=torch.int16))
    plan = StepPlan(module, lambda b: {}, lr=0.1, weight_decay=0.0, n_steps=1)
    assert plan._ddp_params_and_buffers_to_ignore == ["module.largest"]
