import pytest
import torch

from cfm.hub import (
    _resolve,
    list_checkpoints,
    load_checkpoint,
    model_card,
    resolve,
    save_checkpoint,
)

CARD = "---\nlicense: bsd-3-clause\n---\n# Mini\n\n> a note\n\nA small model. It has limits.\n"


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(_resolve, "files", lambda package: tmp_path / "package")
    monkeypatch.setattr(_resolve, "_registered", {})
    monkeypatch.setenv("CFM_CHECKPOINTS", str(tmp_path / "site"))
    bundled = tmp_path / "package" / "checkpoints"
    save_checkpoint(
        bundled / "mini",
        {"w": torch.ones(4, 3), "b": torch.tensor(1.0)},
        {},
        model="CellPulse",
        card=CARD,
    )
    save_checkpoint(tmp_path / "site" / "ours", {"w": torch.ones(2)}, {}, model="PULSAR")
    return tmp_path


def test_table_of_checkpoints(site):
    table = list_checkpoints()
    assert list(table.index) == ["mini", "ours"]
    assert table.index.name == "name"
    mini = table.loc["mini"]
    assert (mini.model, mini.n_parameters, mini.origin) == ("CellPulse", 13, "bundled")
    assert mini.description == "A small model."
    assert mini.sha256 == load_checkpoint("mini").sha256
    assert table.loc["ours", "description"] == ""
    assert table.loc["ours", "origin"] == "local"


def test_no_checkpoints_at_all(tmp_path, monkeypatch):
    monkeypatch.setattr(_resolve, "files", lambda package: tmp_path)
    monkeypatch.delenv("CFM_CHECKPOINTS", raising=False)
    table = list_checkpoints()
    assert table.empty
    assert "sha256" in table.columns
    with pytest.raises(ValueError, match="no bundled checkpoints"):
        resolve("mini")


def test_model_card(site):
    assert model_card("mini") == CARD
    with pytest.raises(ValueError, match="no model card"):
        model_card("ours")
    with pytest.raises(ValueError, match="There is no checkpoint"):
        model_card("absent")


def test_what_ships_is_whole_small_and_documented():
    folders = _resolve.bundled_folders()
    sizes = []
    for name, folder in folders.items():
        checkpoint = load_checkpoint(name)
        assert checkpoint.card, name
        assert checkpoint.model, name
        sizes.append(sum(path.stat().st_size for path in folder.iterdir()))
    assert all(size <= 10e6 for size in sizes)
    assert sum(sizes) <= 25e6
