"""The table of ligand-receptor pairs."""

from importlib.resources import files
from pathlib import Path

from cfm.data import map_identifiers
from cfm.datasets import ligand_receptor


def test_table():
    table = ligand_receptor()
    assert list(table) == ["ligand", "receptor"]
    assert not table.isna().any(axis=None)
    assert not table.duplicated().any()
    assert (table != "").all(axis=None)
    assert table.equals(table.sort_values(["ligand", "receptor"], ignore_index=True))
    assert 4_000 < len(table) < 6_000


def test_pairs_and_complexes():
    table = ligand_receptor()
    pairs = set(table.itertuples(index=False, name=None))
    assert ("CXCL10", "CXCR3") in pairs
    assert ("IL2", "IL2RA_IL2RB_IL2RG") in pairs
    assert table["receptor"].str.contains("_").sum() > 500
    genes = sorted({gene for name in table.to_numpy().ravel() for gene in name.split("_")})
    assert set(map_identifiers(genes).source) == {"symbol"}  # all current


def test_every_call_gives_a_table_of_its_own():
    changed = ligand_receptor()
    changed["ligand"] = "x"
    assert "x" not in set(ligand_receptor()["ligand"])


def test_size_and_licence():
    path = files("cfm.datasets") / "files" / "ligand_receptor.csv.gz"
    assert len(path.read_bytes()) < 100_000
    assert "GPL-3" in ligand_receptor.__doc__
    notice = (Path(__file__).parents[2] / "NOTICE").read_text()
    assert "ligand_receptor.csv.gz" in notice
