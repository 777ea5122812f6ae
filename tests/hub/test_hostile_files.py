"""Files that lie about their size, are cut anywhere, or hold code: refused, and nothing runs."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cfm.hub import _checkpoint as layout
from cfm.hub import list_checkpoints, load_checkpoint, load_safetensors, load_torch, resolve
from cfm.models import UCE, BulkFormer, CellVQ, Pulsar, VirtualInstrument, load_model
from cfm.models._resume import CheckpointFiles
from cfm.models.uce._published import _offsets
from tests import _bulk, _pulsar, _uce
from tests.hub._hostile import Malicious, copied, header_of, saved, write_header

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
#: Numbers in a pickle that take memory, where the unpickler believes them.
GREEDY = {
    "entry 2^30 of the memo": b"\x80\x02}r" + struct.pack("<I", 2**30) + b".",
    "text of 2^40": b"\x80\x04\x8d" + struct.pack("<Q", 2**40) + b"a.",
    "bytes of 2^40": b"\x80\x05\x96" + struct.pack("<Q", 2**40) + b"a.",
    "frame of 2^60": b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b".",
}


#: Ways in which an object is written.
WRITERS: dict[str, Callable[[Any, Path], Any]] = {
    "archive": torch.save,
    "old format": lambda value, path: torch.save(value, path, _use_new_zipfile_serialization=False),
    "pickle": lambda value, path: path.write_bytes(pickle.dumps(value)),
}
NOTHING = "nothing (in it was executed|was loaded)"


class Shell(Malicious):
    """The same through a shell."""

    def __reduce__(self) -> Any:
        return os.system, (f"mkdir '{self.path}'",)


def safetensors(path: Path, header: Any, data: bytes = b"", size: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if size is None else size) + text + data)
    return path


@pytest.mark.parametrize(
    ("header", "data", "size"),
    [
        (b"{}", b"", 2**62),
        (b"{}", b"", 2**31),
        (b"{}", b"", 90 * 2**20),
        ({"w": ONE | {"data_offsets": [8, 0]}}, b"\0" * 8, None),
        ({"w": ONE | {"data_offsets": [0, 800]}}, b"\0" * 8, None),
        ({"w": ONE, "v": ONE}, b"\0" * 8, None),
        ({"w": ONE, "v": ONE | {"data_offsets": [4, 12]}}, b"\0" * 12, None),
        ({"w": ONE, "v": ONE | {"data_offsets": [16, 24]}}, b"\0" * 24, None),
        ({"w": ONE | {"shape": [10**9]}}, b"\0" * 8, None),
        ({"w": ONE | {"shape": [2**40, 2**40]}}, b"\0" * 8, None),
        ({"w": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}}, b"", None),
        ({"w": ONE | {"shape": [-2]}}, b"\0" * 8, None),
        ({"w": ONE | {"dtype": "F99"}}, b"\0" * 8, None),
        ({"w": {"dtype": "F4", "shape": [16], "data_offsets": [0, 8]}}, b"\0" * 8, None),
        ({"w": ONE}, b"\0" * 80, None),
        ({"__metadata__": 3, "w": ONE}, b"\0" * 8, None),
        (b"[" * 10**6, b"", None),
        (b'{"a":' * 10**5, b"", None),
        (b'{"\xff": 1}', b"", None),
    ],
)
def test_headers_that_lie(tmp_path: Path, header: Any, data: bytes, size: int | None) -> None:
    path = safetensors(tmp_path / "a.safetensors", header, data, size)
    with pytest.raises(ValueError, match=r"not a safetensors file|cannot convert"):
        load_safetensors(path)
    folder = copied("UCE", tmp_path)
    path.replace(folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"download .* again|disagree"):
        load_checkpoint(folder)


def script(path: Path) -> None:
    """Write the layout of a TorchScript archive, without the deprecated compiler."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/code/__torch__.py", "raise SystemExit")
        archive.writestr("script/data.pkl", b"")


