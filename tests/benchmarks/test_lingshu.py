"""The cases that the speed benchmark of Lingshu-Cell measures."""

from __future__ import annotations

import pytest

from benchmarks.lingshu import measure, same_numbers

CASE = {"genes": 40, "size": "mini", "precision": "float32", "device": "cpu", "repeats": 1}


@pytest.mark.parametrize("group_size", [1, 16])
@pytest.mark.parametrize(
    "task",
    [
        {"task": "generate", "cells": 3, "steps": 2, "guidance": 2.0, "batch": 2},
        {"task": "train", "batch": 2},
    ],
)
def test_a_case_is_timed(task: dict, group_size: int) -> None:
    found = measure(CASE | task | {"changes": {"group_size": group_size}})
    assert found["tokens"] == 3 + -(-40 // group_size)
    assert found["CPU s a cell"] > 0
    assert found["peak (MiB)"] > 50


def test_cells_do_not_depend_on_their_neighbours() -> None:
    found = same_numbers()
    assert found["alone, filled up"] == 0
    assert found["in another order"] == 0
