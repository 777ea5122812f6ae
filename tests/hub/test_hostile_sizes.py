"""Sizes that a checkpoint claims are compared with its weights before memory is taken for them."""

from __future__ import annotations

import copy
import json
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cfm.hub import load_checkpoint, load_safetensors, load_torch
from cfm.models import LingshuCell, load_model
from cfm.models.bulkformer import LocalFactorModel
from cfm.models.bulkformer._compounds import CompoundHead
from cfm.models.cellpulse._classifier import VirusClassifier
from cfm.models.lingshu._counts import CountTerm
from tests import _bulk, _cellvq, _lingshu
from tests.hub._hostile import NAMES, copied, header_of, saved, write_header

#: What stands in for each number in turn.
WRONG: list[Any] = [10**5, 10**9, 2**40, 2**62, 2**70, 0, -1, True, 3.0, "7", [7]]
#: Numbers that no memory depends on, of which any that makes sense is taken.
FREE = {
    *("n_tokens", "decoder_loops", "eps", "bin_alpha", "mean", "spread"),
    *("dropout", "attention_dropout", "ff_dropout", "donor_dropout", "condition_dropout"),
    *("n_embedding",),  # of compounds that are described by features
    *("n_contrasts", "n_studies"),  # behind a share
}
FLAGS = {
    *("centred", "knows_genes", "signed", "code_term", "expression_term", "depth"),
    *("learned_positions", "use_cell_states", "templates"),
}
#: Loads the folders under new settings, and writes what came of it: growth of memory and time.
CODE = """
import json, re, resource, sys, time, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from cfm.models import load_model
def status(name):
    return int(re.search(name + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024
jobs = [json.loads(line) for line in sys.stdin]
for folder in {job[0] for job in jobs}:
    load_model(folder)
resource.setrlimit(resource.RLIMIT_AS, ((status("VmSize") + 3000) * 2**20,) * 2)
for folder, header in jobs:
    Path(folder, "config.json").write_text(header)
    Path("/proc/self/clear_refs").write_text("5")  # begins a new peak
    before, start, said = status("VmHWM"), time.perf_counter(), "loaded"
    try:
        load_model(folder)
    except Exception as error:
        said = type(error).__name__ + ": " + str(error)
    found = said[:2000], status("VmHWM") - before, time.perf_counter() - start
    sys.stdout.write(json.dumps(found) + "\\n")
"""


def full(name: str, folder: Path) -> Path:
    """A checkpoint of a small model with all parts that it may have."""
    if name == "BulkFormer":
        adata = _bulk.toy_log_tpm(n=32)
        table = pd.DataFrame(np.random.default_rng(0).normal(size=(80, 3)), index=adata.var_names)
        model: Any = _bulk.untrained(adata, gene_features=table)
        model.linear_term = LocalFactorModel(80, 3, 2, 5)
        model.compound_head = CompoundHead(10, 19, ["a", "b"], ["x", "y"], rank=4, hidden=6)
    elif name == "CellPulse":
        model = load_model(saved(name))
        record = {"level": "virus", "answer": "a", "n_contrasts": 3, "n_studies": 3, "share": 0.9}
        kinds = ["viral", "other"]
        settings: Any = {"classes": ["a", "b"], "responses": kinds, "support": [record]}
        model.classifier = VirusClassifier(30, **settings)
    elif name == "CellVQ":
        terms = {"relation": 4, "code_term": True, "expression_term": True}
        model = _cellvq.small_model(**terms)
    elif name == "LingshuCell":
        cells = _lingshu.toy_counts(n=50)
        LingshuCell.setup_anndata(cells, **_lingshu.KEYS, covariate_keys=["batch"])
        model = LingshuCell(cells, **_lingshu.SIZES, depth=True)
        model.module.count_term = CountTerm(42, 2, 2, [[2, 3]])
    else:
        return copied(name, folder)
    return Path(model.save(folder / name))


