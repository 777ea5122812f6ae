"""Profiles to tokens: the strongest effects, and nothing of anything else."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cfm.data import GeneVocabulary
from cfm.models.cellpulse import ProfileTokenizer
from cfm.models.cellpulse._module import (
    DOWN,
    PADDING,
    UNCHANGED,
    UP,
    Tokens,
)

N_GENES = 12
VOCABULARY = GeneVocabulary([f"G{i}" for i in range(N_GENES)])

# Coarse values, so that ties, zeros and missing values are common.
profiles = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 4), st.just(N_GENES)),
    elements=st.one_of(
        st.just(np.nan), st.integers(-4, 4).map(float), st.floats(-5, 5, width=32).map(float)
    ),
)


def as_set(tokens: Tokens, row: int) -> set[tuple[int, int, float]]:
    """Tokens of one profile without padding, in no order."""
    real = tokens.state[row] != PADDING
    columns = (t[row][real].tolist() for t in tokens)
    return {(gene, state, round(size, 5)) for gene, state, size in zip(*columns, strict=True)}


def strongest(profile: np.ndarray, k: int) -> set[tuple[int, int, float]]:
    """The same from the definition: sort by size, then by place in the vocabulary."""
    moving = [g for g in range(len(profile)) if np.isfinite(profile[g]) and profile[g] != 0]
    moving.sort(key=lambda g: (-abs(profile[g]), g))
    return {
        (g, UP if profile[g] > 0 else DOWN, round(float(np.log1p(abs(profile[g]))), 5))
        for g in moving[:k]
    }


@given(effects=profiles, k=st.integers(1, N_GENES + 3))
def test_tokens_are_the_strongest_effects(effects: np.ndarray, k: int) -> None:
    tokens = ProfileTokenizer(VOCABULARY, k).encode(effects)
    for row, profile in enumerate(effects):
        assert as_set(tokens, row) == strongest(profile, k)


@given(effects=profiles, k=st.integers(1, N_GENES), seed=st.integers(0, 99))
def test_the_order_of_the_columns_does_not_matter(effects: np.ndarray, k: int, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(N_GENES)
    tokenizer = ProfileTokenizer(VOCABULARY, k)
    alignment = VOCABULARY.align(VOCABULARY.genes[order])
    moved = tokenizer.encode(effects[:, order], alignment)
    tokens = tokenizer.encode(effects)
    for row in range(len(effects)):
        assert as_set(moved, row) == as_set(tokens, row)


@given(effects=profiles)
def test_padding_holds_nothing(effects: np.ndarray) -> None:
    tokens = ProfileTokenizer(VOCABULARY, 8).encode(effects)
    padding = tokens.state == PADDING
    assert (tokens.gene[padding] == 0).all()
    assert torch.isnan(tokens.magnitude[padding]).all()
    width = max(1, int((~padding).sum(1).max()))
    assert tokens.state.shape == (len(effects), width)


def test_signed_sets_have_no_magnitude() -> None:
    effects = np.array([[1, -1, 0] + [0] * 9], dtype=np.float32)
    tokens = ProfileTokenizer(VOCABULARY, 4).encode(effects, has_magnitude=False)
    assert torch.isnan(tokens.magnitude).all()
    assert sorted(tokens.state[0].tolist()) == [DOWN, UP]


@given(effects=profiles, seed=st.integers(0, 99))
def test_unchanged_genes_are_measured_hardly_move_and_have_no_other_token(
    effects: np.ndarray, seed: int
) -> None:
    effects = effects / 20  # most within the threshold of 0.1
    tokenizer = ProfileTokenizer(VOCABULARY, 3)
    tokens = tokenizer.encode(effects, n_unchanged=4, rng=np.random.default_rng(seed))
    for row, profile in enumerate(effects):
        real = tokens.state[row] != PADDING
        genes = tokens.gene[row][real].tolist()
        assert len(genes) == len(set(genes))
        for gene in tokens.gene[row][tokens.state[row] == UNCHANGED].tolist():
            assert 0 < abs(profile[gene]) < 0.1
        moving = as_set(tokenizer.encode(profile[None]), 0)
        assert moving <= as_set(tokens, row)


def test_unchanged_genes_are_found_where_there_are_some() -> None:
    effects = np.full((1, N_GENES), 0.05, dtype=np.float32)
    effects[0, :3] = 2.0
    tokenizer = ProfileTokenizer(VOCABULARY, 3)
    tokens = tokenizer.encode(effects, n_unchanged=8, rng=np.random.default_rng(0))
    assert (tokens.state == UNCHANGED).sum() >= 4
    with pytest.raises(ValueError, match="needs rng"):
        tokenizer.encode(effects, n_unchanged=8)


def test_a_context_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="n_tokens must be at least 1"):
        ProfileTokenizer(VOCABULARY, 0)
