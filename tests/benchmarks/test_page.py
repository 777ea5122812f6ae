"""The one command that runs all benchmarks and renews the page."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks import __main__ as page
from benchmarks import _report
from benchmarks._catalogue import BENCHMARKS
from benchmarks._figures import Dots, Lines, draw

SCORES = [
    {"method": "gene mean", "auroc": 0.5, "low": 0.4, "high": 0.6, "split": "a"},
    {"method": "CellPulse", "auroc": 0.9, "low": 0.8, "high": 0.95, "split": "a"},
    {"method": "broken", "auroc": None, "low": None, "high": None, "split": "b"},
]


def results(tmp_path: Path, **tables: list[dict[str, object]]) -> Path:
    path = tmp_path / "toy.json"
    path.write_text(json.dumps({"environment": "machine; 2026-01-01"} | tables))
    return path


def test_every_script_is_in_the_catalogue() -> None:
    folder = Path(page.__file__).parent
    scripts = {p.stem for p in folder.glob("*.py") if not p.stem.startswith("_")}
    assert scripts == set(BENCHMARKS)


def test_a_figure_is_drawn_and_said_in_words(tmp_path: Path) -> None:
    growth = [{"n": n, "s": n / 10, "task": t} for n in (10, 100) for t in ("embed", "train")]
    path = results(tmp_path, scores=SCORES, growth=growth)
    panels = (
        Dots("scores", "auroc", ("method",), title="calls"),
        Dots("scores", "auroc", ("method",), facet="split", where={"split": "a"}, title="a"),
        Lines("growth", "n", "s", by="task", title="time", log=True),
        Dots("absent", "auroc", ("method",)),
    )
    target = tmp_path / "deep" / "toy.png"
    said = draw(path, panels, target)
    assert target.read_bytes().startswith(b"\x89PNG")
    assert said is not None
    assert "calls: best auroc 0.9 by CellPulse" in said
    assert "time, s by n: embed 1 to 10, train 1 to 10" in said


def test_where_lower_is_better_the_lowest_is_best(tmp_path: Path) -> None:
    path = results(tmp_path, scores=SCORES)
    panel = Dots("scores", "auroc", ("method",), title="t", lower_is_better=True)
    assert "by gene mean" in str(draw(path, (panel,), tmp_path / "toy.png"))


def test_without_numbers_there_is_no_figure(tmp_path: Path) -> None:
    path = results(tmp_path, scores=SCORES)
    assert draw(path, (Dots("scores", "absent", ("method",)),), tmp_path / "toy.png") is None
    assert not (tmp_path / "toy.png").exists()


def test_a_figure_stands_once_below_its_heading(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results(tmp_path, scores=SCORES)
    monkeypatch.setattr(_report, "RESULTS", tmp_path)
    monkeypatch.setattr(_report, "FIGURES", tmp_path)
    panels = (Dots("scores", "auroc", ("method",), title="calls"),)
    before = "# Page\n\n<!-- begin toy -->\n## Toy\n\nWords.\n<!-- end toy -->\n\nAfter.\n"
    once = _report.with_figure(before, "toy", panels)
    assert once == _report.with_figure(once, "toy", panels)
    assert once.count("![calls") == 1
    assert once.index("## Toy") < once.index("![calls") < once.index("Words.")
    assert once.endswith("<!-- end toy -->\n\nAfter.\n")
    assert _report.with_figure(before, "other", panels) == before


def test_a_benchmark_that_fails_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran = []

    def call(command: list[str], **kwargs: object) -> SimpleNamespace:
        ran.append(command[1:])
        return SimpleNamespace(returncode=int("benchmarks.virus" in command))

    document = tmp_path / "page.md"
    document.write_text("# Page\n")
    monkeypatch.setattr(page, "DOCUMENT", document)
    monkeypatch.setattr(page, "LOG", tmp_path / "log")
    monkeypatch.setattr(page, "overview", lambda: "the list")
    monkeypatch.setattr(subprocess, "run", call)
    assert page.main(["virus", "pulsar", "--data", "elsewhere"]) == 1
    assert ran[0] == ["-m", "benchmarks.virus", "--write", "--data", "elsewhere"]
    assert ran[1] == ["-m", "benchmarks.pulsar", *BENCHMARKS["pulsar"].arguments, "--write"]
    assert "failed: virus" in capsys.readouterr().out
    assert "the list" in document.read_text()


def test_the_list_says_what_was_not_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(page, "RESULTS", tmp_path)
    derived = [name for name, entry in BENCHMARKS.items() if "the others" in entry.measures]
    assert set(derived) == {"trust", "models_beside_pca"}
    assert page.overview().count("not run yet") == len(BENCHMARKS) - len(derived)


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        page.main(["viruses"])
    assert "no benchmarks ['viruses']" in capsys.readouterr().err
