"""What all models have in common: registered data, seeds, interruption, refused numbers."""

from __future__ import annotations

import signal
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import anndata as ad
import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from tests._same import assert_unchanged
from tests._small import SAVED, TRAINED, saved, trained, weights

#: Sums of float32 in another order, where threads share the work of a busy machine.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}
ON_GENES = ["BulkFormer", "CellPulse", "CellVQ", "LingshuCell"]


@cache
def untrained(name: str) -> Any:
    """A model that refuses to train, and stays as it is."""
    return TRAINED[name].make()


# Registered data.


@pytest.mark.parametrize("name", TRAINED)
def test_data_have_to_be_registered(name: str) -> None:
    small = TRAINED[name]
    with pytest.raises(ValueError, match=r"set up your AnnData with .*setup_anndata"):
        small.cls(small.data(), **small.sizes)
    with pytest.raises(ValueError, match=r"set up your AnnData with .*setup_anndata"):
        small.cls.load(saved(name)).attach(small.data())


@pytest.mark.parametrize("name", [*ON_GENES, "PerturbationCountModel"])
def test_a_model_needs_genes(name: str) -> None:
    cls = SAVED[name].cls
    with pytest.raises(ValueError, match="needs adata or vocabulary"):
        cls()
    with pytest.raises(ValueError, match="unique names"):
        cls(vocabulary=["A", "A"])
    if name != "PerturbationCountModel":
        with pytest.raises(ValueError, match="'huge'; expected one of"):
            cls(vocabulary=["A", "B"], size="huge")
        assert cls(vocabulary=["A", "B"], size="mini", dim=48).size.dim == 48


@pytest.mark.parametrize(
    ("name", "argument"), [("CellVQ", "labels_keys"), ("LingshuCell", "covariate_keys")]
)
def test_absent_columns_of_several_are_named(name: str, argument: str) -> None:
    """Single columns and layers: ``tests/matrix``."""
    adata = SAVED[name].data()
    before = adata.copy()
    with pytest.raises(KeyError, match="no column 'nothing'"):
        SAVED[name].registered(adata, **{argument: ["nothing"]})
    assert_unchanged(adata, before)


@pytest.mark.parametrize(
    ("name", "argument", "column"),
    [
        ("BulkFormer", "study_key", "study"),
        ("CellPulse", "labels_key", "label"),
        ("LingshuCell", "source_key", "cell_type"),
        ("PerturbationCountModel", "source_key", "cell_type"),
    ],
)
def test_incomplete_columns_are_refused(name: str, argument: str, column: str) -> None:
    adata = SAVED[name].data()
    adata.obs.loc[adata.obs_names[:3], column] = np.nan
    with pytest.raises(ValueError, match=f"'{column}'.* is missing in 3 of {adata.n_obs} rows"):
        SAVED[name].registered(adata, **{argument: column})


def _layer(adata: ad.AnnData) -> dict[str, str]:
    adata.layers["right"], adata.X = adata.X.copy(), 0.5 * adata.X
    return {"layer": "right"}


@pytest.mark.parametrize(
    ("name", "turned"), [*((n, False) for n in ON_GENES), *((n, True) for n in ON_GENES[1:])]
)
def test_layers_and_any_order_of_genes_train_the_same(name: str, turned: bool) -> None:
    """Other storages: ``test_storages.py``."""
    small = TRAINED[name]
    adata = small.data()
    genes = adata.var_names
    if turned:
        adata = adata[:, np.random.default_rng(0).permutation(adata.n_vars)].copy()
    expected, setup = small.make(), {} if turned else _layer(adata)
    found = small.cls(small.registered(adata, **setup), vocabulary=genes, **small.sizes)
    for model in (found, expected):
        small.train(model, max_steps=4, **({} if name == "CellPulse" else {"lr": 1e-4}))
    torch.testing.assert_close(weights(found), weights(expected), rtol=1e-3, atol=1e-4)


# Embeddings.


