"""The examples of the docstrings do what they show."""

from __future__ import annotations

import doctest
import inspect
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import scvi

import cfm
from cfm.hub import _resolve

ROOMS = [name for name in cfm.__all__ if name not in ("__version__", "settings")]


def _modules() -> Iterator[ModuleType]:
    source = Path(cfm.__file__).parent
    for path in sorted(source.rglob("*.py")):
        if ">>> " in path.read_text(encoding="utf-8"):
            parts = path.relative_to(source).with_suffix("").parts
            yield import_module(".".join(["cfm", *(p for p in parts if p != "__init__")]))


EXAMPLES = {
    test.name: test for module in _modules() for test in doctest.DocTestFinder().find(module)
}


@pytest.fixture(autouse=True)
def _without_progress_bars():
    # What a bar writes would count as output of the example.
    before, scvi.settings.verbosity = scvi.settings.verbosity, 30
    yield
    scvi.settings.verbosity = before


@pytest.mark.parametrize("name", [name for name, test in EXAMPLES.items() if test.examples])
def test_example(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(_resolve, "_registered", {})  # an example gives a checkpoint a name
    report: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module=r"(?!cfm\b)")
        outcome = doctest.DocTestRunner(verbose=False).run(EXAMPLES[name], out=report.append)
    assert not outcome.failed, "".join(report)


@pytest.mark.parametrize("room", [*ROOMS, "nn"])
def test_everything_public_has_an_example_that_runs(room):
    module = import_module(f"cfm.{room}")
    docs = {name: inspect.getdoc(getattr(module, name)) for name in module.__all__}
    assert docs
    assert not [name for name, doc in docs.items() if ">>> " not in doc]
    # fetch needs the files of a study, which are not published in one place; gdsc downloads
    skipped = [name for name, doc in docs.items() if "+SKIP" in doc]
    assert skipped == (["fetch", "gdsc"] if room == "datasets" else [])
