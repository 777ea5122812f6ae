"""Two processes at once, transfers that are cut, caches that cannot be written, full disks."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

from cfm import models
from cfm.hub import list_checkpoints, load_checkpoint, resolve, save_checkpoint
from tests.hub._hostile import copied
from tests.hub._hub import Hub, answers_of

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
    assert [answers_of(process) for process in both] == [[["o/n", {"k": 7}]]] * 2
    (snapshot,) = (tmp_path / "cache").glob("hub/models--o--n/snapshots/*")
    assert digests(snapshot) == digests(hub.folder)
    assert not list((tmp_path / "cache").rglob("*.incomplete"))


@pytest.mark.slow
def test_a_transfer_that_is_cut(hub: Hub) -> None:
    hub.cut, hub.n_cuts = 5000, 10**6
    ((kind, message),) = hub.ask("hf://o/n")
    assert kind == "ConnectionError"
    assert "cut short" in message
    assert "try again" in message
    hub.n_cuts = 0
    assert hub.ask("hf://o/n") == [["o/n", {"k": 7}]]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC])
def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fail(**arguments: object) -> str:
        raise OSError(number, os.strerror(number), "/cache/hub")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(OSError, match=r"could not be written.*HF_HOME") as caught:
        resolve("hf://o/n")
    assert caught.value.errno == number


#: Saves over a checkpoint again and again: the folder, a number, rounds, and whether in two steps.
WRITER = """
import sys, torch
from cfm.hub import _save, load_checkpoint, save_checkpoint
folder, value, n, steps = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
if steps == "two":  # as where names cannot be exchanged
    _save._exchange = lambda first, second: False
try:
    old = load_checkpoint(folder)
except ValueError:
    tensors, config, files, model = {"w": torch.zeros(2000)}, {}, {}, "M"
else:
    tensors, config, files, model = old.tensors, old.config, old.files, old.model
tensors = {k: torch.full_like(v, value) for k, v in tensors.items()}
sys.stdout.write("ready\\n"); sys.stdout.flush(); sys.stdin.readline()
for _ in range(n):
    save_checkpoint(
        folder, tensors, config | {"k": value}, model=model, overwrite=True,
        files=files | {"k.txt": str(value)}, card=str(value),
    )
"""


def writers(folder: Path, n: int, steps: str) -> list[subprocess.Popen[str]]:
    """Start two processes that save over one checkpoint at once."""
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(folder), str(value), str(n), steps],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
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
    return both


def ended_well(both: list[subprocess.Popen[str]], folder: Path) -> None:
    """Whether neither had an error, and nothing else is left."""
    for process in both:
        told = process.communicate(timeout=120)[1]
        assert process.returncode == 0, told
    assert list(folder.parent.iterdir()) == [folder]


@pytest.mark.parametrize("steps", ["one", "two"])
def test_two_processes_save_one_checkpoint(tmp_path: Path, steps: str) -> None:
    """Whoever is last wins; a reader finds one of the two, whole, and nobody has an error."""
    folder = tmp_path / "c"
    both = writers(folder, 100, steps)
    seen: list[float] = []
    while any(process.poll() is None for process in both):
        if seen or folder.exists():
            assert resolve(folder) == folder
            found = load_checkpoint(folder)
            seen.append(found.config["k"])
            assert set(found.tensors["w"].tolist()) == {seen[-1]}
            assert found.files == {"k.txt": str(seen[-1])}
            assert found.card == str(seen[-1])
    ended_well(both, folder)
    assert set(seen) == {1.0, 2.0}
    assert sum(a != b for a, b in pairwise(seen)) > 10


@pytest.mark.parametrize(
    "name", ["BulkFormer", "CellPulse", "CellVQ", "LingshuCell", "Pulsar", "UCE"]
)
def test_a_model_is_loaded_while_it_is_saved_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Reads through every entry point, in all of whose steps the folder may be another."""
    folder = copied(name, tmp_path)
    monkeypatch.setenv("CFM_CHECKPOINTS", str(tmp_path))
    digests = {load_checkpoint(folder).sha256}
    spare = copied(name, tmp_path / ".spare")
    changed = load_checkpoint(spare)
    stop, errors = threading.Event(), []

    def write() -> None:
        try:
            while not stop.is_set():
                save_checkpoint(
                    folder,
                    changed.tensors,
                    changed.config,
                    model=name,
                    files=changed.files,
                    overwrite=True,
                )
        except BaseException as error:  # noqa: BLE001
            errors.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        model = getattr(models, name)
        for _ in range(15):
            for read in (model.from_pretrained, models.load_model):
                assert {read(source).checkpoint_sha256 for source in (folder, name)} == digests
            assert name in list_checkpoints().index
            assert resolve(name) == folder
    finally:
        stop.set()
        writer.join()
    assert not errors


def test_a_reader_begins_again_with_the_new_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step of reading, the folder is replaced once."""
    from cfm.hub import _checkpoint

    for step in ("read_config", "read_header", "sha256_of_file", "read_tensors", "read_card"):
        for after in (False, True):
            folder = save_checkpoint(
                tmp_path / "c", {"w": torch.zeros(3)}, {"k": 0}, card="0", overwrite=True
            )
            original, calls = getattr(_checkpoint, step), []

            def replaced(*args: Any, **kwargs: Any) -> Any:
                calls.append(1)  # noqa: B023
                found = original(*args, **kwargs) if after else None  # noqa: B023
                if len(calls) == 1:  # noqa: B023
                    new = {"w": torch.ones(3)}
                    save_checkpoint(tmp_path / "c", new, {"k": 1}, card="1", overwrite=True)
                return found if after else original(*args, **kwargs)  # noqa: B023

            monkeypatch.setattr(_checkpoint, step, replaced)
            found = load_checkpoint(folder)
            monkeypatch.setattr(_checkpoint, step, original)
            assert found.tensors["w"].tolist() == [found.config["k"]] * 3, (step, after)
            assert found.card == str(found.config["k"]) == "1", (step, after)


@LINUX
def test_a_kill_while_saving_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    folder = save_checkpoint(tmp_path / "c", {"w": torch.zeros(2000)}, {"k": 0.0}, model="M")
    for delay in (0.0, 0.03):
        (first, second) = writers(folder, 10**6, "one")
        time.sleep(0.3 + delay)
        first.kill()
        second.kill()
        for process in (first, second):
            process.communicate()
        found = load_checkpoint(folder)
        assert set(found.tensors["w"].tolist()) == {found.config["k"]}


@pytest.mark.skipif(os.name != "posix", reason="permission bits of POSIX")
def test_a_reader_writes_nothing(tmp_path: Path) -> None:
    folder = copied("UCE", tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    modes = {path: path.stat().st_mode for path in (tmp_path, folder, *folder.iterdir())}
    for path in modes:
        path.chmod(0o555 if path.is_dir() else 0o444)
    models.load_model(folder)
    for path, mode in modes.items():
        path.chmod(mode)
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}


@pytest.mark.slow
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
