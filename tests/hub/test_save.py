import errno
import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfm.hub import _save, load_checkpoint, save_checkpoint

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.int64,
    torch.int32,
    torch.int8,
    torch.uint8,
    torch.bool,
]


def tensors(value: float = 1.0) -> dict[str, torch.Tensor]:
    return {"weight": torch.full((4, 3), value), "bias": torch.zeros(3)}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(
    specs=st.dictionaries(
        st.text("abc._01", min_size=1, max_size=6),
        st.tuples(st.sampled_from(DTYPES), st.lists(st.integers(0, 4), max_size=3)),
        min_size=1,
        max_size=4,
    ),
    config=st.dictionaries(
        st.text(max_size=5),
        st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.text(max_size=5),
        max_size=3,
    ),
)
def test_what_is_saved_comes_back(tmp_path, specs, config):
    given_tensors = {
        name: (torch.rand(shape) * 10).to(dtype) for name, (dtype, shape) in specs.items()
    }
    folder = save_checkpoint(tmp_path / "c", given_tensors, config, model="M", overwrite=True)
    loaded = load_checkpoint(folder)
    assert loaded.config == config
    assert loaded.tensors.keys() == given_tensors.keys()
    for name, tensor in given_tensors.items():
        assert loaded.tensors[name].dtype == tensor.dtype
        assert loaded.tensors[name].shape == tensor.shape
        assert torch.equal(loaded.tensors[name], tensor)


