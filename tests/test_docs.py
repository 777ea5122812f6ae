"""The documentation's own machinery: alternative texts, the pages of the API, the guide's form."""

from __future__ import annotations

import base64
import io
import json
import os
import re
import runpy
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import yaml

import cfm
from cfm.models import base

ROOMS = [name for name in cfm.__all__ if name not in ("__version__", "settings")]
DOCS = Path(__file__).parents[1] / "docs"
ALT = "A line that falls from left to right"
ALT_IS = {"mystnb": {"image": {"alt": ALT}}}


def _png() -> str:
    buffer = io.BytesIO()
    plt.figure(figsize=(0.1, 0.1)).savefig(buffer, format="png")
    plt.close()
    return base64.b64encode(buffer.getvalue()).decode()


def _cell(metadata: dict[str, object], *, figures: int = 1) -> dict[str, object]:
    output = {"output_type": "display_data", "metadata": {}, "data": {"image/png": _png()}}
    return {
        "cell_type": "code",
        "id": f"cell{id(metadata)}",
        "execution_count": 1,
        "metadata": metadata,
        "source": "draw()",
        "outputs": [output] * figures,
    }


def _build(folder: Path, **pages: str | list[dict[str, object]]) -> tuple[int, str, str]:
    """Exit code, what was said and the pages' HTML of a build of `pages` with the check."""
    folder.mkdir()
    (folder / "conf.py").write_text(
        f"import sys\nsys.path.insert(0, {str(DOCS)!r})\n"
        "extensions = ['_alternative_text', 'myst_nb']\nnb_execution_mode = 'off'\n"
    )
    names = ["index.md", *pages]
    (folder / names[0]).write_text("# A\n\n```{toctree}\n" + "\n".join(names[1:]) + "\n```\n")
    for name, content in pages.items():
        if isinstance(content, str):
            (folder / f"{name}.md").write_text(f"# {name}\n\n{content}\n")
        else:
            title = {"cell_type": "markdown", "id": "title", "metadata": {}, "source": "# B"}
            book = {"cells": [title, *content], "nbformat": 4, "nbformat_minor": 5}
            book["metadata"] = {"language_info": {"name": "python", "pygments_lexer": "python"}}
            (folder / f"{name}.ipynb").write_text(json.dumps(book))
    run = subprocess.run(
        [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", str(folder), f"{folder}/out"],
        capture_output=True,
        text=True,
    )
    html = "".join(path.read_text() for path in sorted((folder / "out").glob("[!i]*.html")))
    return run.returncode, run.stderr, html


def test_texts_reach_the_page_and_every_gap_fails_the_build(tmp_path: Path) -> None:
    pytest.importorskip("myst_nb")  # of the group "doc"; `make test` does without
    picture = f"![{ALT}](https://example.org/a.png)"
    code, said, html = _build(tmp_path / "good", page=picture, book=[_cell(ALT_IS)])
    assert code == 0, said
    assert html.count(f'alt="{ALT}"') == 2

    bad = {
        "no_text": "![](https://example.org/a.png)",
        "short": "![figure](https://example.org/b.png)",
        "raw": '<img src="https://example.org/c.png">',
        "raw_empty": '<p><img alt="" src="https://example.org/d.png"></p>',
        "no_metadata": [_cell({})],
        "two": [_cell(ALT_IS, figures=2)],
        "lost": [_cell(ALT_IS, figures=0)],
    }
    code, said, _ = _build(tmp_path / "bad", **bad)
    assert code != 0
    for name in bad:
        assert f"/{name}." in said, f"{name}: {said}"


@pytest.mark.parametrize("room", [*ROOMS, "nn"])
def test_api_page_lists_what_is_public(room: str) -> None:
    text = (DOCS / "api" / f"{room}.rst").read_text(encoding="utf-8")
    listed = re.findall(rf"^   {room}\.(\w+)$", text, flags=re.MULTILINE)
    assert sorted(listed) == sorted(import_module(f"cfm.{room}").__all__)
    assert f"   {room}\n" in (DOCS / "api" / "index.rst").read_text(encoding="utf-8")


def test_recipes_and_parts_of_models_are_listed() -> None:
    text = (DOCS / "api" / "models.rst").read_text(encoding="utf-8")
    listed = re.findall(r"^   models\.(\w+\.\w+)$", text, flags=re.MULTILINE)
    assert len(listed) == len(set(listed))
    parts = {f"base.{name}" for name in base.__all__} - {"base.PretrainedModel"}
    recipes = {
        f"{system}.{name}"
        for system in (
            "bulkformer",
            "cellpulse",
            "cellvq",
            "count_model",
            "lingshu",
            "pulsar",
            "uce",
        )
        for name in import_module(f"cfm.models.{system}").__all__
        if name.endswith("Recipe")
    }
    assert set(listed) == parts | recipes
    used = [getattr(getattr(cfm.models, name), "Recipe", None) for name in cfm.models.__all__]
    assert {recipe.__name__ for recipe in used if recipe} <= {r.partition(".")[2] for r in recipes}


def test_picture_of_the_rooms_is_drawn_from_the_source() -> None:
    drawing = runpy.run_path(str(DOCS / "draw_architecture.py"))
    assert drawing["PICTURE"].read_text(encoding="utf-8") == drawing["draw"]()
    files = re.findall(r"`(\w+/[\w/]+(?:\.py|/))`", (DOCS / "architecture.md").read_text("utf-8"))
    assert len(files) > 15
    assert not [file for file in files if not (drawing["SOURCE"] / file).exists()]


@pytest.mark.parametrize(
    "page", ["bulkformer", "cellpulse", "cellvq", "count_model", "lingshu", "pulsar"]
)
def test_page_of_a_model_says_what_it_is_and_when_not_to_use_it(page: str) -> None:
    text = (DOCS / "guide" / f"{page}.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## (.+)$", text, flags=re.MULTILINE)
    closing = ["Where this differs", "What is not published", "When not to use it", "Cite"]
    assert "What is computed" in headings
    assert [name for name in headings if name in closing] == closing
    assert re.search(r"^\$\$", text, flags=re.MULTILINE)  # equations
    limits = text.partition("## When not to use it")[2].partition("## Cite")[0]
    assert limits.count("\n- **") >= 4


def test_tables_that_the_guide_explains_are_those_of_the_benchmarks() -> None:
    guide = (DOCS / "guide" / "honest_baselines.md").read_text(encoding="utf-8")
    benchmarks = set((DOCS / "benchmarks.md").read_text(encoding="utf-8").splitlines())
    rows = [line for line in guide.splitlines() if line.startswith("|")]
    assert len(rows) >= 20
    assert not [row for row in rows if row not in benchmarks]


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What docs/conf.py says, run in a copy: it writes beside itself."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "tutorials").mkdir()
    for name in ("conf.py", "_alternative_text.py"):
        (tmp_path / "docs" / name).write_text((DOCS / name).read_text(encoding="utf-8"))
    (tmp_path / "tutorials" / "01_first.ipynb").write_text("{}")
    monkeypatch.delenv("CFM_DOCS_EXECUTE", raising=False)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    found = runpy.run_path(str(tmp_path / "docs" / "conf.py"))
    assert (tmp_path / "docs" / "tutorials" / "notebooks" / "01_first.ipynb").exists()
    return found


def test_notebooks_are_run_and_an_error_fails_the_build(settings: dict[str, Any]) -> None:
    assert settings["nb_execution_mode"] == "force"
    assert settings["nb_execution_raise_on_error"]
    assert settings["nb_execution_timeout"] <= 120
    assert os.environ["MPLBACKEND"] == "module://matplotlib_inline.backend_inline"
    assert "_alternative_text" in settings["extensions"]
    for name in settings["html_css_files"]:
        assert (DOCS / settings["html_static_path"][0] / name).stat().st_size


def test_notebooks_are_spread_over_the_pages(settings: dict[str, Any]) -> None:
    notebooks = [f"tutorials/notebooks/{i}" for i in range(4)]
    pages = [*(f"guide/{i:02}" for i in range(16)), *notebooks]
    names = list(pages)
    settings["_spread_notebooks"](None, None, names)
    assert sorted(names) == sorted(pages)
    for half in (names[:10], names[10:]):
        assert sum(name in notebooks for name in half) == 2
    alone = ["index"]
    settings["_spread_notebooks"](None, None, alone)
    assert alone == ["index"]


def test_read_the_docs_builds_as_make_docs_does() -> None:
    build = yaml.safe_load((DOCS.parent / ".readthedocs.yaml").read_text(encoding="utf-8"))
    python = build["build"]["tools"]["python"]
    constraints = (DOCS.parent / "constraints.txt").read_text(encoding="utf-8")
    assert f"Python {python}," in constraints.partition("\n")[0]
    assert build["sphinx"] == {"configuration": "docs/conf.py", "fail_on_warning": True}
    installs = [step for step in build["build"]["jobs"]["install"] if "--upgrade" not in step]
    assert all("--constraint constraints.txt" in step for step in installs)
    assert "--group doc" in installs[-1] and "survival" in installs[-1]
