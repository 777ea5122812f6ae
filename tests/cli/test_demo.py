"""``cfm demo``: good input gives a true report, bad input one clear line."""

from __future__ import annotations

import gzip
import os
import re
from html.parser import HTMLParser
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm import hub
from cfm._cli import main
from cfm._report._read import read_counts
from cfm._report._summary import summarize
from tests._demo_tools import refuse_all

KEY = "predicted_virus"
REAL_RESOLVE = hub.resolve
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


@pytest.fixture(autouse=True)
def _any_model(monkeypatch):
    """Names of models pass, so that a bad table is what is noticed, bundled models or not."""
    monkeypatch.setattr("cfm.hub.resolve", Path)


@pytest.fixture
def stand_in(monkeypatch):
    """Replace the model tools and the checkpoint, so that a run takes seconds."""
    checkpoint = SimpleNamespace(
        name="stand-in",
        model="CellPulse",
        sha256="b" * 64,
        config={"training_studies": ["study1"]},
        files={"history.csv": "epoch,train_loss,validation_loss\n0,2,2.1\n1,1,1.2\n"},
        card=CARD,
    )
    monkeypatch.setattr("cfm._report._figures.MAX_GENE_FIGURES", 1)
    monkeypatch.setattr("cfm.tl.embed", stand_in_embed, raising=False)
    monkeypatch.setattr("cfm.tl.predict_virus", stand_in_predict, raising=False)
    monkeypatch.setattr("cfm.hub.load_checkpoint", lambda source: checkpoint)
    refuse_all(monkeypatch)
    return checkpoint


@pytest.fixture
def study(tmp_path) -> Path:
    """Counts of two studies with three viruses, written as h5ad; gene names are real."""
    adata = small_study()
    path = tmp_path / "counts.h5ad"
    adata.write_h5ad(path)
    return path


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


# --- what comes out -------------------------------------------------------------------------


