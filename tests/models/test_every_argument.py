"""Each setting of each training changes what it should, and nothing else."""

from __future__ import annotations

import hashlib
import inspect
import json
import warnings
from collections.abc import Callable
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any, NamedTuple

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pandas as pd
import pytest
import torch
from lightning_utilities.core.apply_func import apply_to_collection

import cfm
from cfm.models import (
    BulkFormer,
    CellPulse,
    CellVQ,
    LingshuCell,
    PretrainedModel,
    Pulsar,
    VirtualInstrument,
    _streams,
)
from cfm.models.pulsar import HeadRecipe
from tests import _bulk, _lingshu, _planted_codes, _toy
from tests._pulsar import donors


class Outcome(NamedTuple):
    """What is seen of a training; ``batches`` and ``checks`` are what is trained and judged on."""

    steps: int
    batches: str
    checks: str
    train_curves: str
    validation_curves: str
    weights: str
    record: str
    states: int
    recomputed: bool
    progress_bar: bool
    precision: str
    clipped_at: float | None


#: What changes where other numbers are learned, and where they are learned from other batches.
LEARNED = {"train_curves", "validation_curves", "weights"}
DRAWN = LEARNED | {"batches"}
#: Where only the validation differs, and where rows go from training to validation.
JUDGED = {"checks", "validation_curves"}
SPLIT = DRAWN | JUDGED


class Change(NamedTuple):
    """Another value of a setting, what it changes, and settings that both trainings have."""

    value: Any
    changes: set[str]
    given: dict[str, Any] = {}  # noqa: RUF012


class Case(NamedTuple):
    """A model, how it is trained, and the settings that all of its trainings have."""

    make: Callable[[], Any]
    train: Callable[..., None]
    given: dict[str, Any]
    recipe: type
    changes: dict[str, Change]


@cache
def _data(name: str) -> Any:
    if name == "contrasts":
        adata = _toy.toy_contrasts()[:, :60].copy()
        CellPulse.setup_anndata(adata, study_key="study", sample_key="sample")
    elif name == "donors":
        adata = donors((9, 8, 7, 9, 8, 7, 9, 8), width=6)
        Pulsar.setup_anndata(adata, use_rep="X_uce", labels_key="disease")
    else:
        from tests._small import paired

        adata = paired()
        VirtualInstrument.setup_anndata(adata, "cytokine")
    return adata


def _sets() -> Any:
    """Two signed gene sets of the contrasts."""
    genes = _data("contrasts").var_names
    x = np.zeros((2, len(genes)), dtype=np.float32)
    x[0, :20], x[0, 20:30], x[1, 30:45], x[1, 45:] = 1, -1, 1, -1
    return ad.AnnData(x, obs=pd.DataFrame(index=["a", "b"]), var=pd.DataFrame(index=genes))


def _lingshu_model() -> LingshuCell:
    return _lingshu.untrained(_lingshu.toy_counts(n=48), dim=16, n_layers=1, ff_dim=32)


def _vq_model() -> CellVQ:
    adata = _planted_codes.planted_cells(48)
    return _planted_codes.untrained(adata, labels_keys=["cell_type"], dim=16, ff_dim=16)


def _pulsar() -> Pulsar:
    return Pulsar(_data("donors"), dim=16, encoder_layers=1, encoder_ff=16, decoder_ff=16)


def _instrument() -> VirtualInstrument:
    conditions = pd.DataFrame(np.eye(4, 5), index=["none", "A", "B", "C"])
    return VirtualInstrument(_data("paired"), conditions=conditions, hidden_dim=8)


def _both(**changes: Change) -> dict[str, Change]:
    """Settings of all recipes and arguments of ``train``; some differ in a model."""
    common = {
        "max_epochs": Change(3, {*LEARNED, "steps", "batches", "checks", "record"}),
        "max_steps": Change(2, {*LEARNED, "steps", "batches", "checks", "record"}),
        "batch_size": Change(3, {*SPLIT, "steps", "record"}),
        "lr": Change(0.05, LEARNED),
        "validation_share": Change(0.6, {*SPLIT, "steps", "record"}),
        "checkpoint_every": Change(1, {"states"}),
        "seed": Change(3, {*SPLIT, "record"}),
        "accelerator": Change("auto", set()),
        "precision": Change("bfloat16", {*LEARNED, "precision"}),
        "checkpoint_dir": Change(None, {"states"}),
    }
    return common | changes


