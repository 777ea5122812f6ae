"""Weights in the authors' own layouts, damaged: refused with a sentence by every model."""

from __future__ import annotations

import copy
import json
import pickle
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from cfm.data._result_store import ResultStore
from cfm.hub._checkpoint import validate_config
from cfm.models import UCE, BulkFormer, CellVQ, Pulsar, VirtualInstrument
from tests import _bulk, _pulsar, _uce

CELLVQ = Path(_pulsar.GOLDEN).parent / "cellvq"
#: Tables in the place of those that the authors release beside their weights.
TABLES = [b"", b"\n", b"\xff\xfe", b'a\n"b', b"a,b\n1,2,3,4\n", b"gene_name\tensg_id\n1\t2\n"]


def states(good: dict[str, Any]) -> Iterator[tuple[str, dict[Any, Any]]]:
    """State dicts that are wrong, each in one way."""
    for number, (name, tensor) in enumerate(good.items()):
        if not isinstance(tensor, torch.Tensor):
            continue
        wrong = {
            "left out": None,
            "text": "x",
            "a number": 3,
            "no dimension": torch.tensor(1.0),
            "one more": tensor[None],
            "empty": torch.empty(0, 7),
            "sparse": torch.eye(3).to_sparse(),
            "not finite": torch.full(tensor.shape or (1,), float("nan")),
        }
        change = list(wrong)[number % len(wrong)]
        changed = dict(good)
        if change == "left out":
            del changed[name]
        else:
            changed[name] = wrong[change]
        yield f"{name}: {change}", changed
    yield "one too many", good | {"extra": torch.ones(2)}
    yield "a number for a name", good | {3: torch.ones(2)}
    yield "nothing", {}
    yield "inside another", {"state_dict": good}


def refused(read: Callable[[], object], what: object) -> None:
    try:
        read()
    except ValueError as error:
        assert type(error) is ValueError, (what, repr(error))
        assert len(str(error)) > 40, what
    else:
        raise AssertionError(f"was read: {what}")


def test_bulkformer(tmp_path: Path) -> None:
    folder = _bulk.published(tmp_path / "theirs")

    def read() -> object:
        return BulkFormer.from_pretrained(folder)

    read()
    for name in ("bulkformer_tiny.pt", "G_tcga.pt", "G_tcga_weight.pt"):
        path = folder / name
        content = path.read_bytes()
        good = torch.load(path, weights_only=True)
        made = states(good) if isinstance(good, dict) else states({"tensor": good})
        for what, state in made:
            # a counter that nothing reads, and copies, which may be left out
            if "calls_since" not in what and not ("instance" in what and "left out" in what):
                torch.save(state, path)
                refused(read, (name, what))
        if isinstance(good, torch.Tensor):
            for wrong in (good[None], good[..., :1], -good.float() - 1, torch.tensor(1)):
                torch.save(wrong, path)
                refused(read, (name, wrong.shape))
        path.write_bytes(content)
    for table in TABLES:
        (folder / "bulkformer_gene_info.csv").write_bytes(table)
        refused(read, table)


def test_cellvq(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(CELLVQ, tmp_path / "theirs"))
    path = folder / "models.ckpt"
    good = torch.load(path, weights_only=True)
    mode = next(key for key in good if key != "config")
    heads = {"disease.weight", "disease.bias", "sex.weight", "sex.bias", "age.weight", "age.bias"}
    heads |= {"tissue.weight", "tissue.bias", "cell_type.weight", "cell_type.bias"}
    unused = {"to_final", "token_emb.emb_mask", "token_emb.emb_pad", "decoder.performer.calls"}

    def read() -> object:
        return CellVQ.from_pretrained(path, mode=mode)

    read()
    for what, state in states(good[mode]):
        # heads may be absent, and of what no result depends on anything goes, but for its kind
        name = what.split(":")[0].removeprefix("module.")
        if name in heads or name.startswith(tuple(unused)) or name == "cell_vq.embedding":
            continue
        torch.save(good | {mode: state}, path)
        refused(read, what)
    for wrong in (torch.tensor(1.0), torch.ones(3), torch.ones(3, 3, 3)):
        torch.save(good | {mode: good[mode] | {"disease.weight": wrong}}, path)
        refused(read, wrong.shape)
    for key in ("encoder", "decoder", "bin_alpha"):
        for value in (None, "x", 3, [1]) if key != "bin_alpha" else (None, "x", [], {}):
            torch.save(good | {"config": copy.deepcopy(good["config"]) | {key: value}}, path)
            refused(read, (key, value))
    torch.save(good, path)
    for table in TABLES:
        (folder / "OS_scRNA_gene_index.19264.tsv").write_bytes(table)
        refused(read, table)


