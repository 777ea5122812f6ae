"""Rows are read once while they are kept, and memory stays bounded."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfm.data._row_buffer import RowCache

VALUES = np.arange(200, dtype=np.float32).reshape(50, 4)


class Counted:
    """A matrix that notes which rows were read."""

    def __init__(self) -> None:
        self.read: list[np.ndarray] = []
        self.fails = False

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        if self.fails:
            raise OSError("the file is gone")
        assert (np.diff(rows) > 0).all()
        self.read.append(rows)
        return VALUES[rows]


def cache(n_kept: int) -> tuple[RowCache, Counted]:
    source = Counted()
    return RowCache(source, VALUES.shape, max_bytes=n_kept * 16), source


@given(st.integers(2, 60), st.lists(st.lists(st.integers(0, 49), max_size=8), max_size=12))
def test_rows_are_those_of_the_matrix(n_kept: int, asked: list[list[int]]) -> None:
    found, _ = cache(n_kept)
    for rows in asked:
        wanted = np.array(rows, dtype=np.int64)
        if len(set(rows)) > found.n_kept:
            with pytest.raises(ValueError, match="different rows"):
                found.get(wanted)
            continue
        held, places = found.get(wanted)
        np.testing.assert_array_equal(held[places], VALUES[wanted])
        assert held.nbytes <= max(n_kept, 2) * 16


def test_what_was_asked_for_longest_ago_makes_room() -> None:
    found, source = cache(3)
    for row in (0, 1, 2, 0, 3):  # 3 takes the place of 1
        found.get(np.array([row]))
    assert np.concatenate(source.read).tolist() == [0, 1, 2, 3]
    found.get(np.array([2, 0, 3]))
    assert np.concatenate(source.read).tolist() == [0, 1, 2, 3]
    found.get(np.array([1]))
    assert np.concatenate(source.read).tolist() == [0, 1, 2, 3, 1]


def test_a_whole_matrix_that_fits_is_read_once() -> None:
    found, source = cache(1000)
    assert found.n_kept == len(found) == 50
    for _ in range(3):
        held, places = found.get(np.arange(50))
        np.testing.assert_array_equal(held[places], VALUES)
    assert sorted(np.concatenate(source.read)) == list(range(50))


def test_a_failed_read_leaves_everything_as_it_was() -> None:
    found, source = cache(2)
    found.get(np.array([4, 5]))
    source.fails = True
    with pytest.raises(OSError, match="gone"):
        found.get(np.array([5, 6]))
    source.fails = False
    for rows in ([4, 5], [6, 5], [4]):
        held, places = found.get(np.array(rows))
        np.testing.assert_array_equal(held[places], VALUES[rows])


def test_long_requests_are_read_piece_by_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cfm.data._row_buffer._AT_ONCE", 7)
    found, source = cache(40)
    rows = np.arange(49, 9, -1)
    held, places = found.get(rows)
    np.testing.assert_array_equal(held[places], VALUES[rows])
    assert max(map(len, source.read)) == 7
    held, places = found.get(np.arange(40))
    np.testing.assert_array_equal(held[places], VALUES[:40])