def test_report_says_what_the_anndata_holds(stand_in, study, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--counts", study, "--by", "study", "--output", out) == 0
    contrasts = ad.read_h5ad(out / "contrasts.h5ad")
    obs, page = contrasts.obs, read_page(out)
    rows = [row for row in page.rows if len(row) == 10][1:]
    assert [row[1] for row in rows] == list(contrasts.obs_names)
    for i, row in enumerate(rows):
        assert row[2] == obs["virus"].iloc[i]
        assert obs[KEY].iloc[i] in row[3]
        assert row[4] == f"{obs[KEY + '_confidence'].iloc[i]:.2f}"
        assert re.split(r",?\s+", row[5].strip()) == obs[KEY + "_set"].iloc[i].split("|")
        assert row[6] == f"{obs[KEY + '_infected'].iloc[i]:.2f}"
        assert row[7] == f"{obs[KEY + '_novelty'].iloc[i]:.2f}"
        assert row[8:] == [str(obs["n_cases"].iloc[i]), str(obs["n_controls"].iloc[i])]
    assert "87\N{NO-BREAK SPACE}% of the model's genes" in page.text
    told = capsys.readouterr().out
    assert all(name in told for name in contrasts.obs_names)
    assert f"report: {out / 'report.html'}" in told


def test_agreement_is_counted_only_where_the_model_can_name_the_virus(stand_in, study, tmp_path):
    run("--counts", study, "--by", "study", "--output", tmp_path / "out")
    obs = ad.read_h5ad(tmp_path / "out" / "contrasts.h5ad").obs
    text = " ".join(read_page(tmp_path / "out").text.split())
    named = obs[obs["virus"].isin(CLASSES)]
    agree = int((named[KEY].astype(str) == named["virus"].astype(str)).sum())
    assert f"For {len(named)} of {len(obs)} contrasts" in text
    assert f"The call agrees in {agree} of {len(named)}" in text
    assert "The other 2 (KSHV) cannot be named by this model and are not counted" in text
    assert "2 of these 4 contrasts come from studies in the model's training data (study1)" in text


def test_names_that_are_no_viruses_are_not_scored(stand_in, study, tmp_path):
    adata = ad.read_h5ad(study)
    adata.obs["virus"] = adata.obs["virus"].astype(str).replace({"IAV": "a", "HRV": "b"})
    adata.write_h5ad(study)
    run("--counts", study, "--by", "study", "--output", tmp_path)
    assert "agreement cannot be counted" in " ".join(read_page(tmp_path).text.split())


def test_report_stands_alone(stand_in, study, tmp_path):
    run("--counts", study, "--by", "study", "--output", tmp_path / "out")
    page = read_page(tmp_path / "out")
    assert len(page.loads) >= 3
    assert all(value.startswith("data:image/png;base64,") for value in page.loads)
    assert "Research use only, not a diagnostic" in page.text


def test_report_tells_how_it_was_made(stand_in, study, tmp_path):
    run("--counts", study, "--by", "study", "--output", tmp_path / "out")
    rows = dict(row for row in read_page(tmp_path / "out").rows if len(row) == 2)
    assert "b" * 64 in rows["checkpoint"]
    assert {"cfm.pp.map_genes", "cfm.pp.contrasts", "cfm.tl.embed", "cfm.tl.predict_virus"} <= set(
        rows
    )
    assert "mode = replicates" in rows["cfm.pp.contrasts"]
    assert f"anndata {version('anndata')}" in rows["versions"]
    text = " ".join(read_page(tmp_path / "out").text.split())
    assert "Knows few viruses; see the paper." in text
    assert "Trained on one study." in text
    assert "recall" not in text


def test_what_was_left_out_is_listed(stand_in, study, tmp_path):
    adata = ad.read_h5ad(study)
    adata = adata[~((adata.obs["study"] == "study2") & (adata.obs["virus"] == "none"))].copy()
    adata.var_names = [*adata.var_names[:-1], "no_such_gene"]
    adata.write_h5ad(study)
    run("--counts", study, "--by", "study", "--output", tmp_path / "out")
    page = read_page(tmp_path / "out")
    assert any(row[0] == "study2" for row in page.rows if len(row) == 3)
    assert "no_such_gene" in page.text
    assert "Warnings during the run" in page.text


def test_units_that_are_no_counts_are_pointed_out(stand_in, study, tmp_path):
    adata = ad.read_h5ad(study)
    adata.uns["units"] = "FPKM"
    adata.write_h5ad(study)
    run("--counts", study, "--by", "study", "--output", tmp_path)
    assert "calls the values of X 'FPKM'" in read_page(tmp_path).text


@pytest.mark.parametrize(
    ("call", "proba", "expected"),
    [
        ("IAV", 0.8, "Looks infected (probability 0.95) and looks most like IAV (0.80)"),
        ("IAV", 0.3, "leans weakly towards IAV (0.30)"),
        ("uninfected", 0.9, "No infection is seen: its probability is 0.10"),
        ("uninfected", 0.7, "Probably uninfected: the probability of an infection is 0.30"),
        ("uninfected", 0.3, "Undecided: the most probable single answer is uninfected (0.30)"),
        ("unknown", 0.8, "No virus is named. The profile is more unusual than 10"),
    ],
)
def test_sentences(call, proba, expected):
    adata = ad.AnnData(np.zeros((1, len(CLASSES)), dtype=np.float32))
    adata.obs["n_cases"] = adata.obs["n_controls"] = 2
    stand_in_predict(adata, "m", key_added=KEY)
    adata.obs[KEY] = call
    row = dict.fromkeys(CLASSES, 0.05) | {"IAV" if call == "unknown" else call: proba}
    adata.obsm[f"{KEY}_proba"] = pd.DataFrame([row], index=adata.obs_names)
    adata.obs[f"{KEY}_infected"] = 1 - row["uninfected"]
    for candidates, ending in (("", "No answer at all"), (call, "No other"), ("RSV|HRV", "RSV")):
        adata.obs[f"{KEY}_set"] = candidates
        (found,) = summarize(adata, key=KEY, groupby="virus", training_studies=None)
        assert expected in found.sentence
        assert ending in found.sentence or (call == "unknown" and "IAV (0.80)" in found.sentence)
        assert found.agrees is None
        assert found.in_training is None


def test_names_are_escaped(stand_in, study, tmp_path):
    adata = ad.read_h5ad(study)
    adata.obs["study"] = ["<script>alert(1)</script>"] * 12
    adata.write_h5ad(study)
    run("--counts", study, "--by", "study", "--output", tmp_path / "out")
    assert "<script>" in read_page(tmp_path / "out").text  # as text; Page refuses the tag


def test_calls_table(stand_in, study, tmp_path):
    run("--counts", study, "--by", "study", "--output", tmp_path)
    calls = pd.read_csv(tmp_path / "calls.csv", index_col="contrast")
    contrasts = ad.read_h5ad(tmp_path / "contrasts.h5ad")
    assert list(calls.index) == list(contrasts.obs_names)
    probabilities = calls[[f"P({name})" for name in CLASSES]]
    np.testing.assert_allclose(probabilities, contrasts.obsm[f"{KEY}_proba"], rtol=1e-6)


@pytest.mark.parametrize("transpose", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz"])
def test_tables_give_the_same_as_h5ad(stand_in, study, tmp_path, transpose, suffix):
    adata = ad.read_h5ad(study)
    separator = "," if suffix == ".csv" else "\t"
    table = adata.to_df().astype(int)
    (table if transpose else table.T).to_csv(tmp_path / f"counts{suffix}", sep=separator)
    shuffled = adata.obs.iloc[::-1].rename_axis("sample")
    shuffled.to_csv(tmp_path / "samples.csv")
    run("--counts", study, "--by", "study", "--output", tmp_path / "a")
    run(
        "--counts", tmp_path / f"counts{suffix}", "--metadata", tmp_path / "samples.csv",
        "--by", "study", "--output", tmp_path / "b",
    )  # fmt: skip
    a, b = (ad.read_h5ad(tmp_path / x / "contrasts.h5ad") for x in "ab")
    assert list(a.obs_names) == list(b.obs_names)
    np.testing.assert_allclose(a.X, b.X, atol=1e-5)


def test_extra_columns_of_a_table_are_left_out_and_reported(stand_in, study, tmp_path):
    adata = ad.read_h5ad(study)
    table = adata.to_df().T.astype(int)
    table.insert(0, "Chr", "chr1")
    table.to_csv(tmp_path / "counts.csv")
    adata.obs.to_csv(tmp_path / "samples.csv")
    out = tmp_path / "out"
    run("--counts", tmp_path / "counts.csv", "--metadata", tmp_path / "samples.csv",
        "--by", "study", "--output", out)  # fmt: skip
    assert "have no line in the metadata and are left out: Chr." in read_page(out).text


def test_metadata_adds_columns_to_h5ad_and_text_matches_numbers(stand_in, study, tmp_path):
    adata = ad.read_h5ad(study)
    extra = pd.DataFrame({"arm": ["0" if v == "none" else "1" for v in adata.obs["virus"]]})
    extra.insert(0, "sample", list(adata.obs_names))
    extra.to_csv(tmp_path / "arms.tsv", sep="\t", index=False)
    out = tmp_path / "out"
    assert run("--counts", study, "--metadata", tmp_path / "arms.tsv", "--groupby", "arm",
               "--control", "0", "--by", "study", "--output", out) == 0  # fmt: skip
    assert set(ad.read_h5ad(out / "contrasts.h5ad").obs["arm"]) == {"1"}
    adata.obs["dose"] = (adata.obs["virus"] != "none").astype(int)
    adata.write_h5ad(study)
    assert run("--counts", study, "--groupby", "dose", "--control", "0", "--output", out) == 0


def test_without_counts_it_runs_on_bundled_data(stand_in, tmp_path):
    assert run("--output", tmp_path) == 0
    assert "GSE147507" in read_page(tmp_path).text
    assert len(pd.read_csv(tmp_path / "calls.csv")) == 4


# --- what is refused ------------------------------------------------------------------------


def refused(capsys, *arguments: object) -> str:
    """Run, and give back the single line of the refusal."""
    assert run(*arguments) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1, lines
    assert lines[0].startswith("cfm: error: ")
    return lines[0]


def test_missing_files(study, tmp_path, capsys):
    assert "does not exist" in refused(capsys, "--counts", "none.h5ad", "--output", tmp_path)
    line = refused(capsys, "--counts", study, "--metadata", "none.csv", "--output", tmp_path)
    assert "none.csv does not exist" in line


def test_unknown_column_level_and_stratum(study, tmp_path, capsys):
    common = ("--counts", study, "--output", tmp_path)
    assert "'strain'" in refused(capsys, *common, "--groupby", "strain")
    assert "'mock'" in refused(capsys, *common, "--control", "mock")
    assert "'donor'" in refused(capsys, *common, "--by", "donor")


def test_damaged_or_unknown_files(tmp_path, capsys):
    broken = tmp_path / "broken.h5ad"
    broken.write_bytes(b"not hdf5")
    assert "not a readable .h5ad" in refused(capsys, "--counts", broken, "--output", tmp_path)
    book = tmp_path / "counts.xlsx"
    book.write_bytes(b"PK")
    samples = tmp_path / "samples.csv"
    samples.write_text("sample,virus\na,none\nb,IAV\n")
    both = ("--metadata", samples, "--output", tmp_path)
    assert "unknown file type" in refused(capsys, "--counts", book, *both)
    packed = tmp_path / "counts.csv.gz"
    packed.write_bytes(gzip.compress(b"gene,a,b\nISG15,1,2\n" * 999)[:40])
    assert "cannot be read as a table" in refused(capsys, "--counts", packed, *both)
    empty = tmp_path / "empty.csv"
    empty.write_text("")
    assert "cannot be read as a table" in refused(capsys, "--counts", empty, *both)


@pytest.mark.parametrize(
    ("counts", "samples", "expected"),
    [
        ("gene,a,b\nISG15,1,x\n", "s,virus\na,none\nb,IAV\n", "'b' and gene 'ISG15' holds 'x'"),
        ("gene,a,b\nISG15,1,\n", "s,virus\na,none\nb,IAV\n", "'b' and gene 'ISG15' is empty"),
        ("gene,a,a\nISG15,1,2\n", "s,virus\na,none\nb,IAV\n", "column 'a' 2 times"),
        ("gene,a,b\nISG15,1,2\n", "s,virus\na,none\na,IAV\n", "1 repeated sample names"),
        ("gene,a,b\nISG15,1,2\n", "s,virus\nc,none\nd,IAV\n", "none of the samples"),
        ("gene;a;b\nISG15;1;2\n", "s,virus\na,none\nb,IAV\n", "separated by ';'"),
        ("gene;a;b\nISG15;1,5;2\n", "s,virus\na,none\nb,IAV\n", "separated by ';'"),
        ("gene\nISG15\n", "s,virus\na,none\nb,IAV\n", "expected at least one of each"),
        ("gene,a,b\nISG15,-1,2\n", "s,virus\na,none\nb,IAV\n", "negative"),
    ],
)
def test_bad_tables(tmp_path, capsys, counts, samples, expected):
    (tmp_path / "counts.csv").write_text(counts)
    (tmp_path / "samples.csv").write_text(samples)
    line = refused(capsys, "--counts", tmp_path / "counts.csv", "--metadata",
                   tmp_path / "samples.csv", "--output", tmp_path)  # fmt: skip
    assert expected in line


def test_a_table_that_is_not_in_utf8(study, tmp_path, capsys):
    samples = tmp_path / "samples.csv"
    samples.write_bytes("sample,virus\ns0,für\n".encode("latin-1"))
    line = refused(capsys, "--counts", study, "--metadata", samples, "--output", tmp_path)
    assert "save it as UTF-8" in line


def test_a_table_of_featurecounts_or_htseq(study, tmp_path):
    adata = ad.read_h5ad(study)
    table = adata.to_df().T.rename_axis("Geneid")
    table.insert(0, "Length", 1000)
    table.insert(0, "Chr", "chr1")
    counts, samples = tmp_path / "counts.txt", tmp_path / "samples.csv"
    counts.write_text('# Program:featureCounts v2.0.6; Command:"-a\t"\n' + table.to_csv(sep="\t"))
    adata.obs.set_axis([f" {name} " for name in adata.obs_names]).to_csv(samples)
    with pytest.warns(UserWarning, match=r"left out: Chr, Length\.$"):
        read = read_counts(counts, metadata=samples)
    assert read.obs_names.equals(adata.obs_names)
    np.testing.assert_array_equal(read.X, adata.X)

    table = table.drop(columns=["Chr", "Length"])
    table.loc["__no_feature"] = table.loc["N_unmapped"] = 10_000.0
    table.to_csv(counts, sep="\t")
    with pytest.warns(UserWarning, match=r"left out: __no_feature, N_unmapped\.$"):
        read = read_counts(counts, metadata=samples)
    np.testing.assert_array_equal(read.X, adata.X)


def test_a_table_needs_metadata_and_the_right_orientation(study, tmp_path, capsys):
    adata = ad.read_h5ad(study)
    counts, samples = tmp_path / "counts.csv", tmp_path / "samples.csv"
    adata.to_df().T.to_csv(counts)
    adata.obs.rename_axis("sample").to_csv(samples)
    assert "--metadata" in refused(capsys, "--counts", counts, "--output", tmp_path)
    both = ("--counts", counts, "--metadata", samples, "--output", tmp_path)
    assert "among the rows of" in refused(capsys, *both, "--orientation", "samples-in-rows")
    assert "no column 'name'" in refused(capsys, *both, "--sample-column", "name")


def test_unwritable_output_is_noticed_first(study, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.write_text("")
    line = refused(capsys, "--counts", "none.h5ad", "--output", blocked / "out")
    assert "cannot write to the output folder" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_read_only_output(study, tmp_path, capsys):
    folder = tmp_path / "sealed"
    folder.mkdir(mode=0o500)
    assert "Permission denied" in refused(capsys, "--counts", study, "--output", folder)


def test_warnings_are_shown_in_the_terminal_too(stand_in, study, tmp_path, caplog):
    adata = ad.read_h5ad(study)
    adata[~((adata.obs["study"] == "study2") & (adata.obs["virus"] == "none"))].write_h5ad(study)
    assert run("--counts", study, "--by", "study", "--output", tmp_path / "out") == 0
    assert "warning: left out 1 strata without a 'none'" in caplog.text


def test_full_disk_leaves_the_earlier_file(stand_in, study, tmp_path, capsys, monkeypatch):
    def write_a_part(adata, path, *args, **kwargs):
        Path(path).write_bytes(b"part")
        raise OSError("[Errno 28] Can't close file (No space left on device, buf = 0x55)")

    (tmp_path / "contrasts.h5ad").write_bytes(b"earlier")
    monkeypatch.setattr(ad.AnnData, "write_h5ad", write_a_part)
    assert run("--counts", study, "--output", tmp_path) == 75
    line = capsys.readouterr().err.strip().splitlines()[-1]  # what the stand-in cannot comes first
    assert "the disk is full" in line
    assert "buf" not in line
    assert (tmp_path / "contrasts.h5ad").read_bytes() == b"earlier"
    assert not list(tmp_path.glob(".contrasts*"))


def test_ctrl_c_ends_with_one_line(study, tmp_path, capsys, monkeypatch):
    def interrupt(options):
        raise KeyboardInterrupt

    monkeypatch.setattr("cfm._report.run_demo", interrupt)
    assert run("--counts", study, "--output", tmp_path) == 130
    assert capsys.readouterr().err.startswith("cfm: interrupted")


def test_unknown_model_is_noticed_first(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("cfm.hub.resolve", REAL_RESOLVE)
    line = refused(capsys, "--counts", "none.h5ad", "--model", "no-such", "--output", tmp_path)
    assert "'no-such'" in line


def test_debug_shows_the_error_itself(tmp_path):
    with pytest.raises(FileNotFoundError):
        run("--counts", "none.h5ad", "--output", tmp_path, "--debug")


# --- the real thing -------------------------------------------------------------------------


def bundled() -> bool:
    return {"cellpulse-mini", "cellpulse-virus"} <= set(hub.list_checkpoints().index)


@pytest.mark.skipif(not bundled(), reason="the bundled checkpoints are not there yet")
@pytest.mark.slow
def test_bundled_demo_end_to_end(tmp_path, capsys):
    assert run("--output", tmp_path) == 0
    contrasts = ad.read_h5ad(tmp_path / "contrasts.h5ad")
    page = read_page(tmp_path)
    sha = hub.load_checkpoint("cellpulse-virus").sha256
    assert contrasts.uns[KEY]["params"]["sha256"] == sha
    assert sha in page.text
    np.testing.assert_allclose(contrasts.obsm[f"{KEY}_proba"].sum(axis=1), 1, atol=1e-5)
    rows = [row for row in page.rows if len(row) == 10][1:]
    assert [row[4] for row in rows] == [f"{v:.2f}" for v in contrasts.obs[f"{KEY}_confidence"]]
    assert {"host_factors", "gene_programs", "drug_screen"} <= set(contrasts.uns)
    assert "Not computed" not in page.text
