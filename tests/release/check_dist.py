"""What a release has to be, of the files that ``python -m build`` made: see the end.

    python tests/release/check_dist.py dist

Needs the checkout that they were built from, and nothing but the standard library. Where twine is
installed, ``twine check --strict`` runs too.
"""

from __future__ import annotations

import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email.parser import Parser
from importlib.util import find_spec
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[2]
#: Files that say what a release is and whose it is.
PAPERS = {"CHANGELOG.md", "CITATION.cff", "LICENSE", "NOTICE", "README.md", "pyproject.toml"}


def tracked(folder: str) -> set[str]:
    """Files of a folder that git knows."""
    done = subprocess.run(
        ["git", "ls-files", "-z", folder], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {name for name in done.stdout.split("\0") if name}


def check_wheel(path: Path, project: dict) -> None:
    """The package, its data, its licences, and nothing else."""
    with zipfile.ZipFile(path) as wheel:
        names = set(wheel.namelist())
        (info,) = {n.split("/")[0] for n in names if n.split("/")[0].endswith(".dist-info")}
        metadata = Parser().parsestr(wheel.read(f"{info}/METADATA").decode())
        package = {n for n in names if n.startswith("cfm/")}
        assert wheel.testzip() is None
    wanted = {n.removeprefix("src/") for n in tracked("src/cfm")}
    assert package == wanted, f"missing {wanted - package}, too many {package - wanted}"
    assert "cfm/py.typed" in package
    assert all(n.startswith(("cfm/", f"{info}/")) for n in names)
    assert {f"{info}/licenses/LICENSE", f"{info}/licenses/NOTICE"} <= names
    assert not [n for n in names if PurePosixPath(n).suffix in {".pyc", ".so"}]
    assert metadata["Version"] == project["version"]
    assert metadata["License-Expression"] == project["license"]
    assert set(metadata.get_all("Provides-Extra")) == set(project["optional-dependencies"])
    assert metadata.get_payload().strip() == (ROOT / "README.md").read_text().strip()


def check_sdist(path: Path, project: dict) -> None:
    """Enough to build the wheel, and to train the bundled weights."""
    top = f"cfm_tools-{project['version']}/"
    with tarfile.open(path) as archive:
        members = archive.getmembers()
        assert all(m.isfile() and m.name.startswith(top) for m in members)
        names = {m.name.removeprefix(top) for m in members}
    assert names >= PAPERS, PAPERS - names
    for folder in ("src", "tests", "training"):
        lacking = tracked(folder) - names
        assert not lacking, lacking
    assert not [n for n in names if PurePosixPath(n).suffix == ".pyc"]


def main(folder: str) -> None:
    """Check the wheel and the source distribution of a folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    (wheel,), (sdist,) = Path(folder).glob("*.whl"), Path(folder).glob("*.tar.gz")
    check_wheel(wheel, project)
    check_sdist(sdist, project)
    if find_spec("twine"):
        subprocess.run(
            [sys.executable, "-m", "twine", "check", "--strict", str(wheel), str(sdist)],
            check=True,
        )
    sys.stdout.write(f"{wheel.name} and {sdist.name} are complete\n")


if __name__ == "__main__":
    main(sys.argv[1])
