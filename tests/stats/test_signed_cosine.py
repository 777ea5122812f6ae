from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfm.stats._signed_cosine import clean_profile, mean_signature, signed_cosines


def dense(up: np.ndarray, down: np.ndarray, n: int) -> np.ndarray:
    out = np.zeros((len(up), n))
    for side, sign in ((up, 1), (down, -1)):
        row, at = np.nonzero(side >= 0)
        out[row, side[row, at]] = sign
    return out


@pytest.fixture
def sets(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    drawn = np.stack([rng.permutation(80)[:25] for _ in range(30)])
    drawn[3, 20:] = -1
    drawn[5] = -1
    return drawn[:, :15], drawn[:, 15:]


def test_cosines_are_those_of_dense_vectors(rng, sets) -> None:
    profile = clean_profile(rng.normal(size=80))
    signed = dense(*sets, 80)
    found = signed_cosines(profile, *sets)
    assert np.isnan(found[5])
    kept = np.arange(30) != 5
    expected = signed @ profile / np.maximum(np.linalg.norm(signed, axis=1), 1)
    np.testing.assert_allclose(found[kept], expected[kept])


def test_mean_signature_counts_every_compound_once(sets) -> None:
    group = np.repeat(np.arange(10), 3)
    per_compound = dense(*sets, 80).reshape(10, 3, 80).mean(axis=1)
    expected = per_compound.mean(axis=0)
    np.testing.assert_allclose(mean_signature(*sets, group, 80), expected, atol=1e-12)


@given(st.integers(0, 10_000), st.floats(0.01, 100), st.booleans())
def test_cleaning(seed: int, scale: float, tied: bool) -> None:
    rng = np.random.default_rng(seed)
    values = np.round(rng.normal(size=60), 0 if tied else 9)
    common = rng.normal(size=60)
    found = clean_profile(values, common)
    assert np.linalg.norm(found) == pytest.approx(1)
    assert abs(found.sum()) < 1e-9
    assert abs(found @ common) < 1e-9
    np.testing.assert_allclose(clean_profile(values * scale, common * 3), found, atol=1e-9)
    np.testing.assert_allclose(clean_profile(-values, common), -found, atol=1e-9)
    order = rng.permutation(60)
    np.testing.assert_allclose(clean_profile(values[order], common[order]), found[order], atol=1e-9)


def test_one_gene_does_not_decide() -> None:
    values = np.linspace(-1, 1, 500)
    values[7] = 1e6
    assert np.abs(clean_profile(values)).max() < 0.1


def test_nothing_left() -> None:
    h = np.linspace(-1, 1, 50)
    # The ends of h are as strong as each other, so that clipping changes nothing.
    for values, common in ((np.zeros(9), None), (np.full(9, 0.7), None), (h, 3 * h)):
        assert not clean_profile(values, common).any()
    assert clean_profile(h, np.ones(50)).any()  # a constant is gone already


@pytest.mark.parametrize(
    ("values", "common", "words"),
    [
        ([1.0, np.nan], None, "NaN or infinite"),
        ([], None, "at least a gene"),
        ([1.0, 2.0], [1.0], "expected the same"),
    ],
)
def test_bad_input(values: list, common: list | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        clean_profile(values, common)
