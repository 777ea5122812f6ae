"""Code of the guide runs as written, block after block."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
import scvi

GUIDE = Path(__file__).parents[1] / "docs" / "guide"
#: Pages whose ``python`` blocks form a program; blocks that need a download are ``{code-block}``.
PAGES = [
    "adding_a_model",
    "bulkformer",
    "cellpulse",
    "cellvq",
    "cohorts",
    "calls",
    "contrasts",
    "count_model",
    "donors",
    "drug_screen",
    "gene_programs",
    "genes",
    "honest_baselines",
    "host_factors",
    "inputs",
    "knowledge_graph",
    "lingshu",
    "on_disk",
    "perturbations",
    "pulsar",
    "signature_search",
    "training",
]


def test_every_page_with_code_is_run() -> None:
    texts = {path.stem: path.read_text(encoding="utf-8") for path in GUIDE.glob("*.md")}
    assert sorted(PAGES) == sorted(name for name, text in texts.items() if "```python\n" in text)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_blocks_run_as_written(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scvi.settings, "verbosity", 30)
    text = (GUIDE / f"{page}.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for number, block in enumerate(blocks, 1):
            exec(compile(block, f"{page}.md, block {number}", "exec"), names)
    plt.close("all")
    assert bool(capsys.readouterr().out) == any("print(" in block for block in blocks)
