"""The reference is the authors' arithmetic, and the cases are given the same cells."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks import _cellvq_reference as reference
from benchmarks import cellvq
from cfm.models import CellVQ

SMALL = {
    "seq_len": 62,
    "bin_alpha": 1.0,
    "bin_num": 8,
    "encoder": {"hidden_dim": 32, "depth": 2, "heads": 4},
    "decoder": {"hidden_dim": 16, "depth": 2, "heads": 2},
}


def test_the_reference_gives_the_published_numbers() -> None:
    assert cellvq.check_reference() < 1e-5


def test_the_operations_are_those_of_the_issue() -> None:
    assert 480e9 < cellvq.operations(2002) < 500e9


def test_cells_have_as_many_genes_as_asked_for() -> None:
    values, genes = cellvq.cell(0)
    assert values.shape == genes.shape == (1, 2002)
    assert len(set(genes[0].tolist())) == 2002
    assert genes[0, -2:].tolist() == [19_264, 19_265]
    assert values[0, -2] == 4.0
    total = values[0, :-2].double().expm1().sum().item()
    assert total == pytest.approx(1e4, rel=1e-4)
    assert not torch.equal(values, cellvq.cell(1)[0])


def test_what_is_written_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "models.ckpt"
    n = reference.write_published(path, SMALL)
    module = CellVQ.from_pretrained(path).module
    unused = 4096 * 12 + 2 * 32 + 16 + 1
    statistics = sum(b.numel() for k, b in module.named_buffers() if "running" in k)
    features = sum(b.numel() for k, b in module.named_buffers() if k.endswith("features"))
    assert sum(p.numel() for p in module.parameters()) == n - unused - statistics - features
    found = cellvq.round_trip(path, module, reference.load_reference(path))
    assert found["largest difference"] < 1e-5
    assert found["same code"] == 1.0


def test_all_cases_agree() -> None:
    path = cellvq.GOLDEN / "models.ckpt"
    model, module = reference.load_reference(path), CellVQ.from_pretrained(path).module
    runs = cellvq.reference_runs(model)
    runs |= cellvq.reference_runs(reference.load_reference(path).to(torch.bfloat16))
    runs |= cellvq.our_runs(module)
    cells = [cellvq.cell(i, 90, 40) for i in range(3)]
    table = cellvq.compare({k: runs[k] for k in cellvq.CASES}, cells).set_index("case")
    assert table.index.tolist() == list(cellvq.CASES)
    assert table.loc["cfm float32", "largest difference"] < 1e-5
    assert table.loc["reference float32, all rows", "largest difference"] < 1e-5
    assert (table["least cosine"] > 0.999).all()
    assert (table[["cells/s", "GFLOP per CPU second", "CPU speed-up"]] > 0).all().all()
    codes = cellvq.codes_table(model, module, 2)
    assert (codes["CPU milliseconds a code"] > 0).all()
