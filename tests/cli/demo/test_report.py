"""``cfm demo``: good input gives a true report."""

from __future__ import annotations

import re
from importlib.metadata import version

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm import hub
from cfm._report._summary import summarize
from tests.cli.demo._demo import CLASSES, KEY, read_page, run, stand_in_predict


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


def test_zarr_gives_the_same_as_h5ad(stand_in, study, tmp_path):
    adata = ad.read_h5ad(study)
    adata.write_zarr(tmp_path / "counts.zarr")
    run("--counts", study, "--by", "study", "--output", tmp_path / "a")
    assert (
        run("--counts", tmp_path / "counts.zarr", "--by", "study", "--output", tmp_path / "b") == 0
    )
    a, b = (ad.read_h5ad(tmp_path / x / "contrasts.h5ad") for x in "ab")
    assert list(a.obs_names) == list(b.obs_names)
    np.testing.assert_array_equal(a.X, b.X)


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
