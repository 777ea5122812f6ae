"""Checks of arguments: what they return, and that they refuse what only looks like it."""

from __future__ import annotations

import numpy as np
import pytest

import cfm
from cfm._arguments import (
    check_choice,
    check_flag,
    check_number,
    check_seed,
    check_whole,
    checks_flags,
)


@pytest.mark.parametrize("value", [True, np.True_])
def test_a_flag_is_returned_as_a_bool(value) -> None:
    assert check_flag("copy", value) is True


@pytest.mark.parametrize("value", ["False", 0, 1, None, np.int64(1), [True]])
def test_a_flag_refuses_all_but_bools(value) -> None:
    with pytest.raises(ValueError, match="expected True or False"):
        check_flag("copy", value)


@pytest.mark.parametrize("value", [3, np.int64(3), np.uint8(3)])
def test_a_whole_number_is_returned_as_an_int(value) -> None:
    found = check_whole("n", value, 1, 3)
    assert found == 3
    assert type(found) is int


@pytest.mark.parametrize("value", [0, 4, 2.0, True, "2", None, np.nan, np.bool_(True)])
def test_a_whole_number_refuses_the_rest(value) -> None:
    with pytest.raises(ValueError, match="expected a whole number from 1 to 3"):
        check_whole("n", value, 1, 3)


@pytest.mark.parametrize("value", [-1, 2**32, 1.5, "0", True, None])
def test_a_seed_is_what_all_libraries_take(value) -> None:
    with pytest.raises(ValueError, match="seed="):
        check_seed(value)
    assert check_seed(np.int64(2**32 - 1)) == 2**32 - 1


@pytest.mark.parametrize("value", [0.5, np.float32(0.5), 1, np.int64(0)])
def test_a_number_is_returned_as_a_float(value) -> None:
    found = check_number("alpha", value, 0, 1)
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, "0.5", None, True, 1.01, [0.5]])
def test_a_number_refuses_what_is_not_finite_or_not_in_range(value) -> None:
    with pytest.raises(ValueError, match="of at least 0 and at most 1"):
        check_number("alpha", value, 0, 1)


def test_ends_of_a_range_may_be_excluded() -> None:
    assert check_number("lr", 1e-9, 0, exclusive="low") == 1e-9
    with pytest.raises(ValueError, match="above 0"):
        check_number("lr", 0, 0, exclusive="low")


@pytest.mark.parametrize("value", ["b", 1, None, np.array(["a"]), True])
def test_a_choice_is_one_of_the_choices(value) -> None:
    assert check_choice("units", "a", ("a", 0)) == "a"
    with pytest.raises(ValueError, match="units="):
        check_choice("units", value, ("a", 0))


def test_flags_of_a_function_take_only_bools() -> None:
    @checks_flags
    def tool(adata, n=3, *, copy=False):
        return adata, n, copy

    assert tool(1, copy=True) == (1, 3, True)
    with pytest.raises(ValueError, match="copy='False'"):
        tool(1, copy="False")
    with pytest.raises(TypeError, match="tool"):
        tool(1, other=2)


def test_flags_of_tools_are_checked(counts) -> None:
    with pytest.raises(ValueError, match="copy='False'; expected True or False"):
        cfm.pp.tpm(counts, copy="False")
