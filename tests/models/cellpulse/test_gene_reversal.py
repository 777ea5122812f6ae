"""All-gene reversal in closed form equals running the classifier once per gene."""

from __future__ import annotations

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from cfm.models.cellpulse._attribution import ReversalWeights, reversed_logits, shifted_order
from cfm.models.cellpulse._classifier import VirusClassifier


def some_classifier(rng: np.random.Generator, n_genes: int) -> VirusClassifier:
    """A classifier of random weights in double precision."""
    classifier = VirusClassifier(n_genes, classes=["a", "b", "c"]).double()
    with torch.no_grad():
        for p in classifier.parameters():
            p.copy_(torch.from_numpy(rng.normal(size=tuple(p.shape))))
        classifier.common.copy_(torch.from_numpy((rng.random(n_genes) < 0.6).astype(float)))
        classifier.interferon.copy_(torch.from_numpy((rng.random(n_genes) < 0.1).astype(float)))
    return classifier


def by_force(classifier: VirusClassifier, profiles: np.ndarray, infected: bool) -> np.ndarray:
    """Raw logits of profiles, by the classifier itself."""
    x = torch.from_numpy(np.atleast_2d(profiles).astype(np.float64))
    views = classifier.views(x)
    with torch.no_grad():
        if infected:
            return classifier.raw_infected(views).numpy()[:, None]
        return classifier.raw_logits(views).numpy()


@st.composite
def profiles(draw: st.DrawFn) -> tuple[int, np.ndarray, np.ndarray]:
    """A profile with missing genes, zeros, and effects far beyond the clip; and what it becomes."""
    seed = draw(st.integers(0, 2**32 - 1))
    rng = np.random.default_rng(seed)
    n = draw(st.integers(3, 130))
    x = rng.standard_t(2, size=n) * draw(st.sampled_from([0.1, 1.0, 4.0]))
    x += draw(st.sampled_from([0.0, 0.7]))
    x[rng.random(n) < draw(st.sampled_from([0.0, 0.4]))] = 0.0
    x[rng.random(n) < draw(st.sampled_from([0.0, 0.3]))] = np.nan
    kind = draw(st.sampled_from(["neutral", "flip", "anything"]))
    values = {"neutral": np.zeros(n), "flip": -x, "anything": rng.normal(size=n) * 5}[kind]
    return seed, x, values


@given(profiles(), st.booleans())
def test_equals_the_classifier_run_once_per_gene(
    case: tuple[int, np.ndarray, np.ndarray], infected: bool
) -> None:
    seed, x, values = case
    classifier = some_classifier(np.random.default_rng(seed), len(x))
    weights = ReversalWeights.of(classifier, infected=infected)
    before, after = reversed_logits(x, values, weights)
    seen = np.flatnonzero(~np.isnan(x))
    if not len(seen):
        assert after.shape[0] == 0
        return
    changed = np.tile(x, (len(seen), 1))
    changed[np.arange(len(seen)), seen] = values[seen]
    if infected and _tied_at_an_edge(x, changed):
        return  # which of equal sizes counts as the larger is left to the sort
    np.testing.assert_allclose(before, by_force(classifier, x, infected)[0], atol=2e-6)
    np.testing.assert_allclose(after, by_force(classifier, changed, infected), atol=2e-6)


def _tied_at_an_edge(x: np.ndarray, changed: np.ndarray) -> bool:
    """Whether the sign statistic is ambiguous: opposite effects of one size at its edge."""
    for row in [x, *changed]:
        values = row[~np.isnan(row)]
        c = np.clip(values - np.sort(values)[(len(values) - 1) // 2], -6, 6)
        k = -(-len(c) // 50)
        edge = np.sort(np.abs(c))[::-1][k - 1]
        signs = np.sign(c[np.isclose(np.abs(c), edge, atol=1e-12)])
        if len(set(signs)) > 1:
            return True
    return False


@given(st.integers(0, 2**32 - 1), st.integers(1, 12))
def test_shifted_order_is_what_sorting_gives(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    values = rng.integers(0, 5, size=n).astype(float)
    replaced = rng.integers(0, 5, size=n) - rng.choice([0.0, 0.5])
    for k in range(n):
        expected = []
        for i in range(n):
            row = values.copy()
            row[i] = replaced[i]
            expected.append(np.sort(row)[k])
        np.testing.assert_array_equal(shifted_order(values, replaced, k), expected)
