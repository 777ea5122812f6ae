"""Two processes at once, transfers that are cut, caches that cannot be written, full disks."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub
import pytest
import torch

from cfm.hub import load_checkpoint, resolve, save_checkpoint
from tests.hub._hostile import copied
from tests.hub._hub import Hub, answer_of

LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_FSIZE")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    tensors = {"w": torch.randn(50_000)}
    folder = save_checkpoint(tmp_path / "served", tensors, {"k": 7}, model="CellPulse")
    with Hub(folder, tmp_path / "cache") as running:
        yield running


def digests(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in files}


def test_two_processes_download_one_checkpoint(hub: Hub, tmp_path: Path) -> None:
    both = [hub.start("hf://o/n") for _ in range(2)]
    assert [answer_of(process) for process in both] == [["o/n", {"k": 7}]] * 2
    (snapshot,) = (tmp_path / "cache").glob("hub/models--o--n/snapshots/*")
    assert digests(snapshot) == digests(hub.folder)
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


def test_a_transfer_that_is_cut(hub: Hub) -> None:
    hub.cut, hub.n_cuts = 5000, 10**6
    kind, message = hub.ask("hf://o/n")
    assert kind == "ConnectionError"
    assert "cut short" in message
    assert "try again" in message
    hub.n_cuts = 0
    assert hub.ask("hf://o/n") == ["o/n", {"k": 7}]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(**arguments: object) -> str:
        raise OSError(number, os.strerror(number), "/cache/hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(OSError, match=r"could not be written.*HF_HOME") as caught:
        resolve("hf://o/n")
    assert caught.value.errno == number


@pytest.mark.skipif(not Path("/sys/kernel").is_dir(), reason="needs a folder nobody can write")
def test_a_read_only_file_system(hub: Hub) -> None:
    hub.cache = Path("/sys/kernel/cfm")
    kind, message = hub.ask("hf://o/n")
    assert kind in ("OSError", "PermissionError")
    assert "HF_HOME" in message


def test_two_processes_save_one_checkpoint(tmp_path: Path) -> None:
    """Whoever is last wins; what is there is one of the two, whole."""
    code = """
import sys, torch
from cfm.hub import save_checkpoint
value = float(sys.argv[2])
sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
for _ in range(20):
    try:
        save_checkpoint(
            sys.argv[1], {"w": torch.full((2000,), value)}, {"k": value}, overwrite=True
        )
    except FileExistsError:
        pass
    except OSError as error:  # the other one put its folder there in the same moment
        if error.errno not in (2, 39):
            raise
"""
    folder = tmp_path / "c"
    both = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(folder), str(value)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for value in (1, 2)
    ]
    for process in both:
        assert process.stdout is not None
        process.stdout.readline()
    for process in both:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    while any(process.poll() is None for process in both):
        try:
            found = load_checkpoint(folder)
        except (ValueError, OSError):  # in the moment between the two renames
            continue
        assert set(found.tensors["w"].tolist()) == {found.config["k"]}
    for process in both:
        process.communicate()
        assert process.returncode == 0
    found = load_checkpoint(folder)
    assert set(found.tensors["w"].tolist()) == {found.config["k"]}


@LINUX
def test_a_full_disk_while_a_model_is_saved(tmp_path: Path) -> None:
    """The limit of the size of a file fails as a full disk does, for every file that is written."""
    folder = copied("UCE", tmp_path)
    before = digests(tmp_path)
    code = """
import resource, signal, sys
from cfm.models import UCE
model = UCE.from_pretrained(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for most in (0, 100, 3000, 50_000):
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))
    try:
        model.save(sys.argv[1], overwrite=True)
    except OSError as error:
        if len(str(error)) < 10:
            sys.exit(5)
    else:
        sys.exit(6)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
if sys.argv[2:]:
    model.save(sys.argv[1], overwrite=True)
"""
    subprocess.run([sys.executable, "-c", code, str(folder)], check=True)
    assert digests(tmp_path) == before  # neither changed nor anything beside it
