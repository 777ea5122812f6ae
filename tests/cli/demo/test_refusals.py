"""``cfm demo``: bad input gives one clear line."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import anndata as ad
import numpy as np
import pytest

from cfm import hub
from cfm._report._read import read_counts
from tests.cli.demo._demo import refused, run

REAL_RESOLVE = hub.resolve


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
    folder = tmp_path / "broken.zarr"
    folder.mkdir()
    assert "broken.zarr" in refused(capsys, "--counts", folder, "--output", tmp_path)
    assert "does not exist" in refused(capsys, "--counts", "none.zarr", "--output", tmp_path)
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
