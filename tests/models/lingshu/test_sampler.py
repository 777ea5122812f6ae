"""The sampler: shapes are fixed, random numbers are each cell's own, cells can be explained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cfm.models.lingshu._module import MASK
from cfm.models.lingshu._sampler import (
    Guidance,
    Sampler,
    draw_numbers,
    place_in,
    reveal_steps,
)
from cfm.nn._diffusion import draw_tokens, reveal_counts
from tests._lingshu import N_GENES, untrained


def sampler() -> Sampler:
    module = untrained().module.eval()
    torch.nn.init.normal_(module.head.weight, std=0.5)
    return Sampler(module, torch.float32)


def told(n: int):
    return untrained().levels.conditions(
        n,
        source=["B", "T"] * (n // 2) + ["B"] * (n % 2),
        perturbation=["x"] * n,
        depth=np.full(n, 200.0, dtype=np.float32),
    )


def test_random_numbers_are_of_the_name_and_the_seed() -> None:
    names = ["a", "b", "c"]
    draws = draw_numbers(names, 50, 3)
    alone = draw_numbers(["b"], 50, 3)
    np.testing.assert_array_equal(draws.uniform[1], alone.uniform[0])
    np.testing.assert_array_equal(draws.key[1], alone.key[0])
    np.testing.assert_array_equal(draws.rank[1], alone.rank[0])
    assert draw_numbers(["b"], 0, 3).rank[0] == draws.rank[1]
    every = np.stack([*draws.uniform, *draws.key, *draws.inside])
    assert len(np.unique(every)) == every.size
    assert not np.array_equal(draw_numbers(["b"], 50, 4).uniform, alone.uniform)


def test_names_with_equal_checksums_differ() -> None:
    # Both have the CRC-32 4ddb0c25.
    first, second = (draw_numbers([n], 5, 0).uniform for n in ("plumless", "buckeroo"))
    assert not np.array_equal(first, second)


@pytest.mark.parametrize("n_steps", [1, 3, 50])
def test_genes_are_revealed_in_order_and_number(n_steps: int) -> None:
    rng = np.random.default_rng(0)
    hidden = rng.random((4, 30)) < 0.7
    hidden[3] = False
    key = rng.random((4, 30))
    steps = reveal_steps(hidden, key, n_steps)
    assert (steps[~hidden] == -1).all()
    for i in range(4):
        found = np.bincount(steps[i, hidden[i]], minlength=n_steps)
        assert found.tolist() == reveal_counts(int(hidden[i].sum()), n_steps)
        order = np.argsort(key[i, hidden[i]])
        assert (np.diff(steps[i, hidden[i]][order]) >= 0).all()


@pytest.mark.parametrize("guidance", [Guidance(), Guidance(2.0, 1e-3), Guidance(1.0)])
def test_both_ways_to_score_make_the_same_cells(guidance: Guidance) -> None:
    ready = sampler()
    tokens = np.full((5, N_GENES), MASK)
    tokens[2, :7] = 3
    draws = draw_numbers([f"c{i}" for i in range(5)], N_GENES, 0)
    made = []
    for on_gpu in (False, True):
        ready.on_gpu = on_gpu
        made.append(ready.sample(tokens, told(5), draws, n_steps=3, guidance=guidance))
    np.testing.assert_array_equal(*made)
    assert (made[0][2, :7] == 3).all()
    assert made[0].max() <= 280


def test_a_sampled_value_follows_the_scores() -> None:
    ready = sampler()
    n = 400
    draws = draw_numbers([f"c{i}" for i in range(n)], N_GENES, 0)
    conditions = told(1)
    states = ready.states(torch.full((1, N_GENES), MASK), conditions)
    scores, _ = ready.module.logits(states, conditions, torch.tensor([0]), torch.tensor([4]))
    found = []
    for start in range(0, n, ready.cells_at_once):
        part = slice(start, min(start + ready.cells_at_once, n))
        size = part.stop - part.start
        many = conditions.rows(torch.zeros(size, dtype=torch.int64))
        own = draws._replace(uniform=draws.uniform[part], key=draws.key[part])
        made = ready.sample(
            np.full((size, N_GENES), MASK), many, own, n_steps=1, guidance=Guidance()
        )
        found.append(made[:, 4])
    share = np.bincount(np.concatenate(found), minlength=281) / n
    expected = scores[0].softmax(-1).detach().numpy()
    assert np.abs(share.cumsum() - expected.cumsum()).max() < 1.6 / np.sqrt(n)  # Kolmogorov


def test_numbers_of_known_values_give_them_again() -> None:
    scores = torch.randn(300, 281) * 3
    values = torch.multinomial(scores.softmax(-1), 1).squeeze(1)
    values[::10] = MASK
    uniform = torch.rand(300, dtype=torch.float64) * 0.98 + 0.01
    found = place_in(scores, values, uniform)
    assert torch.equal(found[::10], uniform[::10])
    known = values != MASK
    assert torch.equal(draw_tokens(scores, found)[known], values[known])
