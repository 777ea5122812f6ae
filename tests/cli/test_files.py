"""Tables of counts, metadata and modalities: what is read, and what is refused in one line."""

from __future__ import annotations

import gzip
import inspect
import logging
import sys
from pathlib import Path
from types import SimpleNamespace

import anndata as ad
import mudata
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm._cli import _TOOLS, main
from cfm._cli._files import read_inputs
from tests.cli._runs import cells, cfm_main, contrasts, read, write

pytestmark = [
    pytest.mark.filterwarnings("ignore:Only .* of the model"),
    pytest.mark.filterwarnings("ignore:.* have no known length"),
]
GENES = ["ISG15", "MX1", "STAT1", "IFIT1", "OAS1"]


def reading(path: Path, **options: object) -> ad.AnnData | list[Path]:
    known = dict.fromkeys(("metadata", "sample_column", "orientation", "modality"))
    return read_inputs(SimpleNamespace(**(known | options)), [path])


@pytest.fixture
def table() -> pd.DataFrame:
    """Samples by genes."""
    counts = np.random.default_rng(0).poisson(50, size=(3, 5))
    return pd.DataFrame(counts, ["a", "b", "c"], GENES)


@pytest.mark.parametrize("samples", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("suffix", [".csv", ".tsv.gz"])
def test_orientation_is_found_and_reported(suffix, transposed, samples, table, tmp_path, caplog):
    caplog.set_level(logging.INFO, "cfm")
    path = tmp_path / f"counts{suffix}"
    (table.T if transposed else table).to_csv(path, sep="," if suffix == ".csv" else "\t")
    options = {}
    if samples:
        pd.DataFrame({"virus": list("xyz")}, list("cba")).to_csv(tmp_path / "s.csv")
        options["metadata"] = tmp_path / "s.csv"
    adata = reading(path, **options)
    assert isinstance(adata, ad.AnnData)
    pd.testing.assert_frame_equal(adata.to_df(), table.astype(np.float32))
    assert f"genes in {'rows' if transposed else 'columns'}" in caplog.text
    if samples:
        assert adata.obs["virus"].tolist() == list("zyx")


def test_comments_tallies_and_unknown_samples_are_left_out(table, tmp_path):
    frame = table.T
    frame.loc["__no_feature"] = 7
    frame.insert(0, "Chr", "chr1")
    path = tmp_path / "counts.txt"
    path.write_text('# Program:featureCounts "x\n#' + frame.to_csv(sep="\t", index_label="Geneid"))
    pd.DataFrame({"v": ["x", "y", "z"]}, [" a", "b", "d"]).to_csv(tmp_path / "s.csv")
    with (
        pytest.warns(UserWarning, match="no genes but"),
        pytest.warns(UserWarning, match="left out: Chr, c"),
        pytest.warns(UserWarning, match="no counts in counts.txt: d"),
    ):
        adata = reading(path, metadata=tmp_path / "s.csv")
    assert isinstance(adata, ad.AnnData)
    pd.testing.assert_frame_equal(
        adata.to_df(), table.loc[["a", "b"]].astype(np.float32), check_names=False
    )


@pytest.mark.parametrize(
    ("counts", "samples", "expected"),
    [
        ("gene,a,b\nISG15,1,x\n", "s,virus\na,none\nb,IAV\n", "'b' and gene 'ISG15' holds 'x'"),
        ("gene,a,b\nISG15,1,\n", "s,virus\na,none\nb,IAV\n", "'b' and gene 'ISG15' is empty"),
        ("gene,a,a\nISG15,1,2\n", "s,virus\na,none\nb,IAV\n", "column 'a' 2 times"),
        ("gene,a,b\nISG15,1,2\n", "s,virus\na,none\na,IAV\n", "1 repeated sample names"),
        ("gene,a,b\nISG15,1,2\n", "s,virus\nc,none\nd,IAV\n", "none of the samples"),
        ("gene;a;b\nISG15;1,5;2\n", "s,virus\na,none\nb,IAV\n", "separated by ';'"),
        ("gene\nISG15\n", "s,virus\na,none\nb,IAV\n", "expected at least one of each"),
        ("", "s,virus\na,none\n", "cannot be read as a table"),
        ("name,x,y\nu,1,2\n", "", "give --orientation"),
    ],
)
def test_bad_tables(tmp_path, capsys, counts, samples, expected):
    (tmp_path / "counts.csv").write_text(counts)
    call = ["calls", tmp_path / "counts.csv"]
    if samples:
        (tmp_path / "samples.csv").write_text(samples)
        call += ["--metadata", tmp_path / "samples.csv"]
    assert cfm_main(*call) == 2
    line = capsys.readouterr().err.strip()
    assert expected in line
    assert "\n" not in line


def test_damaged_files(tmp_path, table, capsys):
    packed = tmp_path / "counts.csv.gz"
    packed.write_bytes(gzip.compress(table.to_csv().encode() * 99)[:40])
    with pytest.raises(ValueError, match="cannot be read as a table"):
        reading(packed)
    latin = tmp_path / "counts.csv"
    latin.write_bytes("gene,a\nISG15é,1\n".encode("latin1"))
    with pytest.raises(ValueError, match="UTF-8"):
        reading(latin)
    with pytest.raises(ValueError, match="unknown file type"):
        reading(latin, metadata=tmp_path / "s.xlsx")


def test_a_modality_is_read(tmp_path):
    rna = contrasts(4)
    mudata.MuData({"rna": rna}).write(tmp_path / "in.h5mu")
    out = tmp_path / "out.h5ad"
    assert cfm_main("embed", tmp_path / "in.h5mu", "--modality", "rna", "-o", out) == 0
    cfm.tl.embed(rna)
    np.testing.assert_array_equal(read(out).obsm["X_cellpulse"], rna.obsm["X_cellpulse"])
    assert cfm_main("embed", tmp_path / "in.h5mu", "--modality", "x", "-o", tmp_path / "x.csv") == 2


# --- tables in and out of every command -----------------------------------------------------


@pytest.fixture
def counts(tmp_path) -> tuple[Path, ad.AnnData]:
    """Counts of six samples as a table of genes by samples, and their metadata."""
    adata = cfm.datasets.blanco_melo()[:6].copy()
    adata.to_df().T.to_csv(tmp_path / "counts.csv")
    arms = ["mock" if virus == "none" else "infected" for virus in adata.obs["virus"]]
    adata.obs = pd.DataFrame({"arm": arms, "lane": list("abcabc")}, adata.obs_names)
    adata.obs.rename_axis("sample").to_csv(tmp_path / "samples.csv")
    return tmp_path / "counts.csv", adata


def test_calls_of_a_table_go_to_stdout(counts, tmp_path, capsys):
    path, adata = counts
    assert main(["calls", str(path), "--metadata", str(tmp_path / "samples.csv")]) == 0
    shown = capsys.readouterr()
    expected = cfm.tl.predict_virus(adata, groupby="arm", control="mock")
    (tmp_path / "stdout.csv").write_text(shown.out)  # results and nothing else
    found = pd.read_csv(tmp_path / "stdout.csv")
    assert found["contrast"].tolist() == list(expected.obs_names)
    response = expected.obs["predicted_virus_response"].astype(str).tolist()
    assert found["response"].tolist() == response
    assert "each level of arm against mock" in shown.err
    assert "genes in rows" in shown.err


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"x": list("abcabc")}, "no column has"), ({"x": ["mock", *"abcde"]}, "several columns have")],
)
def test_controls_are_not_guessed(columns, message, counts, tmp_path, capsys):
    samples = counts[1].obs.assign(**columns)
    samples = samples if message[0] == "s" else samples.drop(columns="arm")
    samples.to_csv(tmp_path / "other.csv")
    assert cfm_main("calls", counts[0], "--metadata", tmp_path / "other.csv") == 2
    assert message in capsys.readouterr().err


