"""``cfm demo``: good input gives a true report."""

from __future__ import annotations

from importlib.metadata import version

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm import hub
from cfm._report._summary import overview, summarize
from tests.cli.demo._demo import (
    CLASSES,
    KEY,
    KINDS,
    matches_of,
    read_page,
    run,
    stand_in_predict,
)


def test_report_says_what_the_anndata_holds(stand_in, study, tmp_path, capsys):
    out = tmp_path / "out"
    assert run("--counts", study, "--by", "study", "--output", out) == 0
    contrasts = ad.read_h5ad(out / "contrasts.h5ad")
    obs, page = contrasts.obs, read_page(out)
    rows = [row for row in page.rows if len(row) == 11][1:]
    assert [row[1] for row in rows] == list(contrasts.obs_names)
    table = contrasts.uns[KEY]["support"].set_index(["level", "answer"])
    for i, row in enumerate(rows):
        kinds = contrasts.obsm[f"{KEY}_response_proba"].iloc[i].set_axis(KINDS)
        response = kind = obs[f"{KEY}_response"].iloc[i]
        shown = response
        if response == "unresolved":
            kind = kinds.drop("none").idxmax()
            shown = f"{response}most probable: {kind}"
        assert row[2:4] == [obs["virus"].iloc[i], shown]
        assert row[4] == f"{kinds[kind]:.2f}"
        known = table.loc[("response", kind)]
        assert row[5] == f"{known['share']:.2f} ({known['n_studies']:.0f})"
        assert obs[KEY].iloc[i] in row[7]
        if obs[KEY].iloc[i] == "unresolved" or np.isnan(obs[f"{KEY}_support"].iloc[i]):
            assert row[8] == "–"
        else:
            assert row[8].startswith(f"{obs[KEY + '_support'].iloc[i]:.2f} (")
        assert row[9:] == [str(obs["n_cases"].iloc[i]), str(obs["n_controls"].iloc[i])]
    assert rows[0][6] == "IFN-beta, Lee2020, similarity 0.61; IAV in lung, Kim2021, similarity 0.41"
    assert rows[-1][6] == "–"
    assert "87\N{NO-BREAK SPACE}% of the model's genes" in page.text
    told = capsys.readouterr().out
    assert all(name in told for name in contrasts.obs_names)
    assert f"report: {out / 'report.html'}" in told


def test_agreement_is_counted_where_the_model_can_name_the_virus(stand_in, study, tmp_path, capsys):
    run("--counts", study, "--by", "study", "--output", tmp_path / "out")
    obs = ad.read_h5ad(tmp_path / "out" / "contrasts.h5ad").obs
    text = " ".join(read_page(tmp_path / "out").text.split())
    known = obs[obs["virus"].isin(CLASSES)]
    assert len(known) < len(obs)
    viral = int((known[f"{KEY}_response"] == "viral").sum())
    named = known[known[KEY].isin(CLASSES)]
    agree = int((named[KEY].astype(str) == named["virus"].astype(str)).sum())
    assert len(named) > 0
    assert f"For {len(known)} of {len(obs)} contrasts" in text
    assert f"viral in {viral} of them" in text
    assert f"named in {len(named)} and it is the known one in {agree}" in text
    assert "3 of 6 contrasts come from studies that the classifier was trained on (study1)" in text
    told = capsys.readouterr().out
    assert f"{viral} with a viral response, {len(named)} with a named virus" in told
    assert "3 contrasts are from studies that it was trained on" in told


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


def one_contrast(call: str, response: str) -> ad.AnnData:
    adata = ad.AnnData(np.zeros((1, 10), dtype=np.float32), obs=pd.DataFrame(index=["a"]))
    adata.obs["n_cases"] = adata.obs["n_controls"] = 2
    stand_in_predict(adata, "m", key_added=KEY)
    adata.obs[KEY], adata.obs[f"{KEY}_response"] = call, response
    adata.uns[KEY]["matches"] = matches_of("a")
    return adata


