"""Batches for pretraining."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch

from cfm.data import GeneVocabulary, ProfileDraw, ProfileMatrix
from cfm.models.cellpulse import ProfileTokenizer
from cfm.models.cellpulse._data import Batch, ProfileStream, WeightedSource
from cfm.models.cellpulse._gene_factors import GeneFactors
from cfm.models.cellpulse._module import MASKED, PADDING, UNCHANGED, Tokens
from tests._together import together

VOCABULARY = GeneVocabulary([f"G{i}" for i in range(50)])
FACTORS = GeneFactors(
    np.zeros((50, 4), dtype=np.float32), np.array(["a", "a", "b", ""], dtype=object)
)


def matrix(**arguments) -> ProfileMatrix:
    effects = np.random.default_rng(0).normal(size=(8, 50)).astype(np.float32)
    effects[:, :20] *= 0.02
    return ProfileMatrix(effects, VOCABULARY.genes, **arguments)


def weighted(source, share: float = 1.0, **arguments) -> WeightedSource:
    return WeightedSource(source, VOCABULARY.align(source.var_names), share, **arguments)


def stream(*sources: WeightedSource, seed: int = 0, **changes) -> ProfileStream:
    arguments = {"batch_size": 6, "n_tokens": 10, "n_unchanged": 4, "n_batches": 12} | changes
    tokenizer = ProfileTokenizer(VOCABULARY, 20)
    return ProfileStream(list(sources), tokenizer, FACTORS, seed=seed, **arguments)


def same(first: list[Batch], second: list[Batch]) -> bool:
    def flat(batches: list[Batch]) -> list[torch.Tensor]:
        return [t.nan_to_num(-1.0) for b in batches for t in (*b.tokens, *b.target, *b[2:])]

    pairs = list(zip(flat(first), flat(second), strict=True))
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in pairs)


def test_an_epoch_of_a_seed_is_always_the_same() -> None:
    source = weighted(matrix())
    first, second = stream(source), stream(source)
    epochs = [list(first) for _ in range(2)]
    assert same(epochs[0], list(second))
    assert same(epochs[1], list(second))
    assert not same(epochs[0], epochs[1])
    assert not same(epochs[0], list(stream(source, seed=1)))


@pytest.mark.parametrize("n_linear_batches", [0, 12])
def test_processes_that_train_together_share_each_batch(
    n_linear_batches: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three processes with batches of 4 see what one sees with batches of 12."""
    # profiles of 1 to 8 effects: how wide a batch is depends on who is in it
    effects = np.triu(np.ones((8, 50), dtype=np.float32), 42)
    few = ProfileMatrix(effects, VOCABULARY.genes, has_magnitude=False)

    def batches(n_processes: int) -> list[Batch]:
        sources = weighted(matrix(study=["a", "b"] * 4)), weighted(few, 2.0)
        arguments = {"batch_size": 12 // n_processes, "n_linear_batches": n_linear_batches}
        return list(stream(*sources, n_processes=n_processes, **arguments))

    alone, shared = batches(1), together(3, lambda _: batches(3), monkeypatch)
    for whole, *parts in zip(alone, *shared, strict=True):
        hidden, target = (
            Tokens(*map(torch.cat, zip(*tokens, strict=True)))
            for tokens in zip(*(p[:2] for p in parts), strict=True)
        )
        rest = map(torch.cat, zip(*(p[2:] for p in parts), strict=True))
        assert same([Batch(hidden, target, *rest)], [whole])
        assert [len(p.groups) for p in parts] == ([4, 4, 4] if not n_linear_batches else [1, 1, 2])
    assert len({b.tokens.gene.shape[1] for b in alone}) > 1


def test_batches_hide_a_part_and_keep_the_rest() -> None:
    for batch in stream(weighted(matrix())):
        assert batch.tokens.gene.shape == (6, 10)
        assert (batch.tokens.state[batch.masked] == MASKED).all()
        assert torch.equal(batch.tokens.state[~batch.masked], batch.target.state[~batch.masked])
        assert not (batch.target.state == MASKED).any()
        assert not batch.masked[batch.target.state == PADDING].any()


def test_half_of_the_batches_do_without_magnitudes() -> None:
    known = [
        bool((~torch.isnan(b.target.magnitude)).any())
        for b in stream(weighted(matrix()), n_batches=60)
    ]
    assert 15 < sum(known) < 45


def test_each_profile_is_predicted_without_the_factors_of_its_study() -> None:
    names = np.array(["a", "b", "c", ""] * 2, dtype=object)
    allowed = {"a": [0, 0, 1, 1], "b": [1, 1, 0, 1], "c": [1, 1, 1, 1], "": [1, 1, 1, 1]}
    source = matrix(study=names, group=np.arange(8))
    seen = set()
    for batch in stream(weighted(source)):
        for group, mask in zip(batch.groups.tolist(), batch.factor_mask.tolist(), strict=True):
            assert mask == allowed[names[group]]
            seen.add(names[group])
    assert seen == set(allowed)


def test_a_source_that_does_not_say_is_of_the_study_it_was_named() -> None:
    for batch in stream(weighted(matrix(), study="b")):
        assert batch.factor_mask.tolist() == [[1, 1, 0, 1]] * 6


def test_shares_decide_which_source_a_batch_comes_from() -> None:
    class Numbered:
        """Every profile carries the number of its source as its group."""

        var_names = VOCABULARY.genes

        def __init__(self, number: int) -> None:
            self.number = number

        def __len__(self) -> int:
            return 1

        def draw(self, n: int, rng: np.random.Generator) -> ProfileDraw:
            effects = rng.normal(size=(n, 50)).astype(np.float32)
            return ProfileDraw(effects, np.full(n, self.number))

    shares = (0.7, 0.3, 0.0)
    parts = [weighted(Numbered(i), share) for i, share in enumerate(shares)]
    count = Counter(int(b.groups[0]) for b in stream(*parts, n_batches=400))
    assert count[0] / 400 == pytest.approx(0.7, abs=0.1)
    assert count[2] == 0


def test_the_first_batches_are_for_the_linear_term() -> None:
    """Few whole profiles, and none of the signed sets, whose study nobody knows."""
    sets = ProfileMatrix(np.ones((3, 50)), VOCABULARY.genes, has_magnitude=False)
    parts = weighted(matrix(study=["a"] * 8)), weighted(sets, 5.0, has_magnitude=False)
    batches = list(stream(*parts, n_linear_batches=5, n_batches=30))
    for batch in batches[:5]:
        assert batch.target.gene.shape == (4, 20)
        assert batch.factor_mask[:, :2].sum() == 0
    assert all(len(b.target.gene) == 6 for b in batches[5:])
    assert any(b.factor_mask[:, :2].sum() > 0 for b in batches[5:])


def test_signed_sets_have_directions_only() -> None:
    values = np.zeros((4, 50), dtype=np.float32)
    values[:, :8] = [1, -1] * 4
    sets = ProfileMatrix(values, VOCABULARY.genes, has_magnitude=False)
    for batch in stream(weighted(sets, has_magnitude=False)):
        assert torch.isnan(batch.target.magnitude).all()
        assert not (batch.target.state == UNCHANGED).any()


def test_sources_of_other_genes_fall_onto_the_vocabulary() -> None:
    names = pd.Index(["other", *VOCABULARY.genes[::-1]])
    effects = np.ones((2, 51), dtype=np.float32) * np.arange(51)
    for batch in stream(weighted(ProfileMatrix(effects, names)), n_unchanged=0, n_tokens=30):
        assert batch.target.gene.max() <= 19  # the strongest are the first of the vocabulary


def test_nothing_to_draw_from_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one source"):
        stream()
