"""Pairs are differences of samples, numbered, drawn and described consistently."""

import anndata as ad
import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfm.data import ContrastPairs, ProfileSource


def make(sizes, n_genes=6, **keywords):
    """Contrasts of the given (cases, controls) sizes on samples of their own."""
    starts = np.cumsum([0, *(a + b for a, b in sizes)])
    cases = [np.arange(s, s + a) for s, (a, _) in zip(starts, sizes, strict=False)]
    controls = [np.arange(s + a, s + a + b) for s, (a, b) in zip(starts, sizes, strict=False)]
    values = np.random.default_rng(1).standard_normal((starts[-1], n_genes)).astype(np.float32)
    pairs = ContrastPairs(
        values,
        cases,
        controls,
        contrasts=pd.DataFrame(
            {"virus": [f"v{i}" for i in range(len(sizes))], "n_cases": [a for a, _ in sizes]}
        ),
        var=pd.DataFrame(index=[f"G{i}" for i in range(n_genes)]),
        sample_names=[f"S{i}" for i in range(starts[-1])],
        **keywords,
    )
    expected = [
        (c, k) for block in zip(cases, controls, strict=True) for c in block[0] for k in block[1]
    ]
    return pairs, values, expected


SIZES = st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5)


@given(SIZES)
def test_every_pair_once_and_in_order(sizes):
    pairs, values, expected = make(sizes)
    assert len(pairs) == len(expected) == sum(a * b for a, b in sizes)
    reference = np.stack([values[c] - values[k] for c, k in expected])
    assert pairs[:].dtype == np.float32
    assert np.array_equal(pairs[:], reference)
    assert np.array_equal(np.stack([pairs[i] for i in range(len(pairs))]), reference)
    assert np.array_equal(pairs[-1], reference[-1])
    assert np.array_equal(pairs[::-2], reference[::-2])
    mask = np.arange(len(pairs)) % 2 == 0
    assert np.array_equal(pairs[mask], reference[mask])
    obs = pairs.obs(slice(None))
    assert obs.index.tolist() == [f"S{c}_vs_S{k}" for c, k in expected]
    assert obs["case"].tolist() == [f"S{c}" for c, _ in expected]
    assert pairs.contrasts["n_pairs"].tolist() == [a * b for a, b in sizes]


@given(SIZES, st.integers(0, 30), st.booleans(), st.integers(1, 3))
def test_draw_is_reproducible_and_made_of_pairs(sizes, n, balanced, repeats):
    pairs, values, expected = make(sizes, balanced=balanced, controls_per_case=repeats)
    drawn = pairs.draw(n, np.random.default_rng(3))
    again = pairs.draw(n, np.random.default_rng(3))
    assert drawn.effects.shape == (n, 6)
    assert drawn.effects.dtype == np.float32
    assert drawn.group.dtype == np.int64
    assert drawn.has_magnitude
    assert np.array_equal(drawn.effects, again.effects)
    numbers = pairs.draw_numbers(n, np.random.default_rng(3))
    rows = np.array(expected).reshape(-1, 2)[numbers]
    assert np.array_equal(drawn.group, rows[:, 0])
    assert np.array_equal(drawn.effects, values[rows[:, 0]] - values[rows[:, 1]])


def test_profiles_of_a_case_have_different_controls():
    pairs, _, expected = make([(3, 5), (2, 3), (4, 1)], controls_per_case=3)
    numbers = pairs.draw_numbers(900, np.random.default_rng(0)).reshape(300, 3)
    rows = np.array(expected)[numbers]  # (300, 3, 2)
    assert (rows[:, :, 0] == rows[:, :1, 0]).all()
    for case, control in zip(rows[:, 0, 0], rows[:, :, 1], strict=True):
        assert len(set(control)) == (3 if case < 13 else 1)
    # every control of a case comes up, about equally often
    of_first = rows[rows[:, 0, 0] == 0][:, :, 1].ravel()
    share = np.bincount(of_first, minlength=8)[3:8] / len(of_first)
    assert share == pytest.approx(np.full(5, 0.2), abs=0.08)


def test_balanced_draws_contrasts_equally():
    sizes = [(1, 1), (30, 30)]
    pairs, _, _ = make(sizes)
    n_first = (pairs.draw(4000, np.random.default_rng(0)).group == 0).sum()
    assert n_first == pytest.approx(4000 / 901, abs=12)
    pairs.balanced = True
    n_first = (pairs.draw(4000, np.random.default_rng(0)).group == 0).sum()
    assert n_first == pytest.approx(2000, abs=200)


