"""The pages *Trust* and *Models beside PCA* say what the benchmarks found."""

from __future__ import annotations

from types import ModuleType

import pytest

from benchmarks import models_beside_pca, trust
from benchmarks._report import markdown_table
from cfm.models import load_model


@pytest.mark.parametrize("module", [trust, models_beside_pca])
def test_the_page_has_the_numbers_of_the_results(module: ModuleType) -> None:
    assert markdown_table(module.table()) in module.PAGE.read_text(encoding="utf-8")


#: Where a simple method is clearly ahead of a bundled model that is a default; its card says so.
LOST = {
    ("`bulkformer-mini`", "hba1c, islets"): "HbA1c of islets",
    ("`bulkformer-mini`", "infected or control"): "infected or control",
    ("`pulsar-mini`", "new laboratory"): "moments alone",
}


def test_a_default_model_loses_to_a_simple_method_only_where_its_card_says_so() -> None:
    rows = models_beside_pca.table()
    behind = rows[rows["result"] == "**behind**"]
    for (model, task), words in LOST.items():
        (row,) = [
            k
            for k, m, t in behind[["model", "left out"]].itertuples()
            if m.startswith(model) and task in t
        ]
        behind = behind.drop(index=row)
        card = load_model(model.strip("`")).card
        assert card is not None
        assert words in " ".join(card.split("## Training")[0].split())
    assert behind.empty
    ahead = rows[rows["result"] == "ahead"]
    assert ahead["left out"].str.contains("c_index|auroc").any()


def test_the_best_is_the_largest_of_those_that_are_not_ours() -> None:
    rows = [{"m": "ours", "x": 0.9}, {"m": "a", "x": 0.2}, {"m": "b", "x": 0.4}]
    assert trust.best(rows, "x", "m", "our") == "0.40 b"
    assert trust.number(rows, "x", m="a") == "0.20"
    with pytest.raises(KeyError, match="0 rows have"):
        trust.number(rows, "x", m="c")
