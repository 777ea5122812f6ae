"""Gene sets of programs, and the activity of programs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy.stats import hypergeom, linregress

from cfm.tl._program_enrichment import (
    activities,
    benjamini_hochberg,
    enrichment,
    read_gene_sets,
)


def test_sets_of_a_dictionary_and_a_gmt_file(tmp_path: Path) -> None:
    path = tmp_path / "sets.gmt"
    path.write_text("one\tabout one\tA\tB\tA\ntwo\t\tC\t\n\nnone\twithout genes\n")
    expected = {"one": ["A", "B"], "two": ["C"]}
    assert read_gene_sets(path) == expected
    assert read_gene_sets(str(path)) == expected
    assert read_gene_sets({"one": ("A", "B", "A"), "two": {"C"}, "none": []}) == expected


@pytest.mark.parametrize(
    ("given_sets", "error", "words"),
    [
        ({}, ValueError, "holds 0 sets and none with a gene"),
        ({"a": []}, ValueError, "holds 1 sets and none with a gene"),
        ({"a": "MX1"}, TypeError, r"gene_sets\['a'\] is a text"),
        ("KEGG_2021_Human", FileNotFoundError, "is no file"),
        (["MX1", "MX2"], TypeError, "gene_sets is a list"),
    ],
)
def test_sets_that_are_none(given_sets: object, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        read_gene_sets(given_sets)


def test_enrichment_is_the_hypergeometric_test_in_the_background() -> None:
    background = [f"C{i}orf{i}" for i in range(100)]  # lower case within: not to be lost
    program = background[:10]
    sets = {
        "hit": [*background[:6], *background[50:54], "elsewhere"],
        "weak": [*background[9:12]],
        "miss": background[60:70],
        "outside": ["X", "Y"],
    }
    table = enrichment({"P1": program}, {"P1": background}, sets)
    assert table["term"].tolist() == ["hit", "weak"]
    hit = table.iloc[0]
    assert (hit["overlap"], hit["term_size"]) == (6, 10)
    assert hit["genes"] == "|".join(sorted(background[:6]))
    expected = hypergeom.sf(5, 100, 10, 10), hypergeom.sf(0, 100, 3, 10)
    np.testing.assert_allclose(table["p_value"], expected, rtol=1e-6)
    # three sets were tried in this background
    np.testing.assert_allclose(table["fdr"], [expected[0] * 3, expected[1] * 3 / 2], rtol=1e-6)
    assert table.index.tolist() == ["0", "1"]


def test_a_program_without_any_set_has_no_row() -> None:
    genes = [f"G{i}" for i in range(30)]
    table = enrichment(
        {"P1": genes[:5], "P2": genes[5:9]}, dict.fromkeys(["P1", "P2"], genes), {"a": genes[:4]}
    )
    assert table["program"].tolist() == ["P1"]
    empty = enrichment({"P2": genes[5:9]}, {"P2": genes}, {"a": genes[:4]})
    assert len(empty) == 0
    assert empty.columns.tolist() == table.columns.tolist()


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
    found = activities(effects, weights)
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


def test_activity_leaves_the_threads_of_torch_alone(rng: np.random.Generator) -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        activities(*cases(rng))
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_activity_depends_on_no_other_row_and_no_storage(rng: np.random.Generator) -> None:
    effects, weights = cases(rng)
    whole = activities(effects, weights)
    order = rng.permutation(len(effects))
    np.testing.assert_allclose(activities(effects[order], weights), whole[order], rtol=1e-5)
    np.testing.assert_allclose(activities(effects[3:4], weights)[0], whole[3], rtol=1e-5)
    np.testing.assert_allclose(activities(sp.csr_matrix(effects), weights), whole, rtol=1e-5)
    nothing = np.full((2, 40), np.nan, dtype=np.float32)
    assert np.isnan(activities(nothing, weights)).all()
