import os
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError

from cfm.hub import _resolve, load_checkpoint, register_checkpoint, resolve, save_checkpoint
from tests.hub._hub import Hub


def make(folder, **config):
    return save_checkpoint(folder, {"w": torch.ones(2)}, config, model="CellPulse")


@pytest.fixture(autouse=True)
def own_names(tmp_path, monkeypatch):
    """A package with one bundled checkpoint, "mini", and no registered ones."""
    make(tmp_path / "package" / "checkpoints" / "mini", origin="bundled")
    monkeypatch.setattr(_resolve, "files", lambda package: tmp_path / "package")
    monkeypatch.setattr(_resolve, "_registered", {})
    monkeypatch.delenv("CFM_CHECKPOINTS", raising=False)


def test_bundled_name_wins_over_a_folder_in_the_working_directory(tmp_path, monkeypatch):
    make(tmp_path / "mini", origin="local")
    monkeypatch.chdir(tmp_path)
    assert load_checkpoint("mini").config == {"origin": "bundled"}
    assert load_checkpoint("./mini").config == {"origin": "local"}
    assert load_checkpoint(Path("mini")).config == {"origin": "local"}
    assert load_checkpoint("mini").name == load_checkpoint("./mini").name == "mini"


def test_folders_and_files(tmp_path):
    folder = make(tmp_path / "c")
    assert resolve(folder) == folder
    assert resolve(str(folder)) == folder
    assert resolve(folder / "config.json") == folder / "config.json"


def test_home_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = make(tmp_path / "c")
    assert resolve("~/c") == folder


def test_site_folders(tmp_path, monkeypatch):
    make(tmp_path / "one" / "ours", origin="one")
    make(tmp_path / "two" / "ours", origin="two")
    make(tmp_path / "two" / "mini", origin="two")
    make(tmp_path / "two" / ".draft")
    folders = [str(tmp_path / "one"), str(tmp_path / "two"), str(tmp_path / "absent"), ""]
    monkeypatch.setenv("CFM_CHECKPOINTS", os.pathsep.join(folders))
    assert load_checkpoint("ours").config == {"origin": "one"}
    assert load_checkpoint("mini").config == {"origin": "bundled"}
    assert set(_resolve.known_names()) == {"mini", "ours"}


def test_registered_names(tmp_path):
    register_checkpoint("ours", make(tmp_path / "c", k=1))
    loaded = load_checkpoint("ours")
    assert loaded.config == {"k": 1}
    assert loaded.name == "ours"
    for bad in ["", "a/b", "a\\b", "..", "mini"]:
        with pytest.raises(ValueError, match=r"name"):
            register_checkpoint(bad, tmp_path)


@pytest.mark.parametrize("source", ["minii", "no/such/folder", "", Path("absent")])
def test_unknown_names_list_what_there_is(source):
    with pytest.raises(ValueError, match=r"There is no checkpoint .*'mini'"):
        resolve(source)


def test_a_close_name_is_suggested():
    with pytest.raises(ValueError, match="Did you mean 'mini'"):
        resolve("minni")


@pytest.mark.parametrize(
    ("source", "error", "message"),
    [
        (5, TypeError, "int"),
        *(
            (address, ValueError, "hf://org/name")
            for address in ("https://x.org/m", "s3://bucket/m", "file:///tmp/m")
        ),
        *(
            (address, ValueError, "not an address")
            for address in ("hf://", "hf://org", "hf://a/b/c", "hf://../x", "hf://a/..@m")
        ),
    ],
)
def test_other_addresses_are_refused(source, error, message):
    with pytest.raises(error, match=message):
        resolve(source)


@pytest.mark.parametrize(
    ("source", "repo", "revision"),
    [
        ("hf://o/n.1", "o/n.1", None),
        ("hf://o/n@v1.0", "o/n", "v1.0"),
        ("hf://o/n@a/b", "o/n", "a/b"),
    ],
)
def test_what_the_hub_is_asked(tmp_path, monkeypatch, source, repo, revision):
    folder, asked = make(tmp_path / "c"), []

    def snapshot_download(**arguments):
        asked.append(arguments)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    assert resolve(source) == folder
    assert (asked[0]["repo_id"], asked[0]["revision"]) == (repo, revision)
    assert load_checkpoint(source).name == repo
    register_checkpoint("theirs", source)
    assert resolve("theirs") == folder


def test_hub_out_of_reach(monkeypatch):
    def offline(**arguments):
        raise LocalEntryNotFoundError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(ConnectionError, match="could not be reached"):
        resolve("hf://o/n")


@pytest.mark.slow
def test_download_from_a_local_hub(tmp_path):
    sources = ("hf://o/n@main", "hf://o/other")
    with Hub(make(tmp_path / "served", k=7), tmp_path / "cache") as hub:
        served, (kind, message) = hub.ask(*sources)
        assert served == ["o/n", {"k": 7}]
        assert kind == "ValueError"
        assert "does not give out" in message
    # From the cache, without the server; and what the cache does not hold.
    served, (kind, message) = hub.ask(*sources, HF_HUB_OFFLINE="1")
    assert served == ["o/n", {"k": 7}]
    assert kind == "ConnectionError"
    assert "not in the local cache" in message
