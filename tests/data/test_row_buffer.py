"""Rows that are expected are read ahead; what comes is what the matrix holds."""

import gc
import os
import pickle
import signal
import threading
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from cfm.data import _row_buffer
from cfm.data._matrix import read_rows
from cfm.data._row_buffer import RowBuffer
from cfm.data._row_order import shuffled_rows
from cfm.data._row_stack import RowStack

N, D = 300, 9
VALUES = np.random.default_rng(0).poisson(0.8, size=(N, D)).astype(np.float32)


class Slow:
    """A part in memory that counts what is read of it, and can be told to fail."""

    format = "csr"
    values_per_row = 5.0

    def __init__(self, seconds: float = 0.0):
        self.shape, self.dtype = VALUES.shape, VALUES.dtype
        self.read_from: list[tuple[str, int]] = []
        self.seconds = seconds
        self.error: Exception | None = None

    def read(self, rows):
        self.read_from.append((threading.current_thread().name, len(rows)))
        time.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return sparse.csr_matrix(VALUES[rows])


def batches(order, size):
    return [order[i : i + size] for i in range(0, len(order), size)]


def same(found, rows):
    return np.array_equal(found.toarray(), VALUES[rows])


@settings(max_examples=60, deadline=None)
@given(
    n_rows=st.integers(1, 70),
    size=st.integers(1, 90),
    seed=st.integers(0, 99),
    replaced=st.booleans(),
)
def test_batches_of_any_size_come_as_they_are_stored(n_rows, size, seed, replaced):
    rng = np.random.default_rng(seed)
    order = rng.choice(N, N) if replaced else rng.permutation(N)
    buffer = RowBuffer(RowStack([Slow()]), n_rows)
    buffer.prefetch(order)
    for rows in batches(order, size):
        assert same(buffer[rows], rows)


def test_all_that_is_expected_is_read_ahead_and_once():
    part = Slow()
    buffer = RowBuffer(RowStack([part]), 64)
    order = shuffled_rows(np.arange(N), np.random.default_rng(0), block_size=8, buffer_rows=64)
    buffer.prefetch(order)
    for rows in batches(order, 20):
        assert same(buffer[rows], rows)
    assert [n for _, n in part.read_from] == [64, 64, 64, 64, 44]
    assert all(name.startswith("cfm-read-ahead") for name, _ in part.read_from)


def test_the_next_buffer_is_read_while_the_present_is_used():
    part = Slow(seconds=0.05)
    buffer = RowBuffer(RowStack([part]), 100)
    order = np.arange(N)
    buffer.prefetch(order)
    began = time.perf_counter()
    for rows in batches(order, 50):
        buffer[rows]
        time.sleep(0.05)
    # reading 3 x 0.05 s, using 6 x 0.05 s: all but the first reading is hidden
    assert time.perf_counter() - began < 0.05 * 8.5


def test_no_more_than_two_buffers_are_held():
    buffer = RowBuffer(RowStack([Slow()]), 10)
    order = np.arange(N)
    buffer.prefetch(order)
    for rows in batches(order, 7):
        buffer[rows]
        assert sum(len(o._buffers) for o in buffer._orders) <= 2


def test_rows_that_were_not_expected_come_too():
    part = Slow()
    buffer = RowBuffer(RowStack([part]), 50)
    order = np.arange(200)
    rows = np.array([250, 3, 3])
    assert same(buffer[rows], rows)
    buffer.prefetch(order)
    first, *others = batches(order, 40)
    assert same(buffer[first], first)
    assert same(buffer[rows], rows)
    for batch in others:
        assert same(buffer[batch], batch)
    direct = [n for name, n in part.read_from if not name.startswith("cfm-read-ahead")]
    assert direct == [2, 2]


def test_validation_in_the_middle_of_an_epoch():
    part = Slow()
    buffer = RowBuffer(RowStack([part]), 50)
    training, checks = np.arange(200), np.arange(200, 300)
    buffer.prefetch(training)
    parts = batches(training, 25)
    for rows in parts[:3]:
        assert same(buffer[rows], rows)
    for _ in range(2):
        buffer.prefetch(checks)
        for rows in batches(checks, 25):
            assert same(buffer[rows], rows)
    for rows in parts[3:]:
        assert same(buffer[rows], rows)
    # nothing was read but by the thread
    assert all(name.startswith("cfm-read-ahead") for name, _ in part.read_from)


def test_an_error_of_the_thread_reaches_who_asks_and_can_pass():
    part = Slow()
    buffer = RowBuffer(RowStack([part]), 50)
    part.error = OSError("disk is gone")
    buffer.prefetch(np.arange(N))
    with pytest.raises(OSError, match="disk is gone"):
        buffer[np.arange(20)]
    part.error = None
    assert same(buffer[np.arange(20)], np.arange(20))


def test_what_is_no_longer_expected_is_not_read():
    part = Slow(seconds=0.1)
    buffer = RowBuffer(RowStack([part]), 10)
    for _ in range(5):
        buffer.prefetch(np.arange(N))
    buffer[np.arange(10)]
    # what had begun is ended, what had not is dropped
    assert len(part.read_from) <= 4


def test_the_thread_ends_with_the_buffer():
    buffer = RowBuffer(RowStack([Slow()]), 10)
    buffer.prefetch(np.arange(N))
    buffer[np.arange(10)]
    assert _threads()
    del buffer
    gc.collect()
    for _ in range(100):
        if not _threads():
            break
        time.sleep(0.02)
    assert not _threads()


def _threads():
    return [t for t in threading.enumerate() if t.name.startswith("cfm-read-ahead")]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_forked_process_reads_for_itself():
    buffer = RowBuffer(RowStack([Slow()]), 10)
    buffer.prefetch(np.arange(N))
    buffer[np.arange(10)]
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(60)  # ends it if it hangs
        ok = same(buffer[np.arange(10, 30)], np.arange(10, 30))
        buffer.prefetch(np.arange(N))
        ok &= same(buffer[np.arange(15)], np.arange(15))
        os.write(writing, b"y" if ok else b"n")
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as answer:
        assert answer.read() == b"y"
    os.waitpid(child, 0)


def test_pickled():
    buffer = RowBuffer(RowStack([Slow()]), 10)
    buffer.prefetch(np.arange(N))
    again = pickle.loads(pickle.dumps(buffer))
    assert same(again[np.arange(5)], np.arange(5))


@pytest.mark.parametrize("matrix", [VALUES, sparse.csr_matrix(VALUES), sparse.csc_matrix(VALUES)])
def test_in_memory_nothing_is_read_ahead(matrix):
    before = set(_threads())  # of buffers that are not collected yet
    buffer = RowBuffer(matrix)
    buffer.prefetch(np.arange(N))
    rows = np.array([4, 4, 299, 0])
    found, expected = buffer[rows], read_rows(matrix, rows)
    assert type(found) is type(expected)
    assert buffer.shape == (N, D)
    assert set(_threads()) <= before and not buffer._orders
    assert (found != expected).sum() == 0


def test_wide_rows_make_small_buffers(monkeypatch):
    monkeypatch.setattr(_row_buffer, "_MOST_BYTES", 4 * 5 * 100)
    assert RowBuffer(RowStack([Slow()])).n_rows == 100
    monkeypatch.setattr(_row_buffer, "_MOST_BYTES", 1)
    assert RowBuffer(RowStack([Slow()])).n_rows == 64
    assert RowBuffer(RowStack([Slow()]), 10).n_rows == 10
