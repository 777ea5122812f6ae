"""Every model refuses a damaged or malicious checkpoint with a sentence, quickly and cheaply."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cfm.models import load_model
from tests.hub._hostile import (
    NAMES,
    TEXTS,
    copied,
    header_of,
    settings_changed,
    tensors_changed,
    write_header,
    write_tensors,
    write_text,
)

#: Settings that say something about a model but do not make it: any JSON value goes.
FACTS = {"species"}


def refused(folder: Path) -> bool:
    """Whether a checkpoint is refused as it should be; ``False`` where it is loaded."""
    start = time.perf_counter()
    try:
        load_model(folder)
    except ValueError as error:
        # not one of a library below us, which says nothing of what to do
        assert type(error) is ValueError, repr(error)
        assert len(str(error)) > 40, str(error)
        assert str(error).rstrip().endswith("."), str(error)
        return True
    finally:
        assert time.perf_counter() - start < 10, "it took its time to notice"
    return False


@pytest.mark.parametrize("name", NAMES)
def test_the_checkpoints_themselves_are_read(name: str, tmp_path: Path) -> None:
    assert not refused(copied(name, tmp_path))


@pytest.mark.parametrize("name", NAMES)
def test_wrong_settings(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    read: list[tuple[Any, Any]] = []
    n_refused = 0
    for path, value, header in settings_changed(header_of(folder)):
        write_header(folder, header)
        if refused(folder):
            n_refused += 1
        elif path[1] not in FACTS:
            read.append((path[1:], value))
    # What is read is a number or word in the right place, or a default for what was left out:
    # nothing of another type is.
    assert n_refused > 40
    for path, value in read:
        allowed = value == "left out" or isinstance(value, str | int | float) or value is None
        assert allowed, (path, value)
        assert not (isinstance(value, str) and path[0] == "size" and value != "left out"), path


@pytest.mark.parametrize("name", NAMES)
def test_wrong_tensors(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    for tensor, change, tensors in tensors_changed(folder):
        write_tensors(folder, tensors)
        assert refused(folder), (tensor, change)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_texts(name: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    for file in header_of(folder)["files"]:
        for content in TEXTS:
            write_text(folder, file, content)
            assert refused(folder), (file, content[:20])


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("CellVQ", "n_layers"),
        ("CellVQ", "decoder_layers"),
        ("CellVQ", "codebook_layers"),
        ("Pulsar", "encoder_layers"),
        ("Pulsar", "decoder_layers"),
        ("UCE", "n_layers"),
        ("LingshuCell", "n_layers"),
        ("CellPulse", "n_layers"),
        ("BulkFormer", "n_blocks"),
    ],
)
def test_a_billion_layers_cost_nothing(name: str, setting: str, tmp_path: Path) -> None:
    folder = copied(name, tmp_path)
    header = header_of(folder)
    header["config"]["size"][setting] = 10**9
    write_header(folder, header)
    start = time.perf_counter()
    with pytest.raises(ValueError, match="weights for"):
        load_model(folder)
    assert time.perf_counter() - start < 5


def test_groups_of_factors_that_there_are_not(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = copied("CellPulse", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    for wrong in (-1, 2, 10**6):
        changed = tensors["module.factor_group"].clone()
        changed[0] = wrong
        write_tensors(folder, tensors | {"module.factor_group": changed})
        with pytest.raises(ValueError, match="belong to groups"):
            load_model(folder)


def test_not_a_number_in_any_model(tmp_path: Path) -> None:
    from safetensors.torch import load_file

    for name in NAMES:
        folder = copied(name, tmp_path)
        tensors = load_file(folder / "model.safetensors")
        first = next(k for k, v in tensors.items() if v.is_floating_point() and v.numel())
        write_tensors(folder, tensors | {first: torch.full_like(tensors[first], float("nan"))})
        with pytest.raises(ValueError, match="must be finite"):
            load_model(folder)
