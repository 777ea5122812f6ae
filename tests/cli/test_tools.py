"""Commands on files give what the tools give in memory."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from tests.cli._runs import cells, cfm_main, contrasts, events, read, write

pytestmark = pytest.mark.filterwarnings("ignore:Only .* of the model")


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    return write(contrasts(), tmp_path / "in.h5ad")


@pytest.fixture(scope="module")
def embedded() -> ad.AnnData:
    adata = contrasts()
    cfm.tl.embed(adata, "cellpulse-mini")
    return adata


# --- what comes out -------------------------------------------------------------------------


@pytest.mark.parametrize(("of", "into"), [(".h5ad", ".zarr"), (".zarr", ".h5ad")])
def test_embed(of, into, embedded, tmp_path):
    source = write(contrasts(), tmp_path / f"in{of}")
    out = tmp_path / f"out{into}"
    assert cfm_main("embed", source, "-o", out) == 0
    found = read(out)
    assert found.X is None
    assert list(found.obsm) == ["X_cellpulse"]
    np.testing.assert_array_equal(found.obsm["X_cellpulse"], embedded.obsm["X_cellpulse"])
    assert found.obs.equals(embedded.obs)
    sha = embedded.uns["X_cellpulse"]["params"]["sha256"]
    assert found.uns["X_cellpulse"]["params"]["sha256"] == sha
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, out.name])


@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_keep_input_is_a_copy_with_results(suffix, embedded, tmp_path, monkeypatch):
    n_rows, width = embedded.obsm["X_cellpulse"].shape
    monkeypatch.setattr("cfm._cli._files._VALUES", (n_rows - 1) * width)  # all but one
    adata = contrasts()
    adata.layers["twice"] = adata.X * 2
    adata.obsm["X_cellpulse"] = np.ones((adata.n_obs, 3))  # of an earlier version, replaced
    adata.raw = adata.copy()
    source = write(adata, tmp_path / f"in{suffix}")
    before = source.read_bytes() if suffix == ".h5ad" else None
    out = tmp_path / f"out{suffix}"
    assert cfm_main("embed", source, "-o", out, "--keep-input") == 0
    found = read(out)
    np.testing.assert_array_equal(found.obsm["X_cellpulse"], embedded.obsm["X_cellpulse"])
    np.testing.assert_array_equal(found.obsm["kept"], adata.obsm["kept"])
    np.testing.assert_array_equal(found.X, adata.X)
    np.testing.assert_array_equal(found.layers["twice"], adata.layers["twice"])
    assert found.raw is not None
    assert found.uns["X_cellpulse"]["params"]["model"] == "cellpulse-mini"
    assert found.uns["contrasts"]["params"]["mode"] == "replicates"
    if before is not None:
        assert source.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([source.name, out.name])


def test_an_input_may_be_a_link_to_a_sealed_file(profiles, tmp_path):
    """As workflow managers stage them."""
    profiles.chmod(0o400)
    (tmp_path / "work").mkdir()
    link = tmp_path / "work" / "in.h5ad"
    link.symlink_to(profiles)
    out = tmp_path / "work" / "out.h5ad"
    assert cfm_main("calls", link, "-o", out, "--keep-input") == 0
    assert not out.is_symlink()
    assert link.is_symlink()
    assert "predicted_virus" in read(out).obs


def test_predict_virus_as_a_table(profiles, tmp_path, monkeypatch):
    monkeypatch.setattr("cfm._cli._files._ROWS", 7)
    out = tmp_path / "calls.tsv"
    assert cfm_main("calls", profiles, "-o", out, "--names", "always") == 0
    expected = contrasts()
    cfm.tl.predict_virus(expected, names="always")
    found = pd.read_csv(out, sep="\t", index_col=0)
    assert list(found.index) == list(expected.obs_names)
    assert found["predicted_virus"].tolist() == expected.obs["predicted_virus"].astype(str).tolist()
    for field, name in (("proba", "IAV"), ("response_proba", "viral")):
        proba = expected.obsm[f"predicted_virus_{field}"][name]
        np.testing.assert_allclose(found[f"predicted_virus_{field}_{name}"], proba, rtol=1e-6)
    assert not list(tmp_path.glob(".*"))


def test_predict_virus_of_counts(tmp_path):
    counts = cfm.datasets.blanco_melo()
    source = write(counts, tmp_path / "counts.h5ad")
    out = tmp_path / "calls.zarr"
    design = ["--groupby", "virus", "--control", "none", "--by", "series"]
    chosen = ["--prior-count", "3", "--n-matches", "2"]
    assert cfm_main("calls", source, "-o", out, *design, *chosen) == 0
    expected = cfm.tl.predict_virus(
        counts, groupby="virus", control="none", by="series", prior_count=3, n_matches=2
    )
    found = read(out)
    assert found.obs_names.equals(expected.obs_names)
    for column in ("predicted_virus", "predicted_virus_response"):
        assert found.obs[column].equals(expected.obs[column])
    matches = found.uns["predicted_virus"]["matches"]
    assert matches["rank"].max() == 2
    assert matches["match"].tolist() == expected.uns["predicted_virus"]["matches"]["match"].tolist()


def test_cell_codes_and_their_reference(tmp_path):
    source = write(cells(), tmp_path / "cells.h5ad")
    codes, query = tmp_path / "codes.h5ad", tmp_path / "query.csv"
    chosen = ["--min-cells", "2"]
    assert cfm_main("codes", source, "-o", codes, "--groupby", "cell_type", *chosen) == 0
    expected = cells()
    cfm.tl.cell_codes(expected, groupby="cell_type", min_cells=2)
    found = read(codes)
    assert found.obs["cell_code"].equals(expected.obs["cell_code"])
    assert found.uns["cell_code"]["codes"].equals(expected.uns["cell_code"]["codes"])
    assert cfm_main("codes", source, "-o", query, "--reference", codes, *chosen) == 0
    table = pd.read_csv(query, index_col=0, dtype={"cell_code": str})
    assert table["cell_code"].tolist() == expected.obs["cell_code"].tolist()
    assert "cell_code_cell_type" in table


def test_impute(tmp_path):
    genes = cfm.models.load_model("bulkformer-mini").vocabulary.genes[:400]
    x = np.random.default_rng(0).uniform(0, 5, size=(6, 400)).astype(np.float32)
    x[:, ::50] = np.nan
    adata = ad.AnnData(x, var=pd.DataFrame(index=genes))
    source, out = write(adata, tmp_path / "samples.zarr"), tmp_path / "filled.zarr"
    assert cfm_main("impute", source, "-o", out, "--model", "bulkformer-mini") == 0
    cfm.tl.impute(adata, "bulkformer-mini")
    found = read(out)
    np.testing.assert_array_equal(found.layers["imputed"], adata.layers["imputed"])
    assert found.uns["imputed"]["n_imputed"] == 48


@pytest.mark.parametrize("into", [".h5ad", ".csv"])
def test_embed_donors(into, tmp_path):
    adata = cells()
    rng = np.random.default_rng(0)
    adata.obsm["X_pca"] = rng.normal(size=(adata.n_obs, 10)).astype(np.float32)
    cfm.models.Pulsar.setup_anndata(adata, "donor", use_rep="X_pca")
    model = cfm.models.Pulsar(adata, dim=16, encoder_layers=1).save(tmp_path / "model")
    source, out = write(adata, tmp_path / "cells.h5ad"), tmp_path / f"donors{into}"
    chosen = ["--model", model, "--donor-key", "donor", "--use-rep", "X_pca"]
    assert cfm_main("donors", source, "-o", out, *chosen, "--n-cells", "all") == 0
    expected = cfm.tl.embed_donors(adata, "donor", model, use_rep="X_pca", n_cells=None)
    if into == ".csv":
        found = (
            pd.read_csv(out, index_col=0).filter(like="X_pulsar_").drop(columns="X_pulsar_spread")
        )
        np.testing.assert_allclose(found, expected.obsm["X_pulsar"], rtol=1e-5)
    else:
        found = read(out)
        np.testing.assert_array_equal(found.obsm["X_pulsar"], expected.obsm["X_pulsar"])
        assert "n_cells" not in found.uns["X_pulsar"]["params"]  # all, not 1,024
    assert not list(tmp_path.glob(".*"))


@pytest.mark.filterwarnings("ignore:In 3 of 3 donors over half")
def test_embed_donors_from_counts(tmp_path):
    adata = cfm.datasets.toy_donors(n_donors=3, n_cells=20)
    adata.layers["counts"] = adata.X.copy()
    adata.X = np.log1p(adata.X)
    source, out = write(adata, tmp_path / "cells.h5ad"), tmp_path / "donors.h5ad"
    assert cfm_main("donors", source, "-o", out, "--layer", "counts") == 0
    expected = cfm.tl.embed_donors(adata, layer="counts")
    np.testing.assert_allclose(read(out).obsm["X_pulsar"], expected.obsm["X_pulsar"], atol=1e-5)
    assert cfm_main("donors", source, "-o", tmp_path / "other.h5ad") == 2


def test_several_files_whose_genes_differ(embedded, tmp_path):
    adata = contrasts()
    first = write(adata[:10].copy(), tmp_path / "a.h5ad")
    second = write(adata[10:, ::-1].copy(), tmp_path / "b.zarr")
    out = tmp_path / "out.h5ad"
    assert cfm_main("embed", first, second, "-o", out) == 0
    found = read(out)
    assert found.obs_names.equals(adata.obs_names)
    np.testing.assert_allclose(
        found.obsm["X_cellpulse"], embedded.obsm["X_cellpulse"], rtol=1e-4, atol=1e-5
    )
    assert set(found.obs["file"]) == {"a.h5ad", "b.zarr"}


# --- what is there already ------------------------------------------------------------------


def test_an_output_that_exists(profiles, tmp_path, capsys):
    out = tmp_path / "out.h5ad"
    out.write_text("earlier")
    log = tmp_path / "log"
    assert cfm_main("embed", profiles, "-o", out) == 2
    assert "--overwrite replaces it" in capsys.readouterr().err
    assert cfm_main("embed", profiles, "-o", out, "--skip-existing", "--log", log) == 0
    assert out.read_text() == "earlier"
    assert [e["event"] for e in events(log)] == ["start", "skipped", "end"]
    for more in ([], ["--keep-input"]):
        assert cfm_main("embed", profiles, "-o", out, "--overwrite", *more) == 0
        assert "X_cellpulse" in read(out).obsm
    table = tmp_path / "t.csv"
    table.write_text("earlier")
    assert cfm_main("calls", profiles, "-o", table) == 2
    assert cfm_main("calls", profiles, "-o", table, "--overwrite") == 0
    assert table.read_text().startswith("name,")


# --- the second step ------------------------------------------------------------------------


def stop_second_step(monkeypatch, error: BaseException) -> None:
    def fail(*arguments: object, **options: object) -> None:
        made = arguments[-1]
        if isinstance(made, Path):
            made.write_bytes(b"half")
        raise error

    monkeypatch.setattr("cfm._cli._files.copy_with_results", fail)
    monkeypatch.setattr("cfm._cli._files.write_table", fail)


@pytest.mark.parametrize("how", [["-o", "out.h5ad", "--keep-input"], ["-o", "out.csv"]])
def test_results_are_made_once(how, profiles, tmp_path, monkeypatch, capsys):
    """A run that stops while it writes the copy or the table goes on from the results."""
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        stop_second_step(patch, OSError(28, "No space left on device"))
        assert cfm_main("embed", profiles, *how) == 75
    assert not Path(how[1]).exists()
    (work,) = tmp_path.glob(".*")
    assert sorted(p.name for p in work.iterdir()) == ["cfm.lock", "results.h5ad", "run.json"]

    with monkeypatch.context() as patch:
        patch.setattr("cfm._cli._run._compute", None)  # not called again
        assert cfm_main("embed", profiles, *how) == 0
    assert not list(tmp_path.glob(".*"))


def test_results_of_another_call_are_not_taken(profiles, tmp_path, monkeypatch, capsys):
    call = ["calls", profiles, "-o", tmp_path / "out.csv"]
    with monkeypatch.context() as patch:
        stop_second_step(patch, KeyboardInterrupt())
        assert cfm_main(*call) == 130
    assert cfm_main(*call, "--names", "always") == 2
    assert "results of another call for the same OUT (names was None" in capsys.readouterr().err
    adata = contrasts(20)
    profiles.unlink()
    write(adata, profiles)
    assert cfm_main(*call) == 2
    assert "(input 1 (in.h5ad) was '1 file, " in capsys.readouterr().err
    assert cfm_main(*call, "--overwrite") == 0
    assert len(pd.read_csv(tmp_path / "out.csv")) == 20


def test_a_folder_without_its_record_is_begun_anew(profiles, tmp_path):
    """It was killed before it could say what it is of."""
    work = tmp_path / ".out.csv.work"
    work.mkdir()
    (work / "cfm.lock").touch()
    (work / "results.h5ad").write_bytes(b"half")
    assert cfm_main("embed", profiles, "-o", tmp_path / "out.csv") == 0
    assert not work.exists()


@pytest.mark.parametrize("name", ["out.csv", "out.h5ad"])
def test_a_refused_command_is_not_in_the_way(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    adata = cells()
    adata.layers["log"] = np.log1p(adata.X)
    write(adata, tmp_path / "in.h5ad")
    call = ["embed", "in.h5ad", "-o", name, "--model", "cellvq-mini"]
    assert cfm_main(*call, "--layer", "log") == 2
    assert [p.name for p in tmp_path.iterdir()] == ["in.h5ad"]
    assert cfm_main(*call) == 0
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.h5ad", name]


def test_a_folder_of_that_name_is_left_alone(profiles, tmp_path, capsys):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "results.h5ad").write_bytes(b"mine")
    (tmp_path / ".out.csv.work").symlink_to(mine)
    assert cfm_main("embed", profiles, "-o", tmp_path / "out.csv", "--overwrite") == 2
    assert "is a link and is left as it is" in capsys.readouterr().err
    assert [p.read_bytes() for p in mine.iterdir()] == [b"mine"]


def test_a_table_that_appears_during_the_run_stays(profiles, tmp_path, monkeypatch, capsys):
    from cfm._cli import _files

    out, plain = tmp_path / "out.csv", _files.write_table

    def meanwhile(*arguments: object, **options: object) -> None:
        out.write_text("theirs")
        plain(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(_files, "write_table", meanwhile)
        assert cfm_main("embed", profiles, "-o", out) == 2
    assert "appeared during the run" in capsys.readouterr().err
    assert out.read_text() == "theirs"
    assert cfm_main("embed", profiles, "-o", out, "--overwrite") == 0
    assert out.read_text().startswith("name,")
    assert not list(tmp_path.glob(".*"))


# --- what is refused ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["embed", "none.h5ad", "-o", "out.h5ad"], "none.h5ad does not exist"),
        (["embed", "in.xlsx", "-o", "out.h5ad"], "in '.xlsx'; expected .h5ad, .zarr, .h5mu"),
        (["embed", "in.h5ad", "in.csv", "-o", "out.h5ad"], "have to be .h5ad or .zarr"),
        (["embed", "in.h5ad", "-o", "out.h5ad", "--modality", "rna"], "of an .h5mu"),
        (["embed", "in.h5ad", "--overwrite"], "go with -o OUT"),
        (["donors", "in.h5ad", "-o", "o.h5ad", "--n-cells", "few"], "or all"),
        (["embed", "in.h5ad", "-o", "out.txt"], "which ends in '.txt'"),
        (["embed", "in.h5ad", "-o", "none/out.h5ad"], "the folder of none/out.h5ad does not"),
        (["embed", "in.h5ad", "-o", "in.h5ad"], "in.h5ad, which is read; choose another OUT"),
        (["embed", "in.h5ad", "-o", "./in.h5ad", "--overwrite"], "which is read; choose"),
        (["embed", "in.h5ad", "-o", "o.h5ad", "--log", "./in.h5ad"], "which is read; choose"),
        (
            ["codes", "in.h5ad", "-o", "damaged.h5ad", "--reference", "./damaged.h5ad"],
            "which is read; choose another OUT",
        ),
        (["embed", "in.h5ad", "in.h5ad", "-o", "o.h5ad", "--keep-input"], "copies one IN, found 2"),
        (["embed", "in.h5ad", "-o", "o.zarr", "--keep-input"], "of the same kind as IN"),
        (
            ["calls", "in.h5ad", "-o", "o.h5ad", "--keep-input", "--groupby", "virus"],
            "rows are not those of IN",
        ),
        (["calls", "in.h5ad", "-o", "o.h5ad", "--groupby", "virus"], "give both"),
        (["calls", "in.h5ad", "-o", "o.csv", "--by", "study"], "only go with --groupby"),
        (["embed", "in.h5ad", "-o", "o.h5ad", "--model", "no-such"], "'no-such'"),
        (["embed", "in.h5ad", "-o", "o.h5ad", "--layer", "none"], "no layer 'none'"),
        (["embed", "in.h5ad", "-o", "o.h5ad", "--units", "counts"], "units"),
        (["embed", "in.h5ad", "-o", "o.h5ad", "--chunk-size", "0"], "--chunk-size 0"),
        (["embed", "damaged.h5ad", "-o", "o.h5ad"], "damaged.h5ad"),
        (["donors", "in.h5ad", "-o", "o.h5ad"], "'donor_id'"),
    ],
)
def test_refusals(arguments, message, profiles, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.csv").write_text("")
    (tmp_path / "in.xlsx").write_text("")
    (tmp_path / "damaged.h5ad").write_bytes(profiles.read_bytes()[:3000])
    before, content = sorted(tmp_path.rglob("*")), profiles.read_bytes()
    assert cfm_main(*arguments) == 2
    line = capsys.readouterr().err.strip()
    assert message in line
    assert line.startswith("cfm: error: ")
    assert "\n" not in line
    assert sorted(tmp_path.rglob("*")) == before
    assert profiles.read_bytes() == content
