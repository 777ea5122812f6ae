"""Laws of contrasts: what changes a profile and what cannot."""

from __future__ import annotations

import warnings

import anndata as ad
import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

import cfm

N_GENES = 8
SEEDS = st.integers(0, 10_000)


def samples(seed: int, n_cases: int, n_controls: int) -> ad.AnnData:
    """Counts of one study; libraries differ tenfold."""
    rng = np.random.default_rng(seed)
    n = n_cases + n_controls
    mean = rng.gamma(1.0, 100.0, N_GENES) * rng.uniform(1.0, 10.0, (n, 1))
    counts = rng.poisson(mean).astype(np.float64)
    counts[:, 0] += 1  # no sample without any count
    obs = pd.DataFrame(
        {"virus": ["IAV"] * n_cases + ["none"] * n_controls}, index=[f"s{i}" for i in range(n)]
    )
    return ad.AnnData(counts, obs=obs, var=pd.DataFrame(index=[f"G{i}" for i in range(N_GENES)]))


def profile(adata: ad.AnnData, **arguments) -> np.ndarray:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fractional counts are told
        return cfm.pp.contrasts(adata, "virus", "none", **arguments).X[0]


def log_values(seed: int, n_cases: int, n_controls: int) -> ad.AnnData:
    adata = samples(seed, n_cases, n_controls)
    adata.X = np.log2(adata.X + 1)
    return adata


@settings(max_examples=15)
@given(seed=SEEDS, n_cases=st.integers(1, 4), n_controls=st.integers(1, 4))
def test_case_and_control_change_the_sign_alone(seed: int, n_cases: int, n_controls: int) -> None:
    adata = samples(seed, n_cases, n_controls)
    there = cfm.pp.contrasts(adata, "virus", "none").X
    back = cfm.pp.contrasts(adata, "virus", "IAV").X
    np.testing.assert_allclose(back, -there, atol=1e-5)


@settings(max_examples=15)
@given(seed=SEEDS, order=st.permutations(range(6)), genes=st.permutations(range(N_GENES)))
def test_the_order_of_samples_and_genes_says_nothing(seed, order, genes) -> None:
    adata = samples(seed, 3, 3)
    moved = adata[list(order)][:, list(genes)].copy()
    np.testing.assert_allclose(profile(moved), profile(adata)[list(genes)], atol=1e-5)


@settings(max_examples=15)
@given(seed=SEEDS, factor=st.sampled_from([2, 3, 10, 100]))
def test_depth_of_all_samples_says_nothing_without_a_prior(seed: int, factor: int) -> None:
    adata = samples(seed, 2, 3)
    adata.X += 1  # without a prior there must be no zero
    deeper = adata.copy()
    deeper.X *= factor
    kept = {"prior_count": 1e-9}
    np.testing.assert_allclose(profile(deeper, **kept), profile(adata, **kept), atol=1e-4)


@settings(max_examples=15)
@given(seed=SEEDS, factor=st.sampled_from([2, 3, 10]), row=st.integers(0, 4))
def test_depth_of_one_sample_says_little(seed: int, factor: int, row: int) -> None:
    adata = samples(seed, 2, 3)
    adata.X = adata.X * 100 + 1000
    deeper = adata.copy()
    deeper.X[row] *= factor
    np.testing.assert_allclose(profile(deeper), profile(adata), atol=0.02)


@settings(max_examples=15)
@given(seed=SEEDS, n=st.integers(1, 3))
def test_genes_without_counts_change_nothing(seed: int, n: int) -> None:
    adata = samples(seed, 2, 2)
    empty = ad.AnnData(np.zeros((4, n)), obs=adata.obs)
    empty.var_names = [f"empty{i}" for i in range(n)]
    wider = ad.concat([adata, empty], axis=1, merge="same")
    found = profile(wider)
    np.testing.assert_array_equal(found[:N_GENES], profile(adata))
    np.testing.assert_array_equal(found[N_GENES:], 0)


@settings(max_examples=15)
@given(seed=SEEDS, n_cases=st.integers(1, 3), n_controls=st.integers(1, 3))
def test_replicates_are_the_mean_of_pairs(seed: int, n_cases: int, n_controls: int) -> None:
    adata = samples(seed, n_cases, n_controls)
    pairs = cfm.pp.contrasts(adata, "virus", "none", mode="pairs")
    assert len(pairs) == n_cases * n_controls
    mean = np.mean([pairs[i] for i in range(len(pairs))], axis=0)
    np.testing.assert_allclose(mean, profile(adata), atol=1e-4)


@settings(max_examples=15)
@given(seed=SEEDS, times=st.integers(2, 4))
def test_a_sample_twice_is_a_sample(seed: int, times: int) -> None:
    adata = samples(seed, 2, 2)
    twice = ad.concat([adata] * times)
    twice.obs_names_make_unique()
    np.testing.assert_allclose(profile(twice), profile(adata), atol=1e-5)


@settings(max_examples=15)
@given(seed=SEEDS, shift=st.floats(-5, 5))
def test_log_values_are_subtracted_as_they_are(seed: int, shift: float) -> None:
    adata = log_values(seed, 2, 3)
    shifted = adata.copy()
    shifted.X[:2] += shift
    there = profile(adata, units="log")
    np.testing.assert_allclose(profile(shifted, units="log"), there + shift, atol=1e-4)
    expected = adata.X[:2].mean(axis=0) - adata.X[2:].mean(axis=0)
    np.testing.assert_allclose(there, expected, atol=1e-4)


@settings(max_examples=15)
@given(seed=SEEDS)
def test_the_same_samples_have_no_contrast(seed: int) -> None:
    adata = samples(seed, 2, 2)
    adata.X[2:] = adata.X[:2]
    np.testing.assert_allclose(profile(adata), 0, atol=1e-6)


@settings(max_examples=15)
@given(seed=SEEDS, priors=st.tuples(st.floats(0.1, 5), st.floats(5, 200)))
def test_a_larger_prior_never_widens_the_range(seed: int, priors: tuple[float, float]) -> None:
    adata = samples(seed, 1, 1)
    adata.X[1] = np.roll(adata.X[0], 1)  # one depth, so the prior is one number
    less, more = (profile(adata, prior_count=p) for p in priors)
    assert np.ptp(more) <= np.ptp(less) + 1e-4