CASES = {
    "BulkFormer": Case(
        lambda: _bulk.untrained(_bulk.toy_log_tpm(n=48), dim=8),
        BulkFormer.train,
        {"batch_size": 16, "max_epochs": 1, "lr": 4e-3},
        BulkFormer.Recipe,
        _both(
            mask_share=Change(0.5, SPLIT),
            balanced=Change(True, DRAWN),
            weight_decay=Change(0.9, LEARNED),
            redraw_interval=Change(1, LEARNED),
            recompute=Change(True, {"recomputed"}),
            block_size=Change(2, DRAWN),
        ),
    ),
    "CellPulse": Case(
        lambda: CellPulse(
            _data("contrasts"), signed_sets=_sets(), dim=16, n_heads=2, n_tokens=24, n_factors=6
        ),
        CellPulse.train,
        {
            "batch_size": 8,
            "max_epochs": 2,
            "max_steps": None,
            "n_linear_steps": 1,
            "tokens_per_profile": 16,
        },
        CellPulse.Recipe,
        _both(
            batch_size=Change(24, SPLIT),
            validation_share=Change(0.5, SPLIT),
            sources=Change({"more": None}, DRAWN),
            source_share=Change(0.69, DRAWN, {"sources": {"more": None}, "max_epochs": 6}),
            signed_set_share=Change(0.6, DRAWN),
            tokens_per_profile=Change(20, DRAWN),
            n_linear_steps=Change(2, DRAWN),
            n_unchanged=Change(4, SPLIT),
        ),
    ),
    "CellVQ": Case(
        _vq_model,
        CellVQ.train,
        {"batch_size": 16, "max_epochs": 1, "lr": 1e-2},
        CellVQ.Recipe,
        _both(
            freeze=Change("encoder", LEARNED),
            keep_share=Change(0.9, SPLIT),
            code_only_share=Change(0.1, SPLIT),
            schedule=Change("geometric", LEARNED),
            last_temperature=Change(0.5, LEARNED),
            anneal_share=Change(0.3, LEARNED),
            reconstruction_weight=Change(0.1, LEARNED),
            separation_weight=Change(5.0, LEARNED),
            balance_weight=Change(1.0, LEARNED),
            property_weight=Change({"cell_type": 0.1}, LEARNED),
            code_label_weight=Change(1.0, LEARNED),
            class_weights=Change(True, LEARNED),
            head_input=Change("embedding", {"weights"}),
            n_validation=Change(2, JUDGED),
            weight_decay=Change(0.9, LEARNED),
            block_size=Change(2, DRAWN),
        ),
    ),
    "LingshuCell": Case(
        _lingshu_model,
        LingshuCell.train,
        {"batch_size": 16, "max_epochs": 1, "lr": 4e-3},
        LingshuCell.Recipe,
        _both(
            count_term=Change(False, LEARNED),
            n_validation=Change(2, JUDGED),
            balanced=Change(True, DRAWN),
            condition_dropout=Change(0.6, DRAWN),
            stratified=Change(False, DRAWN),
            least_time=Change(0.5, SPLIT),
            last_lr=Change(4e-3, LEARNED, {"max_epochs": 2}),
            weight_decay=Change(9.0, LEARNED),
            average_width=Change(None, LEARNED - {"train_curves"}),
            recompute=Change(True, {"recomputed"}),
            block_size=Change(2, DRAWN),
        ),
    ),
    "Pulsar": Case(
        _pulsar,
        Pulsar.train,
        {"batch_size": 2, "max_epochs": 1, "n_cells": 4, "validation_share": 0.4},
        Pulsar.Recipe,
        _both(
            n_cells=Change(3, SPLIT),
            keep_share=Change(0.6, SPLIT),
            mask_share=Change(0.4, SPLIT),
            reconstruction_weight=Change(0.1, LEARNED),
            contrastive_weight=Change(0.1, LEARNED),
            temperature=Change(1.0, LEARNED),
            weight_decay=Change(0.9, LEARNED),
        ),
    ),
    "Pulsar's head": Case(
        _pulsar,
        partial(Pulsar.train_head),
        {
            "target": "age",
            "task": "regression",
            "batch_size": 8,
            "max_epochs": 1,
            "n_cells": 4,
            "validation_share": 0.3,
        },
        HeadRecipe,
        _both(
            target=Change("disease", LEARNED | {"record"}, {"task": "classification"}),
            task=Change("classification", LEARNED),
            frozen_layers=Change(0, {*SPLIT, "steps", "record"}),
            n_cells=Change(3, SPLIT),
            n_draws=Change(6, {*SPLIT, "steps", "record"}),
            weight_decay=Change(0.9, LEARNED),
        ),
    ),
    "VirtualInstrument": Case(
        _instrument,
        VirtualInstrument.train,
        {"batch_size": 16, "max_epochs": 1, "control": "none"},
        VirtualInstrument.Recipe,
        _both(
            control=Change("A", SPLIT),
            weight_decay=Change(0.9, LEARNED),
        ),
    ),
}
#: Arguments of ``train`` that are tested elsewhere.
ELSEWHERE = {"devices": "tests/models/test_distributed.py", "settings": "below"}


