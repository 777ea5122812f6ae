"""``benchmarks.gpu`` trains and uses all five systems, here at tiny size on the processor."""

from __future__ import annotations

import pytest
import torch

from benchmarks.gpu import SYSTEMS, Setting, measure, operations
from cfm.nn._kernels import prepare_linear

TINY = Setting("cpu", 60, 24, 2, 8)


@pytest.mark.parametrize("name", SYSTEMS)
def test_a_system_is_trained_and_used(name: str) -> None:
    rows = {row["task"]: row for row in measure(name, TINY, tiny=True, compiled=False)}
    beside = {f"{task}, PyTorch's layers" for task in ("train", "use")}
    assert set(rows) == {"train", "use"} | (beside if name in ("CellVQ", "PULSAR") else set())
    for row in rows.values():
        assert row["system"] == name
        assert row["GFLOP per unit"] > 0
    assert rows["use"]["units/s"] > 0
    assert rows["use"]["share of matrix rate"] > 0


@pytest.mark.parametrize("prepared", [False, True])
def test_operations_of_a_product(prepared: bool) -> None:
    x, weight = torch.randn(32, 10), torch.randn(7, 10)
    layer = prepare_linear(weight, None, torch.float32) if prepared else weight.T.__rmatmul__
    with torch.no_grad():
        assert operations(lambda: layer(x)) == 2 * 32 * 10 * 7
