"""The gene list of a model, and how names fall onto it."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfm.data import GeneVocabulary, map_identifiers

GENES = ["IFI27", "MX1", "ISG15", "ACTB", "CXCL10"]
VOCABULARY = GeneVocabulary(GENES)


@given(names=st.permutations([*GENES, "NOBODY", "ELSE"]))
def test_names_are_found_in_any_order(names: list[str]) -> None:
    found = VOCABULARY.align(names)
    assert {names[c]: GENES[p] for c, p in zip(found.columns, found.positions, strict=True)} == {
        g: g for g in GENES
    }
    assert found.found_share == 1.0
    assert found.columns.dtype == found.positions.dtype == np.int64


def test_absent_genes_are_missing_not_zero() -> None:
    found = VOCABULARY.align(pd.Index(["MX1", "other", "IFI27"]))
    assert found.found_share == 0.4
    out = found.apply(np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]))
    assert out.dtype == np.float32
    np.testing.assert_array_equal(out[:, :2], [[3, 1], [6, 4]])
    assert np.isnan(out[:, 2:]).all()


def test_ensembl_ids_with_and_without_version_are_found() -> None:
    found = VOCABULARY.align(["ENSG00000157601.14", "ENSG00000165949"])
    assert [GENES[p] for p in found.positions] == ["MX1", "IFI27"]


def test_previous_symbols_are_found() -> None:
    name = "SEPT2"
    current = map_identifiers([name]).symbol[0]
    assert current == "SEPTIN2"
    assert GeneVocabulary([current]).align([name]).found_share == 1.0


def test_an_exact_name_wins_over_an_alias_and_the_first_over_the_second() -> None:
    ensembl = "ENSG00000157601"  # MX1
    for names in ([ensembl, "MX1"], ["MX1", ensembl]):
        found = VOCABULARY.align(names)
        assert [names[c] for c in found.columns] == ["MX1"]
    assert VOCABULARY.align([ensembl, f"{ensembl}.3"]).columns.tolist() == [0]
    assert VOCABULARY.align(["MX1", "MX1", "ACTB"]).columns.tolist() == [0, 2]


def test_each_gene_is_found_once() -> None:
    names = [*GENES, *GENES, "ENSG00000157601"]
    found = VOCABULARY.align(names)
    assert sorted(found.positions) == list(range(5))


def test_no_overlap_is_an_error_that_shows_both_sides() -> None:
    with pytest.raises(ValueError, match=r"Found 0 of the model's 5 genes .*such as p1, p2, p3.*I"):
        VOCABULARY.align(["p1", "p2", "p3", "p4"])
    with pytest.raises(ValueError, match=r"Found 1 of .* at least 2 are needed.*cfm.pp.map_genes"):
        VOCABULARY.align(["MX1"], min_genes=2)


def test_versions_of_ids_that_have_no_symbol_do_not_matter() -> None:
    vocabulary = GeneVocabulary(["ISG15", "ENSG99999999990", "ENSG99999999991.4"])
    names = ["ENSG99999999990.3", "ENSG99999999990", "ENSG99999999991.4", "ENSG00000187608.10"]
    found = vocabulary.align(names)
    assert dict(zip(found.columns, found.positions, strict=True)) == {1: 1, 2: 2, 3: 0}
    assert vocabulary.align(names[:1]).positions.tolist() == [1]


def test_no_names_at_all() -> None:
    with pytest.raises(ValueError, match="Found 0 of"):
        VOCABULARY.align([])


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ([], "at least one gene"),
        (["A", "B", "A"], r"found twice: \['A'\]"),
        (["A", ""], "empty name"),
        (["A", "B\n"], "line break"),
    ],
)
def test_names_that_are_no_list_of_genes(genes: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        GeneVocabulary(genes)


def test_vocabularies_are_compared_by_their_genes() -> None:
    assert GeneVocabulary(GENES) == VOCABULARY
    assert hash(GeneVocabulary(GENES)) == hash(VOCABULARY)
    assert GeneVocabulary(GENES[::-1]) != VOCABULARY
    assert VOCABULARY != GENES
    assert len(VOCABULARY) == 5
    assert repr(VOCABULARY) == "GeneVocabulary(5 genes: IFI27, MX1, ISG15, …)"
