"""Stand-ins for the tools of a report, and how its page is read."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd

import cfm
from cfm._cli import main
from tests.pl._stored import with_drug_screen, with_gene_programs, with_host_factors

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


def stand_in_host_factors(adata, groupby, method, *, model, n_permutations):
    """Host factors made up for the groups of ``adata``."""
    groups = sorted(adata.obs[groupby].astype(str).unique())
    made = with_host_factors(40, tuple(groups)).uns["host_factors"]
    genes = {f"GENE{i}": name for i, name in enumerate(adata.var_names[:40])}
    made["results"]["gene"] = made["results"]["gene"].map(genes)
    made["results"]["explained"] = made["results"]["explained"].replace({"KSHV": "response"})
    made["params"] = {
        "model": model,
        "n_permutations": n_permutations,
        "groups": groups,
        "targets": [g if g != "KSHV" else "response" for g in groups],
        "nulls": ["effects"] * len(groups),
    }
    adata.uns["host_factors"] = made


def stand_in_gene_programs(adata, model, *, gene_sets):
    """Three programs of the first genes of ``adata``; one is enriched in a set."""
    made = with_gene_programs((8, 6, 5)).uns["gene_programs"]
    genes = {f"GENE{i}": name for i, name in enumerate(adata.var_names)}
    made["genes"]["gene"] = made["genes"]["gene"].map(genes)
    for end in ("gene_a", "gene_b"):
        made["edges"][end] = made["edges"][end].map(genes)
    made["enrichment"] = pd.DataFrame(
        {
            "program": ["P1", "P2"],
            "term": [next(iter(gene_sets)), "HALLMARK_NOTHING"],
            "p_value": [0.001, 0.5],
            "fdr": [0.01, 0.9],
        },
        index=["0", "1"],
    )
    made["params"] = {"model": model}
    adata.uns["gene_programs"] = made


def stand_in_screen_drugs(adata, signatures, targets, *, groupby):
    """A screen of 60 compounds for the groups of ``adata``; without targets no such evidence."""
    groups = sorted(adata.obs[groupby].astype(str).unique())
    made = with_drug_screen(60, tuple(groups)).uns["drug_screen"]
    if targets is None:
        made["results"]["target_score"] = np.nan
        made["results"]["n_targets"] = 0
        made["results"]["target_genes"] = ""
    made["params"] = {"signatures": signatures["compound"].nunique()}
    adata.uns["drug_screen"] = made


def put_in_place(monkeypatch) -> None:
    """Replace the three tools."""
    monkeypatch.setattr("cfm.tl.host_factors", stand_in_host_factors)
    monkeypatch.setattr("cfm.tl.gene_programs", stand_in_gene_programs)
    monkeypatch.setattr("cfm.tl.screen_drugs", stand_in_screen_drugs)


def refuse_all(monkeypatch) -> None:
    """Replace the three tools by ones that refuse any input, for tests of the rest."""

    def refuse(*args, **kwargs):
        raise ValueError("the stand-in refuses any input.")

    for name in ("host_factors", "gene_programs", "screen_drugs"):
        monkeypatch.setattr(f"cfm.tl.{name}", refuse)


class Page(HTMLParser):
    """Text, tables and pictures by the id of the section, and everything that could load a file."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: dict[str, str] = {}
        self.rows: dict[str, list[list[str]]] = {}
        self.pictures: dict[str, int] = {}
        self.loads: list[str] = []
        self.links: list[str] = []
        self._section = self._in = ""
        self._in_cell = False
        self.feed(text)
        self.text = {name: " ".join(text.split()) for name, text in self.text.items()}

    def handle_starttag(self, tag, attrs):
        self._in, given = tag, dict(attrs)
        assert tag not in ("script", "link", "iframe", "object", "embed")
        self.loads += [v for k, v in attrs if k in ("src", "action", "data", "srcset")]
        if tag == "a":
            self.links.append(given["href"])
        elif tag == "section":
            self._section = given["id"]
        elif tag == "img":
            self.pictures[self._section] = self.pictures.get(self._section, 0) + 1
        elif tag == "tr":
            self.rows.setdefault(self._section, []).append([])
        elif tag in ("td", "th"):
            self.rows[self._section][-1].append("")
            self._in_cell = True

    def handle_endtag(self, tag):
        self._in = ""
        self._in_cell = self._in_cell and tag not in ("td", "th")

    def handle_data(self, data):
        if self._in == "style":
            assert "url(" not in data
            assert "@import" not in data
            return
        self.text[self._section] = self.text.get(self._section, "") + data
        if self._in_cell:
            self.rows[self._section][-1][-1] += data


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
