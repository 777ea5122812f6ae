"""Counts to tokens and back."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cfm.models.lingshu._counts import (
    LARGEST,
    dequantise,
    quantise,
)


def published(x: int) -> int:
    """Equations 3 to 6, literally."""
    if x < 100:
        return x
    if x > 9999:
        return 280
    k = math.floor(math.log10(x) + 1e-12)
    return 100 + 90 * max(0, k - 2) + math.floor((x - 10**k) / 10 ** (k - 1))


def test_every_count_has_the_published_token() -> None:
    counts = np.arange(10_050)
    assert quantise(counts).tolist() == [published(int(x)) for x in counts]


@given(st.lists(st.integers(0, 10**7), min_size=1), st.sampled_from(["int64", "float32", "uint32"]))
def test_round_trip(counts: list[int], dtype: str) -> None:
    x = np.array(counts).astype(dtype)
    tokens = quantise(x)
    lower = dequantise(tokens)
    assert (quantise(lower) == tokens).all()
    small = x < 100
    assert (lower[small] == x[small]).all()
    known = x <= LARGEST
    assert (lower[known] <= x[known]).all()
    assert (x[known] - lower[known] < np.maximum(0.1 * x[known], 1)).all()  # two digits
    assert (lower[~known] == 10_000).all()


@given(st.integers(0, 280), st.floats(0, 1, exclude_max=True))
def test_midpoint_and_uniform_stay_in_the_bin(token: int, u: float) -> None:
    tokens = np.array([[token]])
    for made in (
        dequantise(tokens, "midpoint"),
        dequantise(tokens, "uniform", uniform=np.array([[u]])),
    ):
        assert made.dtype == np.int32
        assert made.shape == (1, 1)
        assert quantise(made)[0, 0] == token


def test_uniform_reaches_every_count_alike() -> None:
    u = (np.arange(1000) + 0.5) / 1000
    made = dequantise(np.full(1000, published(2340)), "uniform", uniform=u)
    values, size = np.unique(made, return_counts=True)
    assert values.tolist() == list(range(2300, 2400))
    assert (size == 10).all()
