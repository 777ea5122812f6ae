"""Sections on host factors, gene programs and drugs: they say what the tables hold, or why not."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm._fields import RESPONSE, VIRUS_KEY
from cfm._report import DemoOptions, run_demo
from cfm._report import _explanation_words as words
from tests import _demo_tools as stand_ins
from tests.cli.demo._demo import CARD, small_study, stand_in_embed, stand_in_predict

TITLES = ["Host factors", "Gene programs", "Drug screen"]


class Sections(HTMLParser):
    """Text, tables and pictures of each section of a report, by its heading."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.text: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.pictures: dict[str, int] = {}
        self._title = self._in = ""
        self._cell = False
        self.feed((folder / "report.html").read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self._in = tag
        if tag == "h2":
            self._title = ""
        elif tag == "tr" and self._title:
            self.rows.setdefault(self._title, []).append([])
        elif tag in ("td", "th") and self._title:
            self.rows[self._title][-1].append("")
            self._cell = True
        elif tag == "img" and self._title:
            self.pictures[self._title] = self.pictures.get(self._title, 0) + 1

    def handle_endtag(self, tag):
        self._in = ""
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in == "h2":
            self._title = data
        elif self._title:
            self.text[self._title] = self.text.get(self._title, "") + data
            if self._cell:
                self.rows[self._title][-1][-1] += data


@pytest.fixture(scope="module")
def patched():
    """Everything that would load a model is replaced."""
    with pytest.MonkeyPatch.context() as patch:
        checkpoint = type(
            "Checkpoint", (), {"name": "m", "model": "CellPulse", "sha256": "b", "card": CARD}
        )
        checkpoint.config, checkpoint.files = {}, {}
        patch.setattr("cfm._report._figures.MAX_GENE_FIGURES", 1)
        patch.setattr("cfm.hub.resolve", Path)
        patch.setattr("cfm.hub.load_checkpoint", lambda source: checkpoint)
        patch.setattr("cfm.tl.embed", stand_in_embed)
        patch.setattr("cfm.tl.predict_virus", stand_in_predict)
        stand_ins.put_in_place(patch)
        yield patch


def run(folder: Path, adata: ad.AnnData, **options) -> Sections:
    adata.write_h5ad(folder / "counts.h5ad")
    chosen = {"by": ("study",)} | options
    run_demo(DemoOptions(output=folder, counts=folder / "counts.h5ad", **chosen))
    return Sections(folder)


@pytest.fixture(scope="module")
def report(patched, tmp_path_factory):
    """One run, many looks at it."""
    folder = tmp_path_factory.mktemp("report")
    return folder, run(folder, small_study())


def test_sections_have_reading_limits_table_and_pictures(report):
    _, page = report
    for title, n_pictures in zip(TITLES, (3, 2, 6), strict=True):
        assert "Research use only." in page.text[title]
        assert len(page.rows[title]) > 3
        assert page.pictures[title] == n_pictures
        assert "Not computed" not in page.text[title]
    assert "CRISPR" in page.text["Host factors"]
    assert "Everything is in gene_programs.csv, gene_program_sets.csv" in page.text[TITLES[1]]


def test_tables_are_written_as_they_are_stored(report):
    folder, _ = report
    stored = ad.read_h5ad(folder / "contrasts.h5ad").uns
    for name in ("host_factors", "drug_screen"):
        written = pd.read_csv(folder / f"{name}.csv", keep_default_na=True)
        table = stored[name]["results"]
        assert list(written) == list(table)
        np.testing.assert_allclose(written["score"], table["score"], rtol=1e-5)
        assert written["group"].tolist() == table["group"].astype(str).tolist()
    programs = pd.read_csv(folder / "gene_programs.csv")
    assert len(programs) == len(stored["gene_programs"]["genes"])
    assert {"program", "gene", "weight", "program_size", "program_fdr"} <= set(programs)
    assert len(pd.read_csv(folder / "gene_program_sets.csv")) == 2


def test_rows_of_the_tables_are_the_first_of_each_group(report):
    folder, page = report
    table = pd.read_csv(folder / "host_factors.csv")
    expected = table[table["rank"] <= 10]
    shown = page.rows["Host factors"][1:]
    assert [(r[0], r[1], int(r[2]), r[3], r[4]) for r in shown] == list(
        expected[["group", "explained", "rank", "gene", "direction"]].itertuples(
            index=False, name=None
        )
    )
    drugs = page.rows["Drug screen"][1:]
    assert [row[1] for row in drugs[:10]] == [str(i + 1) for i in range(10)]
    assert drugs[0][-1] == "reverses IFIT1, MX1; targets JAK1, JAK2"


def test_readings_say_what_was_explained_and_what_has_no_response(report):
    folder, page = report
    text = page.text["Host factors"]
    assert "3 of 40 genes have a false discovery rate of at most 0.05." in text
    assert "KSHV (3 contrasts), explained: response." in text
    assert "IAV (3 contrasts), explained: IAV." in text
    obs = ad.read_h5ad(folder / "contrasts.h5ad").obs
    none = (obs[VIRUS_KEY + RESPONSE] == "none").groupby(obs["virus"], observed=True).mean()
    weak = [str(name) for name in none.index[none > 0.5]]
    assert ("No response is found in" in text) == bool(weak)
    assert "2 of 60 compounds have a false discovery rate" in page.text["Drug screen"]


def test_steps_are_recorded(report):
    _, page = report
    steps = {row[0] for row in page.rows["How it was made"] if row}
    assert {"cfm.tl.host_factors", "cfm.tl.gene_programs", "cfm.tl.screen_drugs"} <= steps


def test_one_contrast_of_another_column(patched, tmp_path):
    adata = small_study()[:4].copy()
    adata.obs["arm"] = ["ctrl", "ctrl", "treated", "treated"]
    page = run(tmp_path, adata, groupby="arm", control="ctrl", by=())
    assert [page.pictures[title] for title in TITLES] == [1, 2, 2]
    assert page.rows["Host factors"][1][0] == "treated"


def test_what_a_tool_refuses_is_said_and_the_rest_goes_on(patched, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise KeyError("this model has no classifier.")

    monkeypatch.setattr("cfm.tl.host_factors", refuse)
    page = run(tmp_path, small_study(), by=("study",))
    assert "Not computed for these contrasts: this model has no classifier." in page.text[TITLES[0]]
    assert TITLES[0] not in page.pictures
    assert not (tmp_path / "host_factors.csv").exists()
    assert page.pictures["Drug screen"] == 6
    drugs = pd.read_csv(tmp_path / "drug_screen.csv")
    assert drugs["target_score"].isna().all()  # no host factors, so no evidence from targets
    steps = {row[0] for row in page.rows["How it was made"] if row}
    assert "cfm.tl.host_factors" not in steps


def test_tables_of_an_earlier_run_do_not_stay(patched, tmp_path, monkeypatch):
    (tmp_path / "host_factors.csv").write_text("earlier")
    (tmp_path / "drug_screen.csv").write_text("earlier")
    stand_ins.refuse_all(monkeypatch)
    page = run(tmp_path, small_study())
    assert all("Not computed" in page.text[title] for title in TITLES)
    assert not (tmp_path / "host_factors.csv").exists()
    assert not (tmp_path / "drug_screen.csv").exists()


def test_numbers_that_do_not_exist_are_dashes():
    table = pd.DataFrame(
        {
            "group": ["a"], "explained": ["response"], "gene": ["MX1"], "rank": [1],
            "direction": ["up"], "effect": [-0.04], "call_effect": [np.nan], "fdr": [np.nan],
            "n_profiles": [1],
        }
    )  # fmt: skip
    _, rows = words.host_factor_rows(table)
    assert rows == [["a", "response", "1", "MX1", "up", "+0.0", "–", "–"]]
    (said,) = words.host_factors(table, {}, "virus")
    assert "No p-values were possible." in said


def test_groups_without_a_response_are_named() -> None:
    obs = pd.DataFrame(
        {"virus": ["A", "A", "B", "B"], VIRUS_KEY + RESPONSE: ["none", "viral", "none", "none"]},
        index=list("wxyz"),
    )
    (said,) = words.without_response(ad.AnnData(np.zeros((4, 1)), obs=obs), "virus")
    assert "No response is found in most contrasts of B." in said
    obs[VIRUS_KEY + RESPONSE] = "bacterial"
    assert words.without_response(ad.AnnData(np.zeros((4, 1)), obs=obs), "virus") == []
