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


@pytest.mark.parametrize("value", [0, -1, 2.0, True, "8", None])
def test_sizes_are_positive_whole_numbers(value: object) -> None:
    with pytest.raises(ValueError, match=r"dim=.*; expected a whole number of at least 1"):
        size_of("mini", dim=value)


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_dropout_is_a_share(value: float) -> None:
    with pytest.raises(ValueError, match="dropout must be at least 0 and below 1"):
        CellPulseSize(n_tokens=8, n_factors=2, dim=16, n_layers=1, n_heads=1, dropout=value)
