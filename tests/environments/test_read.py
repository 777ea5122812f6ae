"""Files that the newest and the constrained environment wrote are read by every environment."""

from __future__ import annotations

import zipfile
from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest

import cfm
from cfm.data._result_store import ResultStore

# The archives are small: 300 genes.
pytestmark = pytest.mark.filterwarnings("ignore:Only 2% of the model:UserWarning")

ARCHIVES = sorted(Path(__file__).parent.glob("*.zip"))


@pytest.fixture(scope="module", params=ARCHIVES, ids=lambda p: p.stem)
def written(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param.stem)
    with zipfile.ZipFile(request.param) as archive:
        archive.extractall(folder)
    return folder


def _read(path: Path) -> ad.AnnData:
    return ad.read_h5ad(path) if path.suffix == ".h5ad" else ad.read_zarr(path)


def test_two_environments_wrote() -> None:
    assert [path.stem for path in ARCHIVES] == ["constraints", "latest"]


@pytest.mark.parametrize("name", ["results.h5ad", "results.zarr"])
def test_results(written: Path, name: str) -> None:
    adata = _read(written / name)
    assert list(adata.obs["text"]) == [f"sample {i}" for i in range(adata.n_obs)]
    assert adata.obs["missing"].isna().sum() == adata.n_obs // 2
    assert list(adata.obs["missing"].cat.categories) == ["a"]
    assert adata.obs["flag"].dtype == bool
    assert adata.obs["flag"].sum() == -(-adata.n_obs // 2)
    assert adata.uns["contrasts"]["params"]["groupby"] == "virus"
    first = adata.obsm["X_cellpulse"].copy()
    cfm.tl.embed(adata, "cellpulse-mini", key_added="again")
    assert adata.obsm["again"].shape == first.shape


@pytest.mark.parametrize("name", ["results.h5ad", "results.zarr"])
@pytest.mark.parametrize("suffix", [".h5ad", ".zarr"])
def test_what_was_read_is_written_again(
    written: Path, name: str, suffix: str, tmp_path: Path
) -> None:
    adata = _read(written / name)
    cfm.tl.predict_virus(adata, output=tmp_path / f"called{suffix}", key_added="here")
    called = _read(tmp_path / f"called{suffix}")
    assert list(called.obs_names) == list(adata.obs_names)
    for column in ("text", "missing", "flag", "predicted_virus"):
        pd.testing.assert_series_equal(
            called.obs[column], adata.obs[column], check_dtype=False, check_index=False
        )
    assert "here" in called.obs


def test_output_of_a_tool(written: Path) -> None:
    results, output = _read(written / "results.h5ad"), _read(written / "output.h5ad")
    assert list(output.obs_names) == list(results.obs_names)
    np.testing.assert_allclose(
        output.obsm["X_cellpulse"], results.obsm["X_cellpulse"], rtol=1e-4, atol=1e-5
    )


def test_checkpoint(written: Path) -> None:
    model = cfm.models.CellPulse.load(written / "checkpoint")
    adata = _read(written / "results.h5ad")
    expected = np.load(written / "latent.npy")
    np.testing.assert_allclose(
        model.get_latent_representation(adata), expected, rtol=1e-3, atol=1e-4
    )


def test_reference(written: Path) -> None:
    pytest.importorskip("pyarrow")
    reference = cfm.data.Reference.from_parquet(written / "reference.parquet")
    vectors = _read(written / "results.h5ad").obsm["X_cellpulse"]
    similarity, place = reference.search(np.asarray(vectors), 1)
    np.testing.assert_allclose(similarity[:, 0], 1, atol=1e-5)
    assert list(place[:, 0]) == list(range(reference.n))


def test_chunks_of_a_run_that_was_not_finished(written: Path) -> None:
    store = ResultStore(written / "unfinished.h5ad")
    store.begin({"tool": "embed"})
    chunk = store.read(0)
    store.release()
    results = _read(written / "results.h5ad")
    assert list(chunk["name"]) == list(results.obs_names)
    np.testing.assert_array_equal(chunk["embedding"], results.obsm["X_cellpulse"])
