"""Named sizes."""

from __future__ import annotations

import pytest

from cfm.models import CellPulse
from cfm.models.cellpulse import SIZES, CellPulseSize


def size_of(size: str | CellPulseSize, **changes) -> CellPulseSize:
    return CellPulse(vocabulary=["A", "B"], size=size, **changes).size


def test_names_and_changes() -> None:
    assert list(SIZES) == ["mini", "small", "base", "published"]
    assert size_of("mini", dim=64).dim == 64
    assert size_of(SIZES["mini"]) == SIZES["mini"]
    assert SIZES["published"].n_tokens == 2048


def test_unknown_names_and_numbers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Unknown size 'huge'; expected one of \['mini'"):
        size_of("huge")
    with pytest.raises(TypeError, match="no argument 'width'; of the size can be set: n_tokens, "):
        size_of("mini", width=3)
