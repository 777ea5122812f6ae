"""Laws of the quantiser, of binary codes, of attention masks and of hiding tokens."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from cfm.models.lingshu._counts import (
    LARGEST,
    N_VALUES,
    OVERFLOW,
    bin_widths,
    dequantise,
    quantise,
    representatives,
)
from cfm.models.lingshu._sampler import reveal_steps
from cfm.nn import DirectionAttention
from cfm.nn._diffusion import absorbing_loss, draw_times, draw_tokens, guided, reveal_counts
from cfm.nn._soft_codes import binary_numbers, nearest_codes

COUNTS = st.one_of(
    st.integers(0, 150),
    st.integers(0, LARGEST + 5),
    st.integers(0, 2**31 - 1),
    st.sampled_from([0, 99, 100, 109, 110, 999, 1000, 9_899, 9_999, 10_000, 2**31 - 1]),
)


@given(st.lists(COUNTS, min_size=1, max_size=30))
def test_more_counts_never_give_a_smaller_token(counts: list[int]) -> None:
    tokens = quantise(np.sort(np.array(counts)))
    assert (np.diff(tokens) >= 0).all()
    assert tokens.min() >= 0
    assert tokens.max() <= OVERFLOW == N_VALUES - 1


@given(st.lists(COUNTS, min_size=1, max_size=30), st.floats(0, 1, exclude_max=True))
def test_a_round_trip_keeps_two_digits(counts: list[int], u: float) -> None:
    x = np.array(counts)
    tokens = quantise(x)
    known = x <= LARGEST
    ways = {"lower": 0.1, "midpoint": 0.05, "uniform": 0.1}
    for method, most in ways.items():
        back = dequantise(tokens, method, uniform=np.full(x.shape, u))
        assert (back[x < 100] == x[x < 100]).all()
        assert (np.abs(back - x)[known] <= most * x[known]).all()
        assert (back[~known] == LARGEST + 1).all()
        assert (quantise(back) == tokens).all()  # what comes back stays
    assert (dequantise(tokens) <= x).all()


def test_every_level_is_reached_and_none_is_empty() -> None:
    every = quantise(np.arange(LARGEST + 2))
    assert N_VALUES == 281
    assert np.unique(every).tolist() == list(range(281))
    assert (np.bincount(every) == bin_widths()).all()
    assert (quantise(representatives()) == np.arange(281)).all()


@given(n_bits=st.integers(1, 10), seed=st.integers(0, 100))
def test_binary_codes_are_their_numbers(n_bits: int, seed: int) -> None:
    bits = binary_numbers(n_bits)
    assert bits.shape == (2**n_bits, n_bits)
    assert set(bits.unique().tolist()) <= {0.0, 1.0}
    assert len(bits.unique(dim=0)) == 2**n_bits
    # the nearest other one of signs differs in one bit
    codes = F.normalize(2 * bits.float() - 1, dim=-1)
    rows = torch.randperm(2**n_bits, generator=torch.Generator().manual_seed(seed))[:50]
    near = nearest_codes(codes, rows)
    assert ((bits[near] != bits[rows]).sum(-1) == 1).all()


def attention(seed: int) -> DirectionAttention:
    torch.manual_seed(seed)
    made = DirectionAttention(dim=16, n_heads=2, n_states=3)
    torch.nn.init.normal_(made.direction_bias)
    return made.eval()


@settings(max_examples=20)
@given(seed=st.integers(0, 500), n=st.integers(1, 6), n_padding=st.integers(1, 5))
def test_padding_says_nothing_whatever_it_holds(seed: int, n: int, n_padding: int) -> None:
    layer = attention(seed)
    x, padding = torch.randn(2, n, 16), 1e3 * torch.randn(2, n_padding, 16)
    state = torch.randint(0, 3, (2, n))
    padded = F.pad(state, (0, n_padding), value=3)
    with torch.no_grad():
        alone = layer(x, state)
        beside = layer(torch.cat([x, padding], 1), padded)[:, :n]
        other = layer(torch.cat([x, torch.zeros_like(padding)], 1), padded)[:, :n]
        weights = layer.attention_weights(torch.cat([x, padding], 1), padded)
    torch.testing.assert_close(beside, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(beside, other, atol=0.0, rtol=0.0)
    assert (weights[:, :, :n, n:] == 0).all()


@settings(max_examples=20)
@given(seed=st.integers(0, 500))
def test_other_rows_of_a_batch_say_nothing(seed: int) -> None:
    layer = attention(seed)
    x, state = torch.randn(3, 5, 16), torch.randint(0, 4, (3, 5))
    state[:, 0] = 0
    with torch.no_grad():
        together = layer(x, state)
        alone = torch.cat([layer(x[i : i + 1], state[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(together, alone, atol=1e-6, rtol=1e-5)


@given(
    seed=st.integers(0, 500), n_genes=st.integers(1, 40), n_steps=st.integers(1, 12),
    share=st.floats(0, 1),
)  # fmt: skip
def test_each_hidden_gene_comes_back_once(seed, n_genes, n_steps, share) -> None:
    rng = np.random.default_rng(seed)
    hidden = rng.random((3, n_genes)) < share
    steps = reveal_steps(hidden, rng.random((3, n_genes)), n_steps)
    assert (steps[~hidden] == -1).all()
    assert ((steps[hidden] >= 0) & (steps[hidden] < n_steps)).all()
    for free, row in zip(hidden, steps, strict=True):
        counted = np.bincount(row[free], minlength=n_steps)
        assert counted.tolist() == reveal_counts(int(free.sum()), n_steps)


@given(n=st.integers(1, 60), seed=st.integers(0, 500), least=st.floats(1e-3, 0.5))
def test_times_are_in_their_range(n: int, seed: int, least: float) -> None:
    for stratified in (True, False):
        times = draw_times(
            n, torch.Generator().manual_seed(seed), least=least, stratified=stratified
        )
        assert times.shape == (n,)
        assert float(times.min()) >= least - 1e-6
        assert float(times.max()) <= 1.0 + 1e-6


@given(seed=st.integers(0, 500), n=st.integers(1, 6), m=st.integers(0, 30))
def test_the_loss_does_not_know_the_order_of_tokens(seed: int, n: int, m: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    nll, row = torch.rand(m, generator=generator), torch.randint(0, n, (m,), generator=generator)
    time, size = draw_times(n, generator), torch.randint(1, 50, (n,), generator=generator)
    order = torch.randperm(m, generator=generator)
    torch.testing.assert_close(
        absorbing_loss(nll[order], row[order], time, size),
        absorbing_loss(nll, row, time, size),
    )
    assert float(absorbing_loss(nll, row, time, size)) >= 0


@given(seed=st.integers(0, 500), weight=st.floats(0, 5))
def test_guidance_towards_the_same_changes_nothing(seed: int, weight: float) -> None:
    logits = torch.randn(4, 9, generator=torch.Generator().manual_seed(seed))
    for floor in (0.0, 1e-3):
        made = guided(logits, logits, weight, floor).softmax(-1)
        torch.testing.assert_close(made, logits.softmax(-1), atol=1e-5, rtol=1e-4)


@given(seed=st.integers(0, 500))
def test_tokens_without_probability_are_never_drawn(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(50, 9, generator=generator)
    forbidden = torch.rand(50, 9, generator=generator) < 0.5
    forbidden[:, 4] = False
    logits[forbidden] = -torch.inf
    uniform = torch.rand(50, generator=generator, dtype=torch.float64)
    uniform[:2] = torch.tensor([0.0, 1.0 - 1e-16])
    drawn = draw_tokens(logits, uniform)
    assert not forbidden[torch.arange(50), drawn].any()
