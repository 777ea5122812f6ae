import json
import pickle

import pytest
import torch
from safetensors.torch import save_file

from cfm.hub import load_checkpoint, load_safetensors, save_checkpoint
from cfm.hub._checkpoint import sha256_of_file
from tests.hub._hostile import Malicious


@pytest.fixture
def folder(tmp_path):
    return save_checkpoint(
        tmp_path / "inner" / "ckpt",
        {"weight": torch.arange(12.0).reshape(4, 3), "bias": torch.zeros(3, dtype=torch.float16)},
        {"k": 1},
        model="CellPulse",
        files={"genes.txt": "A\nB\n"},
        card="# A card\n",
    )


def edit(folder, **changes):
    path = folder / "config.json"
    header = json.loads(path.read_text())
    header.update(changes)
    path.write_text(json.dumps(header))


def replace_weights(folder, tensors, *, listed=None):
    """Other weights with a matching SHA-256; the list of tensors stays unless given."""
    save_file(tensors, folder / "model.safetensors")
    edit(folder, sha256=sha256_of_file(folder / "model.safetensors"))
    if listed is not None:
        edit(folder, tensors=listed)


GOOD = {"weight": torch.zeros(4, 3), "bias": torch.zeros(3, dtype=torch.float16)}


@pytest.mark.parametrize("keep", [4, -1])
def test_truncated_weights(folder, keep):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="truncated"):
        load_checkpoint(folder)


def test_one_changed_byte(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"SHA-256.*again"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({**GOOD, "weight": torch.zeros(3, 4)}, "shape"),
        ({**GOOD, "weight": torch.zeros(4, 3, dtype=torch.bfloat16)}, "dtype"),
        ({**GOOD, "more": torch.zeros(1)}, "not listed: 'more'"),
        ({"weight": GOOD["weight"]}, "missing from the file: 'bias'"),
        ({**GOOD, "weight": torch.full((4, 3), float("nan"))}, "finite"),
        ({**GOOD, "bias": torch.full((3,), float("-inf"), dtype=torch.float16)}, "finite"),
    ],
)
def test_weights_that_do_not_fit_the_configuration(folder, tensors, message):
    replace_weights(folder, tensors)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


def test_many_missing_tensors_are_summarised(folder):
    spec = {"shape": [1], "dtype": "float32"}
    edit(folder, tensors={f"t{i}": spec for i in range(9)})
    with pytest.raises(ValueError, match="and 4 more"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b"\xff\xfe\x00", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"format": "cfm-checkpoint", "format_version": NaN}', "not valid JSON"),
        (b"[]", "does not describe"),
        (b"{}", "does not describe"),
        (b'{"format": "other"}', "does not describe"),
        (b'{"format": "cfm-checkpoint"}', "format_version None"),
        (b'{"format": "cfm-checkpoint", "format_version": true}', "format_version True"),
        (b'{"format": "cfm-checkpoint", "format_version": "1"}', "format_version '1'"),
        (b'{"format": "cfm-checkpoint", "format_version": 99}', "update cfm-tools"),
        (b'{"format": "cfm-checkpoint", "format_version": 1}', "NoneType under 'model'"),
    ],
)
def test_bad_configuration(folder, content, message):
    (folder / "config.json").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tensors": []}, "list under 'tensors'"),
        ({"tensors": {"weight": [4, 3]}}, "expected a shape and a dtype"),
        ({"tensors": {"w": {"shape": [-1], "dtype": "float32"}}}, "expected a shape"),
        ({"config": None}, "NoneType under 'config'"),
        ({"sha256": 5}, "int under 'sha256'"),
    ],
)
def test_damaged_entries(folder, changes, message):
    edit(folder, **changes)
    with pytest.raises(ValueError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["../secret.txt", "/etc/hostname", "sub/x.txt", "..", "a\\b"])
def test_path_traversal(folder, name):
    (folder.parent / "secret.txt").write_text("secret")
    edit(folder, files={name: "0" * 64})
    with pytest.raises(ValueError, match="only plain file names"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["genes.txt", "model.safetensors", "config.json", "README.md"])
