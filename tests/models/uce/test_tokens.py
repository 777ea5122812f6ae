"""Sentences: what is drawn, how it is laid out, and what it depends on."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from cfm.models.uce._data import SentenceMaker
from cfm.models.uce._module import CELL, CHROMOSOME_END

MAKER = SentenceMaker(
    tokens=np.arange(100, 110),
    chromosomes=np.array([50, 51] * 5),
    starts=np.array([9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
    sample_size=200,
)


@given(
    counts=st.lists(st.integers(0, 50), min_size=10, max_size=10).filter(any),
    seed=st.integers(0, 99),
)
def test_layout(counts: list[int], seed: int) -> None:
    """Cell; then per chromosome its token, genes by their start, an end."""
    genes = np.arange(10)
    sentence = MAKER.sentence(genes, np.array(counts), seed)
    assert sentence[0] == CELL
    ends = np.flatnonzero(sentence == CHROMOSOME_END)
    assert ends[-1] == len(sentence) - 1
    first, drawn, seen = 1, 0, []
    for end in ends:
        chromosome, inside = sentence[first], sentence[first + 1 : end] - 100
        seen.append(chromosome)
        assert (MAKER.chromosomes[inside] == chromosome).all()
        assert (np.diff(MAKER.starts[inside]) >= 0).all()
        assert (np.array(counts)[inside] > 0).all()
        drawn += len(inside)
        first = end + 1
    assert drawn == 200
    assert len(set(seen)) == len(seen)


def test_the_order_of_the_genes_is_no_matter_but_the_seed_is(rng: np.random.Generator) -> None:
    counts = rng.poisson(5, 10) + 1
    first = MAKER.sentence(np.arange(10), counts)
    order = rng.permutation(10)
    np.testing.assert_array_equal(MAKER.sentence(order, counts[order]), first)
    assert not np.array_equal(MAKER.sentence(np.arange(10), counts, 1), first)
    silent = np.append(counts[:9], 0)
    np.testing.assert_array_equal(
        MAKER.sentence(np.arange(10), silent), MAKER.sentence(np.arange(9), counts[:9])
    )


def test_genes_are_drawn_by_log1p_of_their_counts() -> None:
    counts = np.array([1, 3, 7, 15, 31, 0, 0, 0, 0, 0])
    times = np.zeros(10)
    for seed in range(200):
        tokens = MAKER.sentence(np.arange(10), counts, seed)
        times += np.bincount(tokens[tokens >= 100] - 100, minlength=10)
    expected = np.log1p(counts) / np.log1p(counts).sum()
    np.testing.assert_allclose(times / times.sum(), expected, atol=0.01)


def test_chromosomes_come_in_any_order() -> None:
    firsts = {int(MAKER.sentence(np.arange(10), np.ones(10), seed)[1]) for seed in range(20)}
    assert firsts == {50, 51}
