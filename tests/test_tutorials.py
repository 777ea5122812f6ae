"""The tutorials as they are committed: run, described, linked, and free of what only we have.

They are run again in the build of the documentation (``make docs``); nothing is executed here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
TUTORIALS = ROOT / "tutorials"
PATHS = sorted(TUTORIALS.glob("*.ipynb"))
MOST_BYTES = 1_500_000
#: A screen or two of text, a table or a message.
MOST_LINES, MOST_CHARACTERS = 60, 6_000
#: As in docs/_alternative_text.py: shorter is a name and describes nothing.
FEWEST_CHARACTERS = 15
_MACHINE = re.compile(
    r"(?:^|[\s'\"(=:])/(?:tmp|home|root|work|Users|opt|usr|var|mnt|private)/\S*"
    r"|site-packages|[A-Z]:\\\\?Users"
)
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_IMAGE = re.compile(r"!\[[^\]]*\]\(|<img\b", re.IGNORECASE)

Notebook = dict[str, Any]


def text(value: str | list[str]) -> str:
    """Source or output of a cell, which is stored as one string or by lines."""
    return value if isinstance(value, str) else "".join(value)


def load(path: Path) -> Notebook:
    notebook: Notebook = json.loads(path.read_text(encoding="utf-8"))
    return notebook


def code_cells(notebook: Notebook) -> list[dict[str, Any]]:
    return [c for c in notebook["cells"] if c["cell_type"] == "code"]


def prose(notebook: Notebook) -> list[str]:
    return [text(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"]


def texts_of(output: dict[str, Any]) -> Iterator[str]:
    """What of an output is read: streams and data that are text."""
    if "text" in output:
        yield text(output["text"])
    for kind, value in output.get("data", {}).items():
        if kind.startswith("text/"):
            yield text(value)


def anchors(page: str) -> set[str]:
    """Anchors that MyST gives the headings of a page."""
    headings = re.findall(r"^#{1,3} +(.+?)\s*$", page, flags=re.MULTILINE)
    names = (re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings)
    return set(names) | set(re.findall(r"^\(([\w-]+)\)=$", page, flags=re.MULTILINE))


def structure(notebook: Notebook) -> Iterator[str]:
    """A title, an introduction, code that imports both packages, words after the last figure."""
    cells = notebook["cells"]
    first = text(cells[0]["source"])
    if cells[0]["cell_type"] != "markdown" or not first.startswith("# "):
        yield "does not begin with a title"
    titles = [t for page in prose(notebook) for t in re.findall(r"^# +\S.*", page, re.MULTILINE)]
    if len(titles) != 1:
        yield f"has {len(titles)} titles"
    if len(first.splitlines()) < 3:
        yield "does not say what it is about below its title"
    if cells[-1]["cell_type"] != "markdown" or "](../docs/guide/" not in text(cells[-1]["source"]):
        yield "does not end with words and a link to the guide"
    code = "\n".join(text(c["source"]) for c in code_cells(notebook))
    for package, use in (("cfm", r"\bcfm\.\w"), ("scanpy", r"\bsc\.(?:pp|tl|pl|read|get)\b")):
        if not re.search(use, code):
            yield f"does not use {package}"
    for page in [*prose(notebook), code]:
        for word in re.findall(r"\b(?:TODO|FIXME|XXX)\b", page):
            yield f"is not finished: {word}"


def run(notebook: Notebook) -> Iterator[str]:
    """Every cell ran, in order, without an error and without words of other libraries."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        if not text(cell["source"]).strip():
            yield "has an empty cell"
        if cell["execution_count"] != number:
            yield f"cell {number} has the execution count {cell['execution_count']}"
        for output in cell["outputs"]:
            if output["output_type"] == "error":
                yield f"cell {number} ends with {output['ename']}"
            if output.get("name") == "stderr":
                for line in text(output["text"]).splitlines():
                    if line.strip() and not line.startswith("Warning: "):
                        yield f"cell {number} says on stderr: {line}"
            for words in texts_of(output):
                if "Traceback (most recent call last)" in words:
                    yield f"cell {number} shows a traceback"
    if not any(c["outputs"] for c in code_cells(notebook)):
        yield "has no outputs"


def figures(notebook: Notebook) -> Iterator[str]:
    """Every figure has alternative text, and one cell draws one; none is written as a link."""
    n_figures = 0
    for number, cell in enumerate(code_cells(notebook), start=1):
        drawn = [k for o in cell["outputs"] for k in o.get("data", {}) if k.startswith("image/")]
        alternative = cell["metadata"].get("mystnb", {}).get("image", {}).get("alt")
        n_figures += len(drawn)
        if len(drawn) > 1:
            yield f"cell {number} draws {len(drawn)} figures"
        if drawn and len((alternative or "").strip()) < FEWEST_CHARACTERS:
            yield f"the figure of cell {number} has no alternative text"
        if alternative is not None and not drawn:
            yield f"cell {number} has alternative text and no figure"
    if not n_figures:
        yield "has no figure"
    for page in prose(notebook):
        if _IMAGE.search(page):
            yield "shows an image that no cell draws"


def interpreted(notebook: Notebook) -> Iterator[str]:
    """A figure is followed by words, with at most two cells of code between."""
    cells = notebook["cells"]
    for place, cell in enumerate(cells):
        drawn = any("image/png" in o.get("data", {}) for o in cell.get("outputs", []))
        after = cells[place + 1 : place + 4]
        words = [text(c["source"]) for c in after if c["cell_type"] == "markdown"]
        if drawn and not any(len(w.split()) >= 20 for w in words):
            yield f"nothing is said about the figure of cell {cell.get('id', place)}"