def test_links_out_of_the_folder(folder, name):
    outside = folder.parent / "outside"
    (folder / name).rename(outside)
    (folder / name).symlink_to(outside)
    with pytest.raises(ValueError, match="is a link to"):
        load_checkpoint(folder)


def test_links_inside_the_cache_of_the_hub_are_allowed(folder, tmp_path):
    blobs = tmp_path / "models--o--n" / "blobs"
    snapshot = tmp_path / "models--o--n" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, path in enumerate(sorted(folder.iterdir())):
        path.rename(blobs / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    assert load_checkpoint(snapshot).config == {"k": 1}


def test_a_linked_folder_is_fine(folder, tmp_path):
    link = tmp_path / "link"
    link.symlink_to(folder, target_is_directory=True)
    assert load_checkpoint(link).config == {"k": 1}


def test_changed_text_file(folder):
    (folder / "genes.txt").write_text("A\nC\n")
    with pytest.raises(ValueError, match=r"genes\.txt differs"):
        load_checkpoint(folder)


def test_text_file_that_is_not_text(folder):
    import hashlib

    (folder / "genes.txt").write_bytes(b"\xff\xfe")
    edit(folder, files={"genes.txt": hashlib.sha256(b"\xff\xfe").hexdigest()})
    with pytest.raises(ValueError, match="not UTF-8"):
        load_checkpoint(folder)


@pytest.mark.parametrize("name", ["genes.txt", "model.safetensors", "config.json"])
def test_missing_file(folder, name):
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"has no file '{name}'"):
        load_checkpoint(folder)


def test_missing_card_is_no_error(folder):
    (folder / "README.md").unlink()
    assert load_checkpoint(folder).card is None


def test_files_that_are_not_listed_are_ignored(folder):
    (folder / "notes.txt").write_text("mine")
    assert load_checkpoint(folder).files.keys() == {"genes.txt"}


def test_pickle_in_place_of_weights_is_not_executed(folder, tmp_path):
    trap = tmp_path / "executed"
    content = pickle.dumps(Malicious(trap))
    (folder / "model.safetensors").write_bytes(content)
    edit(folder, sha256=sha256_of_file(folder / "model.safetensors"))
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_checkpoint(folder)
    (folder / "model.safetensors").unlink()
    torch.save(Malicious(trap), folder / "model.safetensors")
    with pytest.raises(ValueError, match="not a safetensors file"):
        load_checkpoint(folder)
    assert not trap.exists()
    pickle.loads(content)
    assert trap.exists()  # the trap works where something does open it


def test_a_file_is_not_a_checkpoint(tmp_path):
    trap = tmp_path / "executed"
    torch.save({"w": Malicious(trap)}, tmp_path / "m.pt")
    with pytest.raises(ValueError, match="single file"):
        load_checkpoint(tmp_path / "m.pt")
    assert not trap.exists()


def test_changing_loaded_tensors_does_not_change_the_file(folder):
    before = (folder / "model.safetensors").read_bytes()
    load_checkpoint(folder).tensors["weight"].add_(1)
    assert (folder / "model.safetensors").read_bytes() == before
    assert load_checkpoint(folder).tensors["weight"][0, 0] == 0


def test_foreign_safetensors(folder, tmp_path):
    loaded = load_safetensors(folder / "model.safetensors")
    assert loaded["bias"].dtype == torch.float16
    path = tmp_path / "nan.safetensors"
    save_file({"w": torch.tensor([float("nan")])}, path)
    with pytest.raises(ValueError, match="finite"):
        load_safetensors(path)
    path.write_bytes(b"short")
    with pytest.raises(ValueError, match="truncated"):
        load_safetensors(path)
    with pytest.raises(ValueError, match="has no file"):
        load_safetensors(tmp_path / "absent.safetensors")


def test_float8_weights_are_checked_too(tmp_path):
    good = torch.ones(4).to(torch.float8_e4m3fn)
    loaded = load_checkpoint(save_checkpoint(tmp_path / "c", {"w": good}, {}))
    assert loaded.tensors["w"].dtype == torch.float8_e4m3fn
    bad = torch.tensor([float("nan")]).to(torch.float8_e4m3fn)
    with pytest.raises(ValueError, match="finite"):
        save_checkpoint(tmp_path / "d", {"w": bad}, {})
