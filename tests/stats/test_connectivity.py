"""Signed gene sets in a profile: against gseapy, their definition, and dense vectors."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfm.stats._connectivity import (
    clean_profile,
    connectivity_scores,
    enrichment_scores,
    leading_edge,
    mean_signature,
    random_signed_sets,
    rank_profile,
    signed_cosines,
    size_classes,
    summarize_replicates,
)


def prerank(values: np.ndarray, sets: np.ndarray, weight: float) -> pd.DataFrame:
    """Enrichment as gseapy computes it: a column ``ES`` and the genes of the leading edge."""
    import gseapy

    named = {f"s{i}": [f"g{g}" for g in row if g >= 0] for i, row in enumerate(sets)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gseapy.prerank(
            rnk=pd.Series(values, index=[f"g{i}" for i in range(len(values))]),
            gene_sets=named,
            weight=weight,
            permutation_num=2,
            min_size=1,
            max_size=len(values),
            outdir=None,
            no_plot=True,
            threads=1,
        )
    return found.res2d.set_index("Term").loc[list(named)]


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.0])
def test_enrichment_equals_that_of_gseapy(rng: np.random.Generator, weight: float) -> None:
    values = np.round(rng.normal(size=500), 6)
    sets = np.stack([rng.choice(500, 40, replace=False) for _ in range(6)])
    sets[2, 11:] = -1
    sets[3] = np.argsort(-values)[:40]
    sets[4] = np.argsort(values)[:40]
    ranking = rank_profile(values, weight)
    expected = prerank(values, sets, weight)
    scores = enrichment_scores(ranking, sets)
    np.testing.assert_allclose(scores, expected["ES"].astype(float), atol=1e-12)
    for row, genes in zip(sets, expected["Lead_genes"], strict=True):
        edge = {f"g{g}" for g in leading_edge(ranking, row[row >= 0])}
        assert edge == set(genes.split(";"))


def by_definition(values: np.ndarray, genes: np.ndarray) -> float:
    """The running sum of one set, gene by gene, read where the value changes."""
    order = np.argsort(-values, kind="stable")
    inside = np.isin(order, genes)
    step = np.where(inside, np.abs(values[order]), 0.0)
    if step.sum() == 0 or inside.all():
        return 0.0
    walk = np.cumsum(step / step.sum() - (~inside) / (~inside).sum())
    last = np.append(np.diff(values[order]) != 0, True)
    walk = np.append(walk[last], 0.0)
    return walk.max() if walk.max() > -walk.min() + 1e-12 else walk.min()


@given(st.integers(0, 10_000), st.booleans(), st.integers(1, 12))
def test_enrichment_follows_its_definition(seed: int, ties: bool, size: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=12)
    if ties:
        values = np.round(values)
    genes = rng.choice(12, size, replace=False)
    score = enrichment_scores(rank_profile(values), genes[None])[0]
    expected = by_definition(values, genes)
    assert abs(score) == pytest.approx(abs(expected), abs=1e-9)
    assert -1 <= score <= 1


@given(st.integers(0, 10_000), st.booleans())
def test_order_of_genes_and_sets_never_matters(seed: int, ties: bool) -> None:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=40)
    if ties:
        values = np.round(values)
    sets = np.stack([rng.choice(40, 8, replace=False) for _ in range(3)])
    scores = enrichment_scores(rank_profile(values), sets)
    order = rng.permutation(40)
    moved = np.argsort(order)[sets][:, rng.permutation(8)]
    again = enrichment_scores(rank_profile(values[order]), moved)
    np.testing.assert_allclose(again, scores, atol=1e-12)
    alone = [enrichment_scores(rank_profile(values), row[None])[0] for row in sets]
    np.testing.assert_allclose(alone, scores, atol=1e-12)


def test_extremes_and_empty_sets() -> None:
    values = np.arange(10, 0, -1.0) - 5.5
    top, bottom, empty = [0, 1, 2], [7, 8, 9], [-1, -1, -1]
    scores = enrichment_scores(rank_profile(values), np.array([top, bottom, empty]))
    np.testing.assert_allclose(scores[:2], [1.0, -1.0])
    assert np.isnan(scores[2])
    assert leading_edge(rank_profile(values), np.array([], dtype=int)).size == 0
    everything = enrichment_scores(rank_profile(values), np.arange(10)[None])
    assert everything.tolist() == [0.0]
    assert enrichment_scores(rank_profile(values), np.empty((0, 3), int)).size == 0


def test_a_profile_in_which_nothing_differs_scores_zero() -> None:
    sets = np.array([[0, 1], [2, -1]])
    for values in (np.zeros(5), np.full(5, 2.0)):
        assert enrichment_scores(rank_profile(values), sets).tolist() == [0.0, 0.0]


def test_blocks_of_sets_give_the_same(rng: np.random.Generator, monkeypatch) -> None:
    values = rng.normal(size=100)
    sets = np.stack([rng.choice(100, 10, replace=False) for _ in range(50)])
    whole = enrichment_scores(rank_profile(values), sets)
    monkeypatch.setattr("cfm.stats._connectivity._BLOCK", 70)
    np.testing.assert_array_equal(enrichment_scores(rank_profile(values), sets), whole)


def test_connectivity() -> None:
    up = np.array([0.6, -0.6, 0.5, 0.0, np.nan, 0.3, np.nan])
    down = np.array([-0.4, 0.4, 0.2, -0.5, 0.7, np.nan, np.nan])
    found = connectivity_scores(up, down)
    np.testing.assert_allclose(found, [0.5, -0.5, 0, 0, -0.7, 0.3, np.nan])
    np.testing.assert_allclose(connectivity_scores(down, up)[:3], -found[:3])
    with pytest.raises(ValueError, match="expected the same"):
        connectivity_scores(up, down[:2])


def test_replicates_are_summarised_by_the_farther_percentile() -> None:
    scores = np.array([0.5, -0.9, 0.1, 0.2, 0.3, np.nan, 0.4, np.nan])
    groups = np.array([0, 1, 1, 1, 1, 1, 2, 3])
    found = summarize_replicates(scores, groups)
    low, high = np.quantile([-0.9, 0.1, 0.2, 0.3], [0.33, 0.67])
    assert abs(high) > abs(low)
    np.testing.assert_allclose(found, [0.5, high, 0.4, np.nan])
    np.testing.assert_allclose(summarize_replicates(-scores, groups), -found)
    stacked = summarize_replicates(np.stack([scores, -scores], axis=1), groups)
    np.testing.assert_allclose(stacked, np.stack([found, -found], axis=1))
    with pytest.raises(ValueError, match="ascending"):
        summarize_replicates(scores, groups[::-1])


def test_random_sets_are_drawn_without_replacement_and_repeat() -> None:
    up, down = random_signed_sets(30, 12, 10, 200, seed=3)
    assert up.shape == (200, 12)
    assert down.shape == (200, 10)
    joined = np.concatenate([up, down], axis=1)
    assert all(len(set(row)) == 22 for row in joined.tolist())
    counts = np.bincount(up.ravel(), minlength=30)
    assert counts.min() > 40  # 80 on average
    again = random_signed_sets(30, 12, 10, 200, seed=3)
    np.testing.assert_array_equal(again[0], up)
    assert (random_signed_sets(30, 12, 10, 200, seed=4)[0] != up).any()
    crowded = random_signed_sets(12, 12, 10, 5)
    assert all(len(set(row)) == 10 for row in crowded[1].tolist())
    with pytest.raises(ValueError, match="Cannot draw"):
        random_signed_sets(5, 6, 1, 1)


def test_size_classes() -> None:
    sizes = np.array([0, 1, 44, 48, 50, 52, 100, 1000])
    found = size_classes(sizes, step=1.5)
    assert found[0] == 0
    assert len(set(found[2:6])) == 1  # sizes near the median are one class
    assert (np.abs(np.log(found[1:] / sizes[1:])) <= np.log(1.5) / 2 + 0.05).all()
    assert size_classes(np.zeros(3)).tolist() == [0, 0, 0]


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
    ("call", "message"),
    [
        (lambda: rank_profile([1.0, np.nan]), "NaN or infinite"),
        (lambda: rank_profile([]), "at least a gene"),
        (lambda: rank_profile([1.0], weight=-1), "expected 0 or more"),
        (lambda: enrichment_scores(rank_profile(np.arange(5.0)), [0, 1]), "sets by genes"),
        (lambda: enrichment_scores(rank_profile(np.arange(5.0)), [[0.5]]), "integer positions"),
        (lambda: enrichment_scores(rank_profile(np.arange(5.0)), [[5]]), "outside the 5 genes"),
        (lambda: clean_profile([1.0, np.nan]), "NaN or infinite"),
        (lambda: clean_profile([]), "at least a gene"),
        (lambda: clean_profile([1.0, 2.0], [1.0]), "expected the same"),
    ],
)
def test_bad_input_is_named(call, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
