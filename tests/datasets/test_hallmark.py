from importlib.resources import files
from pathlib import Path

from cfm.data import map_identifiers
from cfm.datasets import hallmark


def test_sets():
    sets = hallmark()
    assert len(sets) == 50
    assert all(name.startswith("HALLMARK_") for name in sets)
    assert all(len(genes) == len(set(genes)) for genes in sets.values())
    assert all(30 <= len(genes) <= 200 for genes in sets.values())
    assert {"ISG15", "IFIT3", "RSAD2"} <= set(sets["HALLMARK_INTERFERON_ALPHA_RESPONSE"])


def test_genes_are_symbols():
    genes = sorted({g for genes in hallmark().values() for g in genes})
    assert map_identifiers(genes).mapped.mean() > 0.99


def test_size_and_licence():
    path = files("cfm.datasets") / "files" / "hallmark.gmt.gz"
    assert len(path.read_bytes()) < 50_000
    assert "CC BY" in hallmark.__doc__
    notice = Path(__file__).parents[2] / "NOTICE"
    assert "hallmark.gmt.gz" in notice.read_text()


def test_copies_are_independent():
    hallmark()["HALLMARK_APOPTOSIS"].clear()
    assert hallmark()["HALLMARK_APOPTOSIS"]