NAN = torch.tensor([1.0, float("nan")])
#: What a file holds or how it is written, and what is said of it.
REFUSED: dict[str, tuple[Any, str]] = {
    "NaN within": ({"m": [{"w": NAN}]}, r"m\[0\]\.w"),
    "NaN under a like path": ({"a": {"b": NAN}, "a.b": torch.ones(1)}, "holds NaN"),
    "NaN that is complex": ({"w": torch.tensor([complex(0, float("nan"))])}, "holds NaN"),
    "no dictionary": ([1, 2], "holds a list"),
    "a dictionary without names": ({3: torch.ones(1)}, "dictionary without names"),
    "a module": (torch.nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
    "a script": (script, "TorchScript"),
    "no file": (lambda path: None, "no file"),
    **{
        f"random bytes {seed}": (np.random.default_rng(seed).bytes(300), r"truncated|damaged")
        for seed in range(5)
    },
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_state_dict(tmp_path: Path, name: str) -> None:
    content, message = REFUSED[name]
    path = tmp_path / "a.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif callable(content) and not isinstance(content, torch.nn.Module):
        content(path)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        load_torch(path)


@pytest.mark.parametrize("write", ["archive", "old format"])
def test_what_is_read(tmp_path: Path, write: str) -> None:
    state = {"w": torch.ones(2, dtype=torch.bfloat16), "mask": torch.tensor([0.0, float("-inf")])}
    nested = {"config": {"d": 3}, "m1": state, "steps": [1, 2]}
    path = tmp_path / "a.ckpt"
    WRITERS[write](nested, path)
    loaded = load_torch(path)
    assert loaded["config"] == {"d": 3}
    assert loaded["m1"]["w"].dtype == torch.bfloat16
    assert torch.equal(loaded["m1"]["mask"], state["mask"])
    WRITERS[write](torch.arange(3), path)
    assert load_torch(str(path))["tensor"].tolist() == [0, 1, 2]


def test_cut_anywhere(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    for zipped in (True, False):
        state = {f"w{i}": torch.randn(5, 3) for i in range(3)}
        torch.save(state, whole, _use_new_zipfile_serialization=zipped)
        content = whole.read_bytes()
        for end in range(0, len(content) - 1, 29):
            (tmp_path / "cut.pt").write_bytes(content[:end])
            with pytest.raises(ValueError, match=r"truncated|damaged|empty"):
                load_torch(tmp_path / "cut.pt")
    for name in ("Pulsar", "CellVQ"):
        folder = copied(name, tmp_path)
        for file in ("config.json", "model.safetensors"):
            content = (folder / file).read_bytes()
            for share in range(0, 100, 9):
                (folder / file).write_bytes(content[: len(content) * share // 100])
                with pytest.raises(ValueError, match=r"again|from_pretrained"):
                    load_model(folder)
            (folder / file).write_bytes(content)


def test_bytes_changed_anywhere(tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt"
    torch.save({f"w{i}": torch.ones(2, 3) for i in range(3)}, whole)
    content = whole.read_bytes()
    for place in range(0, len(content), 41):
        changed = bytearray(content)
        changed[place] ^= 0xFF
        whole.write_bytes(changed)
        try:
            load_torch(whole)
        except ValueError as error:
            assert type(error) is ValueError
            assert len(str(error)) > 40


def poisoned(trap: Path) -> dict[str, Any]:
    """Places for an object that runs code when it is read."""
    return {
        "alone": Shell(trap),
        "in a state dict": {"w": torch.ones(2), "x": Malicious(trap)},
        "deep": {"m1": {"a": [{"b": (Malicious(trap),)}]}, "config": {}},
        "in the config": {"m1": {"w": torch.ones(2)}, "config": Shell(trap)},
        "as a key": {Malicious(trap): torch.ones(1)},
    }


@pytest.mark.parametrize("place", poisoned(Path()))
@pytest.mark.parametrize("write", WRITERS)
def test_no_code_runs_whatever_reads_it(
    tmp_path: Path, place: str, write: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The variable switches torch's own protection off where a caller relies on its default.
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    dump = WRITERS[write]
    trap = tmp_path / "ran"
    bulk, uce = _bulk.published(tmp_path / "bulk"), _uce.published(tmp_path / "uce")
    cellvq = tmp_path / "cellvq"
    cellvq.mkdir()
    proteins = next((uce / "protein_embeddings").iterdir())
    run = tmp_path / "run"
    run.mkdir()
    readers: dict[Path, Callable[[], Any]] = {
        bulk / "bulkformer_tiny.pt": lambda: BulkFormer.from_pretrained(bulk),
        bulk / "G_tcga.pt": lambda: load_model(bulk),
        bulk / "G_tcga_weight.pt": lambda: load_model(bulk),
        cellvq / "models.ckpt": lambda: CellVQ.from_pretrained(cellvq),
        proteins: lambda: UCE.from_pretrained(uce, n_heads=_uce.N_HEADS),
        uce / "uce_tiny.torch": lambda: load_model(uce),
        uce / "species_offsets.pkl": lambda: _offsets(uce),
        tmp_path / "virtual_instrument.pt": lambda: VirtualInstrument.from_pretrained(
            tmp_path / "virtual_instrument.pt"
        ),
        tmp_path / "any.pt": lambda: load_torch(tmp_path / "any.pt"),
    }
    for path, read in readers.items():
        good = path.read_bytes() if path.exists() else None
        (WRITERS["pickle"] if path.suffix == ".pkl" else dump)(poisoned(trap)[place], path)
        with pytest.raises(ValueError, match=NOTHING):
            read()
        assert not trap.exists(), path
        if good is not None:
            path.write_bytes(good)
    state = run / "step-000000001.ckpt"
    dump(poisoned(trap)[place], state)
    with (
        pytest.warns(UserWarning, match=NOTHING),
        pytest.raises(ValueError, match="No state of the training"),
    ):
        CheckpointFiles(run).load_checkpoint(state)
    assert not trap.exists()
    if write == "pickle":
        pickle.loads(state.read_bytes())
    else:
        torch.load(state, weights_only=False)
    assert trap.exists()  # the trap works where something does open it


def test_pickles_that_are_no_numbers(tmp_path: Path) -> None:
    odd = [b"", b"\x80\x02}}b.", b"\x80\x02})R.", b"Pabc\n.", b"\x80\x02\x82\x01.", b"0."]
    odd += [b"\x80\x02}]a.", b"\x80\x02}]K\x01s.", b"(S'ls'\nios\nsystem\n.", b"\x80\x09."]
    odd += [b"(cos\nsystem\nS'ls'\no.", b"\x80\x02X\x01\0\0\0\xff.", *GREEDY.values()]
    odd += [pickle.dumps(v) for v in ([], 3, {"human": "x"}, {"human": True}, {1: 2})]
    for content in odd:
        (tmp_path / "species_offsets.pkl").write_bytes(content)
        with pytest.raises(ValueError, match=r"refused|does not hold a number"):
            _offsets(tmp_path)


def stored(path: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path: Path, content: dict[str, bytes], how: int, *, zeros: int = 0) -> Path:
    """An archive of these files, to the first of which that many MB of zeros are added."""
    with zipfile.ZipFile(path, "w", how) as archive:
        for name, data in content.items():
            with archive.open(name, "w", force_zip64=True) as file:
                file.write(data)
                for _ in range(zeros if name.endswith(("data.pkl", "/data/0")) else 0):
                    file.write(b"\0" * 2**20)
    return path


def test_packed_archives(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"w": torch.zeros(10)}, path)
    content = stored(path)
    assert load_torch(packed(path, content, zipfile.ZIP_STORED))["w"].shape == (10,)
    for zeros in (0, 64):
        packed(path, content, zipfile.ZIP_DEFLATED, zeros=zeros)
        with pytest.raises(ValueError, match="packed archive"):
            load_torch(path)
    data = bytearray(packed(path, content, zipfile.ZIP_STORED).read_bytes())
    data[data.rindex(b"PK\x01\x02") + 10] = 99  # packed in a way that nobody knows
    path.write_bytes(data)
    with pytest.raises(ValueError, match="packed archive"):
        load_torch(path)
    with tarfile.open(path, "w") as tar:
        tar.add(__file__, "../../evil")
    with pytest.raises(ValueError, match="nothing was loaded"):
        load_torch(path)
    assert list(tmp_path.iterdir()) == [path]


def test_names_in_an_archive_lead_nowhere(tmp_path: Path) -> None:
    path = tmp_path / "in" / "a.pt"
    path.parent.mkdir()
    torch.save({"w": torch.zeros(10)}, path)
    packed(path, stored(path) | {"../evil": b"x", "/tmp/evil": b"x"}, zipfile.ZIP_STORED)
    with pytest.raises(ValueError, match="nothing was loaded"):
        load_torch(path)
    assert [p.name for p in tmp_path.rglob("*")] == ["in", "a.pt"]


def test_tensors_that_repeat_what_is_stored(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    torch.save({"mask": torch.zeros(1).expand(1000, 1000)}, path)
    assert load_torch(path)["mask"].shape == (1000, 1000)  # 4 MB harm nobody
    many = {f"w{i}": torch.zeros(1).expand(10**7) for i in range(50)}
    for claimed in ({"w": torch.zeros(1).expand(10**9, 10**6)}, many):
        for zipped in (True, False):
            torch.save(claimed, path, _use_new_zipfile_serialization=zipped)
            with pytest.raises(ValueError, match="claim more than the file holds"):
                load_torch(path)


@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    place = torch.tensor([[1], [1]])
    odd = {
        "sparse": torch.sparse_coo_tensor(place, torch.ones(1), (10**9, 10**9)),
        "compressed": torch.eye(3).to_sparse_csr(),
        "without data": torch.zeros(10**12, device="meta"),
        "quantised": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
    }
    for tensor in odd.values():
        torch.save({"w": tensor}, path)
        with pytest.raises(ValueError, match=r"sparse, quantised or without data|refused"):
            load_torch(path)


def test_containers_in_containers(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    twice: list[Any] = [torch.ones(2)]
    for _ in range(40):  # 2^40 ways to the one tensor
        twice = [twice, twice]
    torch.save({"w": twice}, path)
    load_torch(path)
    inside: list[Any] = []
    inside.append(inside)
    torch.save({"w": inside}, path)
    load_torch(path)
    deep: list[Any] = []
    for _ in range(200):
        deep = [deep]
    torch.save({"w": deep}, path)
    with pytest.raises(ValueError, match="nested more than"):
        load_torch(path)


def test_settings_and_texts_too_large_to_be_true(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copied("CellVQ", tmp_path)
    for name in ("config.json", "genes.txt", "README.md"):
        path = folder / name
        before = path.read_bytes() if path.exists() else b""
        with path.open("wb") as file:
            file.truncate(2**40)  # a hole: takes no room
        with pytest.raises(ValueError, match=r"it was not read"):
            load_checkpoint(folder)
        path.write_bytes(before)
    published = tmp_path / "theirs"
    published.mkdir()
    for file in (_pulsar.GOLDEN / "PULSAR-tiny").iterdir():
        (published / file.name).write_bytes(file.read_bytes())
    with (published / "config.json").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(ValueError, match=r"it was not read"):
        Pulsar.from_pretrained(published)
    assert layout.LARGEST_JSON < layout.LARGEST_TEXT


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "genes.txt", "README.md"])
def test_links_in_a_circle(tmp_path: Path, name: str) -> None:
    folder = copied("CellVQ", tmp_path)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(folder / name)
    with pytest.raises(ValueError, match=r"leads nowhere|has no file"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "source", ["x" * 5000, "a\0b", "~nobody-of-that-name/x", "/" + "x/" * 3000]
)
def test_what_is_no_path(source: str) -> None:
    with pytest.raises(ValueError, match="There is no checkpoint"):
        resolve(source)


def test_a_damaged_folder_is_left_out_of_the_list(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = (copied(name, tmp_path) for name in ("UCE", "Pulsar"))
    monkeypatch.setenv("CFM_CHECKPOINTS", str(tmp_path))
    assert {good.name, bad.name} <= set(list_checkpoints().index)
    (bad / "model.safetensors").unlink()
    with pytest.warns(UserWarning, match="'Pulsar' is left out"):
        table = list_checkpoints()
    assert good.name in table.index
    assert bad.name not in table.index


def test_states_of_a_training(tmp_path: Path) -> None:
    files = CheckpointFiles(tmp_path)
    path = tmp_path / "step-000000007.ckpt"
    whole = {k: {} for k in ("global_step", "loops", "lr_schedulers", "optimizer_states")}
    whole |= {"state_dict": {"w": torch.ones(3)}}
    whole |= {"cfm": dict.fromkeys(("curves", "finished", "plan", "random", "sums"))}
    torch.save(whole, path)
    assert files.load_checkpoint(path)["state_dict"]["w"].shape == (3,)
    content = path.read_bytes()
    lacking = [{k: v for k, v in whole.items() if k != name} for name in whole]
    for state in (*lacking, whole | {"cfm": []}, whole | {"cfm": {}}, [], torch.ones(2)):
        torch.save(state, path)
        with (
            pytest.warns(UserWarning, match="parts are missing"),
            pytest.raises(ValueError, match="No state of the training"),
        ):
            files.load_checkpoint(path)
    for end in range(0, len(content), 97):
        path.write_bytes(content[:end])
        with (
            pytest.warns(UserWarning, match="cannot be read"),
            pytest.raises(ValueError, match="No state of the training"),
        ):
            files.load_checkpoint(path)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs RLIMIT_DATA and VmHWM")
def test_lies_about_size_take_no_memory(tmp_path: Path) -> None:
    """Peak memory of a process that reads them all, under a limit that a believer would hit."""
    header = header_of(saved("Pulsar"))
    for number, size in enumerate(("dim", "input_dim", "encoder_ff", "n_cell_states")):
        folder = copied("Pulsar", tmp_path / f"sizes{number}")
        header["config"]["size"][size] = 2**24
        write_header(folder, header)
    state = torch.zeros(10)
    torch.save({"w": state}, tmp_path / "good.pt")
    content = stored(tmp_path / "good.pt")
    packed(tmp_path / "bomb.pt", content, zipfile.ZIP_DEFLATED, zeros=256)
    torch.save({"w": torch.zeros(1).expand(2**30)}, tmp_path / "expanded.pt")
    safetensors(tmp_path / "header.safetensors", b"{}", size=2**31)
    safetensors(tmp_path / "shape.safetensors", {"w": ONE | {"shape": [2**30]}}, b"\0" * 8)
    for number, greedy in enumerate(GREEDY.values()):
        (tmp_path / f"greedy{number}").mkdir()
        (tmp_path / f"greedy{number}" / "species_offsets.pkl").write_bytes(greedy)
        inside = {k: greedy if k.endswith("data.pkl") else v for k, v in content.items()}
        packed(tmp_path / f"greedy{number}.pt", inside, zipfile.ZIP_STORED)
    code = """
import re, resource, sys
from pathlib import Path
from cfm.hub import load_safetensors, load_torch
from cfm.models import Pulsar
from cfm.models.uce._published import _offsets
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_DATA, (3 * 2**30, 3 * 2**30))
load_torch(folder / "good.pt")
try:
    load_torch(folder / "absent.pt")
except ValueError:
    before = peak()
n_refused = 0
for read, places in [
    (Pulsar.from_pretrained, folder.glob("sizes*/Pulsar")),
    (load_torch, folder.glob("*.pt")),
    (load_safetensors, folder.glob("*.safetensors")),
    (_offsets, [path for path in folder.glob("greedy*") if path.is_dir()]),
]:
    for place in places:
        try:
            read(place)
        except ValueError:
            n_refused += 1
print(n_refused, peak() - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    n_refused, grown = map(int, done.stdout.split())
    assert n_refused >= 13, done.stdout
    assert grown < 150, f"{grown} MB"