def test_views_and_shared_tensors_are_each_stored_in_full(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    parts = {"base": base, "same": base, "row": base[1], "turned": base.T}
    loaded = load_checkpoint(save_checkpoint(tmp_path / "c", parts, {}))
    for name, tensor in parts.items():
        assert torch.equal(loaded.tensors[name], tensor)


def test_config_card_files_and_model(tmp_path):
    config = {"model": "CellPulse", "rate": np.float32(0.5), "sizes": np.array([1, 2]), "t": (1,)}
    folder = save_checkpoint(
        tmp_path / "c", tensors(), config, files={"genes.txt": "A\nÄ\r\n"}, card="# Card\n"
    )
    loaded = load_checkpoint(folder)
    assert loaded.model == "CellPulse"
    assert loaded.config == {"model": "CellPulse", "rate": 0.5, "sizes": [1, 2], "t": [1]}
    assert loaded.files == {"genes.txt": "A\nÄ\r\n"}
    assert loaded.card == "# Card\n"
    assert loaded.name == "c"
    assert len(loaded.sha256) == 64


def test_optional_files_may_be_absent(tmp_path):
    folder = save_checkpoint(tmp_path / "c", tensors(), {})
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    loaded = load_checkpoint(folder)
    assert loaded.files == {}
    assert loaded.card is None
    assert loaded.model == ""


@pytest.mark.skipif(os.name != "posix", reason="permission bits of POSIX")
def test_others_can_read_what_the_umask_lets_them(tmp_path):
    old = os.umask(0o022)
    try:
        folder = save_checkpoint(tmp_path / "c", tensors(), {}, files={"x.txt": "x"}, card="c")
    finally:
        os.umask(old)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == {0o644}


def test_existing_folder_is_kept_unless_told(tmp_path):
    folder = save_checkpoint(tmp_path / "c", tensors(1), {"k": 1})
    before = snapshot(folder)
    with pytest.raises(FileExistsError, match="overwrite=True"):
        save_checkpoint(folder, tensors(2), {"k": 2})
    assert snapshot(folder) == before
    save_checkpoint(folder, tensors(2), {"k": 2}, overwrite=True)
    assert load_checkpoint(folder).config == {"k": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["c"]


def test_overwrite_drops_files_of_the_old_checkpoint(tmp_path):
    folder = save_checkpoint(tmp_path / "c", tensors(), {}, files={"old.txt": "x"}, card="old")
    save_checkpoint(folder, tensors(), {}, overwrite=True)
    assert load_checkpoint(folder).card is None
    assert not (folder / "old.txt").exists()


def test_overwrite_replaces_an_empty_folder_but_nothing_else(tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    assert load_checkpoint(save_checkpoint(empty, tensors(), {}, overwrite=True)).tensors
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("three years of work")
    with pytest.raises(ValueError, match="not a checkpoint"):
        save_checkpoint(home, tensors(), {}, overwrite=True)
    assert (home / "thesis.txt").read_text() == "three years of work"
    with pytest.raises(ValueError, match="is a file"):
        save_checkpoint(home / "thesis.txt", tensors(), {}, overwrite=True)


def test_a_linked_folder_is_replaced_where_it_lies(tmp_path):
    real = save_checkpoint(tmp_path / "real", tensors(1), {"k": 1})
    link = tmp_path / "link"
    link.symlink_to(real, target_is_directory=True)
    save_checkpoint(link, tensors(2), {"k": 2}, overwrite=True)
    assert link.is_symlink()
    assert load_checkpoint(real).config == {"k": 2}


@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("_write_text", OSError(errno.ENOSPC, "No space left on device")),
        ("_write_text", KeyboardInterrupt()),
        ("_write_weights", OSError(errno.ENOSPC, "No space left on device")),
        ("_write_weights", KeyboardInterrupt()),
        ("sha256_of_file", KeyboardInterrupt()),
        ("put_in_place", KeyboardInterrupt()),
    ],
)
@pytest.mark.parametrize("exists", [False, True])
def test_a_failed_save_leaves_everything_as_it_was(tmp_path, monkeypatch, step, error, exists):
    folder = tmp_path / "c"
    if exists:
        save_checkpoint(folder, tensors(1), {"k": 1}, card="old")
    before = snapshot(folder) if exists else None
    original = getattr(_save, step)

    def fail(*args, **kwargs):
        if step.startswith("_write"):  # half of it is on the disk when it fails
            original(*args, **kwargs)
            with Path(args[0]).open("rb+") as file:
                file.truncate(7)
        raise error

    monkeypatch.setattr(_save, step, fail)
    with pytest.raises(type(error)):
        save_checkpoint(folder, tensors(2), {"k": 2}, card="new", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == (["c"] if exists else [])
    if exists:
        assert snapshot(folder) == before
        assert load_checkpoint(folder).config == {"k": 1}


@pytest.mark.parametrize("failing_call", [1, 2])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "I/O error")])
def test_interrupted_exchange_of_old_and_new(tmp_path, monkeypatch, failing_call, error):
    folder = save_checkpoint(tmp_path / "c", tensors(1), {"k": 1})
    before = snapshot(folder)
    monkeypatch.setattr(_save, "_exchange", lambda first, second: False)
    replace, calls = os.replace, []

    def fail(source, target):
        calls.append(source)
        if len(calls) == failing_call:
            raise error
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)):
        save_checkpoint(folder, tensors(2), {"k": 2}, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert snapshot(folder) == before


def test_what_another_process_put_there_meanwhile_is_kept(tmp_path, monkeypatch):
    original = _save._write_weights

    def slow(*args):
        original(*args)
        if not (tmp_path / "c").exists():
            (tmp_path / "c").mkdir()
            (tmp_path / "c" / "thesis.txt").write_text("three years of work")

    monkeypatch.setattr(_save, "_write_weights", slow)
    for overwrite, kind in ((False, FileExistsError), (True, ValueError)):
        with pytest.raises(kind):
            save_checkpoint(tmp_path / "c", tensors(), {}, overwrite=overwrite)
        assert (tmp_path / "c" / "thesis.txt").read_text() == "three years of work"
        assert [path.name for path in tmp_path.iterdir()] == ["c"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_FSIZE")
def test_a_real_write_error_of_safetensors(tmp_path):
    folder = save_checkpoint(tmp_path / "c", tensors(1), {"k": 1})
    before = snapshot(folder)
    code = """
import resource, signal, sys, torch
from cfm.hub import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
try:
    save_checkpoint(sys.argv[1], {"w": torch.ones(100, 100)}, {}, overwrite=True)
except OSError as error:
    sys.exit(33 if "nothing was changed" in str(error) else 34)
"""
    done = subprocess.run([sys.executable, "-c", code, str(folder)], check=False)
    assert done.returncode == 33
    assert [path.name for path in tmp_path.iterdir()] == ["c"]
    assert snapshot(folder) == before


NOT_STORED = [
    *(
        ({"tensors": {"w": wrong}}, ValueError, message)
        for wrong, message in (
            (torch.tensor([1.0, float("nan")]), "finite"),
            (torch.tensor([float("inf")], dtype=torch.bfloat16), "finite"),
            (torch.eye(2).to_sparse(), "dense"),
            (torch.zeros(2, dtype=torch.complex64), "dense"),
            (torch.zeros(2, device="meta"), "dense"),
        )
    ),
    ({"tensors": {}}, ValueError, "empty"),
    ({"tensors": {"w": np.zeros(2)}}, TypeError, "ndarray"),
    ({"tensors": {1: torch.zeros(2)}}, TypeError, "names"),
    (
        {"tensors": dict.fromkeys(map(str, range(10_001)), torch.ones(1))},
        ValueError,
        "10,001 tensors; a checkpoint has from 1 to 10,000",
    ),
    ({"config": {"k": float("nan")}}, ValueError, "config holds"),
    ({"config": {"k": object()}}, TypeError, "config holds"),
    ({"config": {(1, 2): 3}}, TypeError, "config holds"),
    *(
        ({"files": {name: "x"}}, ValueError, "file")
        for name in ("../x", "a/b", "/abs", "a\\b", ".hidden", "", "config.json", "README.md")
    ),
    *(({"files": {name: "x"}}, ValueError, "file") for name in ("C:x", "a\n")),
]


@pytest.mark.parametrize(("changes", "kind", "message"), NOT_STORED)
def test_what_cannot_be_stored_leaves_nothing(tmp_path, changes, kind, message):
    with pytest.raises(kind, match=message):
        save_checkpoint(tmp_path / "c", **({"tensors": tensors(), "config": {}} | changes))
    assert list(tmp_path.iterdir()) == []


def test_the_documented_layout(tmp_path):
    folder = save_checkpoint(
        tmp_path / "c", tensors(), {"k": 1}, model="CellPulse", files={"genes.txt": "A\n"}
    )
    header = json.loads((folder / "config.json").read_text())
    assert header["format"] == "cfm-checkpoint"
    assert header["format_version"] == 1
    assert header["model"] == "CellPulse"
    assert header["config"] == {"k": 1}
    assert header["tensors"]["weight"] == {"shape": [4, 3], "dtype": "float32"}
    assert header["files"].keys() == {"genes.txt"}
