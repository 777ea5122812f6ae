"""Numbers that the authors' code gives for the golden weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file

GOLDEN = Path(__file__).parent / "golden"
#: Of the output's scale, float32.
TOLERANCE = 1e-5


@cache
def io_of(system: str) -> dict[str, torch.Tensor]:
    """Return inputs and outputs. Not to be changed by a test."""
    return load_file(GOLDEN / system / "io.safetensors")


def assert_close(found: object, expected: torch.Tensor) -> None:
    """Check numbers within :data:`TOLERANCE` of the largest."""
    values = torch.as_tensor(found)
    assert values.shape == expected.shape
    assert (values - expected).abs().max() <= TOLERANCE * expected.abs().max()
