"""Checkpoints: the same cells again, and refusal of what is damaged or foreign."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from cfm.hub import save_checkpoint
from cfm.models import LingshuCell
from tests._lingshu import KEYS, SIZES, toy_counts, untrained

ASKED = {"source": "B", "perturbation": "x", "n_steps": 3}


def test_the_gene_order_is_stored_and_matters(tmp_path: Path) -> None:
    model = untrained()
    folder = model.save(tmp_path / "x")
    loaded = LingshuCell.load(folder)
    before = loaded.generate(20, **ASKED).X
    loaded.module.group.permutation = torch.roll(loaded.module.group.permutation, 1)
    loaded.module.group.position = torch.empty(0, dtype=torch.int64)
    assert (before != loaded.generate(20, **ASKED).X).nnz > 0


def test_features_are_stored(tmp_path: Path) -> None:
    adata = toy_counts(n=50)
    LingshuCell.setup_anndata(adata, **KEYS)
    table = pd.DataFrame(np.eye(3), index=["y", "z", "x"], columns=["a", "b", "c"])
    model = LingshuCell(adata, perturbation_features=table, **SIZES)
    loaded = LingshuCell.load(model.save(tmp_path / "x"))
    for asked in ({"perturbation": "z"}, {"perturbation": "w", "features": table.loc["y"]}):
        made = [m.generate(5, source="T", n_steps=2, **asked) for m in (model, loaded)]
        assert (made[0].X != made[1].X).nnz == 0


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


def test_depths_beyond_half_precision_survive_a_compact_checkpoint(tmp_path: Path) -> None:
    model = untrained()
    model.module.depth_quantiles.fill_(123_457.0)
    again = LingshuCell.from_pretrained(model.save(tmp_path / "small", compact=True))
    assert torch.equal(again.module.depth_quantiles, model.module.depth_quantiles)
