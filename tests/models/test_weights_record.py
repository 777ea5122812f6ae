"""What is recorded of weights is what they are, not where they came from."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import cfm
from cfm.hub import list_checkpoints, load_checkpoint
from cfm.models import load_model
from tests._cellvq import small_model
from tests._toy import toy_contrasts

BUNDLED = list_checkpoints().index.to_list()


@pytest.mark.parametrize("name", BUNDLED)
def test_loaded_weights_and_changed_ones(name: str) -> None:
    model, sha256 = load_model(name), load_checkpoint(name).sha256
    assert model.weights_record() == {"model": name, "sha256": sha256}
    tensors = [t for t in model.module.state_dict().values() if t.is_floating_point()]
    for tensor in (tensors[0].view(-1), tensors[-1].view(-1)):
        before = tensor[-1].clone()
        tensor[-1] += 0.5
        changed = model.weights_record()
        assert changed["model"] == f"{name}, weights changed in memory"
        assert len(changed["sha256"]) == 64
        assert changed["sha256"] != sha256
        tensor[-1] = before
    assert model.weights_record() == {"model": name, "sha256": sha256}


def test_weights_that_were_made_here_have_the_sha256_of_their_file(tmp_path: Path) -> None:
    model = small_model()
    record = model.weights_record()
    assert record["model"] == "CellVQ"
    loaded = load_model(model.save(tmp_path / "ours"))
    assert loaded.weights_record() == {"model": "ours", "sha256": record["sha256"]}


def test_tensors_of_any_type() -> None:
    model = small_model()
    module = model.module.to(torch.bfloat16)
    first = model.weights_record()["sha256"]
    module.to(torch.float32)
    assert model.weights_record()["sha256"] != first


def test_tools_record_it() -> None:
    adata, model = toy_contrasts(), load_model("cellpulse-virus")
    with pytest.warns(UserWarning, match="Only .* genes are measured"):
        cfm.tl.embed(adata, model, key_added="before")
    next(model.module.parameters()).data.view(-1)[0] += 0.5
    with pytest.warns(UserWarning, match="Only .* genes are measured"):
        cfm.tl.predict_virus(adata, model, key_added="after")
    before, after = (adata.uns[key]["params"] for key in ("before", "after"))
    assert before["model"] == "cellpulse-virus"
    assert before["sha256"] == model.checkpoint_sha256
    assert after["model"] == "cellpulse-virus, weights changed in memory"
    assert after["sha256"] not in ("", before["sha256"])
