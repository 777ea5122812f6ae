"""Small checkpoints of every model, and what damages or malice may make of them."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from cfm.hub._checkpoint import read_header, sha256_of_file
from cfm.models import (
    UCE,
    CellPulse,
    LingshuCell,
    PerturbationCountModel,
    Pulsar,
    VirtualInstrument,
)
from tests import _bulk, _cellvq, _lingshu, _pulsar, _uce

NAMES = [
    "BulkFormer",
    "CellPulse",
    "CellVQ",
    "LingshuCell",
    "PerturbationCountModel",
    "Pulsar",
    "UCE",
    "VirtualInstrument",
]
#: Values that stand in for each setting in turn.
WRONG: list[Any] = [None, -1, 0, 10**18, 1.5, True, "x", [], {}, [[]], {"a": 1}, [None]]
#: Contents that stand in for each text file in turn.
TEXTS = [b"", b"\n", b"\0", b"[" * 50_000, b"{}", b"null", b"a,b\n1,2\n3,4\n", b'{"a": 1}', b"\xff"]


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> Any:
        return os.mkdir, (self.path,)


@cache
def saved(name: str) -> Path:
    """Folder of a small model. Not to be changed by a test."""
    folder = Path(mkdtemp()) / name
    if name == "BulkFormer":
        return _bulk.untrained(_bulk.toy_log_tpm(n=32)).save(folder)
    if name == "CellPulse":
        genes = [f"G{i}" for i in range(30)]
        sizes = {"dim": 16, "n_heads": 2, "n_factors": 4, "n_tokens": 16}
        model = CellPulse(vocabulary=genes, size="mini", **sizes)
        model.module.set_gene_factors(torch.randn(30, 4), torch.arange(4) % 2)
        return model.save(folder)
    if name == "CellVQ":
        return _cellvq.small_model().save(folder)
    if name == "LingshuCell":
        cells = _lingshu.toy_counts(n=50)
        LingshuCell.setup_anndata(cells, **_lingshu.KEYS)
        features = pd.DataFrame(np.eye(3), index=["y", "z", "x"], columns=["a", "b", "c"])
        model = LingshuCell(cells, perturbation_features=features, **_lingshu.SIZES)
        return model.save(folder)
    if name == "PerturbationCountModel":
        cells = _lingshu.toy_counts(n=200)
        PerturbationCountModel.setup_anndata(cells, **_lingshu.KEYS)
        features = pd.DataFrame(np.eye(3), index=["y", "z", "x"], columns=["a", "b", "c"])
        model = PerturbationCountModel(cells, perturbation_features=features)
        model.train()
        model.provenance = {}  # of which any value is taken
        return model.save(folder)
    if name == "Pulsar":
        return Pulsar.from_pretrained(_pulsar.GOLDEN / "PULSAR-classifier").save(folder)
    if name == "UCE":
        files = _uce.published(Path(mkdtemp()) / "uce")
        return UCE.from_pretrained(files, n_heads=_uce.N_HEADS).save(folder)
    model = VirtualInstrument.from_pretrained(_pulsar.GOLDEN / "virtual_instrument.pt")
    width = model.size.condition_dim
    model.add_conditions(pd.DataFrame(np.ones((2, width)), index=["a", "b"]))
    return model.save(folder)


def copied(name: str, folder: Path) -> Path:
    """The same in a folder that a test may change."""
    return Path(shutil.copytree(saved(name), folder / name))


def header_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def write_header(folder: Path, header: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(header))


def write_tensors(folder: Path, tensors: dict[str, torch.Tensor]) -> None:
    """Write weights, and let config.json agree with them."""
    path = folder / "model.safetensors"
    save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    write_header(
        folder, header_of(folder) | {"sha256": sha256_of_file(path), "tensors": read_header(path)}
    )


def write_text(folder: Path, name: str, content: bytes) -> None:
    """Write a text file, and let config.json agree with it."""
    (folder / name).write_bytes(content)
    header = header_of(folder)
    header["files"][name] = hashlib.sha256(content).hexdigest()
    write_header(folder, header)


def settings_changed(header: dict[str, Any]) -> Iterator[tuple[tuple[Any, ...], Any, dict]]:
    """Each setting of a model in turn with each wrong value, and without it."""
    for path in _paths(header["config"], ("config",)):
        for value in WRONG:
            changed = copy.deepcopy(header)
            _parent(changed, path)[path[-1]] = value
            if changed != header:
                yield path, value, changed
        changed = copy.deepcopy(header)
        del _parent(changed, path)[path[-1]]
        yield path, "left out", changed


def tensors_changed(folder: Path) -> Iterator[tuple[str, str, dict[str, torch.Tensor]]]:
    """Each tensor in turn of another shape or kind, or left out; and one too many."""
    tensors = load_file(folder / "model.safetensors")
    for number, (name, tensor) in enumerate(tensors.items()):
        other = tensor.to(torch.int64) if tensor.is_floating_point() else tensor.float()
        changes = {
            "left out": {k: v for k, v in tensors.items() if k != name},
            "another kind": tensors | {name: other},
            "one more dimension": tensors | {name: tensor[None]},
            "no rows": tensors | {name: tensor[:0] if tensor.ndim else tensor[None][:0]},
        }
        change = list(changes)[number % len(changes)]  # each one for each tensor takes a minute
        yield name, change, changes[change]
    if header_of(folder)["model"] != "CellPulse":  # which leaves others aside
        yield "extra", "one too many", tensors | {"extra": torch.ones(2)}


def _paths(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
    inside: Any = value.items() if isinstance(value, dict) else []
    if isinstance(value, list):
        inside = list(enumerate(value))[:1]
    for key, item in inside:
        yield (*path, key)
        yield from _paths(item, (*path, key))


def _parent(header: dict[str, Any], path: tuple[Any, ...]) -> Any:
    found: Any = header
    for key in path[:-1]:
        found = found[key]
    return found
