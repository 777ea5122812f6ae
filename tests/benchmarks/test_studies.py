"""Folds, weights and set filters on a tiny folder in the layout of the real data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks._report import Report, data_folder, environment, markdown_table, replace_section
from benchmarks._studies import (
    hide_half_of_top,
    load_signatures,
    load_signed_sets,
    study_folds,
    study_weights,
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    signatures, sets = tmp_path / "virus_signatures", tmp_path / "signed_sets"
    signatures.mkdir()
    sets.mkdir()
    names = ["S1|a", "S1|b", "S2|a", "M|x"]
    pd.DataFrame(
        {
            "signature": names,
            "study": ["S1", "S1", "GSE13485", "M"],
            "virus": ["IAV", "ZIKV", "IAV", "MCMV"],
            "host": ["human"] * 3 + ["mouse"],
            "usable": [True, False, True, True],
        }
    ).to_csv(signatures / "manifest.csv", index=False)
    pd.DataFrame(
        {"S1|a": [1.0, -2.0, np.nan], "S1|b": [0.5, 0.0, 3.0], "S2|a": [2.0, 1.0, -1.0]},
        index=["ISG15", "ACTB", "MX1"],
    ).to_csv(signatures / "human_lfc.csv.gz", index_label="symbol")
    pd.DataFrame({"M|x": [4.0, 2.0, 9.0]}, index=["Isg15", "ISG15", "Gm99999999"]).to_csv(
        signatures / "mouse_lfc.csv.gz", index_label="symbol"
    )
    rows = [
        ("GSE13485_DAY7_VS_DAY0", 1, "ISG15"),
        ("GSE13485_DAY7_VS_DAY0", -1, "ACTB"),
        ("OTHER_A_VS_B", 1, "MX1"),
        ("OTHER_A_VS_B", 1, "ACTB"),
        ("OTHER_A_VS_B", -1, "ACTB"),
        ("OTHER_A_VS_B", 1, "NOT_A_GENE"),
        ("EMPTY_A_VS_B", 1, "NOT_A_GENE"),
    ]
    pd.DataFrame(rows, columns=["set_pair", "direction", "gene"]).to_csv(
        sets / "immunesigdb_up_down.csv.gz", index=False
    )
    pd.DataFrame({"IFN1": [0.5, 0.0, -2.0]}, index=["ISG15", "ACTB", "MX1"]).to_csv(
        sets / "cytosig.csv.gz", index_label="symbol"
    )
    return tmp_path


def test_signatures(folder: Path) -> None:
    human = load_signatures(folder)
    assert human.obs.index.tolist() == ["S1|a", "S2|a"]
    assert human.obs["unit"].tolist() == ["IAV|S1", "IAV|GSE13485"]
    assert human.effects.dtype == np.float32
    everything = load_signatures(folder, ("human", "mouse"), usable=None)
    assert everything.var_names.tolist() == ["ISG15", "ACTB", "MX1"]
    np.testing.assert_array_equal(everything.effects[3], [3.0, np.nan, np.nan])
    assert len(everything[everything.obs["host"].to_numpy() == "mouse"]) == 1
    other = human.reindex(pd.Index(["MX1", "NEW"]))
    np.testing.assert_array_equal(other.effects, [[np.nan, np.nan], [-1.0, np.nan]])
    with pytest.raises(ValueError, match="Unknown species"):
        load_signatures(folder, ("ferret",))


def test_signed_sets(folder: Path) -> None:
    genes = pd.Index(["ISG15", "ACTB", "MX1"])
    sets = load_signed_sets(folder, genes, ("immunesigdb", "cytosig"), n_weights=1)
    assert sets.names.tolist() == ["GSE13485_DAY7_VS_DAY0", "OTHER_A_VS_B", "IFN1"]
    np.testing.assert_array_equal(sets.matrix.toarray(), [[1, -1, 0], [0, 0, 1], [0, 0, -1]])
    assert sets.without_studies(["GSE13485"]).names.tolist() == ["OTHER_A_VS_B", "IFN1"]
    assert len(sets.without_studies(["GSE1"])) == 3


def test_folds_keep_studies_whole_and_balanced() -> None:
    studies = ["a"] * 5 + ["b"] * 3 + ["c"] * 2 + ["d"] * 4
    fold = study_folds(studies, 3)
    assert all(len(set(fold[np.array(studies) == s])) == 1 for s in "abcd")
    assert np.bincount(fold).tolist() == [5, 4, 5]
    np.testing.assert_array_equal(study_folds(studies[::-1], 3), fold[::-1])
    with pytest.raises(ValueError, match="expected 2 to 4"):
        study_folds(studies, 5)


def test_study_weights() -> None:
    np.testing.assert_allclose(study_weights(["a", "a", "b"], 0.5), [0.125, 0.125, 0.25])


def test_half_of_the_largest_is_hidden() -> None:
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(4, 50)).astype(np.float32)
    effects[:, :5] = np.nan
    observed, hidden = hide_half_of_top(effects, 20, seed=1)
    seen = np.isfinite(observed)
    assert (hidden.sum(1) == 10).all()
    assert (seen.sum(1) == 10).all()
    assert not (hidden & seen).any()
    for row, taken in zip(effects, hidden | seen, strict=True):
        assert np.abs(row[taken]).min() >= np.nanmax(np.abs(row[~taken]))
    again, _ = hide_half_of_top(effects[:2], 20, seed=1)
    np.testing.assert_array_equal(again, observed[:2])


def test_data_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data_folder(folder) == folder
    monkeypatch.setenv("CFM_DATA", str(folder))
    assert data_folder() == folder
    monkeypatch.setenv("CFM_DATA", str(folder / "nowhere"))
    with pytest.raises(SystemExit, match="--data FOLDER"):
        data_folder()


def test_report(capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"method": ["a|b", "c"], "accuracy": [0.12345, np.nan], "n": [3, 4]})
    assert markdown_table(table, 2).splitlines() == [
        "| method | accuracy | n |",
        "|---|---:|---:|",
        "| a\\|b | 0.12 | 3 |",
        "| c | – | 4 |",
    ]
    report = Report("name", "A title")
    report.text("A sentence.")
    report.table("scores", table, "Scores")
    report.finish(write=False)
    assert "A sentence." in capsys.readouterr().out
    section = report.markdown()
    assert environment() in section
    document = replace_section("# Benchmarks\n", "name", section)
    assert replace_section(document, "name", section) == document
    changed = replace_section(document + "\nafter\n", "name", "## New")
    assert "A title" not in changed
    assert changed.rstrip().endswith("after")
