"""The package as a whole: what it exports, documents, ships, asks for and costs to import."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import requires, version
from pathlib import Path
from types import FunctionType

import pytest

import cfm

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "cfm"
ROOMS = [name for name in cfm.__all__ if name not in ("__version__", "settings")]


def _public() -> Iterator[tuple[str, object]]:
    for room in ROOMS:
        module = import_module(f"cfm.{room}")
        for name in module.__all__:
            yield f"{room}.{name}", getattr(module, name)


PUBLIC = dict(_public())
BUNDLED = {
    "cellvq-mini",
    "bulkformer-mini",
    "cellpulse-mini",
    "cellpulse-virus",
    "lingshu-pbmc-mini",
    "pulsar-mini",
}
FUNCTIONS = {name: thing for name, thing in PUBLIC.items() if isinstance(thing, FunctionType)}
CLASSES = {name: thing for name, thing in PUBLIC.items() if inspect.isclass(thing)}


def _sections(docstring: str) -> dict[str, list[str]]:
    """Split a numpydoc docstring into its underlined sections."""
    lines = inspect.cleandoc(docstring).splitlines()
    sections: dict[str, list[str]] = {"": []}
    current = ""
    for number, line in enumerate(lines):
        following = lines[number + 1] if number + 1 < len(lines) else ""
        if line and following and set(following) == {"-"}:
            current = line.strip()
            sections[current] = []
        elif not (line and set(line) == {"-"}):
            sections[current].append(line)
    return sections


def _documented_names(section: list[str]) -> set[str]:
    """Names at the start of the unindented lines: ``a, b : int`` and ``*args``."""
    heads = [line.split(":")[0] for line in section if line and not line.startswith(" ")]
    return {name.strip().strip("`").lstrip("*") for head in heads for name in head.split(",")}


def _parameters(function: Callable[..., object]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "cls"}


def test_version_is_that_of_the_distribution():
    assert cfm.__version__ == version("cfm-tools")
    assert re.fullmatch(r"\d+\.\d+\.\d+([a-z]+\d+)?", cfm.__version__)
    assert f'\nversion = "{cfm.__version__}"\n' in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("room", ROOMS)
def test_rooms_are_reached_from_the_package_and_export_what_they_say(room):
    module = getattr(cfm, room)
    assert room in dir(cfm)
    assert module.__doc__
    assert len(set(module.__all__)) == len(module.__all__)
    for name in module.__all__:
        assert hasattr(module, name)


def test_unknown_room_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = cfm.nothing


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_documented_numpydoc_style(name):
    function = FUNCTIONS[name]
    assert function.__doc__, f"cfm.{name} has no docstring"
    sections = _sections(function.__doc__)
    assert sections[""][0].endswith((".", "?")), "the summary is one sentence on one line"
    expected = _parameters(function)
    documented = _documented_names(sections.get("Parameters", []))
    assert expected <= documented, f"undocumented: {expected - documented}"
    assert documented <= expected, f"documented, but no parameter: {documented - expected}"
    if inspect.signature(function).return_annotation not in ("None", None):
        assert {"Returns", "Yields"} & set(sections), "says nothing about what it returns"


@pytest.mark.parametrize("name", CLASSES)
def test_classes_and_their_own_methods_are_documented(name):
    cls = CLASSES[name]
    assert cls.__doc__
    assert not cls.__doc__.startswith(f"{cls.__name__}("), "dataclass without a docstring"
    undocumented = [
        member
        for member, value in vars(cls).items()
        if not member.startswith("_")
        and isinstance(value, FunctionType | property | classmethod | staticmethod)
        and not inspect.getdoc(getattr(cls, member))
    ]
    assert not undocumented
    if "__init__" in vars(cls) and not getattr(cls, "_is_protocol", False):
        sections = _sections(cls.__doc__)
        described = {
            parameter
            for section in ("Parameters", "Attributes")
            for parameter in _documented_names(sections.get(section, []))
        }
        missing = _parameters(cls.__init__) - described
        assert not missing, f"undocumented: {missing}"


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_are_typed(name):
    function = FUNCTIONS[name]
    signature = inspect.signature(function)
    assert signature.return_annotation is not inspect.Signature.empty
    bare = [p.name for p in signature.parameters.values() if p.annotation is p.empty]
    assert not bare


def test_importing_the_package_imports_none_of_the_heavy_libraries():
    heavy = ["torch", "scanpy", "scvi", "anndata", "pandas", "matplotlib", "sklearn", "lightning"]
    code = f"import sys, cfm; sys.exit(' '.join(m for m in {heavy} if m in sys.modules) or 0)"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert run.returncode == 0, f"import cfm imports {run.stderr}"


def test_dependencies_have_lower_bounds_and_no_pins():
    declared = [line.split(";")[0].strip() for line in requires("cfm-tools") or []]
    assert declared
    for line in declared:
        assert re.fullmatch(r"[A-Za-z0-9_.\-]+(\[[a-z,]+\])?>=[0-9.]+", line), line


def test_constraints_name_releases_only():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    assert "torch==2.13.0" in pins
    for line in pins:
        assert re.fullmatch(r"[A-Za-z0-9_.\-]+==[0-9][0-9a-z.]*", line), line
    names = {re.sub(r"[-_.]+", "-", line.split("==")[0]).lower() for line in pins}
    for requirement in requires("cfm-tools") or []:
        if "extra ==" not in requirement:
            name = re.split(r"[\[>;= ]", requirement)[0]
            assert re.sub(r"[-_.]+", "-", name).lower() in names, f"{name} has no tested version"


def test_bundled_checkpoints_are_small_and_come_with_a_card():
    bundled = sorted((SOURCE / "hub" / "checkpoints").glob("*/config.json"))
    names = {path.parent.name for path in bundled}
    assert names >= BUNDLED
    sizes = {}
    for path in bundled:
        folder = path.parent
        sizes[folder.name] = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())
        assert (folder / "README.md").stat().st_size > 500
    assert max(sizes.values()) <= 10_000_000
    assert sum(sizes.values()) <= 25_000_000
    assert names <= set(cfm.hub.list_checkpoints().index)


def test_no_committed_text_names_a_machine():
    # Assembled here, so that this file does not contain what it looks for.
    private = [f"/{folder}/" for folder in ("work", "root")]
    texts = ("*.py", "*.md", "*.toml", "*.json", "*.yaml", "*.txt", "*.ipynb", "*.rst")
    found = [
        f"{path.relative_to(ROOT)}: {word}"
        for folder in ("src", "tests", "docs", "tutorials", "benchmarks", "training")
        for pattern in texts
        for path in (ROOT / folder).rglob(pattern)
        if "_build" not in path.parts
        for word in private
        if word in path.read_text(encoding="utf-8")
    ]
    assert not found