def test_tpm_and_its_table(counts, tmp_path):
    path, adata = counts
    assert cfm_main("tpm", path, "-o", tmp_path / "tpm.csv") == 0
    cfm.pp.tpm(adata)
    found = pd.read_csv(tmp_path / "tpm.csv", index_col=0)
    np.testing.assert_allclose(found.T, adata.to_df(layer="log_tpm"), rtol=1e-5)
    source = write(cells(20), tmp_path / "in.zarr")
    assert cfm_main("tpm", source, "-o", tmp_path / "out.zarr", "--keep-input") == 0
    copy, expected = read(tmp_path / "out.zarr"), cells(20)
    cfm.pp.tpm(expected)
    difference = abs(copy.layers["log_tpm"] - expected.layers["log_tpm"])
    assert difference.max() < 1e-6
    assert "gene_length" in copy.var
    assert (copy.X != expected.X).sum() == 0


def test_search_gives_matches(tmp_path):
    adata = contrasts(3)
    source = write(adata, tmp_path / "in.h5ad")
    assert cfm_main("search", source, "-o", tmp_path / "matches.csv", "--n", "2") == 0
    assert cfm_main("search", source, "-o", tmp_path / "out.h5ad", "--n", "2") == 0
    cfm.tl.search_signatures(adata, n=2)
    expected = adata.uns["signature_search"]["results"]
    stored = read(tmp_path / "out.h5ad").uns["signature_search"]["results"]
    for found in (pd.read_csv(tmp_path / "matches.csv"), stored):
        assert found["match"].tolist() == expected["match"].tolist()
    assert len(expected) == 6


