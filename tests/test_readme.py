"""What README and tutorial show is what the package gives, with the weights that ship."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cfm import hub
from docs.refresh_readme import README, example, run_example

ROOT = Path(__file__).parents[1]
TUTORIALS = sorted((ROOT / "tutorials").glob("*.ipynb"))


def test_example_of_the_readme_prints_what_it_says(tmp_path):
    code, committed = example(README.read_text(encoding="utf-8"))
    assert len([line for line in code.splitlines() if line]) <= 12
    printed = run_example(code, tmp_path)
    assert (tmp_path / "calls.png").stat().st_size > 10_000
    number = re.compile(r"\d+\.\d+")
    words, expected_words = (number.sub("#", text).split() for text in (printed, committed))
    assert words == expected_words, "say make readme"
    numbers, expected = ([float(n) for n in number.findall(t)] for t in (printed, committed))
    assert numbers == pytest.approx(expected, abs=0.02), "say make readme"


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda p: p.stem)
def test_tutorials_were_run_with_the_weights_that_ship(path):
    if "predict_virus" in path.read_text():
        cells = [c for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        outputs = json.dumps([cell["outputs"] for cell in cells])
        weights = hub.load_checkpoint("cellpulse-virus").sha256
        assert weights in outputs, "run with other weights: say make tutorials"
