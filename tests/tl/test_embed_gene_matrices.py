"""``cfm.tl.embed(level="gene", output=…)``: a matrix of genes for each sample, in a file."""

from __future__ import annotations

from pathlib import Path

import anndata as ad
import numpy as np
import pandas as pd
import pytest
import zarr

import cfm
from cfm.models import BulkFormer
from cfm.tl import _embed
from tests._bulk import toy_bulkformer, toy_log_tpm

KEY = "X_bulkformer_genes"


@pytest.fixture
def samples() -> ad.AnnData:
    return toy_log_tpm(seed=3, n=12)


def expected(samples: ad.AnnData) -> np.ndarray:
    parts = toy_bulkformer().get_gene_embeddings(samples, precision="float32")
    return np.concatenate([embedded for _, embedded in parts])


@pytest.mark.parametrize("suffix", [".zarr", ".h5ad"])
def test_a_matrix_for_each_sample(samples: ad.AnnData, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"genes{suffix}"
    found = cfm.tl.embed(samples, toy_bulkformer(), level="gene", output=path, precision="float32")
    assert KEY not in samples.obsm
    assert KEY not in samples.uns
    assert list(found.uns[KEY]["genes"]) == samples.var_names.tolist()
    rows = np.asarray(found[[7, 2]].obsm[KEY])
    np.testing.assert_allclose(
        rows.reshape(2, 80, -1), expected(samples)[[7, 2]], rtol=1e-4, atol=1e-5
    )


def test_samples_are_chunks_of_the_file(
    samples: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cfm.data._result_store._STORED_BYTES", {".zarr": 4 * 80 * 19})
    path = tmp_path / "genes.zarr"
    cfm.tl.embed(samples, toy_bulkformer(), level="gene", output=path)
    assert zarr.open(str(path))[f"obsm/{KEY}"].chunks == (1, 80 * 19)


def test_chosen_genes_and_features(samples: ad.AnnData, tmp_path: Path) -> None:
    table = pd.DataFrame({"a": [1.0, 2.0]}, index=["GENE3", "GENE9"])
    found = cfm.tl.embed(
        samples,
        toy_bulkformer(),
        level="gene",
        genes=["GENE9", "GENE4"],
        gene_features=table,
        output=tmp_path / "genes.zarr",
        precision="float32",
    )
    made = found.obsm[KEY][:].reshape(12, 2, 20)
    np.testing.assert_allclose(made[..., :19], expected(samples)[:, [9, 4]], rtol=1e-4, atol=1e-5)
    assert (made[:, 0, 19] == 2.0).all()
    assert np.isnan(made[:, 1, 19]).all()
    assert found.uns[KEY]["params"]["gene_features"] == "2 genes × 1"
    for genes in (["GENE1", "NOWHERE"], [], ["GENE1", "GENE1"]):
        with pytest.raises(KeyError, match="genes= holds"):
            cfm.tl.embed(
                samples, toy_bulkformer(), level="gene", genes=genes, output=tmp_path / "b.zarr"
            )


def test_a_stopped_run_goes_on(
    samples: ad.AnnData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_embed, "_CHUNK_VALUES", 5 * 80 * 1024)  # chunks of five samples
    real, seen = BulkFormer.get_gene_embeddings, []

    def stopped(self, adata, **kwargs):
        seen.append(adata.n_obs)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return real(self, adata, **kwargs)

    monkeypatch.setattr(BulkFormer, "get_gene_embeddings", stopped)
    arguments = {"level": "gene", "output": tmp_path / "genes.zarr", "precision": "float32"}
    with pytest.raises(KeyboardInterrupt):
        cfm.tl.embed(samples, toy_bulkformer(), **arguments)
    with pytest.raises(ValueError, match="finished chunks of another run"):
        cfm.tl.embed(samples, toy_bulkformer(), **(arguments | {"genes": ["GENE1"]}))
    found = cfm.tl.embed(samples, toy_bulkformer(), **arguments)
    assert seen == [5, 5, 5, 2]
    np.testing.assert_allclose(
        found.obsm[KEY][:].reshape(12, 80, -1), expected(samples), rtol=1e-4, atol=1e-5
    )