def told(adata: ad.AnnData) -> str:
    (found,) = summarize(adata, key=KEY, groupby="virus", training_studies=None)
    assert found.agrees is None
    assert found.in_training is None
    return found.sentence.replace("\N{NO-BREAK SPACE}", " ")


@pytest.mark.parametrize(
    ("call", "response", "expected"),
    [
        ("IAV", "viral", ["viral (probability 0.25)", "16 studies", "81 %", "IFN-beta",
                          "IAV (probability 0.25)", "4 studies", "95 %"]),
        ("RSV", "viral", ["viral", "81 %", "IFN-beta", "RSV", "not tested"]),
        ("unresolved", "viral", ["viral", "81 %", "IFN-beta", "virus is not resolved"]),
        ("unresolved", "bacterial", ["bacterial", "14 %", "IFN-beta", "cause is not resolved"]),
        ("unresolved", "unresolved", ["Response: unresolved", "viral", "81 %", "IFN-beta"]),
        ("not viral", "bacterial", ["bacterial", "14 %", "IFN-beta", "not a virus", "91 %"]),
        ("uninfected", "none", ["none (probability 0.25)", "71 %", "IFN-beta"]),
    ],
)  # fmt: skip
def test_sentences_say_the_response_then_matches_then_the_virus(call, response, expected):
    sentence = told(one_contrast(call, response))
    places = [sentence.find(part) for part in expected]
    assert -1 not in places, sentence
    assert places == sorted(places), sentence
    assert sentence.count("%") == sum("%" in part for part in expected)


def test_sentences_name_matches_beyond_chance_only():
    adata = one_contrast("unresolved", "viral")
    assert "LPS" not in told(adata)
    assert told(adata).count("IFN-beta") == 1
    adata.uns[KEY]["matches"]["fdr"] = 0.6
    assert "IFN-beta" not in told(adata)
    assert "No public contrast" in told(adata)
    adata.uns[KEY]["matches"] = adata.uns[KEY]["matches"][:0]  # as with n_matches=0
    assert "public contrast" not in told(adata)


@pytest.mark.parametrize(
    ("calls", "expected"),
    [
        ([("IAV", "viral"), ("uninfected", "none")], "viral in 1 and no response in 1. A virus"),
        ([("unresolved", "viral")] * 2, "viral in 2. No virus is named: too few"),
        ([("not viral", "bacterial")], "in 1 contrast: bacterial in 1. No virus is named."),
        (
            [("unresolved", "unresolved"), ("not viral", "bacterial")],
            "bacterial in 1 and unresolved in 1",
        ),
    ],
)
def test_overview(calls, expected):
    found = [
        summarize(one_contrast(*call), key=KEY, groupby="virus", training_studies=None)[0]
        for call in calls
    ]
    assert expected in overview(found)


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
    kinds = calls[[f"P({name})" for name in KINDS]]
    np.testing.assert_allclose(kinds, contrasts.obsm[f"{KEY}_response_proba"], rtol=1e-6)
    viruses = calls[[f"P({name} | viral)" for name in CLASSES]]
    np.testing.assert_allclose(viruses, contrasts.obsm[f"{KEY}_proba"], rtol=1e-6)
    matches = pd.read_csv(tmp_path / "matches.csv", keep_default_na=False)
    stored = contrasts.uns[KEY]["matches"]
    assert list(matches) == list(stored)
    assert matches["query"].tolist() == stored["query"].tolist()
    np.testing.assert_allclose(matches["similarity"], stored["similarity"])


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
    for table in ("response_proba", "proba"):
        np.testing.assert_allclose(contrasts.obsm[f"{KEY}_{table}"].sum(axis=1), 1, atol=1e-5)
    rows = [row for row in page.rows if len(row) == 11][1:]
    assert [row[3].split("most")[0] for row in rows] == contrasts.obs[f"{KEY}_response"].tolist()
    matches = contrasts.uns[KEY]["matches"]
    assert set(matches["query"]) == set(contrasts.obs_names)
    assert "GSE147507" not in set(matches["study"])  # not by itself
    assert {"host_factors", "gene_programs", "drug_screen"} <= set(contrasts.uns)
    assert "Not computed" not in page.text