def machine(notebook: Notebook) -> Iterator[str]:
    """No path of the machine that it was run on, in code, words or outputs."""
    for cell in notebook["cells"]:
        outputs = cell.get("outputs", [])
        for words in (text(cell["source"]), *(t for o in outputs for t in texts_of(o))):
            for match in _MACHINE.finditer(words):
                yield f"holds a path of this machine: {match[0].strip()}"


def length(notebook: Notebook) -> Iterator[str]:
    """No output is longer than a screen or two."""
    for number, cell in enumerate(code_cells(notebook), start=1):
        for output in cell["outputs"]:
            plain = [*texts_of({"text": output.get("text", "")})]
            plain.append(text(output.get("data", {}).get("text/plain", "")))
            for words in plain:
                if len(words.splitlines()) > MOST_LINES or len(words) > MOST_CHARACTERS:
                    yield f"the output of cell {number} is long: {len(words)} characters"


def links(notebook: Notebook) -> Iterator[str]:
    """Pages and headings that are linked to exist; nothing outside is linked to."""
    own = "\n\n".join(prose(notebook))
    for target in _LINK.findall(own):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        path = (TUTORIALS / name).resolve()  # docs/conf.py bends those to pages
        if name and not path.is_file():
            yield f"links to {target}, which does not exist"
        elif anchor:
            page = own if not name else path.read_text(encoding="utf-8")
            if path.suffix == ".ipynb":
                page = "\n\n".join(prose(load(path)))
            if anchor not in anchors(page):
                yield f"links to {target}, and there is no such heading"


CHECKS: list[Callable[[Notebook], Iterator[str]]] = [
    structure,
    run,
    figures,
    interpreted,
    machine,
    length,
    links,
]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_tutorial_is_as_it_should_be(
    path: Path, check: Callable[[Notebook], Iterator[str]]
) -> None:
    assert list(check(load(path))) == []


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_tutorial_is_small(path: Path) -> None:
    assert path.stat().st_size <= MOST_BYTES


def test_the_tutorials_are_numbered() -> None:
    names = [re.fullmatch(r"(\d\d)_[a-z0-9_]+", path.stem) for path in PATHS]
    assert [match and match[1] for match in names] == [f"{i:02d}" for i in range(1, 9)]


# --- The checks themselves: each finds what it is there for.


def good() -> Notebook:
    """A small notebook that passes all checks."""
    figure = {"output_type": "display_data", "data": {"image/png": "…", "text/plain": "<Figure>"}}
    words = " ".join(["word"] * 20)
    return {
        "cells": [
            {"cell_type": "markdown", "metadata": {}, "source": "# Title\n\nWhat it is about.\n"},
            {
                "cell_type": "code",
                "metadata": {"mystnb": {"image": {"alt": "Points that lie on a line."}}},
                "execution_count": 1,
                "source": ["import cfm\n", "sc.pl.umap(cfm.datasets.toy_donors())"],
                "outputs": [
                    figure,
                    {"output_type": "stream", "name": "stderr", "text": "Warning: few genes.\n"},
                ],
            },
            {"cell_type": "markdown", "metadata": {}, "source": words},
            {
                "cell_type": "markdown",
                "metadata": {},
                "source": "## The end\n\n[Limits](../docs/guide/limits.md), [here](#the-end).",
            },
        ]
    }


def _code(notebook: Notebook) -> dict[str, Any]:
    cell: dict[str, Any] = notebook["cells"][1]
    return cell


def _add(notebook: Notebook, **output: Any) -> None:
    _code(notebook)["outputs"].append(output)


def _say(notebook: Notebook, words: str) -> None:
    notebook["cells"][2]["source"] += words


#: By check, what is wrong with a notebook.
FAULTS: list[tuple[str, Callable[[Notebook], object]]] = [
    ("structure", lambda n: _say(n, "\n# A second title\n")),
    ("structure", lambda n: n["cells"].pop()),  # no words at the end
    ("structure", lambda n: _code(n).update(source="cfm.datasets.toy_donors()")),
    ("run", lambda n: _code(n).update(execution_count=2)),
    ("run", lambda n: _add(n, output_type="error", ename="ValueError")),
    ("run", lambda n: _add(n, output_type="stream", name="stderr", text="FutureWarning: soon")),
    ("figures", lambda n: _code(n).update(metadata={"mystnb": {"image": {"alt": "Figure 1"}}})),
    ("figures", lambda n: _code(n)["outputs"].pop(0)),
    ("interpreted", lambda n: n["cells"][2].update(source="See above.")),
    ("machine", lambda n: _add(n, output_type="stream", name="stdout", text="in /tmp/abc/model")),
    ("machine", lambda n: _code(n)["source"].append(f"\npath = '/{'root'}/x'")),
    ("length", lambda n: _add(n, output_type="stream", name="stdout", text="line\n" * 100)),
    ("links", lambda n: _say(n, " [x](../docs/guide/nowhere.md)")),
    ("links", lambda n: _say(n, " [x](../docs/guide/limits.md#no)")),
]


def test_the_checks_pass_a_good_notebook() -> None:
    assert [problem for check in CHECKS for problem in check(good())] == []


@pytest.mark.parametrize(("check", "spoil"), FAULTS)
def test_the_checks_find(check: str, spoil: Callable[[Notebook], object]) -> None:
    notebook = good()
    spoil(notebook)
    assert check in {each.__name__ for each in CHECKS if list(each(notebook))}
