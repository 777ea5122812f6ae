"""Identifiers of every kind lead to the same current symbols."""

import pytest

from cfm.data._genes import _tables, map_identifiers


@pytest.mark.parametrize(
    ("name", "symbol", "source"),
    [
        ("ISG15", "ISG15", "symbol"),
        ("isg15", "ISG15", "symbol"),
        (" ISG15 ", "ISG15", "symbol"),
        ("C9orf72", "C9orf72", "symbol"),
        ("C9ORF72", "C9orf72", "symbol"),
        ("ENSG00000187608", "ISG15", "ensembl"),
        ("ENSG00000187608.10", "ISG15", "ensembl"),
        ("ENSG00000187608.10_PAR_Y", "ISG15", "ensembl"),
        ("DDX58", "RIGI", "alias"),
        ("SEPT7", "SEPTIN7", "alias"),
        ("MT-ND1", "MT-ND1", "symbol"),
        ("NKX2-1", "NKX2-1", "symbol"),
        ("ENSG99999999999", "", "unmapped"),
        ("not-a-gene", "", "unmapped"),
        ("", "", "unmapped"),
        (None, "", "unmapped"),
        (float("nan"), "", "unmapped"),
        (1, "", "unmapped"),
    ],
)
def test_one_name(name, symbol, source):
    mapping = map_identifiers([name], organism="human")
    assert (mapping.symbol[0], mapping.source[0]) == (symbol, source)
    assert mapping.mapped[0] == (source != "unmapped")


def test_mixed_names_keep_their_order():
    mapping = map_identifiers(["MX1", "ENSG00000187608.3", "DDX58", "xyz"])
    assert mapping.symbol.tolist() == ["MX1", "ISG15", "RIGI", ""]
    assert mapping.source.tolist() == ["symbol", "ensembl", "alias", "unmapped"]
    assert mapping.organism == "human"


def test_mouse_by_name_case():
    mapping = map_identifiers(["Isg15", "Mx1", "Ddx58", "H2-K1", "ENSMUSG00000035692"])
    assert mapping.organism == "mouse"
    assert mapping.symbol.tolist() == ["ISG15", "MX1", "RIGI", "", ""]
    assert mapping.source.tolist() == ["ortholog"] * 3 + ["unmapped"] * 2


def test_detection_counts_names():
    assert map_identifiers(["ENSMUSG00000035692", "ENSMUSG00000000001"]).organism == "mouse"
    assert map_identifiers(["ISG15", "MX1", "Ifit1"]).organism == "human"
    assert map_identifiers([]).organism == "human"


def test_suffix_of_made_unique_names():
    mapping = map_identifiers(["ISG15", "ISG15-1", "ISG15.2", "MX1-1", "RP11-34P13.7"])
    # MX1-1 without MX1 beside it may be anything, so it is left alone
    assert mapping.symbol.tolist() == ["ISG15", "ISG15", "ISG15", "", ""]


def test_bad_arguments():
    with pytest.raises(ValueError, match="organism='ferret'; expected one of"):
        map_identifiers(["A"], organism="ferret")
    with pytest.raises(TypeError, match="list of gene names"):
        map_identifiers("ISG15")


def test_table_is_consistent():
    tables = _tables()
    assert len(tables.approved) > 40_000
    assert len(tables.by_upper) == len(tables.approved)
    assert not set(tables.previous) & set(tables.by_upper)
    assert set(tables.ensembl.values()) <= tables.approved
    for gene in ("IFI27", "IFI44L", "ISG15", "MX1", "IFIT1", "RSAD2"):
        assert gene in tables.approved
