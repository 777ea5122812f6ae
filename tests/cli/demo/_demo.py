"""Stand-ins for the tools of a report, and how its page is read."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import cfm
from cfm._cli import main

KEY = "predicted_virus"
CLASSES = ["uninfected", "HRV", "IAV", "RSV", "SARS-CoV-2"]
CARD = """# stand-in

A model that calls everything IAV.

## Scores

| virus | recall |
|---|---|

## Limits

- Knows *few* viruses; see [the paper](https://example.org/paper).
- Trained on
  one study.
"""


def stand_in_embed(adata, model, *, key_added):
    adata.obsm[key_added] = np.asarray(adata.X[:, :6], dtype=np.float32)
    adata.uns[key_added] = {"params": {"model": model, "sha256": "a" * 64}}


def stand_in_predict(adata, model, *, key_added):
    """Probabilities that depend on the profile; the last contrast is called unknown."""
    logits = np.asarray(adata.X[:, : len(CLASSES)], dtype=np.float64)
    proba = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    call = np.array(CLASSES, dtype=object)[proba.argmax(axis=1)]
    call[-1] = "unknown"
    adata.obs[key_added] = pd.Categorical(call)
    adata.obs[f"{key_added}_confidence"] = proba.max(axis=1).astype(np.float32)
    adata.obs[f"{key_added}_infected"] = (1 - proba[:, 0]).astype(np.float32)
    adata.obs[f"{key_added}_novelty"] = np.linspace(0.1, 0.9, adata.n_obs, dtype=np.float32)
    adata.obs[f"{key_added}_set"] = [
        "|".join(np.array(CLASSES)[row >= np.sort(row)[-2]]) for row in proba
    ]
    adata.obsm[f"{key_added}_proba"] = pd.DataFrame(proba, adata.obs_names, CLASSES)
    params = {"model": model, "sha256": "b" * 64, "vocabulary_share": 0.873, "alpha": 0.1}
    adata.uns[key_added] = {"params": params, "classes": CLASSES}


def small_study() -> ad.AnnData:
    adata = cfm.datasets.blanco_melo()[:12, :400].copy()
    adata.obs = pd.DataFrame(
        {
            "virus": ["none", "none", "IAV", "IAV", "KSHV", "HRV"] * 2,
            "study": ["study1"] * 6 + ["study2"] * 6,
        },
        index=[f"s{i}" for i in range(12)],
    )
    adata.X = np.random.default_rng(0).poisson(60, size=adata.shape).astype(np.float32)
    return adata


class Page(HTMLParser):
    """Collects the cells of all tables, all text, and everything that could load a file."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.text = ""
        self.loads: list[str] = []
        self._in_cell = self._in_style = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self._in_style = tag == "style"
        self.loads += [v for k, v in attrs if k in ("src", "href", "action", "data", "srcset")]
        assert tag not in ("script", "link", "iframe", "object", "embed")
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in_style = False
        if tag in ("td", "th"):
            self._in_cell = False

    def handle_data(self, data):
        if self._in_style:
            assert "url(" not in data
            assert "@import" not in data
            return
        self.text += data
        if self._in_cell:
            self.rows[-1][-1] += data


def read_page(folder: Path) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def run(*arguments: object) -> int:
    return main(["demo", "--quiet", *map(str, arguments)])


def refused(capsys, *arguments: object) -> str:
    """Run, and give back the single line of the refusal."""
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("cfm: error: ")
    return lines[0]