def test_draw_into_a_given_array():
    pairs, _, _ = make([(2, 2)])
    out = np.empty((5, 6), dtype=np.float32)
    drawn = pairs.draw(5, np.random.default_rng(0), out=out)
    assert drawn.effects is out
    assert np.array_equal(out, pairs.draw(5, np.random.default_rng(0)).effects)
    with pytest.raises(ValueError, match="float32 of shape"):
        pairs.draw(4, np.random.default_rng(0), out=out)


def test_swapping_case_and_control_flips_the_sign():
    pairs, values, _ = make([(1, 3)])
    swapped = ContrastPairs(
        values,
        [np.array([1, 2, 3])],
        [np.array([0])],
        contrasts=pairs.contrasts,
        var=pairs.var,
        sample_names=pairs.sample_names,
    )
    assert np.array_equal(swapped[:], -pairs[:])


def test_ten_million_pairs_need_no_more_than_the_samples():
    pairs, values, _ = make([(3163, 3163)], n_genes=4)
    assert len(pairs) > 10**7
    assert np.shares_memory(pairs._values, values)
    held = sum(a.nbytes for a in vars(pairs).values() if isinstance(a, np.ndarray))
    assert held - values.nbytes < 8 * len(values) + 1000
    last = pairs[len(pairs) - 1]
    assert np.array_equal(last, values[3162] - values[-1])


def test_to_adata(tmp_path):
    skipped = pd.DataFrame({"stratum": ["x"], "level": [""], "reason": ["why"]}, index=["0"])
    pairs, _, _ = make([(2, 3), (1, 2)], uns={"params": {"mode": "pairs"}, "skipped": skipped})
    everything = pairs.to_adata()
    assert everything.shape == pairs.shape == (8, 6)
    assert np.array_equal(everything.X, pairs[:])
    assert everything.obs["virus"].tolist() == ["v0"] * 6 + ["v1"] * 2
    assert list(everything.var_names) == list(pairs.var_names)
    assert pairs.skipped is skipped
    some = pairs.to_adata(n=4, seed=1)
    assert some.n_obs == 4
    assert some.obs_names.is_unique
    assert np.array_equal(some.X, pairs.to_adata(n=4, seed=1).X)
    assert pairs.to_adata(n=100).n_obs == 8
    assert pairs.to_adata([3, 3]).obs_names.is_unique
    with pytest.raises(ValueError, match="exclude each other"):
        pairs.to_adata([1], n=2)
    everything.write_h5ad(tmp_path / "pairs.h5ad")
    assert np.array_equal(ad.read_h5ad(tmp_path / "pairs.h5ad").X, everything.X)


def test_is_a_profile_source():
    pairs, _, _ = make([(1, 1)])
    assert isinstance(pairs, ProfileSource)
    assert repr(pairs) == "ContrastPairs: 1 pairs × 6 genes from 2 samples in 1 contrasts"
    assert pairs.skipped.empty


@pytest.mark.parametrize("index", [4, -5, [0, 4]])
def test_index_out_of_range(index):
    with pytest.raises(IndexError, match="there are 4 pairs"):
        make([(2, 2)])[0][index]


def test_index_of_the_wrong_kind():
    pairs = make([(2, 2)])[0]
    with pytest.raises(IndexError, match="a mask needs one value"):
        pairs[np.array([True])]
    with pytest.raises(IndexError, match="numbered by integers"):
        pairs[[0.5]]
    assert pairs[[]].shape == (0, 6)


def test_wrong_pieces():
    pairs, values, _ = make([(2, 2)])
    keywords = {
        "contrasts": pairs.contrasts,
        "var": pairs.var,
        "sample_names": pairs.sample_names,
    }
    rows = [np.array([0])]
    with pytest.raises(ValueError, match="6 genes were given"):
        ContrastPairs(values[:, :3], rows, rows, **keywords)
    with pytest.raises(ValueError, match="one entry per contrast"):
        ContrastPairs(values, rows * 2, rows, **keywords)
    with pytest.raises(ValueError, match="at least one case"):
        ContrastPairs(values, [np.array([], dtype=int)], rows, **keywords)
    with pytest.raises(ValueError, match="rows 0 to 3"):
        ContrastPairs(values, [np.array([9])], rows, **keywords)
    with pytest.raises(ValueError, match="controls_per_case=0"):
        pairs.controls_per_case = 0
        pairs.draw(1, np.random.default_rng(0))
