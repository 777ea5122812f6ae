"""The page *Trust* says what the benchmarks found."""

from __future__ import annotations

import pytest

from benchmarks import trust


def test_the_page_has_the_numbers_of_the_results() -> None:
    document = trust.PAGE.read_text(encoding="utf-8")
    assert trust.page(document) == document


def test_no_default_model_loses_to_principal_components() -> None:
    """A bundled model that is a tool's default is nowhere clearly below PCA on the same split."""
    pairs = trust.results("beside_pca")["paired"]
    assert {pair["baseline"] for pair in pairs} >= {"PCA of the cohort", "PCA of the corpus"}
    simple = [pair for pair in pairs if pair["baseline"].startswith("PCA")]
    assert not [pair for pair in simple if pair["high"] < 0]
    above = {pair["cohort"] for pair in simple if pair["low"] > 0}
    assert len(above) >= 2


def test_the_best_is_the_largest_of_those_that_are_not_ours() -> None:
    rows = [{"m": "ours", "x": 0.9}, {"m": "a", "x": 0.2}, {"m": "b", "x": 0.4}]
    assert trust.best(rows, "x", "m", "our") == "0.40 b"
    assert trust.number(rows, "x", m="a") == "0.20"
    with pytest.raises(KeyError, match="0 rows have"):
        trust.number(rows, "x", m="c")
