"""The first release: what it says of itself, what it asks for, and how long it takes to import."""

from __future__ import annotations

import ast
import re
import statistics
import subprocess
import sys
import time
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml

import cfm

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
#: Extras, and what they bring that is imported by name.
EXTRAS = {
    "survival": "sksurv",
    "eval": "cell_eval",
    "scale": "dask",
    "parquet": "pyarrow",
    "communication": "liana",
}
SYSTEMS = ("CellPulse", "BulkFormer", "Lingshu-Cell", "PULSAR", "CellVQ")


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=False
    )


def test_the_version_is_the_same_everywhere() -> None:
    assert re.fullmatch(r"(0|[1-9]\d*)(\.(0|[1-9]\d*)){2}((a|b|rc)\d+)?", PROJECT["version"])
    assert PROJECT["version"] == cfm.__version__
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == cfm.__version__
    assert re.search(
        rf"^## .*{re.escape(cfm.__version__)}", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE
    )


def test_the_citation_is_valid_and_names_the_systems() -> None:
    """The fields that version 1.2.0 of the format asks for; cffconvert validates the rest."""
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert {"message", "title", "authors", "license", "abstract"} <= citation.keys()
    assert citation["license"] == PROJECT["license"]
    assert "doi" not in citation
    titles = " ".join(entry["title"] for entry in citation["references"])
    for system in (*SYSTEMS, "UCE"):
        assert system in titles
    for entry in citation["references"]:
        assert {"type", "title", "authors", "year"} <= entry.keys()
        for author in entry["authors"]:
            assert "name" in author or "family-names" in author
        if "doi" in entry:
            assert re.fullmatch(r"10\.\d{4,}/\S+", entry["doi"])


def test_the_notice_credits_data_and_methods() -> None:
    notice = (ROOT / "NOTICE").read_text()
    for system in (*SYSTEMS, "UCE", "scFoundation", "PyDESeq2", "patent"):
        assert system in notice, system
    shipped = [*(ROOT / "src/cfm/datasets/files").iterdir()]
    shipped += [*(ROOT / "src/cfm/data/tables").iterdir()]
    ours = {"registry.csv"}  # a list of names and addresses
    for path in shipped:
        assert path.name in ours or path.name in notice, f"NOTICE does not credit {path.name}"
    for folder in (ROOT / "src/cfm/hub/checkpoints").iterdir():
        assert folder.name in notice, f"NOTICE does not credit the data of {folder.name}"


def test_what_the_project_says_of_itself() -> None:
    assert (ROOT / "src/cfm/py.typed").is_file()
    assert "Typing :: Typed" in PROJECT["classifiers"]
    assert not [c for c in PROJECT["classifiers"] if c.startswith("License ::")]  # PEP 639
    assert set(PROJECT["license-files"]) == {"LICENSE", "NOTICE"}
    assert "urls" not in PROJECT, "no address is known: none is invented"
    assert set(PROJECT["optional-dependencies"]) == set(EXTRAS)


def _imports(*, lazy: bool) -> dict[str, set[str]]:
    """Packages that files import when they are imported themselves, or also in functions."""
    found: dict[str, set[str]] = {}

    def visit(node: ast.AST, where: str) -> None:
        for child in ast.iter_child_nodes(node):
            typing = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test)
            if typing or (isinstance(child, ast.FunctionDef) and not lazy):
                continue
            names: list[str] = []
            if isinstance(child, ast.Import):
                names = [alias.name for alias in child.names]
            elif isinstance(child, ast.ImportFrom) and child.module:
                names = [child.module]
            for name in names:
                found.setdefault(name.split(".")[0], set()).add(where)
            visit(child, where)

    for path in (ROOT / "src" / "cfm").rglob("*.py"):
        visit(ast.parse(path.read_text()), str(path.relative_to(ROOT)))
    ours = {"cfm", "__future__", *sys.stdlib_module_names}
    return {name: places for name, places in found.items() if name not in ours}


def _distributions(lines: list[str]) -> set[str]:
    return {re.sub(r"[-_.]+", "-", re.split(r"[\[>=;]", line)[0]).lower() for line in lines}


def test_what_is_imported_is_asked_for() -> None:
    """No package is there only because another one happens to need it."""
    hard = _distributions(PROJECT["dependencies"])
    extras = _distributions([r for e in PROJECT["optional-dependencies"].values() for r in e])
    brought = {"markupsafe": "jinja2"}  # a part of it in all but name
    by_module = packages_distributions()
    for lazy, allowed in ((False, hard), (True, hard | extras)):
        for module, places in _imports(lazy=lazy).items():
            names = {re.sub(r"[-_.]+", "-", n).lower() for n in by_module.get(module, [module])}
            asked = names & allowed or brought.get(module) in allowed
            assert asked, f"{module} is imported by {sorted(places)[:3]} and not asked for"


@pytest.mark.slow
def test_nothing_optional_is_imported_with_the_rooms() -> None:
    code = f"""
import importlib.machinery, sys
found = importlib.machinery.PathFinder
class Without(found):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name.split(".")[0] in {sorted(EXTRAS.values())}:
            return None
        return found.find_spec(name, path, target)
sys.meta_path = [Without if finder is found else finder for finder in sys.meta_path]
import numpy as np, anndata as ad
import cfm
for room in cfm.__all__:
    getattr(cfm, room)
from cfm._cli import main
adata = ad.AnnData(np.random.default_rng(0).normal(size=(30, 3)))
adata.obsm["X_pca"] = adata.X
adata.obs["time"], adata.obs["event"] = np.arange(30) + 1.0, np.arange(30) % 3 > 0
adata.obs["drug"] = ["control", "x"] * 15
asked = {{
    "survival": lambda: cfm.tl.probe(adata, ("time", "event"), "survival", use_rep="X_pca"),
    "eval": lambda: cfm.tl.evaluate_perturbation(
        adata, adata, key="drug", control="control", metrics="cell_eval"
    ),
    "parquet": lambda: cfm.data.Reference.from_parquet("absent.parquet"),
}}
for extra, call in asked.items():
    try:
        call()
    except ImportError as error:
        assert f"pip install 'cfm-tools[{{extra}}]'" in str(error), error
    else:
        raise AssertionError(extra)
sys.stdout.write("all told")
"""
    done = run(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all told")


@pytest.mark.slow
def test_importing_cfm_takes_less_than_scvi() -> None:
    """Medians of five, one after the other and in turn, as other work comes and goes."""
    taken: dict[str, list[float]] = {"cfm": [], "scvi": []}
    for _ in range(5):
        for name, found in taken.items():
            start = time.perf_counter()
            assert run(f"import {name}").returncode == 0
            found.append(time.perf_counter() - start)
    ours, theirs = (statistics.median(found) for found in taken.values())
    assert ours < 1.5 * theirs, taken
