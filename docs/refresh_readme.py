"""Runs the example of README.md and puts its real output and figure there: ``make readme``.

``tests/test_readme.py`` runs the same example and fails when the committed output is stale.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
README = ROOT / "README.md"
FIGURE = ROOT / "docs" / "_static" / "calls.png"
_EXAMPLE = re.compile(r"```python\n(?P<code>.*?)```\n\n```text\n(?P<output>.*?)```", re.DOTALL)


def example(text: str) -> tuple[str, str]:
    """Return the code of the example and its output as it stands in the README."""
    found = _EXAMPLE.search(text)
    if found is None:
        raise ValueError("README.md has no python block followed by a text block.")
    return found["code"], found["output"]


def run_example(code: str, folder: Path) -> str:
    """Run the code in a folder of its own, where it saves its figure; return what it prints."""
    printed = io.StringIO()
    before = Path.cwd()
    os.chdir(folder)
    try:
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})
    finally:
        os.chdir(before)
    return "\n".join(line.rstrip() for line in printed.getvalue().splitlines()) + "\n"


def main() -> None:
    """Write the output into README.md and the figure beside the documentation."""
    text = README.read_text(encoding="utf-8")
    code, old = example(text)
    with tempfile.TemporaryDirectory() as folder:
        new = run_example(code, Path(folder))
        shutil.copy(Path(folder) / "calls.png", FIGURE)
    README.write_text(text.replace(f"```text\n{old}```", f"```text\n{new}```"), encoding="utf-8")


if __name__ == "__main__":
    main()
