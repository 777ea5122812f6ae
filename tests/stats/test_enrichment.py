"""Gene sets: which a list of genes holds, and how active they are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import hypergeom, linregress

from cfm.stats._enrichment import (
    benjamini_hochberg,
    overrepresentation,
    univariate_linear_model,
)


def test_enrichment_is_the_hypergeometric_test_in_the_background() -> None:
    background = [f"C{i}orf{i}" for i in range(100)]  # lower case within: not to be lost
    program = background[:10]
    sets = {
        "hit": [*background[:6], *background[50:54], "elsewhere"],
        "weak": [*background[9:12]],
        "miss": background[60:70],
        "outside": ["X", "Y"],
    }
    table = overrepresentation(program, background, sets)
    assert table["term"].tolist() == ["hit", "weak"]
    hit = table.iloc[0]
    assert (hit["overlap"], hit["term_size"]) == (6, 10)
    assert hit["genes"] == sorted(background[:6])
    expected = hypergeom.sf(5, 100, 10, 10), hypergeom.sf(0, 100, 3, 10)
    np.testing.assert_allclose(table["p_value"], expected, rtol=1e-6)
    # three sets were tried in this background
    np.testing.assert_allclose(table["fdr"], [expected[0] * 3, expected[1] * 3 / 2], rtol=1e-6)
    none = overrepresentation(background[80:], background, sets)
    assert len(none) == 0
    assert none.columns.tolist() == table.columns.tolist()


def test_false_discovery_rates() -> None:
    p = np.array([0.01, np.nan, 0.04, 0.03])
    np.testing.assert_allclose(benjamini_hochberg(p), [0.03, np.nan, 0.04, 0.04])
    np.testing.assert_allclose(benjamini_hochberg(p[:1], n_tests=5), [0.05])
    assert np.isnan(benjamini_hochberg(np.array([np.nan]))).all()


@given(hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(1e-6, 1)))
def test_rates_keep_the_order_and_are_no_smaller(p: np.ndarray) -> None:
    fdr = benjamini_hochberg(p)
    assert (fdr >= p - 1e-12).all()
    assert (fdr <= 1).all()
    order = np.argsort(p, kind="stable")
    assert (np.diff(fdr[order]) >= -1e-12).all()


def cases(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    effects = rng.standard_normal((5, 40)).astype(np.float32)
    weights = np.zeros((40, 2), dtype=np.float32)
    weights[:10, 0] = rng.uniform(-1, 1, 10)
    weights[20:25, 1] = 1.0
    effects[0, :12] = np.nan  # program 0 is not measured
    effects[1] = 0.0
    effects[2, 30:] = np.nan
    return effects, weights


def test_activity_is_the_t_value_of_the_slope(rng: np.random.Generator) -> None:
    effects, weights = cases(rng)
    found = univariate_linear_model(effects, weights)
    assert found.dtype == np.float32
    assert np.isnan(found[0, 0])
    np.testing.assert_array_equal(found[1], 0.0)  # nothing moves
    for row in (0, 2, 3, 4):
        known = np.isfinite(effects[row])
        for j in range(2):
            if row == 0 and j == 0:
                continue
            fit = linregress(weights[known, j], effects[row, known])
            np.testing.assert_allclose(found[row, j], fit.slope / fit.stderr, rtol=1e-3)


def test_activity_depends_on_no_other_row(rng: np.random.Generator) -> None:
    effects, weights = cases(rng)
    whole = univariate_linear_model(effects, weights)
    order = rng.permutation(len(effects))
    again = univariate_linear_model(effects[order], weights)
    np.testing.assert_allclose(again, whole[order], rtol=1e-5)
    alone = univariate_linear_model(effects[3:4], weights)
    np.testing.assert_allclose(alone[0], whole[3], rtol=1e-5)
    nothing = np.full((2, 40), np.nan, dtype=np.float32)
    assert np.isnan(univariate_linear_model(nothing, weights)).all()
