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
CLASSES = ["HRV", "IAV", "RSV", "SARS-CoV-2"]
KINDS = ["none", "viral", "bacterial", "interferon I/III"]
#: Level, answer, contrasts, studies and share; RSV was never named.
SUPPORT = [
    ("response", "none", 71, 31, 0.706),
    ("response", "viral", 50, 16, 0.812),
    ("response", "bacterial", 26, 14, 0.143),
    ("response", "interferon I/III", 12, 1, 0.5),
    ("not viral", "bacterial", 26, 14, 0.91),
    ("not viral", "interferon I/III", 12, 1, 0.75),
    ("virus", "HRV", 5, 3, 0.86),
    ("virus", "IAV", 9, 4, 0.95),
    ("virus", "SARS-CoV-2", 20, 7, 0.84),
]
CARD = """# stand-in

A model that names few viruses.

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
    """Probabilities that depend on the profile; calls and support follow from them.

    The first contrast has a named virus, the last ones are unresolved, the last has no matches.
    """
    x = np.asarray(adata.X[:, : len(KINDS) + len(CLASSES)], dtype=np.float64)
    tables = np.exp(x[:, : len(KINDS)]), np.exp(x[:, len(KINDS) :])
    kinds, viruses = (table / table.sum(axis=1, keepdims=True) for table in tables)
    response = np.array(KINDS, dtype=object)[kinds.argmax(axis=1)]
    response[0], response[-1] = "viral", "unresolved"
    calls = np.array(CLASSES, dtype=object)[viruses.argmax(axis=1)]
    calls = np.select([response == "none", response == "viral"], ["uninfected", calls], "not viral")
    calls[-2:] = "unresolved"
    table = pd.DataFrame(SUPPORT, columns=["level", "answer", "n_contrasts", "n_studies", "share"])
    shares = table.set_index(["level", "answer"])["share"]
    support = [
        shares.get(_supported(call, kind), np.nan)
        for call, kind in zip(calls, response, strict=True)
    ]
    adata.obs[key_added] = pd.Categorical(calls)
    adata.obs[f"{key_added}_response"] = pd.Categorical(response)
    adata.obs[f"{key_added}_infected"] = kinds[:, 1].astype(np.float32)
    adata.obs[f"{key_added}_support"] = np.array(support, dtype=np.float32)
    adata.obsm[f"{key_added}_response_proba"] = pd.DataFrame(
        kinds, adata.obs_names, [kind.replace("/", "|") for kind in KINDS]
    )
    adata.obsm[f"{key_added}_proba"] = pd.DataFrame(viruses, adata.obs_names, CLASSES)
    adata.uns[key_added] = {
        "params": {"model": model, "sha256": "b" * 64, "vocabulary_share": 0.873},
        "classes": CLASSES,
        "responses": KINDS,
        "support": table,
        "matches": pd.concat([*map(matches_of, adata.obs_names[:-1]), matches_of("")[:0]]),
    }


def _supported(call: str, response: str) -> tuple[str, str]:
    if call in ("uninfected", "unresolved"):
        return "response", response
    return (call, response) if call == "not viral" else ("virus", call)


def matches_of(name: str) -> pd.DataFrame:
    """Four matches of a contrast; two are the same stimulus in one study, one is by chance."""
    return pd.DataFrame(
        {
            "query": name,
            "rank": [1, 2, 3, 4],
            "match": [f"match{i}" for i in range(4)],
            "similarity": [0.61, 0.523, 0.41, 0.33],
            "p_value": [1e-6, 1e-5, 1e-4, 0.3],
            "fdr": [1e-4, 1e-3, 0.01, 0.6],
            "study": ["Lee2020", "Lee2020", "Kim2021", "Chance2022"],
            "stimulus": ["IFN-beta", "IFN-beta", "IAV", "LPS"],
            "response": ["interferon I/III", "interferon I/III", "viral", "bacterial"],
            "tissue": ["", "", "lung", "blood"],
        }
    )


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
