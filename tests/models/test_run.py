"""What the train methods have in common: steps, processes, strategies, and what is refused."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import pytest
import torch

from cfm import models
from cfm.models._streams import SeededStream
from cfm.models._training import (
    Recipe,
    TrainingRun,
    count_processes,
    held_out_rows,
    held_out_studies,
    training_precision,
)
from cfm.models.bulkformer._factor_model import LocalFactorModel
from tests import _bulk
from tests._small import TRAINED
from tests._trainings import CASES


@dataclass(frozen=True, kw_only=True)
class ThreeEpochs(Recipe):
    """A recipe of three epochs."""

    max_epochs: int | None = 3
    block_size: int = 64


def run_of(recipe: Recipe | None = None, **changes: Any) -> TrainingRun:
    how = {"accelerator": "cpu", "enable_progress_bar": False} | changes
    return TrainingRun(_bulk.untrained(), recipe or ThreeEpochs(), **how)


@pytest.mark.parametrize("name", TRAINED)
def test_there_is_one_train_and_each_setting_is_documented(name: str) -> None:
    model = TRAINED[name].cls
    assert model.train is models.PretrainedModel.train
    assert len(inspect.signature(model.train).parameters) <= 14
    text = inspect.getdoc(model.Recipe) or ""
    for field in fields(model.Recipe):
        assert re.search(rf"(^|, ){field.name}(,|$)", text, re.MULTILINE), field.name


def test_uce_is_not_mark_trained() -> None:
    with pytest.raises(TypeError, match="UCE is used as its authors trained it"):
        models.UCE.train(object.__new__(models.UCE))


def test_settings_are_of_the_recipe_or_of_the_trainer() -> None:
    run = run_of(batch_size=5, validation_share=0.5, gradient_clip_val=3.0)
    assert (run.recipe.batch_size, run.recipe.validation_share) == (5, 0.5)
    assert run_of().recipe == ThreeEpochs()
    with pytest.raises(TypeError, match=r"no setting 'bach_size'\. Settings of Bulk"):
        run_of(bach_size=3)
    with pytest.raises(ValueError, match="validation_share=1; expected a finite number"):
        run_of(validation_share=1)
    with pytest.raises(ValueError, match="batch_size=True; expected a whole number"):
        run_of(batch_size=True)


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
        ({"accumulate_grad_batches": 5}, (3, 3)),
    ],
)
def test_steps_follow_from_epochs_and_batches(given: dict[str, Any], expected: Any) -> None:
    run = run_of(**given)
    assert run.count_steps(5) == expected[1]
    assert (run.n_epochs, run.n_steps) == expected


def test_default_steps_bound_default_epochs() -> None:
    assert run_of(ThreeEpochs(max_steps=8)).count_steps(5) == 8
    run = run_of(ThreeEpochs(max_steps=80))
    assert run.count_steps(5) == 15
    assert run.n_epochs == 3
    # what is asked for stands alone
    assert run_of(ThreeEpochs(max_steps=8), max_epochs=4).count_steps(5) == 20


def test_processes_are_counted_before_they_start() -> None:
    assert count_processes("cpu", 1, 1) == 1
    assert count_processes("cpu", 2, 1) == 2
    assert count_processes("cpu", "3", 2) == 6
    assert count_processes("cpu", "auto", 2) == 2
    assert count_processes("auto", 1, 4) == 4
    assert run_of(devices=2, num_nodes=3).layout == {
        "batch_size": 32,
        "block_size": 64,
        "n_processes": 6,
    }


@pytest.mark.parametrize("strategy", ["ddp_spawn", "ddp_notebook"])
def test_strategies_that_copy_the_process_are_refused(strategy: str) -> None:
    with pytest.raises(ValueError, match=f"'{strategy}'.* into a script, and use strategy='ddp'"):
        run_of(strategy=strategy)


def test_trainings_without_batches_or_a_bound_are_refused() -> None:
    with pytest.raises(ValueError, match="no batch for 2 processes: fewer rows than processes"):
        run_of(devices=2).count_steps(0)
    with pytest.raises(ValueError, match="pass max_epochs= or max_steps="):
        run_of(Recipe()).count_steps(5)


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


def test_strategies_are_those_that_the_model_needs() -> None:
    """Plans of which not every step uses every weight must say so to DDP."""
    from cfm.models._training import TrainingPlan
    from cfm.models.bulkformer._training import MaskedExpressionPlan

    for cls, expected in (
        (MaskedExpressionPlan, "ddp"),
        (TrainingPlan, "ddp_find_unused_parameters_true"),
    ):
        plan = cls.__new__(cls)
        assert run_of()._strategy(plan) == "auto"
        assert run_of(strategy="ddp")._strategy(plan) == expected
        assert run_of(devices=2)._strategy(plan) == expected
        assert run_of(strategy="deepspeed")._strategy(plan) == "deepspeed"


def test_processes_can_exchange_the_state_of_every_model() -> None:
    """Neither gloo nor NCCL sends int16."""
    makes = (CASES[name].make for name in ("bulkformer", "lingshu", "cellvq", "cellpulse"))
    states = [make().module.state_dict() for make in makes]
    states.append(LocalFactorModel(4, 3, 5, 2).state_dict())
    assert torch.int16 not in {t.dtype for state in states for t in state.values()}


@pytest.mark.parametrize(
    ("accelerator", "expected"), [("auto", "bf16-mixed"), ("gpu", "bf16-mixed"), ("cpu", "32-true")]
)
def test_a_gpu_that_is_not_used_does_not_decide_the_precision(
    accelerator: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    assert training_precision("auto", accelerator) == expected
    assert training_precision("64-true", accelerator) == "64-true"
    assert training_precision("float32", accelerator) == "32-true"
    assert training_precision("bfloat16", accelerator) == "bf16-mixed"
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: False)
    assert training_precision("auto", accelerator) == "32-true"


def test_studies_are_held_out_whole_and_some_are_left() -> None:
    studies = np.array(["a", "a", "b", "c", ""], dtype=object)
    assert len(held_out_studies(studies, 0.1, 0)) == 1
    assert len(held_out_studies(studies, 0.99, 0)) == 2  # one is left to train on
    assert held_out_studies(studies, 0.5, 1) == held_out_studies(studies, 0.5, 1)
    assert held_out_studies(studies, 0.0, 0) == held_out_studies(studies[:3], 0.5, 0) == []
    assert "" not in held_out_studies(studies, 0.99, 0)
    many = np.repeat(["s1", "s2", "s3", "s4"], 20).astype(object)
    held_out = held_out_rows(many, 0.1, 0)
    assert len(set(many[held_out])) == 1
    assert not set(many[held_out]) & set(many[~held_out])


def test_rows_are_held_out_where_no_study_is_known() -> None:
    none, names = np.full(50, "", dtype=object), np.array([f"c{i:02d}" for i in range(50)])
    assert held_out_rows(none, 0.1, 0, names).sum() == held_out_rows(none, 0.1, 0).sum() == 5