def numbers(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Places of all numbers and flags in settings, of a list of the first."""
    if isinstance(value, int | float):
        yield path
    items = value.items() if isinstance(value, dict) else []
    if isinstance(value, list):
        items = list(enumerate(value))[:1]
    for key, item in items:
        yield from numbers(item, (*path, key))


def changed(header: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The same with another value in one place."""
    made = copy.deepcopy(header)
    place = made["config"]
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return made


def of_lists(name: str, header: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Settings that are long lists."""
    words, many = [f"w{i}" for i in range(100_000)], 100_000
    lists: dict[str, list[tuple[tuple[Any, ...], Any]]] = {
        "BulkFormer": [(("compounds", "compounds"), words)],
        "CellPulse": [
            (("classifier", "classes"), words),
            (("classifier", "responses"), words),
            (("classifier", "support"), words),
        ],
        "LingshuCell": [
            (("levels", "covariates"), {w: [] for w in words}),
            (("levels", "covariates"), {w: ["a"] for w in words}),
            (("levels", "perturbations"), words),
            (("count_term", "sizes", "combinations"), [[i, i + 1] for i in range(many)]),
        ],
        "Pulsar": [(("head", "outputs"), words)],
        "UCE": [(("size", "expression_dims"), [1] * many)],
    }
    for path, value in lists.get(name, []):
        yield "a long list: " + ".".join(map(str, path)), changed(header, path, value)


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs VmHWM and RLIMIT_AS")
def test_every_number_of_every_model(tmp_path: Path) -> None:
    what: list[tuple[str, tuple[Any, ...], Any]] = []
    jobs: list[str] = []

    def job(path: tuple[Any, ...], value: Any, settings: dict[str, Any]) -> None:
        if settings != header or type(value) is bool:
            what.append((name, path, value))
            jobs.append(json.dumps([str(folder), json.dumps(settings)]))

    for name in NAMES:
        folder = full(name, tmp_path)
        header = header_of(folder)
        for path in numbers(header["config"]):
            for value in WRONG:
                job(path, value, changed(header, path, value))
        for said, settings in of_lists(name, header):
            job((said,), [], settings)
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        input="\n".join(jobs),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(found) == len(jobs) > 900
    for (name, path, value), (said, grown, took) in zip(what, found, strict=True):
        where = (name, path, value, said, grown, took)
        assert grown < 200, where
        assert took < 10, where
        if said == "loaded":
            number = type(value) in (int, float) and any(part in FREE for part in path)
            assert number or (value is True and path[-1] in FLAGS), where
        else:
            assert said.startswith("ValueError: "), where
            assert repr(name) in said or f"/{name}" in said, where
            assert "alloc" not in said, where


def long_header(path: Path, n: int, metadata: str = "") -> Path:
    """A safetensors file of many empty tensors."""
    header: dict[str, Any] = {
        f"w{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(n)
    }
    header["__metadata__"] = {"format": "pt" + metadata}
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text)
    return path


@pytest.mark.parametrize(("n", "metadata"), [(10_001, 0), (300_000, 0), (1, 3 * 10**6)])
def test_headers_beyond_all_measure(tmp_path: Path, n: int, metadata: int) -> None:
    path = long_header(tmp_path / "a.safetensors", n, " " * metadata)
    folder = copied("UCE", tmp_path)
    (folder / "model.safetensors").write_bytes(path.read_bytes())
    start = time.perf_counter()
    for read, place in (
        (load_safetensors, path),
        (load_torch, path),
        (load_checkpoint, folder),
        (load_model, folder),
    ):
        with pytest.raises(ValueError, match="expected at most") as error:
            read(place)
        assert str(place) in str(error.value)
    assert time.perf_counter() - start < 5


def test_many_tensors_in_settings(tmp_path: Path) -> None:
    folder = copied("UCE", tmp_path)
    header = header_of(folder)
    header["tensors"] = {f"w{i}": {"shape": [], "dtype": ""} for i in range(100_000)}
    write_header(folder, header)
    start = time.process_time()
    with pytest.raises(ValueError, match="disagree"):
        load_model(folder)
    assert time.process_time() - start < 10


def test_archives_of_many_records(tmp_path: Path) -> None:
    from cfm.hub import _torch

    path = tmp_path / "a.pt"
    torch.save({f"w{i}": torch.empty(0) for i in range(300)}, path)
    assert len(load_torch(path)) == 300
    shared = torch.zeros(1)
    torch.save({"w": [shared.expand(2) for _ in range(50_000)]}, path)
    assert path.stat().st_size < _torch._LARGEST_LIST  # so this is read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_torch, "_LARGEST_LIST", 10**5)
        start = time.perf_counter()
        with pytest.raises(ValueError, match="a list of them of"):
            load_torch(path)
        assert time.perf_counter() - start < 1
        patch.undo()
        patch.setattr(_torch, "_MOST_RECORDS", 3)
        torch.save({f"w{i}": torch.empty(0) for i in range(300)}, path)
        with pytest.raises(ValueError, match="records"):
            load_torch(path)


def test_bad_safetensors_through_load_torch(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    for content in (b"", b"abc", b"\0" * 100, struct.pack("<Q", 2) + b"{}" + b"x"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.safetensors is truncated or not"):
            load_torch(path)
    with pytest.raises(ValueError, match=r"no file 'b\.safetensors'"):
        load_torch(tmp_path / "b.safetensors")