def test_options_reach_their_tools(tmp_path, monkeypatch):
    """What is not given is left to the tool; the client is there while it runs."""
    source, got = write(contrasts(3), tmp_path / "in.h5ad"), {}

    def embed(paths, **options):
        got.update(options, paths=paths, chunk_size=cfm.settings.chunk_size)
        return ad.AnnData(np.ones((3, 1)))

    monkeypatch.setattr(cfm.tl, "embed", embed)
    options = ["--batch-size", "5", "--layer", "l", "--key-added", "k", "--chunk-size", "7"]
    out = tmp_path / "o.h5ad"
    assert cfm_main("embed", source, "-o", out, *options, "--device", "cpu") == 0
    assert got == {
        "paths": [source], "output": out, "model": "cellpulse-mini", "layer": "l",
        "key_added": "k", "batch_size": 5, "device": "cpu", "overwrite": False, "chunk_size": 7,
    }  # fmt: skip


def test_arguments_are_those_of_the_tools():
    further = {"precision", "units", "total_counts", "pooling", "batch_size"}  # of models
    further |= {"by", "mode", "sample_key", "min_cells", "prior_count", "describe_by"}
    for tool, options in _TOOLS.values():
        module = cfm.pp if tool.module == "cfm.pp" else cfm.tl
        known = inspect.signature(getattr(module, tool.function)).parameters
        assert set(options) - further <= set(known), tool.function


def test_a_scheduler_is_connected_while_the_tool_runs(tmp_path, monkeypatch, capsys):
    distributed = pytest.importorskip("distributed")
    source, active = write(contrasts(3), tmp_path / "in.h5ad"), []

    def embed(paths, **options):
        active.append(distributed.get_client().scheduler.address)
        return ad.AnnData(np.ones((3, 1)))

    monkeypatch.setattr(cfm.tl, "embed", embed)
    with distributed.LocalCluster(
        n_workers=1, processes=False, dashboard_address=None, protocol="tcp"
    ) as cluster:
        address = cluster.scheduler_address
        call = ["embed", source, "-o", tmp_path / "o.h5ad", "--scheduler", address]
        assert cfm_main(*call) == 0
    assert active == [address]
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert cfm_main(*call) == 2
    assert "pip install 'cfm-tools[scale]'" in capsys.readouterr().err
