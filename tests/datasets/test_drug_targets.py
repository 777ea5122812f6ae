from importlib.resources import files
from pathlib import Path

from cfm.datasets import cmap_signatures, drug_targets


def test_table():
    table = drug_targets()
    assert list(table) == ["compound", "gene", "moa", "action"]
    assert table["moa"].dtype == bool
    assert not table.isna().any(axis=None)
    assert not table.duplicated(["compound", "gene"]).any()
    assert (table[["compound", "gene"]] != "").all(axis=None)
    assert table["moa"].is_monotonic_decreasing  # mechanism of action first
    assert 2_000 < table["compound"].nunique() < 3_000


def test_mechanisms():
    table = drug_targets(moa_only=True)
    assert table["moa"].all()
    assert table.index.tolist() == list(range(len(table)))
    genes = table.groupby("compound")["gene"].agg(set)
    assert "NR3C1" in genes["dexamethasone"]
    assert "ABL1" in genes["imatinib"]
    assert "HMGCR" in genes["simvastatin"]
    action = table.set_index(["compound", "gene"])["action"]
    assert action["dexamethasone", "NR3C1"] == "agonist"
    assert len(genes) < drug_targets()["compound"].nunique()


def test_names_meet_those_of_the_signatures():
    drugs = set(drug_targets()["compound"].str.casefold())
    compounds = set(cmap_signatures()["compound"].str.casefold())
    assert len(drugs & compounds) > 500


def test_size_and_licence():
    path = files("cfm.datasets") / "files" / "drug_targets.tsv.gz"
    assert len(path.read_bytes()) < 200_000
    assert "CC BY-SA 4.0" in drug_targets.__doc__
    notice = Path(__file__).parents[2] / "NOTICE"
    assert "drug_targets.tsv.gz" in notice.read_text()
