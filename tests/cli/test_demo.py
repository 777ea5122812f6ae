"""``cfm demo``: a true report of good input, and one clear line for bad input."""

from __future__ import annotations

import os
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import numpy as np
import pandas as pd
import pytest

from cfm import hub
from cfm._report import calls_table
from cfm._report._page import shown
from tests.cli import _demo
from tests.cli._demo import CARD, CLASSES, KEY, KINDS, read_page, refused, run

EXPLAINED = ["host_factors", "gene_programs", "drug_screen"]
REAL_RESOLVE = hub.resolve


@pytest.fixture(autouse=True, scope="module")
def stand_in():
    """Replace the model tools and the checkpoint, so that a run takes seconds."""
    checkpoint = SimpleNamespace(
        name="stand-in",
        model="CellPulse",
        sha256="b" * 64,
        config={"classifier_studies": ["study1"]},
        files={"history.csv": "epoch,train_loss,validation_loss\n0,2,2.1\n1,1,1.2\n"},
        card=CARD,
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cfm.hub.resolve", Path)
        patch.setattr("cfm._report._page.MAX_GENE_FIGURES", 1)
        patch.setattr("cfm.tl.embed", _demo.stand_in_embed)
        patch.setattr("cfm.tl.predict_virus", _demo.stand_in_predict)
        patch.setattr("cfm.hub.load_checkpoint", lambda source: checkpoint)
        _demo.put_in_place(patch)
        yield


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """One run, many looks at it."""
    folder = tmp_path_factory.mktemp("report")
    _demo.small_study().write_h5ad(folder / "counts.h5ad")
    assert run("--counts", folder / "counts.h5ad", "--by", "study", "--output", folder) == 0
    return folder, read_page(folder), ad.read_h5ad(folder / "contrasts.h5ad")


@pytest.fixture
def study(tmp_path) -> Path:
    _demo.small_study().write_h5ad(tmp_path / "counts.h5ad")
    return tmp_path / "counts.h5ad"


@pytest.fixture
def quick(monkeypatch):
    """Nothing is explained, for tests of the rest."""
    _demo.refuse_all(monkeypatch)


# --- what the report contains ---------------------------------------------------------------


def test_answers_are_those_of_the_anndata(report):
    _, page, contrasts = report
    obs = contrasts.obs
    rows = page.rows["answers"][1:]
    assert [row[0] for row in rows] == list(contrasts.obs_names)
    support = contrasts.uns[KEY]["support"].set_index(["level", "answer"])
    for i, row in enumerate(rows):
        kinds = contrasts.obsm[f"{KEY}_response_proba"].iloc[i].set_axis(KINDS)
        response = kind = obs[f"{KEY}_response"].iloc[i]
        name = {"none": "no response"}.get(response, response)
        if response == "unresolved":
            kind = kinds.drop("none").idxmax()
            name = f"{response}most probable: {kind}"
        assert row[1:3] == [obs["virus"].iloc[i], name]
        assert row[3] == f"{kinds[kind]:.2f}"
        known = support.loc[("response", kind)]
        assert row[4] == f"{known['share']:.2f} ({known['n_studies']:.0f})"
        assert obs[KEY].iloc[i] in row[6]
        if obs[KEY].iloc[i] == "unresolved" or np.isnan(obs[f"{KEY}_support"].iloc[i]):
            assert row[7] == "–"
        else:
            assert row[7].startswith(f"{obs[KEY + '_support'].iloc[i]:.2f} (")
        assert row[8] == f"{obs['n_cases'].iloc[i]} / {obs['n_controls'].iloc[i]}"
    assert rows[0][5].startswith("IFN-beta, Lee2020, similarity 0.61IAV in lung, Kim2021")
    assert rows[-1][5] == "–"


def test_agreement_and_training_are_counted(report):
    _, page, contrasts = report
    known = contrasts.obs[contrasts.obs["virus"].isin(CLASSES)]
    assert 0 < len(known) < contrasts.n_obs
    viral = int((known[f"{KEY}_response"] == "viral").sum())
    named = known[known[KEY].isin(CLASSES)]
    agree = int((named[KEY].astype(str) == named["virus"].astype(str)).sum())
    assert f"For {len(known)} of {contrasts.n_obs} contrasts" in page.text["answers"]
    assert (
        f"viral response in {viral}, virus named in {len(named)}, the known one in {agree}"
        in page.text["answers"]
    )
    assert (
        "3 of 6 contrasts come from studies that the classifier was trained on (study1)"
        in (page.text["trust"])
    )
    none = contrasts.obs[f"{KEY}_response"] == "none"
    weak = none.groupby(contrasts.obs["virus"], observed=True).mean() > 0.5
    assert ("No response in most contrasts of" in page.text["answers"]) == weak.any()


def test_sections_have_limits_table_and_pictures(report):
    _, page, _ = report
    for name, n_pictures in zip(EXPLAINED, (3, 2, 6), strict=True):
        assert "Research use only." in page.text[name]
        assert "Not computed" not in page.text[name]
        assert len(page.rows[name]) > 3
        assert "have a false discovery rate of at most 0.05" in page.text[name]
        assert page.pictures[name] == n_pictures
    assert page.pictures["figures"] == 3
    assert page.pictures["trust"] == 1  # training


def test_tables_hold_the_first_rows_of_what_is_stored(report):
    folder, page, contrasts = report
    for name in ("host_factors", "drug_screen"):
        written = pd.read_csv(folder / f"{name}.csv")
        table = contrasts.uns[name]["results"]
        assert list(written) == list(table)
        np.testing.assert_allclose(written["score"], table["score"], rtol=1e-5)
    shown_rows = page.rows["host_factors"][1:]
    table = pd.read_csv(folder / "host_factors.csv")
    first = table.loc[table["rank"] <= 10, ["group", "explained", "rank", "gene", "direction"]]
    assert [row[:5] for row in shown_rows] == first.astype(str).to_numpy().tolist()
    drugs = page.rows["drug_screen"][1:]
    assert [row[1] for row in drugs[:10]] == [str(i + 1) for i in range(10)]
    assert drugs[0][-2:] == ["IFIT1, MX1", "JAK1, JAK2"]
    programs = pd.read_csv(folder / "gene_programs.csv")
    assert len(programs) == len(contrasts.uns["gene_programs"]["genes"])
    assert {"program", "gene", "weight", "program_size", "program_fdr"} <= set(programs)
    assert [row[0] for row in page.rows["gene_programs"][1:]] == ["P1", "P2", "P3"]
    assert page.rows["gene_programs"][1][-2] != "–"  # its hallmark set
    assert page.rows["gene_programs"][2][-2] == "–"


def test_the_page_stands_alone_and_has_its_files(report):
    folder, page, _ = report
    assert len(page.loads) >= 3
    assert all(value.startswith("data:image/png;base64,") for value in page.loads)
    assert "Research use only, not a diagnostic" in page.text[""]
    files = [link for link in page.links if not link.startswith("#")]
    assert len(files) == 7
    assert all(link.startswith("data:text/csv") or (folder / link).exists() for link in files)
    assert {link[1:] for link in page.links if link.startswith("#")} <= set(page.text)


def test_provenance_is_recorded(report):
    _, page, _ = report
    rows = dict(row for row in page.rows["made"] if len(row) == 2)
    assert "b" * 64 in rows["checkpoint"]
    assert "sha256" in rows["input"]
    for step in ("pp.map_genes", "pp.contrasts", "tl.embed", "tl.predict_virus", "tl.screen_drugs"):
        assert f"cfm.{step}" in rows
    assert "mode = replicates" in rows["cfm.pp.contrasts"]
    assert f"anndata {version('anndata')}" in rows["versions"]
    assert "Trained on one study." in page.text["trust"]
    assert "87\N{NO-BREAK SPACE}% of the model's genes".replace("\N{NO-BREAK SPACE}", " ") in (
        page.text["trust"].replace("\N{NO-BREAK SPACE}", " ")
    )


def test_csv_files_hold_all_probabilities_and_matches(report):
    folder, _, contrasts = report
    calls = pd.read_csv(folder / "calls.csv", index_col="contrast")
    assert list(calls.index) == list(contrasts.obs_names)
    kinds = calls[[f"P({name})" for name in KINDS]]
    np.testing.assert_allclose(kinds, contrasts.obsm[f"{KEY}_response_proba"], rtol=1e-6)
    viruses = calls[[f"P({name} | viral)" for name in CLASSES]]
    np.testing.assert_allclose(viruses, contrasts.obsm[f"{KEY}_proba"], rtol=1e-6)
    matches = pd.read_csv(folder / "matches.csv", keep_default_na=False)
    assert matches["query"].tolist() == contrasts.uns[KEY]["matches"]["query"].tolist()


@pytest.mark.parametrize(
    ("call", "response", "expected"),
    [
        ("IAV", "viral", ("viral", 0.812, 16, 0.95, 4)),
        ("RSV", "viral", ("viral", 0.812, 16, np.nan, 0)),
        ("unresolved", "bacterial", ("bacterial", 0.143, 14, np.nan, 0)),
        ("unresolved", "unresolved", ("viral", 0.812, 16, np.nan, 0)),
        ("not viral", "bacterial", ("bacterial", 0.143, 14, 0.91, 14)),
        ("uninfected", "none", ("none", 0.706, 31, 0.706, 31)),
    ],
)
def test_calls_have_the_support_of_their_answers(call, response, expected):
    adata = ad.AnnData(np.zeros((1, 10), dtype=np.float32), obs=pd.DataFrame(index=["a"]))
    _demo.stand_in_predict(adata, "m", key_added=KEY)
    adata.obs[KEY], adata.obs[f"{KEY}_response"] = call, response
    adata.uns[KEY]["matches"] = _demo.matches_of("a")
    row = calls_table(adata, KEY).iloc[0]
    columns = ["most_probable", "support", "studies", "call_support", "call_studies"]
    assert row["response"] == response
    for name, value in zip(columns, expected, strict=True):
        assert row[name] == value or (row[name] != row[name] and value != value), name
    assert row["similar_to"].count("IFN-beta") == 1
    assert "LPS" not in row["similar_to"]  # by chance
    adata.uns[KEY]["matches"]["fdr"] = 0.6
    assert calls_table(adata, KEY)["similar_to"].tolist() == [""]


def test_numbers_that_do_not_exist_are_dashes():
    assert [shown(v) for v in (np.nan, None, "", -0.0, True, [1.23456, "a"])] == [
        "–", "–", "–", "0", "yes", "1.23, a",
    ]  # fmt: skip


# --- other inputs ---------------------------------------------------------------------------


def test_what_was_left_out_is_listed(quick, study, tmp_path):
    adata = ad.read_h5ad(study)
    adata = adata[~((adata.obs["study"] == "study2") & (adata.obs["virus"] == "none"))].copy()
    adata.var_names = [*adata.var_names[:-1], "no_such_gene"]
    adata.obs["study"] = adata.obs["study"].astype(str).replace("study1", "<script>1</script>")
    adata.obs["virus"] = adata.obs["virus"].astype(str).replace({"IAV": "a", "HRV": "b"})
    adata.uns["units"] = "FPKM"
    adata.write_h5ad(study)
    run("--counts", study, "--by", "study", "--output", tmp_path / "out")
    page = read_page(tmp_path / "out")
    assert any(row[0] == "study2" for row in page.rows["trust"])
    assert "no_such_gene" in page.text["trust"]
    assert "Warnings during the run" in page.text["trust"]
    assert "is 'FPKM', but counts" in page.text["trust"]
    assert "agreement cannot be counted" in page.text["answers"]
    assert "<script>" in page.text["answers"]  # as text; Page refuses the tag


def test_metadata_add_columns_and_text_matches_numbers(quick, study, tmp_path):
    adata = ad.read_h5ad(study)
    extra = pd.DataFrame({"arm": ["0" if v == "none" else "1" for v in adata.obs["virus"]]})
    extra.insert(0, "sample", list(adata.obs_names))
    extra.to_csv(tmp_path / "arms.tsv", sep="\t", index=False)
    out = tmp_path / "out"
    chosen = ["--groupby", "arm", "--control", "0", "--by", "study"]
    assert run("--counts", study, "--metadata", tmp_path / "arms.tsv", *chosen, "-o", out) == 0
    assert set(ad.read_h5ad(out / "contrasts.h5ad").obs["arm"]) == {"1"}
    adata.obs["dose"] = (adata.obs["virus"] != "none").astype(int)
    adata.write_h5ad(study)
    assert run("--counts", study, "--groupby", "dose", "--control", "0", "--output", out) == 0


def test_tables_give_the_same_as_h5ad(quick, report, study, tmp_path):
    adata = ad.read_h5ad(study)
    table = adata.to_df().T.astype(int)
    table.insert(0, "Chr", "chr1")
    table.to_csv(tmp_path / "counts.csv")
    adata.obs.iloc[::-1].rename_axis("sample").to_csv(tmp_path / "samples.csv")
    both = ("--counts", tmp_path / "counts.csv", "--metadata", tmp_path / "samples.csv")
    assert run(*both, "--by", "study", "--output", tmp_path) == 0
    expected, found = report[2], ad.read_h5ad(tmp_path / "contrasts.h5ad")
    assert list(found.obs_names) == list(expected.obs_names)
    np.testing.assert_allclose(found.X, expected.X, atol=1e-5)
    assert (
        "have no line in the metadata and are left out: Chr." in read_page(tmp_path).text["trust"]
    )


def test_without_counts_it_runs_on_bundled_data(quick, tmp_path, capsys):
    assert run("--output", tmp_path) == 0
    assert "GSE147507" in read_page(tmp_path).text["made"]
    assert len(pd.read_csv(tmp_path / "calls.csv")) == 4
    shown_text = capsys.readouterr().out
    assert "Series1|SARS-CoV-2_vs_none" in shown_text
    assert f"report: {tmp_path / 'report.html'}" in shown_text


def test_what_a_tool_refuses_is_reported_and_the_rest_goes_on(study, tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise KeyError("this model has no classifier.")

    (tmp_path / "host_factors.csv").write_text("earlier")
    monkeypatch.setattr("cfm.tl.host_factors", refuse)
    assert run("--counts", study, "--groupby", "virus", "--output", tmp_path) == 0
    page = read_page(tmp_path)
    assert "Not computed for these contrasts: this model has no" in page.text["host_factors"]
    assert "host_factors" not in page.pictures
    assert not (tmp_path / "host_factors.csv").exists()
    drugs = pd.read_csv(tmp_path / "drug_screen.csv")
    assert drugs["target_score"].isna().all()  # no host factors, so no evidence from targets
    assert "cfm.tl.host_factors" not in {row[0] for row in page.rows["made"]}


# --- what is refused ------------------------------------------------------------------------


def test_refusals(study, tmp_path, capsys, monkeypatch):
    out = ("--output", tmp_path / "out")
    assert "does not exist" in refused(capsys, "--counts", "none.h5ad", *out)
    line = refused(capsys, "--counts", study, "--metadata", "none.csv", *out)
    assert "none.csv does not exist" in line
    for option, name in (("--groupby", "strain"), ("--control", "mock"), ("--by", "donor")):
        assert name in refused(capsys, "--counts", study, *out, option, name)
    (tmp_path / "broken.h5ad").write_bytes(b"not hdf5")
    assert "broken.h5ad" in refused(capsys, "--counts", tmp_path / "broken.h5ad", *out)
    (tmp_path / "file").write_text("")
    assert "cannot write" in refused(capsys, "--counts", study, "--output", tmp_path / "file")
    monkeypatch.setattr("cfm.hub.resolve", REAL_RESOLVE)
    assert "'no-such'" in refused(capsys, "--counts", "none.h5ad", "--model", "no-such", *out)


@pytest.mark.skipif(not os.path.exists("/proc"), reason="needs errors of Linux")
def test_a_full_disk_is_named_and_leaves_what_was_there(
    quick, study, tmp_path, capsys, monkeypatch
):
    def write_a_part(adata, path, *args, **kwargs):
        Path(path).write_bytes(b"part")
        raise OSError("[Errno 28] Can't close file (No space left on device, buf = 0x55)")

    (tmp_path / "contrasts.h5ad").write_bytes(b"earlier")
    monkeypatch.setattr(ad.AnnData, "write_h5ad", write_a_part)
    assert run("--counts", study, "--output", tmp_path) == 75
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the disk is full" in line
    assert "buf" not in line
    assert (tmp_path / "contrasts.h5ad").read_bytes() == b"earlier"
    assert not list(tmp_path.glob(".contrasts*"))


@pytest.mark.slow
def test_bundled_demo_end_to_end(tmp_path):
    """In a process of its own, with the real models."""
    import subprocess

    from tests.cli._runs import COMMAND, PATIENCE, environment

    command = [*COMMAND, "demo", "--quiet", "--output", str(tmp_path)]
    subprocess.run(command, env=environment(), check=True, timeout=PATIENCE, capture_output=True)
    contrasts, page = ad.read_h5ad(tmp_path / "contrasts.h5ad"), read_page(tmp_path)
    sha = contrasts.uns[KEY]["params"]["sha256"]
    assert len(sha) == 64
    assert sha in page.text["made"]
    matches = contrasts.uns[KEY]["matches"]
    assert set(matches["query"]) == set(contrasts.obs_names)
    assert "GSE147507" not in set(matches["study"])  # not by itself
    assert set(EXPLAINED) <= set(contrasts.uns)
    assert not any("Not computed" in page.text[name] for name in EXPLAINED)
