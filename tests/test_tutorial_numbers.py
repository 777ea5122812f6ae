"""Scores that the words of a tutorial quote stand in its outputs.

When a tutorial is run again and a score changes, the sentence about it is false; this says so.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

TUTORIALS = Path(__file__).parents[1] / "tutorials"
#: Scores are quoted with two digits and no zero before the point: ".72", "−.06".
_QUOTED = re.compile(r"(?<![\w.])[−-]?\.(\d\d)(?!\d)")
#: Those with more digits in an output are quoted rounded.
_SHOWN = re.compile(r"(?<![\d.])[−-]?\d?\.\d{2,}")
CHECKED = (
    "03_bulk_cohort",
    "04_simulate_and_judge_perturbations",
    "06_codes_and_knowledge_graph",
    "07_pretrain_your_own",
)


def text(value: str | list[str]) -> str:
    return value if isinstance(value, str) else "".join(value)


def shown(cell: dict[str, Any]) -> str:
    """What a reader sees of a cell: outputs, and the words that stand for its figure."""
    parts = [cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "")]
    for output in cell.get("outputs", []):
        parts.append(text(output.get("text", "")))
        parts.append(text(output.get("data", {}).get("text/plain", "")))
    return "\n".join(parts)


def unfounded(notebook: dict[str, Any]) -> list[str]:
    """Quoted scores that no output shows."""
    outputs = "\n".join(shown(c) for c in notebook["cells"] if c["cell_type"] == "code")
    known = {f"{abs(float(number.replace('−', '-'))):.2f}" for number in _SHOWN.findall(outputs)}
    words = "\n".join(text(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown")
    return [f".{digits}" for digits in _QUOTED.findall(words) if f"0.{digits}" not in known]


@pytest.mark.parametrize("name", CHECKED)
def test_quoted_scores_are_shown(name: str) -> None:
    notebook = json.loads((TUTORIALS / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert unfounded(notebook) == []


@pytest.mark.parametrize(
    ("words", "missing"),
    [
        ("The AUROC is .72, and .50 by chance.", []),
        ("The AUROC is .73.", [".73"]),
        ("An interval of −.06 to .01.", [".01"]),
        ("Version 1.25 of 0.99, 3.14 m.", []),
    ],
)
def test_the_check_finds(words: str, missing: list[str]) -> None:
    outputs = [
        {"text": "auroc 0.72\nchance 0.500"},
        {"data": {"text/plain": ["low\n", "-0.06"]}},
    ]
    cells = [
        {"cell_type": "code", "metadata": {}, "source": "", "outputs": outputs},
        {"cell_type": "markdown", "metadata": {}, "source": [words]},
    ]
    assert unfounded({"cells": cells}) == missing