def test_uce(tmp_path: Path) -> None:
    folder = _uce.published(tmp_path / "theirs")

    def read() -> object:
        return UCE.from_pretrained(folder, n_heads=_uce.N_HEADS)

    read()
    weights = folder / "uce_tiny.torch"
    content = weights.read_bytes()
    good = torch.load(weights, weights_only=True)
    for what, state in states(good):
        torch.save(state, weights)
        refused(read, what)
    weights.write_bytes(content)
    proteins = next((folder / "protein_embeddings").iterdir())
    content = proteins.read_bytes()
    for wrong in ([1], torch.ones(3), {"a": 1}, {"a": [1.0]}, {"a": "x"}, {"a": torch.ones(3)}, {}):
        torch.save(wrong, proteins)
        refused(read, wrong)
    proteins.write_bytes(content)
    offsets = folder / "species_offsets.pkl"
    content = offsets.read_bytes()
    for offset in (-5, 10**9, 10**30, 58, True, 3.0):
        offsets.write_bytes(pickle.dumps({"human": offset}))
        refused(read, offset)
    offsets.write_bytes(content)
    rows = ["GENE0,1,x", "GENE0,1,", "GENE0,1,1e400", "GENE0,1,-3", "GENE0"]
    head = "species,gene_symbol,chromosome,start\n"
    for table in TABLES + [f"{head}human,{row}\n".encode() for row in rows]:
        (folder / "species_chrom.csv").write_bytes(table)
        refused(read, table)


def test_pulsar(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(_pulsar.GOLDEN / "PULSAR-classifier", tmp_path / "theirs"))
    path = folder / "config.json"

    def read() -> object:
        return Pulsar.from_pretrained(folder)

    read()
    config = json.loads(path.read_text())
    sizes = [key for key in config if key.endswith("_size") or "_num_" in key]
    assert len(sizes) >= 8
    for key in [*sizes, "layer_norm_eps", "decoder_loop_num", "id2label"]:
        for value in (None, -1, 0, "x", [1], {"a": 1}, 10**9, 10**18, True):
            usual = (key == "id2label" and (not value or isinstance(value, dict))) or (
                key == "decoder_loop_num" and isinstance(value, int) and value >= 10**9
            )
            unused = key in ("layer_norm_eps",) and value == 0
            if usual or unused or config[key] == value:
                continue
            path.write_text(json.dumps(config | {key: value}))
            refused(read, (key, value))
    for content in (b"", b"[", b"[]", b"\xff", b"[" * 10**5, b'{"model_type": "PULSAR"}'):
        path.write_bytes(content)
        refused(read, content[:20])
    path.write_text(json.dumps(config))
    weights = folder / "model.safetensors"
    for what, state in states(load_file(weights)):
        plain = all(
            isinstance(v, torch.Tensor) and v.layout == torch.strided for v in state.values()
        )
        if plain and 3 not in state and what != "inside another":
            save_file(state, weights)
            refused(read, what)


def test_virtual_instrument(tmp_path: Path) -> None:
    path = tmp_path / "virtual_instrument.pt"
    good = torch.load(_pulsar.GOLDEN / path.name, weights_only=True)
    for what, state in states(good):
        torch.save(state, path)
        refused(lambda: VirtualInstrument.from_pretrained(path), what)


def _copied(golden: Path) -> Callable[[Path], Path]:
    return lambda folder: Path(shutil.copytree(golden, folder))


@pytest.mark.parametrize(
    ("model", "write", "file"),
    [
        *(
            (BulkFormer, _bulk.published, name)
            for name in ("bulkformer_tiny.pt", "G_tcga.pt", "G_tcga_weight.pt")
        ),
        (CellVQ, _copied(CELLVQ), "models.ckpt"),
        (Pulsar, _copied(_pulsar.GOLDEN / "PULSAR-classifier"), "model.safetensors"),
        (UCE, _uce.published, "uce_tiny.torch"),
    ],
)
def test_truncated_files_are_named(
    model: Any, write: Callable[[Path], Path], file: str, tmp_path: Path
) -> None:
    folder = write(tmp_path / "theirs")
    content = (folder / file).read_bytes()
    for kept in (0, 10, len(content) // 2, -20):
        (folder / file).write_bytes(content[:kept])
        with pytest.raises(ValueError, match=file):
            model.from_pretrained(folder)


def test_validate_config() -> None:
    with validate_config("Toy", "x", range(2)):
        made = torch.nn.Linear(10**6, 10**6)
    assert made.weight.is_meta
    with (
        pytest.raises(ValueError, match="checkpoint 'x' lacks or garbles a setting of Toy"),
        validate_config("Toy", "x", range(2)),
    ):
        torch.nn.Linear(10**18, 10**18)
    start = time.perf_counter()
    with (
        pytest.raises(ValueError, match="more layers than the 2 tensors have weights for"),
        validate_config("Toy", "x", range(2)),
    ):
        torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(10**9))
    assert time.perf_counter() - start < 5
    torch.nn.ModuleList(torch.nn.Linear(1, 1) for _ in range(100))  # elsewhere nothing is counted


def test_a_damaged_chunk_of_results_is_named(tmp_path: Path) -> None:
    import numpy as np

    store = ResultStore(tmp_path / "out.h5ad")
    store.begin({"a": 1})
    store.write(0, {"x": np.arange(1000)})
    assert store.read_one(0, "x").shape == (1000,)
    (path,) = store.folder.glob("*.npz")
    content = path.read_bytes()
    for wrong in (b"", b"PK", content[:100], content[:-30], b"\0" * 100, content[::-1]):
        path.write_bytes(wrong)
        for read in (lambda: store.read(0), lambda: store.read_one(0, "x")):
            with pytest.raises(ValueError, match=r"is damaged.*delete that file"):
                read()
    changed = bytearray(content)
    changed[500] ^= 0xFF
    path.write_bytes(changed)
    with pytest.raises(ValueError, match="is damaged"):
        store.read(0)
    store.release()
