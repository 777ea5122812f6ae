"""Checkpoints of all models: the same model again, and what is refused.

Settings, tensors and texts of any wrong kind and size: ``tests/hub/test_hostile_*.py``.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cfm.models import load_model
from tests._small import SAVED, TRAINED, saved, trained, weights
from tests.hub import _hostile


@pytest.mark.parametrize("name", SAVED)
def test_a_saved_model_is_the_same(name: str, tmp_path: Path) -> None:
    small, model, folder = SAVED[name], trained(name), saved(name)
    data = small.data()
    for load in (small.cls.load, small.cls.from_pretrained, load_model):
        loaded = load(folder)
        assert type(loaded) is small.cls
        for attribute in ("size", "levels", "properties", "provenance"):
            assert getattr(loaded, attribute, None) == getattr(model, attribute, None)
        if hasattr(model, "vocabulary"):
            assert loaded.vocabulary == model.vocabulary
        assert loaded.checkpoint_name == "first"
        assert len(loaded.checkpoint_sha256) == 64
        assert loaded.card == "# Card\n\nText."
        np.testing.assert_array_equal(small.read(loaded, data), small.read(model, data))
    curves, expected = (m.history or {} for m in (loaded, model))
    assert curves.keys() == expected.keys()
    for key, curve in expected.items():
        shown = curve.dropna().to_numpy(dtype=float)
        np.testing.assert_allclose(curves[key].to_numpy(dtype=float), shown, rtol=1e-5)
    again = loaded.save(tmp_path / "again")
    for file in ("model.safetensors", "README.md"):
        assert (again / file).read_bytes() == (folder / file).read_bytes()


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_that_was_never_trained_saves_too(name: str, tmp_path: Path) -> None:
    small = TRAINED[name]
    model = small.make()
    loaded = small.cls.load(model.save(tmp_path / "raw"))
    np.testing.assert_allclose(
        small.read(loaded, model.adata), small.read(model, model.adata), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("name", SAVED)
def test_compact_checkpoints_are_smaller_and_nearly_the_same(name: str, tmp_path: Path) -> None:
    small, model = SAVED[name], trained(name)
    compact = model.save(tmp_path / "compact", compact=True)
    sizes = [(f / "model.safetensors").stat().st_size for f in (compact, saved(name))]
    assert sizes[0] < 0.85 * sizes[1]
    loaded = small.cls.load(compact)
    assert all(p.dtype == torch.float32 for p in loaded.module.parameters())
    exact, rough = (small.read(m, small.data()) for m in (model, loaded))
    assert np.linalg.norm(rough - exact) < 0.01 * np.linalg.norm(exact)


@pytest.mark.parametrize("name", SAVED)
def test_data_are_not_saved_and_folders_not_replaced_unasked(name: str, tmp_path: Path) -> None:
    model, folder = trained(name), Path(shutil.copytree(saved(name), tmp_path / "here"))
    with pytest.raises(TypeError, match="save_anndata"):
        model.save(tmp_path / "x", save_anndata=True)
    with pytest.raises(FileExistsError, match="overwrite"):
        model.save(folder)
    model.save(folder, overwrite=True)
    assert load_model(folder).card is None


@pytest.mark.parametrize("name", TRAINED)
def test_a_loaded_model_trains_on(name: str) -> None:
    """From where it was, with curves of its own, and no longer as that checkpoint."""
    small = TRAINED[name]
    adata = small.registered()
    model = small.cls.from_pretrained(saved(name), adata)
    assert model.adata is adata
    sha256, before = model.checkpoint_sha256, weights(model)
    model.provenance |= {"training_studies": ["earlier"], "note": "of the first"}
    read = small.read(model, adata)
    steps = {"n_linear_steps": 0} if name == "CellPulse" else {}
    small.train(model, max_steps=2, lr=1e-6, **steps)
    assert not torch.equal(weights(model), before)
    assert np.linalg.norm(small.read(model, adata) - read) < 0.05 * np.linalg.norm(read)
    assert len(model.history["train_loss"]) == 1
    assert (model.checkpoint_name, model.checkpoint_sha256, model.card) == ("", "", None)
    assert model.provenance["started_from"] == {"name": "first", "sha256": sha256}
    assert "note" not in model.provenance
    studies = set(adata.obs["study"]) if "study_key" in small.setup else set()
    assert set(model.provenance["training_studies"]) == {"earlier", *studies}


@pytest.mark.parametrize("name", SAVED)
def test_checkpoints_of_other_models_are_refused(name: str) -> None:
    other = "CellPulse" if name != "CellPulse" else "CellVQ"
    with pytest.raises(ValueError, match=f"holds a {other} model; expected {name}"):
        SAVED[name].cls.load(saved(other))


def _size(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["size"].update(changes)


def _levels(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config["levels"].update(changes)


def _set(**changes: Any) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.update(changes)


def _without(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda config: config.pop(key)


UNFIT, GARBLED = "do not fit the sizes", "garbles a setting"
DAMAGED: list[tuple[str, Callable[[dict[str, Any]], None], str]] = [
    *((n, _size(width=3), f"{GARBLED}.*width") for n in TRAINED),
    *((n, _size(dim=64), UNFIT) for n in ("BulkFormer", "CellPulse", "LingshuCell", "CellVQ")),
    *((n, _size(n_heads="2"), "n_heads=.*whole number") for n in ("BulkFormer", "CellPulse")),
    *((n, _without("size"), f"lacks or {GARBLED}.*size") for n in TRAINED),
    *(("BulkFormer", _without(k), f"{GARBLED}.*{k}") for k in ("n_gene_features", "knows_genes")),
    ("BulkFormer", _size(dim=15), GARBLED),
    ("BulkFormer", _size(ff_dropout=1.0), "ff_dropout=1.0; expected a finite number of at least 0"),
    ("BulkFormer", _size(centred="yes"), "centred=.yes.; expected True or False"),
    *(("CellPulse", _without(key), f"{GARBLED}.*{key}") for key in ("n_relevances", "classifier")),
    ("CellPulse", _size(dim=33), "divisible by n_heads=2"),
    ("CellPulse", _size(n_tokens=-1), "n_tokens=-1; expected a whole number"),
    ("CellPulse", _size(learn_gene_embedding=True), "gene_embedding.weight: found nothing"),
    ("CellPulse", _set(n_relevances=0), "n_relevances=0; expected a whole number"),
    ("CellPulse", _set(n_relevances="many"), GARBLED),
    ("CellPulse", _set(classifier={"classes": ["a", "b"]}), UNFIT),
    ("CellPulse", _set(classifier={"kinds": 3}), GARBLED),
    ("CellVQ", _size(dim=33), GARBLED),
    ("CellVQ", _size(n_layers=2), UNFIT),
    ("CellVQ", _set(n_genes=61), "60 names of genes, but weights of 61"),
    ("CellVQ", _set(n_genes="many"), GARBLED),
    ("LingshuCell", _without("levels"), GARBLED),
    ("LingshuCell", _size(dim=-3), "at least 1"),
    ("LingshuCell", _size(n_layers=1), UNFIT),
    ("LingshuCell", _levels(sources=["B"]), UNFIT),
    ("LingshuCell", _levels(sources=3), GARBLED),
    ("LingshuCell", _levels(control=None), "given together"),
    ("LingshuCell", _set(count_term={"kind": "Nothing", "sizes": {}}), GARBLED),
    ("LingshuCell", _set(perturbation_features={}), GARBLED),
    ("PerturbationCountModel", _without("levels"), GARBLED),
    ("PerturbationCountModel", _without("sizes"), GARBLED),
    ("PerturbationCountModel", lambda c: c["sizes"].update(n_parts=3), GARBLED),
    ("PerturbationCountModel", lambda c: c["sizes"].update(combinations=[[2, 99]]), GARBLED),
    ("PerturbationCountModel", lambda c: c["sizes"].update(combinations=[]), UNFIT),
    ("PerturbationCountModel", _levels(sources=["B"]), GARBLED),
]


@pytest.mark.parametrize(("name", "change", "message"), DAMAGED)
def test_damaged_settings_are_named(
    name: str, change: Callable[[dict[str, Any]], None], message: str, tmp_path: Path
) -> None:
    folder = shutil.copytree(saved(name), tmp_path / "x")
    header = json.loads((folder / "config.json").read_text())
    change(header["config"])
    (folder / "config.json").write_text(json.dumps(header))
    with pytest.raises(ValueError, match=message):
        SAVED[name].cls.load(folder)


@pytest.mark.parametrize(
    ("name", "key", "wrong", "message"),
    [
        ("CellPulse", "module.norm.weight", torch.ones(7), r"found \(7,\), expected \(32,\)"),
        ("BulkFormer", "edges", None, "belongs to another gene list"),
        ("LingshuCell", "group.permutation", None, "does not name each of its 42 genes once"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    name: str, key: str, wrong: torch.Tensor | None, message: str, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(saved(name), tmp_path / "x"))
    tensors = load_file(folder / "model.safetensors")
    if wrong is None:  # numbers of genes, beyond them and one of them twice
        wrong = tensors[key].clone()
        wrong.view(-1)[0] = 80 if key == "edges" else wrong[1]
    _hostile.write_tensors(folder, tensors | {key: wrong})
    with pytest.raises(ValueError, match=message):
        SAVED[name].cls.load(folder)