class _Look(pl.Callback):
    """Notes what a training sees."""

    def __init__(self) -> None:
        self.seen: dict[str, list[bytes]] = {"batches": [], "checks": []}

    def note(self, kind: str, batch: Any) -> None:
        parts: list[bytes] = []
        apply_to_collection(batch, torch.Tensor, lambda t: parts.append(t.numpy().tobytes()))
        self.seen[kind].append(b"|".join(parts))

    def on_train_batch_start(self, trainer: Any, plan: Any, batch: Any, batch_idx: int) -> None:
        self.note("batches", batch)

    def on_validation_batch_start(
        self, trainer: Any, plan: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        self.note("checks", batch)


def _digest(*parts: Any) -> str:
    return hashlib.sha256(b"".join(bytes(p) for p in parts)).hexdigest()[:8]


@pytest.fixture(scope="module")
def outcome(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Train a model of a case with some settings; trainings with the same ones run once."""
    known: dict[str, Outcome] = {}

    def run(name: str, settings: dict[str, Any]) -> Outcome:
        key = name + repr(sorted(settings.items()))
        if key not in known:
            known[key] = _train(CASES[name], settings, tmp_path_factory.mktemp("states"))
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        shuffled = _streams.shuffled_rows
        patch.setattr(_streams, "shuffled_rows", partial(shuffled, buffer_rows=8))
        patch.setattr("cfm.models.cellpulse._training._EPOCH", 3)
        yield run


def _train(case: Case, settings: dict[str, Any], folder: Path) -> Outcome:
    look, recomputed = _Look(), []
    given = {"accelerator": "cpu", "checkpoint_dir": folder, "enable_progress_bar": False}
    given |= case.given | settings
    if given.get("sources"):
        given["sources"] = {"more": _source()}
    checkpoint = torch.utils.checkpoint.checkpoint
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for place in ("cfm.models.bulkformer._module", "cfm.nn._transformers"):
            patch.setattr(
                f"{place}.checkpoint",
                lambda *a, **k: recomputed.append(1) or checkpoint(*a, **k),
            )
        model = case.make()
        case.train(model, callbacks=[look], **given)
    curves = {
        kind: [
            [name, *curve.index, *curve[name].round(12)]
            for name, curve in sorted(model.history.items())
            if name.startswith(kind)
        ]
        for kind in ("train_", "validation_")
    }
    weights = model.module.state_dict()
    return Outcome(
        steps=model.trainer.global_step,
        batches=_digest(*look.seen["batches"]),
        checks=_digest(*look.seen["checks"]),
        train_curves=repr(curves["train_"]),
        validation_curves=repr(curves["validation_"]),
        weights=_digest(*(w.contiguous().view(-1).numpy().tobytes() for w in weights.values())),
        record=json.dumps(model.provenance, default=str),
        states=len(list(folder.glob("*.ckpt"))),
        recomputed=bool(recomputed),
        progress_bar=model.trainer.progress_bar_callback is not None,
        precision=str(model.trainer.precision),
        clipped_at=model.trainer.gradient_clip_val,
    )


def _differ(before: Outcome, after: Outcome) -> str:
    fields_ = zip(Outcome._fields, before, after, strict=True)
    return " ".join(sorted(name for name, a, b in fields_ if a != b))


def _source() -> Any:
    adata = _toy.toy_contrasts(seed=1)[:12, :60]
    return cfm.data.ProfileMatrix(np.asarray(adata.X), adata.var_names)


@pytest.mark.parametrize(
    ("name", "setting"), [(name, s) for name, case in CASES.items() for s in case.changes]
)
def test_each_setting_changes_what_it_should(name: str, setting: str, outcome: Any) -> None:
    value, changes, given = CASES[name].changes[setting]
    before, after = outcome(name, given), outcome(name, given | {setting: value})
    assert _differ(before, after) == " ".join(sorted(changes))


@pytest.mark.parametrize("name", CASES)
def test_no_setting_is_forgotten(name: str) -> None:
    arguments = set(inspect.signature(PretrainedModel.train).parameters) - {"self", *ELSEWHERE}
    settings = {field.name for field in fields(CASES[name].recipe)}
    assert CASES[name].changes.keys() == arguments | settings


@pytest.mark.parametrize(
    ("setting", "value", "changes"),
    [
        ("enable_progress_bar", True, {"progress_bar"}),
        ("gradient_clip_val", 1e-3, {*LEARNED, "clipped_at"}),
        ("accumulate_grad_batches", 2, {*LEARNED, "steps", "record"}),
    ],
)
def test_settings_of_the_trainer_change_what_they_should(
    setting: str, value: Any, changes: set[str], outcome: Any
) -> None:
    before, after = outcome("BulkFormer", {}), outcome("BulkFormer", {setting: value})
    assert _differ(before, after) == " ".join(sorted(changes))


@pytest.mark.parametrize("name", ["Pulsar's head", "VirtualInstrument"])
def test_validation_curves_do_not_depend_on_the_batch_size(name: str, outcome: Any) -> None:
    """Of weights that stay as they are, and where nothing is drawn for a batch."""
    stay = {"lr": 1e-30, "weight_decay": 0.0, "max_steps": None, "seed": 1}
    curves = [
        json.loads(outcome(name, stay | {"batch_size": n}).validation_curves.replace("'", '"'))
        for n in (5, 16)
    ]
    for (_, _, before), (_, _, after) in zip(*curves, strict=True):
        assert before == pytest.approx(after, rel=1e-5)
