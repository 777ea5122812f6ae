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

ROOMS = [name for name in cfm.__all__ if name != "__version__"]


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
    report: list[str] = []
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", module=r"(?!cfm\b)")
        outcome = doctest.DocTestRunner(verbose=False).run(EXAMPLES[name], out=report.append)
    assert not outcome.failed, "".join(report)


@pytest.mark.parametrize("room", ["pp", "tl"])
def test_every_step_has_an_example(room):
    module = import_module(f"cfm.{room}")
    without = [n for n in module.__all__ if ">>> " not in inspect.getdoc(getattr(module, n))]
    assert not without
