from importlib.resources import files
from pathlib import Path

import pandas as pd

from cfm.data import map_identifiers
from cfm.datasets import cmap_signatures


def test_table():
    table = cmap_signatures()
    assert list(table) == ["compound", "gene", "direction"]
    assert table["compound"].nunique() == 1309
    assert set(table["direction"]) == {1, -1}
    assert table["direction"].dtype == "int64"
    assert not table.isna().any(axis=None)
    assert not table.duplicated(["compound", "gene"]).any()
    sizes = table.groupby(["compound", "direction"]).size()
    assert len(sizes) == 2 * 1309
    assert sizes.max() == 50
    assert sizes.min() >= 40


def test_genes_are_symbols():
    genes = pd.unique(cmap_signatures()["gene"])
    assert map_identifiers(genes.tolist()).mapped.mean() > 0.9


def test_known_biology_is_in_it():
    table = cmap_signatures()
    raised = table[table["direction"] == 1].groupby("compound")["gene"].agg(set)
    # Inhibitors of HSP90 raise heat-shock proteins, glucocorticoids FKBP5 or TSC22D3.
    for compound in ("geldanamycin", "tanespimycin"):
        assert {"HSPA1A", "HSPA1B", "HSPA6", "DNAJB1", "HSPA4L"} & raised[compound]
    steroids = ("dexamethasone", "betamethasone", "fluocinonide", "prednisolone")
    assert sum(bool({"FKBP5", "TSC22D3"} & raised[s]) for s in steroids) >= 2


def test_size_and_licence():
    path = files("cfm.datasets") / "files" / "cmap_signatures.tsv.gz"
    assert len(path.read_bytes()) < 600_000
    assert "LGPL-3" in cmap_signatures.__doc__
    notice = Path(__file__).parents[2] / "NOTICE"
    assert "cmap_signatures.tsv.gz" in notice.read_text()


def test_copies_are_independent():
    table = cmap_signatures()
    table["direction"] = 0
    assert (cmap_signatures()["direction"] != 0).all()
