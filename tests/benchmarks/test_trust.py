"""The page *Trust* says what the benchmarks found."""

from __future__ import annotations

import pytest

from benchmarks import trust
from cfm.models import load_model


def test_the_page_has_the_numbers_of_the_results() -> None:
    document = trust.PAGE.read_text(encoding="utf-8")
    assert trust.page(document) == document


#: Where components on the same split are clearly ahead of the bundled embedding; its card says so.
LOST = {
    ("hba1c, islets", "PCA of the cohort"): "HbA1c of islets",
    ("infected or control, other study", "PCA of the corpus"): "infected or control",
}


def test_a_default_model_loses_to_principal_components_only_where_its_card_says_so() -> None:
    pairs = trust.results("beside_pca")["paired"]
    simple = [pair for pair in pairs if pair["baseline"].startswith("PCA")]
    assert {pair["baseline"] for pair in simple} == {"PCA of the cohort", "PCA of the corpus"}
    assert {(p["cohort"], p["baseline"]) for p in simple if p["high"] < 0} == set(LOST)
    assert len({pair["cohort"] for pair in simple if pair["low"] > 0}) >= 2
    card = load_model("bulkformer-mini").card
    assert card is not None
    limits = " ".join(card.split("## Training")[0].split())
    assert all(words in limits for words in LOST.values())


def test_the_best_is_the_largest_of_those_that_are_not_ours() -> None:
    rows = [{"m": "ours", "x": 0.9}, {"m": "a", "x": 0.2}, {"m": "b", "x": 0.4}]
    assert trust.best(rows, "x", "m", "our") == "0.40 b"
    assert trust.number(rows, "x", m="a") == "0.20"
    with pytest.raises(KeyError, match="0 rows have"):
        trust.number(rows, "x", m="c")
