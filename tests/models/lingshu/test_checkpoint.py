"""Checkpoints: the same cells again, and refusal of what is damaged or foreign."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cfm.hub import save_checkpoint
from cfm.models import LingshuCell, load_model
from tests._lingshu import KEYS, SIZES, toy_counts, toy_lingshu, untrained

ASKED = {"source": "B", "perturbation": "x", "n_steps": 3}


def edit(folder: Path, change) -> None:
    path = folder / "config.json"
    header = json.loads(path.read_text())
    change(header["config"])
    path.write_text(json.dumps(header))


@pytest.mark.slow
def test_loaded_models_make_the_same_cells(tmp_path: Path) -> None:
    model = toy_lingshu()
    folder = model.save(tmp_path / "ours")
    loaded = LingshuCell.from_pretrained(folder)
    assert isinstance(load_model(folder), LingshuCell)
    assert (loaded.generate(9, **ASKED).X != model.generate(9, **ASKED).X).nnz == 0
    assert loaded.levels == model.levels
    assert loaded.size == model.size
    assert loaded.vocabulary == model.vocabulary
    assert loaded.provenance == model.provenance
    assert loaded.checkpoint_name == "ours"
    assert len(loaded.checkpoint_sha256) == 64
    assert torch.equal(loaded.module.group.permutation, model.module.group.permutation)
    assert loaded.history["train_loss"].shape == model.history["train_loss"].shape
    again = loaded.save(tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (folder / "model.safetensors").read_bytes()


def test_the_gene_order_is_stored_and_matters(tmp_path: Path) -> None:
    model = untrained()
    folder = model.save(tmp_path / "x")
    loaded = LingshuCell.load(folder)
    before = loaded.get_latent_representation(toy_counts(n=20))
    loaded.module.group.permutation = torch.roll(loaded.module.group.permutation, 1)
    loaded.module.group.position = torch.empty(0, dtype=torch.int64)
    assert not np.allclose(before, loaded.get_latent_representation(toy_counts(n=20)), atol=1e-3)


def test_compact_checkpoints_are_small_and_close(tmp_path: Path) -> None:
    model = toy_lingshu()
    full, compact = (model.save(tmp_path / str(c), compact=c) for c in (False, True))

    def size(folder: Path) -> int:
        return (folder / "model.safetensors").stat().st_size

    assert size(compact) < 0.6 * size(full)
    cells = toy_counts(n=30)
    np.testing.assert_allclose(
        LingshuCell.load(compact).get_latent_representation(cells),
        model.get_latent_representation(cells),
        atol=0.02,
    )
    assert LingshuCell.load(compact).generate(3, **ASKED).shape == (3, 42)


def test_features_are_stored(tmp_path: Path) -> None:
    adata = toy_counts(n=50)
    LingshuCell.setup_anndata(adata, **KEYS)
    table = pd.DataFrame(np.eye(3), index=["y", "z", "x"], columns=["a", "b", "c"])
    model = LingshuCell(adata, perturbation_features=table, **SIZES)
    loaded = LingshuCell.load(model.save(tmp_path / "x"))
    for asked in ({"perturbation": "z"}, {"perturbation": "w", "features": table.loc["y"]}):
        made = [m.generate(5, source="T", n_steps=2, **asked) for m in (model, loaded)]
        assert (made[0].X != made[1].X).nnz == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.pop("levels"), "lacks or garbles"),
        (lambda c: c["size"].pop("dim"), "lacks or garbles"),
        (lambda c: c["size"].update(dim=-3), "at least 1"),
        (lambda c: c["size"].update(dim=64), "do not fit the sizes"),
        (lambda c: c["size"].update(n_layers=1), "do not fit the sizes"),
        (lambda c: c["size"].update(n_layers=10**9), "more layers than"),
        (lambda c: c["size"].update(color="red"), "lacks or garbles"),
        (lambda c: c["levels"].update(sources=["B"]), "do not fit the sizes"),
        (lambda c: c["levels"].update(sources=3), "lacks or garbles"),
        (lambda c: c["levels"].update(control=None), "given together"),
        (lambda c: c.update(count_term={"kind": "Nothing", "sizes": {}}), "lacks or garbles"),
        (lambda c: c.update(perturbation_features={}), "lacks or garbles"),
    ],
)
def test_damaged_settings_are_refused(tmp_path: Path, change, message: str) -> None:
    folder = untrained().save(tmp_path / "x")
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        LingshuCell.load(folder)


def test_a_damaged_gene_order_is_refused(tmp_path: Path) -> None:
    model = untrained()
    model.module.group.permutation[0] = model.module.group.permutation[1]
    with pytest.raises(ValueError, match="does not name each of its 42 genes once"):
        LingshuCell.load(model.save(tmp_path / "x"))


def test_changed_weights_are_refused(tmp_path: Path) -> None:
    path = untrained().save(tmp_path / "x") / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"abcd")
    with pytest.raises(ValueError, match="SHA-256"):
        LingshuCell.load(tmp_path / "x")


def test_foreign_weights_are_refused(tmp_path: Path) -> None:
    (tmp_path / "released").mkdir()
    torch.save({"model.embed.weight": torch.ones(2)}, tmp_path / "released" / "model.pt")
    for source in (tmp_path / "released", tmp_path / "released" / "model.pt"):
        with pytest.raises(ValueError, match="authors of Lingshu-Cell released"):
            LingshuCell.from_pretrained(source)
    (tmp_path / "released" / "config.json").write_text('{"hidden_size": 640}')
    with pytest.raises(ValueError, match="does not describe a checkpoint of cfm"):
        LingshuCell.from_pretrained(tmp_path / "released")
    save_checkpoint(tmp_path / "other", {"a": torch.ones(1)}, {}, model="CellPulse")
    with pytest.raises(ValueError, match="holds a CellPulse model"):
        LingshuCell.from_pretrained(tmp_path / "other")


def test_data_are_not_saved(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="hold the model only"):
        untrained().save(tmp_path / "x", save_anndata=True)
    untrained().save(tmp_path / "x", card="A model.")
    assert LingshuCell.load(tmp_path / "x").card == "A model."
    with pytest.raises(FileExistsError):
        untrained().save(tmp_path / "x")


def test_depths_beyond_half_precision_survive_a_compact_checkpoint(tmp_path: Path) -> None:
    model = untrained()
    model.module.depth_quantiles.fill_(123_457.0)
    again = LingshuCell.from_pretrained(model.save(tmp_path / "small", compact=True))
    assert torch.equal(again.module.depth_quantiles, model.module.depth_quantiles)