@pytest.mark.parametrize("name", [*ON_GENES, "UCE"])
def test_an_embedding_depends_on_its_own_row_alone(name: str) -> None:
    """Batches of any size: ``test_every_method_argument.py``."""
    small, model = SAVED[name], trained(name)
    adata = small.data()[:12].copy()
    expected = small.read(model, adata)
    assert expected.dtype == np.float32
    rng = np.random.default_rng(0)
    rows, genes = rng.permutation(adata.n_obs), rng.permutation(adata.n_vars)
    more = ad.AnnData(np.ones((adata.n_obs, 2), dtype=np.float32), obs=adata.obs[[]])
    more.var_names = ["NOT_A_GENE", "ANOTHER"]
    wide = ad.concat([more, adata], axis="var")
    for other, order in (
        (adata[rows][:, genes].copy(), rows),
        (adata[3:4].copy(), [3]),
        (wide, slice(None)),
    ):
        found = small.read(model, other)
        np.testing.assert_allclose(found, expected[order], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize(
    ("name", "few", "fewer"), [("CellPulse", 96, 8), ("CellVQ", 12, 8), ("LingshuCell", 8, 0)]
)
def test_few_genes_are_warned_of_and_fewer_refused(name: str, few: int, fewer: int) -> None:
    """BulkFormer and UCE, which need more: in their own tests."""
    small, adata = SAVED[name], SAVED[name].data()[:12].copy()
    names, n = list(adata.var_names), len(trained(name).vocabulary)
    adata.var_names = names[:few] + [f"OTHER{i}" for i in range(adata.n_vars - few)]
    with pytest.warns(UserWarning, match=rf"Only \d\d% of the model's {n} genes"):
        small.read(trained(name), adata)
    adata.var_names = names[:fewer] + [f"OTHER{i}" for i in range(adata.n_vars - fewer)]
    with pytest.raises(ValueError, match=f"Found {fewer} of the model's {n} genes"):
        small.read(trained(name), adata)


@pytest.mark.parametrize("name", ["BulkFormer", "CellPulse", "CellVQ", "Pulsar", "UCE"])
def test_a_loaded_model_embeds_what_it_is_given_and_in_batches(name: str) -> None:
    small, loaded = SAVED[name], SAVED[name].cls.load(saved(name))
    with pytest.raises(ValueError, match="no data of its own"):
        loaded.get_latent_representation()
    with pytest.raises(ValueError, match="batch_size="):
        loaded.get_latent_representation(small.data(), batch_size=0)


@pytest.mark.parametrize("name", ["BulkFormer", "CellVQ", "Pulsar", "UCE"])
def test_bfloat16_is_used_only_where_embeddings_stay(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, adata = trained(name), SAVED[name].data()[:60].copy()

    def embedded(precision: str = "auto") -> np.ndarray:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*fewer than 10 cells")
            return np.asarray(model.get_latent_representation(adata, precision=precision))

    exact, rough = embedded("float32"), embedded("bfloat16")
    assert 0 < np.linalg.norm(rough - exact) < 0.05 * np.linalg.norm(exact)
    for fast, agreement, expected in ((False, 1.0, exact), (True, 1.0, rough)):
        monkeypatch.setattr("cfm.models._base.fast_bfloat16", lambda _, fast=fast: fast)
        monkeypatch.setattr(model.module, "bfloat16_agreement", lambda: agreement)  # noqa: B023
        np.testing.assert_array_equal(embedded(), expected)
    monkeypatch.setattr(model.module, "bfloat16_agreement", lambda: 0.9)
    with pytest.warns(UserWarning, match=r"similarity of only 0.9000 to float32 .*, so float32"):
        np.testing.assert_array_equal(embedded(), exact)


# Seeds, and what a training leaves alone.


@pytest.mark.parametrize("name", TRAINED)
def test_the_seed_of_a_model_is_that_of_its_weights(name: str) -> None:
    first, again, other = (weights(TRAINED[name].make(seed=s)) for s in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("name", TRAINED)
def test_the_same_seed_repeats_and_another_does_not(name: str) -> None:
    made = []
    for seed in (3, 3, 4):
        torch.manual_seed(len(made))  # what went on before does not matter
        np.random.seed(len(made))  # noqa: NPY002
        model = TRAINED[name].make()
        TRAINED[name].train(model, seed=seed)
        made.append(weights(model))
    torch.testing.assert_close(made[0], made[1], **ROUNDING)
    assert made[0].shape != made[2].shape or not torch.allclose(made[0], made[2], atol=1e-4)


@pytest.mark.parametrize("name", TRAINED)
def test_training_leaves_random_state_folder_and_data_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    model = TRAINED[name].make()
    before = model.adata.copy()
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    TRAINED[name].train(model)
    assert torch.equal(torch.rand(3), expected)
    assert list(tmp_path.rglob("*")) == []
    assert_unchanged(model.adata, before)
    assert model.is_trained_
    assert not model.module.training
    assert model.provenance["training_seed"] == 0


def _frozen(model: Any) -> set[str]:
    return {name for name, p in model.module.named_parameters() if not p.requires_grad}


@pytest.mark.parametrize("name", TRAINED)
def test_without_validation_all_rows_train(name: str) -> None:
    model = TRAINED[name].make()
    balanced = {"balanced": True} if name in ("BulkFormer", "LingshuCell") else {}
    TRAINED[name].train(model, validation_share=0.0, **balanced)
    assert "validation_loss" not in model.history
    assert np.isfinite(model.history["train_loss"].to_numpy(dtype=float)).all()


class Interrupt(pl.Callback):
    """Ctrl+C after some steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: pl.Trainer, *args: object) -> None:
        if trainer.global_step == self.step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(("name", "step"), [*((n, 2) for n in TRAINED), ("CellPulse", 7)])
def test_an_interrupted_training_leaves_a_usable_model(
    name: str, step: int, tmp_path: Path
) -> None:
    small = TRAINED[name]
    model = small.make()
    before, handler = weights(model), signal.getsignal(signal.SIGINT)
    frozen = _frozen(model)
    with pytest.raises(KeyboardInterrupt, match=f"after step {step} of 9; the model keeps"):
        small.train(model, max_steps=9, max_epochs=9, callbacks=[Interrupt(step)])
    assert signal.getsignal(signal.SIGINT) == handler  # a second Ctrl+C is heard
    assert before.shape != weights(model).shape or not torch.equal(before, weights(model))
    assert model.is_trained_
    assert not model.module.training
    assert not getattr(model.module, "recompute", False)
    assert _frozen(model) == frozen  # nothing more stays so
    found = small.read(model, model.adata)
    assert np.isfinite(found).all()
    loaded = small.cls.load(model.save(tmp_path / "half"))
    np.testing.assert_allclose(small.read(loaded, model.adata), found, **ROUNDING)
    small.train(model)
    assert np.isfinite(small.read(model, model.adata)).all()


# What a training refuses.


@pytest.mark.parametrize("name", [*TRAINED, "PerturbationCountModel"])
def test_a_model_without_data_cannot_train(name: str) -> None:
    with pytest.raises(ValueError, match="has no data"):
        SAVED[name].train(SAVED[name].cls.load(saved(name)))


#: Settings out of range, of all recipes and of each. A text is the message, if not the name.
COMMON = [
    *({key: 0} for key in ("max_epochs", "max_steps", "batch_size", "accumulate_grad_batches")),
    {"validation_share": 1.0},
]
OWN: dict[str, list[Any]] = {
    "BulkFormer": [{"redraw_interval": -1}, {"mask_share": 0.0}, {"mask_share": 1.0}],
    "CellPulse": [
        {"tokens_per_profile": 0},
        {"n_linear_steps": -1},
        {"n_unchanged": -2},
        ({"sources": {"x": None}, "source_share": 1.0}, "leave nothing for the contrasts"),
        *(
            ({"max_steps": steps, "n_linear_steps": linear}, f"of max_steps={steps} leave")
            for steps, linear in [(8, 8), (8, 80), (1, 1)]
        ),
    ],
    "CellVQ": [
        ({"keep_share": 0.0}, "keep_share must be a share above 0"),
        ({"keep_share": (0.7, 0.3)}, "the smaller first"),
        {"code_only_share": 1.1},
        {"last_temperature": 0.0},
        {"anneal_share": 2.0},
        {"schedule": "linear"},
        {"freeze": "decoder"},
        ({"separation_weight": -1.0}, "at least 0"),
        ({"reconstruction_weight": 0.0, "property_weight": 0.0}, "nothing to train"),
    ],
    "LingshuCell": [
        {"n_validation": 0},
        {"condition_dropout": 1.0},
        {"least_time": 0.0},
        ({"average_width": 0.5}, r"above 0 and below 0\.28"),
    ],
    "Pulsar": [
        {"keep_share": 0.0},
        {"mask_share": 1.0},
        {"n_cells": 1},
        {"contrastive_weight": -1.0},
        ({"contrastive_weight": 0, "reconstruction_weight": 0}, "not both be 0"),
    ],
    "VirtualInstrument": [],
}


@pytest.mark.parametrize(("name", "wrong"), [(n, w) for n in TRAINED for w in COMMON + OWN[n]])
def test_settings_out_of_range_are_refused(name: str, wrong: Any) -> None:
    settings, message = wrong if isinstance(wrong, tuple) else (wrong, f"{next(iter(wrong))}=")
    model = untrained(name)
    before = weights(model)
    with pytest.raises(ValueError, match=message):
        TRAINED[name].train(model, **settings)
    assert torch.equal(weights(model), before)
